"""InferAligner as a model of lm-evaluation-harness, with the gate on the *context* in log-likelihood tasks.

    python -m inferaligner.evaluation.lm_eval_model run --model inferaligner \\
        --model_args pretrained=./my-llama,aligner=./my-aligner --tasks medqa_4options --apply_chat_template

lm-eval gives context and continuation in one right-padded pass, where "the last token" is the end of an
answer; here the guard is told where each context ends. Without `aligner` the same code runs the bare model,
batch by batch alike, so that log-likelihoods of closed prompts can be compared bit by bit.
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
        pretrained: any spec that `inferaligner` takes.
        aligner: what `fit` wrote; nothing for the bare model.
        raw: allow contexts that do not end as the chat template ends a prompt. The gate was fitted on such
            ends, so its decisions mean nothing otherwise; by default that is an error.
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
        self.decisions: list[Decision] = []  # one per request row, in the order in which they were run
        if aligner is not None:
            fitted = Aligner.from_pretrained(aligner)
            if fitted.artifact.provenance.system_prompt is not None:
                raise InputError(
                    "This aligner was fitted with a system prompt, which lm-eval does not know of. "
                    "Use `inferaligner evaluate`, or an aligner that was fitted without one."
                )
            self._guard = self._open.enter_context(fitted.apply(loaded.model, loaded.tokenizer))

    def close(self) -> None:
        """Takes the hooks off; the model is as it was."""
        self._open.close()
        self._guard = None

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, each by itself.

        lm-eval moves blanks at the context's end to the continuation; with most chat templates that takes the
        last token of the prompt away, which is the one that the gate reads.
        """
        return (
            list(self.tok_encode(context)),
            list(self.tok_encode(continuation, add_special_tokens=False)),
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Sum of log-likelihoods of each continuation, and whether greedy decoding would give it."""
        lengths = [len(context) + len(said) for _, context, said in requests]
        order = sorted(range(len(requests)), key=lambda at: (lengths[at], at))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            pairs = [self._fitting(requests[at][1], requests[at][2]) for at in batch]
            for at, result in zip(batch, self._pass(pairs), strict=True):
                found[at] = result
                text, _, _ = requests[at]
                self.cache_hook.add_partial("loglikelihood", text, result)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Whole texts have no prompt, so there is nothing to gate: bare model only."""
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
        longest = max(len(context) + len(said) for context, said in pairs)
        rows = [[*context, *said] for context, said in pairs]
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        told: Any = nullcontext()
        if self._guard is not None:
            for context, _ in pairs:
                self._check_end(context)
            told = self._guard.prompt_lengths([len(context) for context, _ in pairs])
        with told:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if self._guard is not None:
            self.decisions += self._guard.decisions
        results = []
        for row, (context, said) in enumerate(pairs):
            at = logits[row, len(context) - 1 : len(context) - 1 + len(said)].float()
            wanted = torch.tensor(said, device=at.device)
            value = float(at.log_softmax(-1).gather(-1, wanted[:, None]).sum())
            results.append((value, bool((at.argmax(-1) == wanted).all())))
        return results

    def _fitting(self, context: list[int], said: list[int]) -> tuple[list[int], list[int]]:
        """Cut from the left where the two are too long, as lm-eval does: the prompt's end stays."""
        return context[max(0, len(context) + len(said) - self.max_length) :], said

    def _check_end(self, context: list[int]) -> None:
        if self._guard is None or self._raw or context[-len(self._suffix) :] == self._suffix:
            return
        raise InputError(
            "A context does not end as the chat template ends a prompt, where the gate reads. Run lm-eval "
            "with --apply_chat_template, or give raw=True to gate it all the same."
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
