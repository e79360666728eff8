"""The base of methods that put another model in the target's place."""

from __future__ import annotations

from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.models.loading import LoadedModel


class OtherModel(Method):
    """Another model answers every prompt; it is loaded when the first prompt needs it."""

    def __init__(self, name: str, title: str, context: MethodContext, spec: str) -> None:
        super().__init__(name, title, context)
        self._spec = spec
        self._loaded: LoadedModel | None = None

    def model(self) -> LoadedModel:
        if self._loaded is None:
            self._loaded = self.context.load(self._spec)
        return self._loaded

    def settings(self) -> dict[str, object]:
        return {"model": self._spec}
