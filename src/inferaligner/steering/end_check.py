"""What happens to prompts that do not end as the chat template ends them, where the gate was fitted."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from torch import Tensor

from inferaligner.errors import InputError, SteeringError
from inferaligner.prompts.encoding import Reader
from inferaligner.prompts.template_ends import TemplateEnds
from inferaligner.steering.prompt_spans import PromptSpans, with_turns

OnUnknownEnd = Literal["warn", "refuse", "allow"]
"""What a guard does with a prompt whose end its gates were not fitted on: raw text, and begun answers where
the aligner has no gate for them. `warn` and `allow` gate the prompt nevertheless; `refuse` raises
`SteeringError`, for every begun answer too."""


class UnknownEndWarning(UserWarning):
    """A prompt was gated at an end that the gate was not fitted on, or its end could not be checked."""


class EndCheck:
    """Detects where the chat template hands over to the assistant; without a tokenizer it warns once."""

    def __init__(self, ends: TemplateEnds | None, policy: OnUnknownEnd, *, calibrated: bool = False) -> None:
        """
        Args:
            ends: the ends that the chat template writes; None: unknown, for want of a tokenizer.
            policy: what to do with other ends.
            calibrated: whether the aligner has a gate for begun answers (`inferaligner.method.end_gate`).
        """
        self._ends = ends
        self._policy = policy
        self._calibrated = calibrated
        self._warned = False

    @classmethod
    def of(cls, reader: Reader | None, policy: OnUnknownEnd, *, calibrated: bool) -> EndCheck:
        """The check for a tokenizer or processor; None for a guard without one.

        Raises:
            InputError: prompts are to be refused, and there is no tokenizer to recognise them.
            ChatTemplateMissingError: the tokenizer has no chat template.
        """
        if reader is None and policy == "refuse":
            raise InputError(
                'on_unknown_end="refuse" needs the tokenizer, to see how prompts end: give '
                "apply(model, tokenizer, …)."
            )
        return cls(None if reader is None else TemplateEnds.of(reader), policy, calibrated=calibrated)

    def of_generate(self, spans: PromptSpans, arguments: dict[str, Any]) -> PromptSpans:
        """Checks the prompts of a `generate(...)` call; arguments and errors as in `__call__`."""
        ids = arguments.get("inputs") if arguments.get("inputs") is not None else arguments.get("input_ids")
        mask = arguments.get("attention_mask")
        if ids is None or arguments.get("inputs_embeds") is not None:
            return self(spans, None, 0)
        # The mask covers cached tokens too, where the call has only the new ones.
        cached = mask.shape[1] - ids.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else 0
        return self(spans, ids, max(cached, 0))

    def __call__(self, spans: PromptSpans, ids: Tensor | None, start: int) -> PromptSpans:
        """Returns the spans with each row's kind of end.

        Args:
            spans: where the prompts begin and end.
            ids: token ids `[prompts, tokens]`; None where the model gets embeddings.
            start: position of the first of these tokens.

        Raises:
            SteeringError: the policy is "refuse", and a prompt has another end.
        """
        if self._ends is None:
            self._warn(
                "The aligner was applied without a tokenizer, so it cannot check whether prompts end as the "
                "chat template ends them, where the gate was fitted. Use aligner.apply(model, tokenizer)."
            )
            return spans
        if ids is None or ids.is_floating_point():
            self._object(
                "A prompt came as embeddings, so it cannot be checked whether it ends as the chat template "
                "ends one, where the gate was fitted. Pass input_ids."
            )
            return spans
        spans = with_turns(spans, ids, start, self._ends)
        kinds = spans.kinds or ()
        if any(kind == "raw" for kind in kinds):
            self._object(
                f"{_rows(kinds, 'raw')} without the end that the chat template writes, where the gate was "
                "fitted. Render prompts with apply_chat_template(…, add_generation_prompt=True)."
            )
        elif any(kind == "begun" for kind in kinds) and (self._policy == "refuse" or not self._calibrated):
            self._object(
                f"{_rows(kinds, 'begun')} behind the end that the chat template writes, with a begun answer. "
                "The gate reads both places"
                + (
                    "."
                    if self._calibrated
                    else ", and this aligner was fitted before begun answers were calibrated: it opens on "
                    "most of them. Fit it again."
                )
            )
        return spans

    def _object(self, message: str) -> None:
        if self._policy == "refuse":
            raise SteeringError(message + ' (on_unknown_end="refuse")')
        self._warn(message)

    def _warn(self, message: str) -> None:
        if self._policy == "allow" or self._warned:
            return
        self._warned = True
        warnings.warn(message, UnknownEndWarning, stacklevel=2)


def _rows(kinds: tuple[str, ...], kind: str) -> str:
    count = sum(each == kind for each in kinds)
    verb = {"raw": "ends" if count == 1 else "end", "begun": "goes on" if count == 1 else "go on"}[kind]
    return f"{count} of {len(kinds)} prompts {verb}"
