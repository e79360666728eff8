"""The contract of a method: one way of making a model answer safely.

A file of this folder declares a method. A new method is a new file, and its name in `catalogue.ALL` if it
has no option:

- `NAME` is its name on the command line, and the first line of the file's docstring its description there;
- `make(context, option) -> Method` makes it for one run, with the text after `NAME=` as the option;
- `NEEDS` names what the method needs of the aligner (`Needs`), where it needs something;
- `OPTION` describes the option, where the method needs one. A method without it is listed in `catalogue.ALL`;
- `OPTION_IS_PATH` is True where the option is a file or a folder that must exist.

The catalogue checks needs and options before a model is loaded, and then calls `make`.

The runner makes the answers of the bare model first, and calls for every other method and suite:

1. `decide(prompts)`: a decision per prompt, or None from a method that acts on every prompt alike. A prompt
   that stays closed gets the bare model's answer, which is generated once for all methods.
2. For the other prompts: `canned`, if it is a text; else `model()` answers `rewrite(prompt)` inside
   `acting()`, which steers every row, because all of these prompts are open.
3. In a suite of the kind `benign` with the task `reply` no answer is taken over: `gated()` is open in place
   of `acting()`, and the gate decides on every row inside `generate`, as in production. A method without a
   gate of its own returns None there, and steps 1 and 2 apply. A method with `has_monitor` takes this path in
   every suite, because the answers to closed prompts may be steered too.

`settings()` goes into the report; a run is continued only with the same settings.
`tests/evaluation/test_methods.py` runs over every method of this folder.
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
"""What a method needs of the aligner: its gate, its vectors, or the model with which it was fitted."""


@dataclass(frozen=True)
class MethodContext:
    """What methods are made from.

    Attributes:
        target: the model under test.
        aligner: the aligner of the run, if there is one.
        load: loads another model by its spec.
    """

    target: LoadedModel
    aligner: Aligner | None
    load: Callable[[str], LoadedModel]

    @property
    def system(self) -> str | None:
        """The aligner's system prompt, which every method uses."""
        return None if self.aligner is None else self.aligner.artifact.provenance.system_prompt

    def need_aligner(self, method: str) -> Aligner:
        """The aligner. Raises `InputError` for `method` if there is none."""
        if self.aligner is None:
            raise InputError(f"The method {method} needs an aligner: give one with --aligner DIR.")
        return self.aligner


class Method:
    """The base of every method; by itself it changes nothing and is the bare model."""

    def __init__(self, name: str, title: str, context: MethodContext) -> None:
        self.name = name  # in files
        self.title = title  # in tables
        self.context = context

    @property
    def gate(self) -> str | None:
        """Identifies the gate: methods with the same gate share its decisions. None without a gate."""
        return None

    @property
    def canned(self) -> str | None:
        """A fixed answer to open prompts, in place of a generated one."""
        return None

    @property
    def has_monitor(self) -> bool:
        """Whether answers are read while they are generated, so that closed prompts may be steered too."""
        return False

    def model(self) -> LoadedModel:
        """The model that answers."""
        return self.context.target

    def rewrite(self, prompt: Prompt) -> Prompt:
        """The prompt that the model gets."""
        return prompt

    def decide(self, prompts: Sequence[Prompt]) -> list[Decision] | None:
        """One decision per prompt, or None from a method that acts on every prompt."""
        return None

    def acting(self) -> AbstractContextManager[Guard | None]:
        """The context in which the model answers open prompts."""
        return nullcontext()

    def gated(self) -> AbstractContextManager[Guard | None] | None:
        """The context in which the method decides by itself on every row; None if it cannot."""
        return None

    def settings(self) -> dict[str, object]:
        """What a report lists, and what must not change when a run is continued."""
        return {}
