"""A bench of tiny models for the tests of methods and runner."""

from __future__ import annotations

from typing import Any

from inferaligner.evaluation.methods.method import MethodContext
from inferaligner.evaluation.suites.sampling import Subset
from inferaligner.evaluation.suites.suite import Item, Kind, Suite, Task
from inferaligner.evaluation.suites.user_files import Given
from inferaligner.models.loading import LoadedModel
from tests.support.tiny_aligner import PROMPTS, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def tiny_bench(**options: Any) -> MethodContext:
    """A tiny Llama with room for long prompts, an aligner whose gate opens on half of `PROMPTS`."""
    model, tokenizer = tiny_model("llama", max_position_embeddings=2048), tiny_tokenizer()
    target = LoadedModel(model, tokenizer, "tiny")

    def load(spec: str) -> LoadedModel:
        assert spec == "sibling"
        return LoadedModel(tiny_model("llama", seed=7, max_position_embeddings=2048), tokenizer, spec)

    return MethodContext(target, tiny_aligner(model, tokenizer, **options), load)


def subset(name: str = "asked", kind: Kind = "harmful", task: Task = "reply", copies: int = 2) -> Subset:
    """`PROMPTS` several times over, each with a number in front."""
    choices = ("yes", "no") if task in ("pick", "name") else ()
    answer = "yes" if choices else "4" if task == "number" else None
    items = tuple(
        Item(f"{copy} {prompt}" if copy else prompt, f"domain {row % 2}", choices, answer)
        for copy in range(copies)
        for row, prompt in enumerate(PROMPTS)
    )
    return Subset(Suite(name, name, kind, Given(items), task), items, len(items), 0)
