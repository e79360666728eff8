"""What a method is: a way of making a model answer safely, run through one interface.

Who calls what, for one suite:
1. `decide(prompts)` gives a decision per prompt, or None from a method that acts on every prompt alike.
   Prompts that stay closed get the bare model's answer, which was generated once and serves every method.
2. For the other prompts: `canned`, where there is one; else the answer of `model()` to `rewrite(prompt)`
   inside `acting()`, which steers every row, since all of them are open.
3. `gated()` is the product's own path for suites in which nothing is to be taken on trust: the gate decides
   inside `generate`, on every row. Methods without such a path have None. A method that `watches` answers
   takes this path everywhere, because a closed prompt does not settle what becomes of its answer.

A module of this folder is a method: `NAME`, `NEEDS`, and `make(bench, option)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from inferaligner.aligner import Aligner
from inferaligner.errors import InputError
from inferaligner.method.decision import Decision
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.images import Prompt
from inferaligner.steering.guard import Guard

Needs = Literal["nothing", "gate", "vectors", "guide"]
"""What a method needs of the aligner: its gate, vectors to steer with, or the model it was fitted with."""


@dataclass(frozen=True)
class MethodContext:
    """What methods are made from. `load` gets another model by its spec."""

    target: LoadedModel
    aligner: Aligner | None
    load: Callable[[str], LoadedModel]

    @property
    def system(self) -> str | None:
        """The system prompt of the aligner, which every method is run with."""
        return None if self.aligner is None else self.aligner.artifact.provenance.system_prompt

    def need_aligner(self, method: str) -> Aligner:
        """Raises `InputError` without one."""
        if self.aligner is None:
            raise InputError(f"The method {method} needs an aligner: give one with --aligner DIR.")
        return self.aligner


class Method:
    """A method that does nothing: the bare model. Others change what they need to."""

    def __init__(self, name: str, title: str, bench: MethodContext) -> None:
        self.name = name  # in files
        self.title = title  # for readers
        self.bench = bench

    @property
    def gate(self) -> str | None:
        """Methods of one gate share its decisions; None without a gate."""
        return None

    @property
    def canned(self) -> str | None:
        """The fixed answer to prompts that are open."""
        return None

    @property
    def watches(self) -> bool:
        """Whether answers are read while they are generated, so that closed prompts may be steered too."""
        return False

    def model(self) -> LoadedModel:
        """The model that answers."""
        return self.bench.target

    def rewrite(self, prompt: Prompt) -> Prompt:
        """The prompt as the model gets it."""
        return prompt

    def decide(self, prompts: Sequence[Prompt]) -> list[Decision] | None:
        """One decision per prompt, or None."""
        return None

    def acting(self) -> AbstractContextManager[Guard | None]:
        """Open while the model answers prompts that the method acts on."""
        return nullcontext()

    def gated(self) -> AbstractContextManager[Guard | None] | None:
        """The whole of it, deciding by itself; None if there is no such thing."""
        return None

    def settings(self) -> dict[str, object]:
        """What a report should tell, and what must not change when a run is continued."""
        return {}
