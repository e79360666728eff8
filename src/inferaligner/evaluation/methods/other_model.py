"""Another model in the target's place."""

from __future__ import annotations

from inferaligner.errors import InputError
from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.models.loading import LoadedModel


class OtherModel(Method):
    """Every prompt goes to the model of a spec, which is loaded when it is first asked."""

    def __init__(self, name: str, title: str, bench: MethodContext, spec: str) -> None:
        super().__init__(name, title, bench)
        self._spec = spec
        self._loaded: LoadedModel | None = None

    def model(self) -> LoadedModel:
        if self._loaded is None:
            self._loaded = self.bench.load(self._spec)
        return self._loaded

    def settings(self) -> dict[str, object]:
        return {"model": self._spec}


def needed(name: str, option: str, example: str) -> str:
    """The option, or an `InputError` that says what it should be."""
    if not option:
        raise InputError(f"The method {name} needs a model: {name}={example}.")
    return option
