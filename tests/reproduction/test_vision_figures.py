"""The LLaVA's figures from beginning to end, on the tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("PIL")

from reproduction.vision import figures

from inferaligner.fit.strength import search_prompts
from inferaligner.models.loading import LoadedModel
from tests.support.tiny_vision import backbone_of, tiny_vision


def test_every_part_is_told_and_none_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing = tiny_vision("llava")
    guide = LoadedModel(backbone_of("llava", "LlamaForCausalLM"), seeing.tokenizer, "guide")
    loaded: dict[str, Any] = {"seeing": seeing, figures.GUIDE: guide}
    monkeypatch.setattr(figures, "load_model", lambda spec, dtype: loaded[spec])
    # A random model refuses nothing; the fit only has to have something to count.
    monkeypatch.setattr(figures, "judge", lambda text: SimpleNamespace(outcome="refusal"))
    monkeypatch.setattr(search_prompts, "SCORED", 2)
    monkeypatch.setattr(search_prompts, "GENERATED", 2)
    monkeypatch.setattr(figures, "LAYERS", (2, 3))
    arguments = ["figures", "seeing", "--every", "60", "--prompts", "5", "--answers", "3", "--tokens", "3"]
    monkeypatch.setattr("sys.argv", [*arguments, "-o", str(tmp_path)])
    figures.main()
    told = json.loads((tmp_path / "figures.json").read_text())
    for name in ("text", "text and pictures"):
        gate, answers = told[f"gate, fitted on {name}"], told[f"answers, fitted on {name}"]
        assert gate["open"]["contrast-picture-twins, all"]["n"] == 5
        assert 0 <= gate["auroc against contrast-picture-twins"] <= 1
        assert set(answers["gate"]) == set(figures.SUITES)
        for suite in figures.SUITES:
            closed = answers["closed and identical"][suite]
            assert closed["n"] + answers["open"][suite] == 3
            assert closed["n"] == 0 or closed["value"] == 1.0
    assert len(told["vectors"]["cosine of SRV on text with SSV"]) == 4
    assert told["bare"]["contrast-picture-attack"]["refusal"]["n"] == 3
    assert told["time"]["seconds per 1,000 tokens, bare"] > 0
    monkeypatch.setattr(figures, "ask", None)  # nothing is asked again
    figures.main()
    assert json.loads((tmp_path / "figures.json").read_text()) == told
