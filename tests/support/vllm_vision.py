"""Tiny models with image input and their aligners on disk, served by vLLM and by transformers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from inferaligner.aligner import Aligner
from inferaligner.method.gate import GateRead
from inferaligner.models.generation import Answer, generate_answers
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.images import ImagePrompt, Prompt, pictures_of, text_of
from tests.support import tiny_vision
from tests.support.tiny_aligner import tiny_artifact
from tests.support.vllm_deployment import WIDTH, half_open

PICTURES = [tiny_vision.picture(number) for number in range(4)]
PROMPTS: list[Prompt] = [
    "How do I bake a loaf of bread at home?",
    "Why is the sky blue?",
    *(
        ImagePrompt(text, pictures)
        for text in ("Which flour should I choose?", "Explain the evening in a few words.")
        for pictures in ((PICTURES[0],), (PICTURES[1],), (PICTURES[2], PICTURES[3]))
    ),
]
"""The same text comes with different pictures: a cache that compares the text alone would be wrong."""


@dataclass(frozen=True)
class VisionDeployment:
    """A model with image input and its aligner, in memory and on disk."""

    loaded: LoadedModel
    aligner: Aligner
    target: Path
    folder: Path

    @property
    def model(self) -> Any:
        return self.loaded.model

    def expected(self, length: int, *, steered: bool) -> list[Answer]:
        """The answers of transformers, each prompt alone."""
        if not steered:
            return self._answers(length)
        with self.aligner.apply(self.model, self.loaded.reader) as guard:
            return self._answers(length, decisions=lambda: guard.decisions)

    def _answers(self, length: int, **options: Any) -> list[Answer]:
        answers = generate_answers(
            self.model,
            self.loaded.reader,
            PROMPTS,
            max_new_tokens=length,
            min_new_tokens=length,
            batch_size=1,
            **options,
        )
        return sorted(answers, key=lambda answer: answer.row)


@contextmanager
def wide_enough() -> Iterator[None]:
    """vLLM's attention on a CPU wants heads of at least 32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_vision, "WIDTH", WIDTH)
        for name in ("hidden_size", "intermediate_size"):
            patch.setitem(tiny_vision._TEXT, name, WIDTH)
        tiny_vision.tiny_vision.cache_clear()
        try:
            yield
        finally:
            tiny_vision.tiny_vision.cache_clear()


def deploy_vision(
    folder: Path, family: str, *, reads: Sequence[GateRead], layers: Sequence[int], positions: str
) -> VisionDeployment:
    """Writes a tiny model with image input, and an aligner whose gate opens on half of `PROMPTS`."""
    (folder / "target").mkdir(parents=True)
    with wide_enough():
        loaded = tiny_vision.save_vision(family, folder / "target")
    if family == "llava":
        _as_published(folder / "target" / "model.safetensors")
    artifact = tiny_artifact(loaded.model, loaded.reader, layers=layers).with_steering(
        positions=positions, strength=4.0
    )
    gate, _ = half_open(loaded.model, loaded.reader, PROMPTS, reads)
    aligner = Aligner(replace(artifact, gate=gate))
    aligner.save_pretrained(folder / "aligner")
    return VisionDeployment(loaded, aligner, folder / "target", folder / "aligner")


def _as_published(file: Path) -> None:
    """Names the tower's weights as transformers 4 did: LLaVA checkpoints and vLLM use these names."""
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})


def ask(llm: Any, length: int, prompts: Sequence[Prompt] = tuple(PROMPTS)) -> list[Any]:
    """vLLM's outputs for chats as a client of the OpenAI API writes them; greedy, of one length."""
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True)
    return list(llm.chat([_chat(prompt) for prompt in prompts], parameters, use_tqdm=False))


def _chat(prompt: Prompt) -> list[dict[str, Any]]:
    urls = [f"data:image/png;base64,{b64encode(picture.data).decode()}" for picture in pictures_of(prompt)]
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text_of(prompt)}]}]
