"""The engine that records the target's activations for `fit`: transformers, or vLLM as it will serve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from inferaligner.cli.progress import RichStages
from inferaligner.errors import InputError

if TYPE_CHECKING:
    from inferaligner.method.activations import Recorder


Engine = Literal["transformers", "vllm"]
"""Runs the target while its activations are recorded."""


def check_engine(engine: Engine, flags: list[str], monitor: bool) -> None:
    """Raises `InputError` for flags of vLLM that do not go with the engine, or that vLLM does not know."""
    if engine == "transformers":
        if flags:
            raise InputError(f"{flags[0]} stands after --, where flags of vLLM stand; give --engine vllm.")
        return
    if monitor:
        raise InputError(
            "--monitor goes with --engine transformers, which generates the answers that the monitor is "
            "fitted on. The aligner can be served with either engine."
        )
    from inferaligner.vllm.recording import read_flags

    read_flags(flags)


@contextmanager
def recorder_of(engine: Engine, target: str, flags: list[str]) -> Iterator[Recorder | None]:
    """Runs the engine while the context is open; yields its recorder, None for transformers."""
    if engine == "transformers":
        yield None
        return
    from inferaligner.vllm.adapters import rank_flags
    from inferaligner.vllm.checkpoint import served_model
    from inferaligner.vllm.recording import RecordingEngine, read_flags

    model = served_model(target)
    own = [] if model.adapter is None else rank_flags(model.adapter)
    with RichStages().stage(f"starting vLLM with {target}"):
        running = RecordingEngine(
            model.weights, read_flags([*model.flags, *own, *flags]), adapter=model.adapter
        )
    with running:
        yield running.record
