"""Where vLLM's two model runners tell which requests stand where in the coming batch.

V1: `_model_forward`, which vLLM documents as the method to override; it runs after the batch was put together
and is not used by dummy runs. V2: the model state's `preprocess_state`, called for real batches before every
forward pass, replays of a full CUDA graph included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from inferaligner.errors import SteeringError

Plan = Callable[[Sequence[str], Sequence[int], Sequence[int]], None]
"""Told of a batch: its requests in order, the position of each one's first token, its number of tokens."""


class RunnerSeam:
    """Calls `plan` from inside a runner.

    `scheduled` is set by the worker before each step: vLLM's `SchedulerOutput`, or None for a batch of vLLM's
    own, which is not planned.
    """

    def __init__(self, runner: Any, plan: Plan) -> None:
        self._runner = runner
        self._plan = plan
        self.scheduled: Any = None
        self._is_v1 = not hasattr(runner, "model_state")
        if hasattr(runner, "model_state") and hasattr(runner.model_state, "preprocess_state"):
            self._preprocess = runner.model_state.preprocess_state
            runner.model_state.preprocess_state = self._before_v2
        elif hasattr(runner, "_model_forward") and hasattr(runner, "input_batch"):
            self._forward = runner._model_forward
            runner._model_forward = self._before_v1
        else:
            raise SteeringError(
                f"The model runner {type(runner).__name__} has neither of the two places where the gate is "
                "told of a batch. This version of vLLM is not supported."
            )

    def begin_again(self, requests: Sequence[str]) -> None:
        """Requests whose prompt is computed a second time: their log probabilities are wanted again.

        V1 takes those of a resumed request for delivered already; V2 takes it for a new request.
        """
        for request in requests if self._is_v1 else ():
            wanted = self._runner.requests[request].sampling_params.prompt_logprobs
            if wanted is not None:
                vocabulary = self._runner.input_batch.vocab_size
                self._runner.num_prompt_logprobs[request] = vocabulary if wanted == -1 else wanted

    def _before_v1(self, *args: Any, **options: Any) -> Any:
        if self.scheduled is not None:
            batch = self._runner.input_batch
            requests = batch.req_ids
            lengths = [self.scheduled.num_scheduled_tokens[request] for request in requests]
            starts = batch.num_computed_tokens_cpu[: len(requests)].tolist()
            self._plan(requests, starts, lengths)
        return self._forward(*args, **options)

    def _before_v2(self, input_batch: Any, *args: Any, **options: Any) -> Any:
        if self.scheduled is not None:
            starts = input_batch.num_computed_tokens_np[: input_batch.num_reqs].tolist()
            begins = input_batch.query_start_loc_np[: input_batch.num_reqs + 1].tolist()
            lengths = [end - begin for begin, end in itertools.pairwise(begins)]
            self._plan(input_batch.req_ids, starts, lengths)
        return self._preprocess(input_batch, *args, **options)
