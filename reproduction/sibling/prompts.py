"""What a sibling is asked while it learns, and while it is measured: prompts, wrapped prompts, conversations.

All of it comes from the contrast set and from a few system prompts and exchanges beside this file. What is
learned from is of the extraction and calibration parts; the test part, its wrappers and its conversations
are for the measurement. A conversation puts a system prompt or an earlier exchange before a prompt, harmful
and harmless alike, so that neither is a sign of anything.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inferaligner.prompts.chat import render_turns
from inferaligner.prompts.contrast import ContrastPrompt, ContrastSet, Part, part_of

Source = Literal["plain", "wrapped", "benign", "lookalike", "conversation"]

TRAINED: tuple[Part, ...] = ("extraction", "calibration")
_FILE = Path(__file__).with_name("conversations.jsonl")


@dataclass(frozen=True)
class Asked:
    """A conversation that waits for its answer: `turns` are (role, content), the last one the user's.

    `prompt` is the contrast prompt in the last turn, `source` where it came from.
    """

    turns: tuple[tuple[str, str], ...]
    prompt: ContrastPrompt
    source: Source

    @property
    def harmful(self) -> bool:
        """Whether it is to be declined."""
        return self.prompt.harmful

    @property
    def key(self) -> str:
        """The same for the same turns."""
        return json.dumps(self.turns, ensure_ascii=False)


@dataclass(frozen=True)
class Draw:
    """How many of each kind are drawn; None takes all."""

    harmful: int | None = None
    twins: int | None = None
    lookalikes: int | None = None
    ordinary: int | None = None
    wrapped: int | None = None  # of each side
    conversations: int | None = None  # of each side


def draw_prompts(contrast: ContrastSet, parts: Sequence[Part], counts: Draw, seed: int) -> list[Asked]:
    """A seeded draw from `parts` of the contrast set, conversations included."""
    draw = random.Random(seed)
    known = [prompt for part in parts for prompt in contrast.part(part)]
    harmful = [p for p in known if p.kind == "plain" and p.harmful]
    twins = [p for p in known if p.kind == "plain" and not p.harmful]
    lookalikes = [p for p in known if p.kind == "benign" and p.category == "lookalike"]
    ordinary = [p for p in known if p.kind == "benign" and p.category != "lookalike"]
    asked: list[Asked] = []
    groups: list[tuple[Source, list[ContrastPrompt], int | None]] = [
        ("plain", harmful, counts.harmful),
        ("plain", twins, counts.twins),
        ("lookalike", lookalikes, counts.lookalikes),
        ("benign", ordinary, counts.ordinary),
        ("wrapped", [p for p in known if p.kind == "wrapped" and p.harmful], counts.wrapped),
        ("wrapped", [p for p in known if p.kind == "wrapped" and not p.harmful], counts.wrapped),
    ]
    for source, prompts, count in groups:
        asked.extend(Asked((("user", p.text),), p, source) for p in _some(draw, prompts, count))
    befores = _befores(parts)
    for side in (harmful, twins + ordinary):
        for prompt in _some(draw, side, counts.conversations):
            asked.append(_in_conversation(draw, prompt, befores, harmful, contrast))
    return asked


def encode(tokenizer: Any, asked: Sequence[Asked]) -> list[list[int]]:
    """Token ids of each, up to where the assistant begins to speak."""
    rendered = [
        render_turns(tokenizer, [{"role": role, "content": content} for role, content in one.turns])
        for one in asked
    ]
    ids: list[list[int]] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return ids


def _in_conversation(
    draw: random.Random,
    prompt: ContrastPrompt,
    befores: tuple[list[str], list[tuple[str, str]]],
    harmful: Sequence[ContrastPrompt],
    contrast: ContrastSet,
) -> Asked:
    """The prompt after a system prompt, after harmless exchanges, or after a request that was declined."""
    systems, exchanges = befores
    kind = draw.choice(("system", "exchange", "declined", "both"))
    turns: list[tuple[str, str]] = []
    if kind in ("system", "both"):
        turns.append(("system", draw.choice(systems)))
    if kind in ("exchange", "both"):
        for user, assistant in draw.sample(exchanges, draw.choice((1, 1, 2))):
            turns += [("user", user), ("assistant", assistant)]
    if kind == "declined":
        before = draw.choice([p for p in harmful if p.topic != prompt.topic] or list(harmful))
        turns += [("user", before.text), ("assistant", draw.choice(contrast.refusals_to(before)))]
    return Asked((*turns, ("user", prompt.text)), prompt, "conversation")


def _some(
    draw: random.Random, prompts: Sequence[ContrastPrompt], count: int | None
) -> Sequence[ContrastPrompt]:
    return prompts if count is None else draw.sample(prompts, min(count, len(prompts)))


def _befores(parts: Sequence[Part]) -> tuple[list[str], list[tuple[str, str]]]:
    """System prompts, and exchanges of user and assistant, that belong to these parts."""
    systems, exchanges = [], []
    for row in _rows():
        text = row.get("system") or row["user"]
        if part_of("conversation", text) in parts:
            if "system" in row:
                systems.append(text)
            else:
                exchanges.append((row["user"], row["assistant"]))
    return systems, exchanges


@functools.cache
def _rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in _FILE.read_text("utf-8").splitlines()]
