"""A worker that records activations at the end of prompts, and neither gates nor steers.

Who calls what: `RecordingEngine` (`recording.py`) calls `record_at` with layers and offsets, runs prompts for
one token each, and calls `write_recorded`; the runner's seam calls `plan` before every forward pass, whose
hooks then copy the wanted tokens out of the residual stream. Prompts may be chunked. Two prompts of the same
tokens have the same activations, so a prompt is known by its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from inferaligner.errors import SteeringError
from inferaligner.models.anatomy import dissect
from inferaligner.vllm.layers import returns_pair, stream_parts
from inferaligner.vllm.platform_worker import PlatformWorker
from inferaligner.vllm.recording import prompt_key
from inferaligner.vllm.runner_hooks import RunnerSeam


class RecordingWorker(PlatformWorker):
    """Under tensor parallelism every rank has the whole stream; the first one writes."""

    def __init__(self, vllm_config: Any, *args: Any, **options: Any) -> None:
        if not vllm_config.model_config.enforce_eager or vllm_config.cache_config.enable_prefix_caching:
            raise SteeringError(
                "Activations are recorded by hooks in Python, on tokens that are really computed: start vLLM "
                "with --enforce-eager and --no-enable-prefix-caching."
            )
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise SteeringError("Activations cannot be recorded under pipeline parallelism.")
        super().__init__(vllm_config, *args, **options)
        self._layers: tuple[int, ...] = ()
        self._offsets: tuple[int, ...] = ()
        self._prompts: dict[str, tuple[str, int]] = {}  # request -> key and length of its prompt
        self._rows = torch.zeros(0, dtype=torch.int64)  # tokens of the coming batch that are wanted
        self._places: list[tuple[str, int]] = []  # and where each goes: prompt, number of the offset
        self._recorded: dict[str, Tensor] = {}  # key -> [layers, offsets, width]

    def load_model(self, **options: Any) -> None:
        """vLLM's own, and then a hook on every decoder layer."""
        super().load_model(**options)
        self._anatomy = dissect(self.model_runner.get_model())
        for index, layer in enumerate(self._anatomy.layers):
            layer.register_forward_hook(self._hook(index, returns_pair(layer, index)))
        self._seam = RunnerSeam(self.model_runner, self.plan)

    def _hook(self, index: int, pair: bool) -> Callable[[Any, Any, Any], None]:
        def record(_layer: Any, _inputs: Any, output: Any) -> None:
            if not self._places or index not in self._layers:
                return
            hidden, residual = stream_parts(output, pair, index)
            at = self._rows.to(hidden.device)
            stream = (hidden[at] if residual is None else hidden[at] + residual[at]).cpu()
            layer = self._layers.index(index)
            for value, (prompt, offset) in zip(stream, self._places, strict=True):
                self._place(prompt, value)[layer, offset] = value

        return record

    def _place(self, prompt: str, like: Tensor) -> Tensor:
        if prompt not in self._recorded:
            shape = (len(self._layers), len(self._offsets), like.shape[0])
            self._recorded[prompt] = torch.full(shape, torch.nan, dtype=like.dtype)
        return self._recorded[prompt]

    def execute_model(self, scheduler_output: Any, *args: Any, **options: Any) -> Any:
        """vLLM's own, with the prompts of new requests noted before it."""
        for new in scheduler_output.scheduled_new_reqs:
            tokens = new.prompt_token_ids
            self._prompts[new.req_id] = prompt_key(tokens), len(tokens)
        self._seam.scheduled = scheduler_output
        self._places = []
        try:
            return super().execute_model(scheduler_output, *args, **options)
        finally:
            self._places = []
            for request in scheduler_output.finished_req_ids:
                self._prompts.pop(request, None)

    def plan(self, requests: Sequence[str], starts: Sequence[int], lengths: Sequence[int]) -> None:
        """Called by the runner's seam: which tokens of the coming batch are wanted."""
        rows, places, base = list[int](), list[tuple[str, int]](), 0
        for request, start, length in zip(requests, starts, lengths, strict=True):
            prompt, end = self._prompts[request]
            for number, offset in enumerate(self._offsets):
                position = end - 1 - offset
                if start <= position < start + length:
                    rows.append(base + position - start)
                    places.append((prompt, number))
            base += length
        self._rows, self._places = torch.tensor(rows, dtype=torch.int64), places

    # -- called by `RecordingEngine` -------------------------------------------------------------------

    def depth(self) -> int:
        """Number of decoder layers."""
        return self._anatomy.depth

    def record_at(self, layers: Sequence[int], offsets: Sequence[int]) -> None:
        """What is wanted of the prompts that come next; forgets the earlier ones."""
        self._layers, self._offsets = tuple(layers), tuple(offsets)
        self._recorded = {}

    def write_recorded(self, file: str) -> None:
        """Writes `[layers, offsets, width]` for every prompt, by its key, and forgets them."""
        if self.rank == 0:
            save_file({prompt: value.contiguous() for prompt, value in self._recorded.items()}, file)
        self._recorded = {}
