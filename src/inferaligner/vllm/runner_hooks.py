"""The hook in vLLM's model runner that reports, before a forward pass, which tokens are in the batch.

vLLM has two runners:
- V1: `_model_forward`, which vLLM documents as the method to override. It runs after the batch is assembled,
  and not in dummy runs.
- V2: `preprocess_state` of the runner's model state. It is called before every forward pass of a real batch,
  also if a full CUDA graph is replayed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from inferaligner.errors import SteeringError

PlanBatch = Callable[[Sequence[str], Sequence[int], Sequence[int]], None]
"""Takes the requests of a batch in order, the position of each one's first token, its number of tokens."""


class RunnerHook:
    """Calls a function before every forward pass of a runner.

    The worker sets `scheduled` before each step: vLLM's `SchedulerOutput`, or None for a batch that vLLM made
    itself, which is not planned.

    Args:
        runner: vLLM's model runner, of either version.
        plan_batch: the function.

    Raises:
        SteeringError: the runner is of neither version.
    """

    def __init__(self, runner: Any, plan_batch: PlanBatch) -> None:
        self._runner = runner
        self._plan_batch = plan_batch
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
                f"The model runner {type(runner).__name__} has neither of the two methods in which the gate "
                "can prepare a batch. This version of vLLM is not supported."
            )

    def restore_prompt_logprobs(self, requests: Sequence[str]) -> None:
        """Makes the runner compute the prompt's log probabilities again for replayed requests.

        V1 assumes that a resumed request has delivered them; V2 treats it as a new request.
        """
        for request in requests if self._is_v1 else ():
            count = self._runner.requests[request].sampling_params.prompt_logprobs
            if count is not None:
                vocabulary = self._runner.input_batch.vocab_size
                self._runner.num_prompt_logprobs[request] = vocabulary if count == -1 else count

    def _before_v1(self, *args: Any, **options: Any) -> Any:
        if self.scheduled is not None:
            batch = self._runner.input_batch
            requests = batch.req_ids
            lengths = [self.scheduled.num_scheduled_tokens[request] for request in requests]
            starts = batch.num_computed_tokens_cpu[: len(requests)].tolist()
            self._plan_batch(requests, starts, lengths)
        return self._forward(*args, **options)

    def _before_v2(self, input_batch: Any, *args: Any, **options: Any) -> Any:
        if self.scheduled is not None:
            starts = input_batch.num_computed_tokens_np[: input_batch.num_reqs].tolist()
            begins = input_batch.query_start_loc_np[: input_batch.num_reqs + 1].tolist()
            lengths = [end - begin for begin, end in itertools.pairwise(begins)]
            self._plan_batch(input_batch.req_ids, starts, lengths)
        return self._preprocess(input_batch, *args, **options)
