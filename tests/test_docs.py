"""Code blocks of the README and of docs/ run, page by page, on tiny models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from inferaligner.fit import search_prompts
from inferaligner.prompts import contrast
from inferaligner.prompts.chat import render_chat
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.tiny_vision import backbone_of, picture, tiny_vision

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the pages take for given: two siblings, a tokenizer, prompts, inputs, a model that sees."""
    shipped = contrast.load_contrast_set()
    few = contrast.ContrastSet(
        shipped.pairs[::24], shipped.benign[::24], shipped.wrappers, shipped.refusal_texts
    )
    monkeypatch.setattr("inferaligner.aligner.load_contrast_set", lambda: few)
    # A random model refuses nothing; the search only has to have something to count.
    monkeypatch.setattr(search_prompts, "SCORED", 2)
    monkeypatch.setattr(search_prompts, "GENERATED", 2)
    monkeypatch.setattr("inferaligner.fit.strength.search.ANSWER_TOKENS", 4)
    monkeypatch.setattr(search_prompts, "ANSWER_TOKENS", 4)
    monkeypatch.setattr("inferaligner.aligner.judge", lambda answer: type("V", (), {"outcome": "refusal"}))
    tokenizer = tiny_tokenizer()
    models = [tiny_model("llama", seed=seed, max_position_embeddings=2048) for seed in (0, 1)]
    monkeypatch.chdir(tmp_path)
    seeing = tiny_vision("llava")
    (tmp_path / "photo.png").write_bytes(picture(1).data)
    return {
        "seeing": seeing.model,
        "processor": seeing.processor,
        "text_only": backbone_of("llava", "LlamaForCausalLM"),
        "photo": tmp_path / "photo.png",
        "target": models[0],
        "model": models[0],
        "aligned": models[1],
        "tokenizer": tokenizer,
        "my_prompts": [f"How do I book seat {n}?" for n in range(12)],
        "inputs": tokenizer(
            [render_chat(tokenizer, "Explain why the sky is blue.") + "The quick fox"], return_tensors="pt"
        ),
        "answer_tokens": len(tokenizer("The quick fox")["input_ids"]),
        "folder": tmp_path / "my-aligner",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, namespace: dict[str, Any]) -> None:
    for number, block in enumerate(BLOCK.findall(page.read_text("utf-8")), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert not missing
