"""The rules for prompts: which of them can be gated.

The gate was fitted on the last tokens of prompts that end as the chat template ends them. Any other ending is
text that the gate was not fitted on, and a client could choose it. A begun answer is read by a gate of its
own if the aligner was fitted with one. Begun answers without such a gate are refused, and so is raw text,
unless the operator sets `prompts="any"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferaligner.errors import InferAlignerError, MismatchError
from inferaligner.prompts.template_ends import AS_THE_TEMPLATE, PromptEnd, TemplateEnds, end_objection
from inferaligner.vllm.adapters import AdapterRules
from inferaligner.vllm.settings import EngineSettings


@dataclass(frozen=True)
class PromptRules:
    """The rules of one deployment.

    Attributes:
        ends: finds where the chat template hands over to the assistant; None if that is unknown.
        shortest: tokens that a prompt must have, because the gate reads them.
        adapters: which LoRA adapters a request may have.
        any_end: whether raw text is accepted.
        judges_begun: whether the aligner has a gate for begun answers.
    """

    ends: TemplateEnds | None
    shortest: int
    adapters: AdapterRules
    any_end: bool = False
    judges_begun: bool = False

    @classmethod
    def from_config(cls, config: Any, settings: EngineSettings) -> PromptRules:
        """The rules of the deployment that a `VllmConfig` describes.

        Raises:
            MismatchError: another tokenizer or chat template than the aligner was fitted with.
        """
        artifact, adapters = settings.artifact(), settings.adapter_rules()
        shortest = max(artifact.gate.offsets) + 1
        if config.model_config.skip_tokenizer_init:
            if settings.prompts == "chat":
                raise MismatchError(
                    "vLLM skips the tokenizer, so it cannot be compared with the aligner's. Leave "
                    "--skip-tokenizer-init out, or accept any prompt with prompts='any'."
                )
            return cls(None, shortest, adapters, any_end=True)
        from inferaligner.models.fingerprint import differences, fingerprint_tokenizer

        reader = _reader(config.model_config)
        unlike = differences(fingerprint_tokenizer(reader), artifact.provenance.target.tokenizer)
        if unlike:
            raise MismatchError(
                f"The tokenizer is not the one the aligner was fitted with: {'; '.join(unlike)}. Serve the "
                "model with the tokenizer and chat template it was fitted with, or fit an aligner for this "
                "one."
            )
        any_end = settings.prompts == "any"
        try:
            ends = TemplateEnds.of(reader)
        except InferAlignerError as error:
            if not any_end:
                raise MismatchError(f"The end of a chat prompt is unknown: {error}") from None
            ends = TemplateEnds(())
        return cls(ends, shortest, adapters, any_end, judges_begun=artifact.end_gate is not None)

    def end_of(self, tokens: Sequence[int] | None) -> PromptEnd:
        """How a prompt ends; "as the template ends one" if that is unknown."""
        return AS_THE_TEMPLATE if self.ends is None or tokens is None else self.ends.end_of(tokens)

    def objection(self, request: Any) -> str | None:
        """The reason why a request cannot be gated, as a message to the client; None if it can.

        Args:
            request: the front end's `EngineCoreRequest`, or the scheduler's `Request`.
        """
        if request.resumable:
            return "Streaming input cannot be gated: send the whole prompt in one request."
        if (objection := self.adapters.objection(request.lora_request)) is not None:
            return objection
        tokens = request.prompt_token_ids
        if tokens is None:
            return "A prompt of embeddings cannot be checked against the chat template: send text."
        if len(tokens) < self.shortest:
            return (
                f"The prompt has {len(tokens)} tokens, but the guidance gate reads the last "
                f"{self.shortest}. Use the chat endpoint."
            )
        end = self.end_of(tokens)
        if end.turn_end is not None and end.turn_end < self.shortest:
            return (
                f"The prompt's turn has {end.turn_end} tokens, but the guidance gate reads {self.shortest}."
            )
        return None if self.any_end else end_objection(end, judges_begun=self.judges_begun)


def _reader(model_config: Any) -> Any:
    """The tokenizer; for a model with image input its processor, which may hold the chat template."""
    if model_config.is_multimodal_model:
        from vllm.transformers_utils.processor import cached_processor_from_config

        return cached_processor_from_config(model_config)
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config)
