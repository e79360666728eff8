"""Code blocks of the pages run, page by page, on tiny models, whatever their fence is called.

Python runs in one namespace a page, `inferaligner` commands in a folder with the files that the pages name,
and YAML is parsed. Lines that install something are skipped: CI installs the extras, and
`test_commands.py` checks their names. A block that cannot run here has a comment above it that says why:

    <!-- not run: it needs a GPU -->
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from inferaligner.cli.main import app
from inferaligner.fit.strength import search_prompts
from inferaligner.prompts import contrast
from inferaligner.prompts.chat import render_chat
from tests.support.tiny_aligner import tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.tiny_vision import backbone_of, picture, save_vision, tiny_vision

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<reason>[^\n]+) -->\n(?P=indent))?"
    r"```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
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
    monkeypatch.setattr("inferaligner.fit.strength.strength_search.ANSWER_TOKENS", 4)
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
        "folder": tmp_path / "kept",
    }


@dataclass(frozen=True)
class Block:
    """A code block of a page; `reason` says why it cannot run."""

    name: str
    language: str
    code: str
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        yield Block(f"{page.name}, line {line}", match["language"], dedent(match["code"]), match["reason"])


@pytest.fixture
def files(namespace: dict[str, Any], tmp_path: Path) -> None:
    """The files that commands of the pages name, in the current folder."""
    target, aligned, tokenizer = (namespace[name] for name in ("target", "aligned", "tokenizer"))
    aligner = tiny_aligner(target, tokenizer, spec="my-medical-llama")
    for name in ("my-medical-llama", "my-model"):
        target.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    guide = tmp_path / "meta-llama" / "Llama-2-7b-chat-hf"
    aligned.save_pretrained(guide)
    tokenizer.save_pretrained(guide)
    save_vision("llava", tmp_path / "llava-hf" / "llava-1.5-7b-hf")
    aligner.save_pretrained(tmp_path / "my-aligner")
    for name in ("my_traffic", "prompts", "desk", "scores", "last_week"):
        rows = [
            {"prompt": f"How do I book seat {n}?", "score": n / 100 - 9}
            for n in range(100 if name == "desk" else 24)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def run_commands(block: Block) -> None:
    for line in re.sub(r"\\\n\s*", " ", block.code).splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if not words or words[:2] in (["pip", "install"], ["pip", "uninstall"]):
            continue
        assert words[0] == "inferaligner", f"{block.name}: mark the block as not run, and say why: {line}"
        for file in Path().glob("*.jsonl"):
            file.touch()  # scores must be newer than the threshold, which an earlier command may have set
        result = CliRunner().invoke(app, words[1:], input="")
        if words[1] == "doctor" and "Expected quality: poor" in result.output:
            continue  # a true verdict on random models, which exits with 2
        assert result.exit_code == 0, f"{block.name}: {line}\n{result.output}\n{result.exception!r}"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.reason is None for block in blocks(page))],
    ids=lambda page: page.name,
)
def test_code_blocks_run(page: Path, files: None, namespace: dict[str, Any]) -> None:
    for block in blocks(page):
        if block.reason is not None:
            continue
        if block.language in ("python", "py"):
            exec(compile(block.code, block.name, "exec"), namespace)
        elif block.language in ("", "bash", "sh", "console"):
            run_commands(block)
        elif block.language == "yaml":
            assert all(yaml.safe_load_all(block.code)), block.name
        else:
            pytest.fail(f"{block.name}: a block of {block.language!r} cannot run; say why above it")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_is_seen(page: Path) -> None:
    """A fence or a comment of another form would leave its block unread."""
    text, found = page.read_text("utf-8"), list(blocks(page))
    assert len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) == 2 * len(found)
    assert text.count("<!-- not run") == sum(block.reason is not None for block in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert not missing
