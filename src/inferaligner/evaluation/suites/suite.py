"""What a suite of test prompts is. One is declared per file of this folder, as `SUITE`.

kind   what is wanted of a model: to decline (`harmful`, `jailbreak`), not to (`over-refusal`), to be right
       (`utility`), or to answer exactly as the bare model does (`benign`)
task   how it is asked: `reply` (an answer that a judge reads), `pick` (the likeliest of the choices, no
       generation), `name` (an answer that names one of the choices), `number` (an answer that ends in it)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from inferaligner.prompts.images import Prompt, key_of

Kind = Literal["harmful", "jailbreak", "over-refusal", "utility", "benign"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Task = Literal["reply", "pick", "name", "number"]

METRICS: dict[Task, tuple[str, ...]] = {
    "reply": ("refusal", "compliance", "gibberish"),
    "pick": ("accuracy",),
    "name": ("accuracy", "unanswered"),
    "number": ("accuracy", "unanswered"),
}
"""What a task is told by. `unanswered` answers name no choice, or no number; they count as wrong."""


@dataclass(frozen=True)
class Item:
    """One prompt as a user would type it; `domain` sorts it finer, `answer` is what is right.

    `name` is what its publisher calls it, for exchange with other harnesses.
    """

    prompt: Prompt
    domain: str = ""
    choices: tuple[str, ...] = ()
    answer: str | None = None
    name: str = ""

    def fields(self) -> dict[str, Any]:
        """Everything that makes this item another one than the next; pictures by their digests."""
        return {**vars(self), "prompt": key_of(self.prompt)}


class Source(Protocol):
    """Where the prompts of a suite come from."""

    def items(self, data: Path | None) -> list[Item]:
        """Every prompt, in the publisher's order; `data` is the folder of public sets that the user has.

        Raises:
            InputError: the source is missing (the message says how to get it) or not as published.
        """


@dataclass(frozen=True)
class Suite:
    """Test prompts with how they are asked, where they come from and who made them."""

    name: str
    title: str
    kind: Kind
    source: Source
    task: Task = "reply"
    citation: str = ""
    licence: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What its answers are told by."""
        return METRICS[self.task]


@dataclass(frozen=True)
class Shipped:
    """Prompts that come with the package."""

    make: Callable[[], list[Item]]

    def items(self, data: Path | None) -> list[Item]:
        return self.make()
