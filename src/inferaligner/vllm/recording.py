"""Records activations on a vLLM engine, with the kernels, quantisation and parallelism that will serve.

with RecordingEngine("my-model", {"quantization": "fp8", "tensor_parallel_size": 2}) as engine:
    Aligner.fit(target, tokenizer, aligned=aligned, recorder=engine.record)
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from inferaligner.errors import InputError, SteeringError
from inferaligner.method.activations import Activations, Advance, check_places
from inferaligner.prompts.encoding import has_pictures
from inferaligner.vllm.compatibility import installed_version

WORKER = "inferaligner.vllm.recording_worker.RecordingWorker"
_BATCH = 256  # prompts between two transfers


class RecordingEngine:
    """A vLLM engine that only records activations; a context manager that shuts the engine down.

    Args:
        target: the model, as `vllm.LLM` takes it.
        options: keyword arguments of `vllm.LLM`, the deployment's. The engine always runs eagerly and without
            prefix caching.
        adapter: folder of the target's LoRA adapter, if it has one; then `options` must enable adapters.

    Raises:
        MissingExtraError: vLLM is not installed.
    """

    def __init__(
        self, target: str, options: Mapping[str, Any] | None = None, *, adapter: Path | None = None
    ) -> None:
        installed_version()
        from vllm import LLM

        recording = {"enforce_eager": True, "enable_prefix_caching": False, "worker_cls": WORKER}
        self._engine: Any = LLM(target, **{**(options or {}), **recording})
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
        """Records the residual stream at the ends of prompts, as `record_activations` does.

        Args:
            token_ids: the prompts.
            layers: decoder layers after which to record; None for all.
            offsets: tokens before the last token of the prompt.
            advance: is called with the number of prompts after every batch.

        Raises:
            InputError: no prompts, prompts with pictures, layers that do not exist, or offsets before the
                start of a prompt.
            SteeringError: the engine did not compute all of these tokens.
        """
        recorded = tuple(range(self.depth)) if layers is None else tuple(sorted(set(layers)))
        at = tuple(offsets)
        check_places(token_ids, recorded, at, self.depth)
        if any(map(has_pictures, token_ids)):
            raise InputError(
                "vLLM records the activations of text alone, and some prompts have pictures. Fit on text, or "
                "on pictures with transformers."
            )
        parts = []
        for begin in range(0, len(token_ids), _BATCH):
            prompts = token_ids[begin : begin + _BATCH]
            parts.append(self._run(prompts, recorded, at))
            if advance is not None:
                advance(len(prompts))
        return Activations(torch.cat(parts), recorded, at)

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
            # Through a file: vLLM cannot send a dictionary of tensors between processes.
            file = Path(scratch) / "recorded.safetensors"
            self._engine.collective_rpc("write_recorded", args=(str(file),))
            recorded = load_file(file) if file.exists() else {}
        keys = [prompt_key(ids) for ids in prompts]
        lost = sum(key not in recorded or bool(recorded[key].isnan().any()) for key in keys)
        if lost:
            raise SteeringError(
                f"vLLM did not record {lost} of {len(keys)} prompts completely, or recorded NaN. The first "
                "process of the engine must run on this machine; otherwise this vLLM is not supported."
            )
        return torch.stack([recorded[key] for key in keys])

    def close(self) -> None:
        """Stops the engine's processes."""
        self._engine.llm_engine.engine_core.shutdown()

    def __enter__(self) -> RecordingEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prompt_key(tokens: Sequence[int]) -> str:
    """The name of a prompt in messages between the processes of the engine: a hash of its tokens."""
    return hashlib.sha256(array("q", tokens).tobytes()).hexdigest()


def read_flags(flags: Sequence[str]) -> dict[str, Any]:
    """Translates flags of `vllm serve` into arguments of `vllm.LLM`.

    Raises `InputError` for flags that vLLM does not know.
    """
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    try:
        given, defaults = vars(parser.parse_args(list(flags))), vars(parser.parse_args([]))
    except SystemExit:
        raise InputError(f"vLLM does not accept {' '.join(flags)}; its own message is above.") from None
    names = {field.name for field in fields(EngineArgs)} - {"model"}
    return {name: value for name, value in given.items() if name in names and value != defaults[name]}
