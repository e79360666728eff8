"""A worker that records activations at the ends of prompts, and neither gates nor steers.

`RecordingEngine` (`recording.py`) calls `record_at` with layers and offsets, generates one token for each
prompt, and calls `write_recorded`. Before every forward pass the runner's hook calls `plan_batch`; in the
pass, hooks on the decoder layers copy the planned tokens from the residual stream. Prompts may be chunked.
Prompts with equal tokens have equal activations, so a hash of its tokens identifies a prompt.
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
from inferaligner.vllm.runner_hooks import RunnerHook


class RecordingWorker(PlatformWorker):
    """One worker. Under tensor parallelism every rank has the whole stream; the first one writes."""

    def __init__(self, vllm_config: Any, *args: Any, **options: Any) -> None:
        if not vllm_config.model_config.enforce_eager or vllm_config.cache_config.enable_prefix_caching:
            raise SteeringError(
                "Hooks in Python record activations, of tokens that are computed: start vLLM with "
                "--enforce-eager and --no-enable-prefix-caching."
            )
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise SteeringError("Activations cannot be recorded under pipeline parallelism.")
        super().__init__(vllm_config, *args, **options)
        self._layers: tuple[int, ...] = ()
        self._offsets: tuple[int, ...] = ()
        self._prompts: dict[str, tuple[str, int]] = {}  # request -> key and length of its prompt
        self._rows = torch.zeros(0, dtype=torch.int64)  # tokens of the next batch that are recorded
        self._targets: list[tuple[str, int]] = []  # of each such token: prompt, index of the offset
        self._recorded: dict[str, Tensor] = {}  # key -> [layers, offsets, width]

    def load_model(self, **options: Any) -> None:
        """Loads the model, and registers a hook on every decoder layer."""
        super().load_model(**options)
        self._anatomy = dissect(self.model_runner.get_model())
        for index, layer in enumerate(self._anatomy.layers):
            layer.register_forward_hook(self._hook(index, returns_pair(layer, index)))
        self._runner_hook = RunnerHook(self.model_runner, self.plan_batch)

    def _hook(self, index: int, pair: bool) -> Callable[[Any, Any, Any], None]:
        def record(_layer: Any, _inputs: Any, output: Any) -> None:
            if not self._targets or index not in self._layers:
                return
            hidden, residual = stream_parts(output, pair, index)
            at = self._rows.to(hidden.device)
            stream = (hidden[at] if residual is None else hidden[at] + residual[at]).cpu()
            layer = self._layers.index(index)
            for value, (prompt, offset) in zip(stream, self._targets, strict=True):
                self._record_of(prompt, value)[layer, offset] = value

        return record

    def _record_of(self, prompt: str, like: Tensor) -> Tensor:
        """`[layers, offsets, width]` of a prompt, NaN where nothing is recorded yet."""
        if prompt not in self._recorded:
            shape = (len(self._layers), len(self._offsets), like.shape[0])
            self._recorded[prompt] = torch.full(shape, torch.nan, dtype=like.dtype)
        return self._recorded[prompt]

    def execute_model(self, scheduler_output: Any, *args: Any, **options: Any) -> Any:
        """Remembers the prompts of new requests, then runs the model."""
        for new in scheduler_output.scheduled_new_reqs:
            tokens = new.prompt_token_ids
            self._prompts[new.req_id] = prompt_key(tokens), len(tokens)
        self._runner_hook.scheduled = scheduler_output
        self._targets = []
        try:
            return super().execute_model(scheduler_output, *args, **options)
        finally:
            self._targets = []
            for request in scheduler_output.finished_req_ids:
                self._prompts.pop(request, None)

    def plan_batch(self, requests: Sequence[str], starts: Sequence[int], lengths: Sequence[int]) -> None:
        """Determines which tokens of the next batch are recorded (arguments as `Slots.plan_batch`)."""
        rows, targets, base = list[int](), list[tuple[str, int]](), 0
        for request, start, length in zip(requests, starts, lengths, strict=True):
            prompt, end = self._prompts[request]
            for number, offset in enumerate(self._offsets):
                position = end - 1 - offset
                if start <= position < start + length:
                    rows.append(base + position - start)
                    targets.append((prompt, number))
            base += length
        self._rows, self._targets = torch.tensor(rows, dtype=torch.int64), targets

    # -- called by `RecordingEngine` -------------------------------------------------------------------

    def depth(self) -> int:
        """Number of decoder layers."""
        return self._anatomy.depth

    def record_at(self, layers: Sequence[int], offsets: Sequence[int]) -> None:
        """Sets the layers and offsets to record for the next prompts, and discards earlier records."""
        self._layers, self._offsets = tuple(layers), tuple(offsets)
        self._recorded = {}

    def write_recorded(self, file: str) -> None:
        """Writes `[layers, offsets, width]` for every prompt to a safetensors file, and discards them."""
        if self.rank == 0:
            save_file({prompt: value.contiguous() for prompt, value in self._recorded.items()}, file)
        self._recorded = {}
