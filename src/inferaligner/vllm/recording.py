"""Activations from the very deployment that will serve: its kernels, its quantisation, its parallelism.

with RecordingEngine("my-model", {"quantization": "fp8", "tensor_parallel_size": 2}) as engine:
    Aligner.fit(target, tokenizer, aligned=aligned, recorder=engine.record)
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from inferaligner.errors import InputError, MissingExtraError, SteeringError
from inferaligner.method.activations import Activations, Advance, check_places
from inferaligner.prompts.encoding import has_pictures

WORKER = "inferaligner.vllm.recording_worker.RecordingWorker"
_AT_ONCE = 256  # prompts between two transfers


class RecordingEngine:
    """A vLLM engine that only records; a context that shuts it down.

    `options` are keyword arguments of `vllm.LLM`, the same as the deployment's. The engine runs eagerly and
    without prefix caching, whatever they say. `adapter` is the folder of a LoRA adapter that the target
    consists in; `options` must enable them.

    Raises `MissingExtraError` without vLLM.
    """

    def __init__(
        self, target: str, options: Mapping[str, Any] | None = None, *, adapter: Path | None = None
    ) -> None:
        try:
            from vllm import LLM
        except ImportError:
            raise MissingExtraError(
                "vLLM is not installed. Install it with pip install 'inferaligner[vllm]' (docs/vllm.md for a "
                "CPU)."
            ) from None
        chosen = {**(options or {}), "enforce_eager": True, "enable_prefix_caching": False}
        self._engine: Any = LLM(target, **{**chosen, "worker_cls": WORKER})
        self.depth = int(self._engine.collective_rpc("depth")[0])
        self._adapter: Any = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest(
                lora_name=adapter.resolve().name, lora_int_id=1, lora_path=str(adapter.resolve())
            )

    def record(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        layers: Sequence[int] | None = None,
        offsets: Sequence[int] = (0,),
        advance: Advance | None = None,
    ) -> Activations:
        """As `record_activations`: values at `offsets` tokens before the last, after the given layers.

        Raises:
            InputError: no prompts, prompts with pictures, layers that do not exist, or offsets before the
                start of a prompt.
            SteeringError: the engine did not compute a token that was asked for.
        """
        wanted = tuple(range(self.depth)) if layers is None else tuple(sorted(set(layers)))
        at = tuple(offsets)
        check_places(token_ids, wanted, at, self.depth)
        if any(map(has_pictures, token_ids)):
            raise InputError(
                "vLLM records the activations of text alone, and some prompts have pictures. Fit on text, or "
                "on pictures with transformers."
            )
        parts = []
        for begin in range(0, len(token_ids), _AT_ONCE):
            prompts = token_ids[begin : begin + _AT_ONCE]
            parts.append(self._run(prompts, wanted, at))
            if advance is not None:
                advance(len(prompts))
        return Activations(torch.cat(parts), wanted, at)

    def _run(
        self, prompts: Sequence[Sequence[int]], layers: tuple[int, ...], offsets: tuple[int, ...]
    ) -> torch.Tensor:
        from safetensors.torch import load_file

        from vllm import SamplingParams

        self._engine.collective_rpc("record_at", args=(list(layers), list(offsets)))
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        self._engine.generate(
            inputs,
            SamplingParams(max_tokens=1, temperature=0),
            use_tqdm=False,
            lora_request=self._adapter,
        )
        with tempfile.TemporaryDirectory() as scratch:
            # A file, because vLLM sends no dictionaries of tensors between processes.
            file = Path(scratch) / "recorded.safetensors"
            self._engine.collective_rpc("write_recorded", args=(str(file),))
            found = load_file(file) if file.exists() else {}
        keys = [prompt_key(ids) for ids in prompts]
        lost = sum(key not in found or bool(found[key].isnan().any()) for key in keys)
        if lost:
            raise SteeringError(
                f"vLLM did not record {lost} of {len(keys)} prompts whole, or gave NaN for them. The first "
                "process of the engine must run on this machine; otherwise this vLLM is not supported."
            )
        return torch.stack([found[key] for key in keys])

    def close(self) -> None:
        """Stops the engine's processes."""
        self._engine.llm_engine.engine_core.shutdown()

    def __enter__(self) -> RecordingEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def prompt_key(tokens: Sequence[int]) -> str:
    """What a prompt is known by between the processes of the engine."""
    return hashlib.sha256(array("q", tokens).tobytes()).hexdigest()


def read_flags(flags: Sequence[str]) -> dict[str, Any]:
    """The arguments of `vllm.LLM` that stand for flags of `vllm serve`.

    Raises `InputError` for flags that vLLM does not know.
    """
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    try:
        given, plain = vars(parser.parse_args(list(flags))), vars(parser.parse_args([]))
    except SystemExit:
        raise InputError(f"vLLM does not take {' '.join(flags)}; its own words stand above.") from None
    names = {field.name for field in fields(EngineArgs)} - {"model"}
    return {name: value for name, value in given.items() if name in names and value != plain[name]}
