"""POST /admin/aligner: replaces the operating point of a running server."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from inferaligner.aligner import Aligner
from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import InferAlignerError
from inferaligner.server.engine.engine import Engine
from inferaligner.server.errors import ApiError
from inferaligner.server.schema import Text
from inferaligner.storage.paths import expanded


class SwapRequest(BaseModel):
    """`aligner` is a folder on the server's disk; without it the served folder is read again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    aligner: Text | None = Field(None, min_length=1, max_length=4096)


class SwapAnswer(BaseModel):
    """Digest, bias and operating point, before and after."""

    before: dict[str, Any]
    after: dict[str, Any]


class Admin:
    """Changes the operating point of a running engine."""

    def __init__(self, engine: Engine, folder: str | None) -> None:
        """`folder` is the aligner's; None where it was not read from a folder."""
        self._engine = engine
        self._folder = folder
        self._lock = asyncio.Lock()

    async def swap(self, body: SwapRequest) -> SwapAnswer:
        """Reads an artifact and gives it to the engine.

        Raises:
            ApiError: the folder holds no usable artifact (400), or the artifact differs from the served one
                in more than the operating point (409).
        """
        place = body.aligner or self._folder
        if place is None:
            raise ApiError("This server's aligner was not read from a folder; name one.", param="aligner")
        async with self._lock:
            try:
                fresh = await run_in_threadpool(AlignerArtifact.read, expanded(place))
            except (InferAlignerError, OSError, ValueError) as error:
                raise ApiError(str(error), param="aligner") from None
            before = self._engine.aligner.artifact
            _check_same(before, fresh)
            await asyncio.wrap_future(self._engine.swap(Aligner(fresh)))
            self._folder = place
        return SwapAnswer(before=_summary(before), after=_summary(fresh))


def _summary(artifact: AlignerArtifact) -> dict[str, Any]:
    point = artifact.operating_point
    return {
        "sha256": artifact.digest(),
        "bias": artifact.gate.bias,
        "max_false_open": None if point is None else point.max_false_open,
        "promised": None if point is None else point.promised,
    }


def _check_same(before: AlignerArtifact, after: AlignerArtifact) -> None:
    same = {
        "the target model": before.provenance.target == after.provenance.target,
        "the gate": before.gate.reads == after.gate.reads
        and bool((before.gate.weights == after.gate.weights).all()),
        "the steering vectors": before.srv.equal(after.srv) and before.directions().equal(after.directions()),
        "the steering settings": before.steering == after.steering,
        "the monitor": (before.monitor is None) == (after.monitor is None),
        "the system prompt": before.provenance.system_prompt == after.provenance.system_prompt,
    }
    other = [name for name, alike in same.items() if not alike]
    if other:
        raise ApiError(
            f"That aligner differs in {', '.join(other)}; a running server can only take another operating "
            "point. Start a server with the new aligner.",
            status=409,
            param="aligner",
        )
