"""InferAligner as a model of lm-evaluation-harness, with the gate on the *context* in log-likelihood tasks.

    python -m inferaligner.evaluation.lm_eval_model run --model inferaligner \\
        --model_args pretrained=./my-llama,aligner=./my-aligner --tasks medqa_4options --apply_chat_template

lm-eval puts context and continuation into one right-padded pass, whose last token is the end of an answer;
here the guard gets the length of each context. Without `aligner` the same code runs the bare model in the
same batches, so that log-likelihoods of closed prompts can be compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from inferaligner.aligner import Aligner
from inferaligner.errors import InputError
from inferaligner.method.decision import Decision
from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import template_suffix
from inferaligner.steering.guard import Guard

Request = tuple[tuple[str, str], list[int], list[int]]


@register_model("inferaligner")
class InferAlignerLM(HFLM):  # type: ignore[misc]
    """A target with its aligner, or without one.

    Args:
        pretrained: a folder, a hub id or any other model that `inferaligner` loads.
        aligner: the folder that `fit` wrote; None for the bare model.
        batch_size: contexts a pass; 8 where it is no number.
        dtype, device, chat_template: as in the commands of `inferaligner`.
        raw: allow contexts that do not end as the chat template ends a prompt. The gate was fitted on such
            ends and its decisions mean nothing without them, so by default they are an error.
    """

    def __init__(
        self,
        pretrained: str,
        aligner: str | None = None,
        batch_size: int | str = 8,
        dtype: str = "auto",
        device: str | None = "auto",
        chat_template: str | None = None,
        raw: bool = False,
        **options: Any,
    ) -> None:
        loaded = load_model(pretrained, dtype=dtype, device=device or "auto", chat_template=chat_template)
        size = int(batch_size) if str(batch_size).isdigit() else 8
        super().__init__(
            pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=size, backend="causal", **options
        )
        self._suffix = template_suffix(loaded.tokenizer)
        self._raw = raw
        self._open = ExitStack()
        self._guard: Guard | None = None
        self.decisions: list[Decision] = []  # one per row, in the order in which the rows were run
        if aligner is not None:
            fitted = Aligner.from_pretrained(aligner)
            if fitted.artifact.provenance.system_prompt is not None:
                raise InputError(
                    "This aligner was fitted with a system prompt, which lm-eval cannot give. "
                    "Use `inferaligner evaluate`, or an aligner that was fitted without one."
                )
            self._guard = self._open.enter_context(fitted.apply(loaded.model, loaded.tokenizer))

    def close(self) -> None:
        """Removes the hooks from the model."""
        self._open.close()
        self._guard = None

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encodes both separately.

        lm-eval moves blanks from the context's end to the continuation. With most chat templates that removes
        the last token of the prompt, which the gate reads.
        """
        return (
            list(self.tok_encode(context)),
            list(self.tok_encode(continuation, add_special_tokens=False)),
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Sum of log-likelihoods of each continuation, and whether greedy decoding would give it."""
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        order = sorted(range(len(requests)), key=lambda at: (lengths[at], at))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            pairs = [self._fitting(requests[at][1], requests[at][2]) for at in batch]
            for at, result in zip(batch, self._pass(pairs), strict=True):
                results[at] = result
                text, _, _ = requests[at]
                self.cache_hook.add_partial("loglikelihood", text, result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """For the bare model only: a whole text has no prompt that a gate could read."""
        if self._guard is not None:
            raise InputError(
                "Rolling log-likelihoods (perplexity of whole texts) have no prompt that a gate could read. "
                "Run such tasks without the aligner."
            )
        rolled: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
        return rolled

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        mask = options.get("attention_mask")
        for row in range(context.shape[0]):
            tokens = context[row] if mask is None else context[row][mask[row].bool()]
            self._check_end(tokens.tolist())
        generated = super()._model_generate(context, max_length, stop, **options)
        if self._guard is not None:
            self.decisions += self._guard.decisions
        return generated

    @torch.no_grad()
    def _pass(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        rows = [[*context, *continuation] for context, continuation in pairs]
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        prompt_ends: Any = nullcontext()
        if self._guard is not None:
            for context, _ in pairs:
                self._check_end(context)
            prompt_ends = self._guard.prompt_lengths([len(context) for context, _ in pairs])
        with prompt_ends:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if self._guard is not None:
            self.decisions += self._guard.decisions
        results = []
        for row, (context, continuation) in enumerate(pairs):
            first = len(context) - 1
            predicted = logits[row, first : first + len(continuation)].float()
            actual = torch.tensor(continuation, device=predicted.device)
            value = float(predicted.log_softmax(-1).gather(-1, actual[:, None]).sum())
            results.append((value, bool((predicted.argmax(-1) == actual).all())))
        return results

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Cuts a context that is too long from the left, as lm-eval does, so that the prompt's end stays."""
        return context[max(0, len(context) + len(continuation) - self.max_length) :], continuation

    def _check_end(self, context: list[int]) -> None:
        if self._guard is None or self._raw or context[-len(self._suffix) :] == self._suffix:
            return
        raise InputError(
            "A context does not end as the chat template ends a prompt, where the gate reads. Run lm-eval "
            "with --apply_chat_template, or give raw=True to gate such contexts."
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
