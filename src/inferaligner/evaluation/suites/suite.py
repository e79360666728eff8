"""The contract of a suite: test prompts with their task, their source and their licence.

A file of this folder declares its suites as constants of the type `Suite`, all suites of one data set in one
file; a new file is a new data set, and no other file changes. For one run:

1. `catalogue.load(names, ...)` finds each suite by its `name` and calls `source.items(data)`, which returns
   every prompt in the publisher's order.
2. `sampling.draw` keeps distinct prompts and draws as many as the limit of the suite's `kind` allows.
3. The runner gives the prompts to every method as the `task` says, and `metrics` reads the answers as the
   `kind` says.

`kind` is the answer that is wanted of a model: to decline (`harmful`, `jailbreak`), not to decline
(`over-refusal`), to be right (`utility`), or to answer exactly as the bare model does (`benign`).

`task` is the way of asking, and settles which fields an `Item` needs:

- `reply`: an answer, which a judge reads. Metrics: refusal, compliance, gibberish.
- `pick`: the likeliest of `choices`, without generating; `answer` is one of them. Metric: accuracy.
- `name`: an answer that names one of `choices`; `answer` is one of them. Metrics: accuracy, unanswered.
- `number`: an answer that ends in a number, and `answer` is a number. Metrics: accuracy, unanswered.

An unanswered prompt has an answer without a choice or a number; it counts as wrong.
`tests/evaluation/suites/test_catalogue.py` runs over every suite of this folder.
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


@dataclass(frozen=True)
class Item:
    """One prompt of a suite.

    Attributes:
        prompt: the text of the user, with a picture where there is one.
        domain: a finer sort, such as a category of harm; reports give open rates per domain.
        choices: the possible answers.
        answer: the right answer.
        name: the publisher's name of the prompt, for exchange with other harnesses.
    """

    prompt: Prompt
    domain: str = ""
    choices: tuple[str, ...] = ()
    answer: str | None = None
    name: str = ""

    def fields(self) -> dict[str, Any]:
        """All fields, with pictures by their digests: two items are the same if these are."""
        return {**vars(self), "prompt": key_of(self.prompt)}


class Source(Protocol):
    """Where the prompts of a suite come from."""

    def items(self, data: Path | None) -> list[Item]:
        """Every prompt, in the publisher's order.

        Args:
            data: the folder of public sets that the user has.

        Raises:
            InputError: the source is missing (the message says how to get it) or not as published.
        """


@dataclass(frozen=True)
class Suite:
    """Test prompts with their task, their source and their licence; see the contract above."""

    name: str
    title: str
    kind: Kind
    source: Source
    task: Task = "reply"
    citation: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Shipped:
    """Prompts that come with the package, from a function that makes or reads them."""

    make: Callable[[], list[Item]]

    def items(self, data: Path | None) -> list[Item]:
        return self.make()
