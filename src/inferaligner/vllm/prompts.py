"""Which prompts can be gated at all.

The gate was fitted on the last tokens of prompts as the chat template ends them. At the end of any other
text it reads something it was never shown, and a client could choose that text. Begun answers have a gate of
their own, where the aligner was fitted with one; otherwise they are refused, and so is raw text, unless the
operator says `prompts="any"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferaligner.errors import InferAlignerError, MismatchError
from inferaligner.prompts.template_ends import AS_THE_TEMPLATE, PromptEnd, TemplateEnds, end_objection
from inferaligner.vllm.adapters import AdapterRules
from inferaligner.vllm.settings import EngineSettings

_BASE_ALONE = AdapterRules(None, others=False)


@dataclass(frozen=True)
class PromptRules:
    """`ends`: where the chat template hands over to the assistant, None where that cannot be known;
    `shortest`: tokens that the gate must find; `adapters`: which LoRA adapters a request may have; `any_end`:
    whether raw text is taken; `judges_begun`: whether the aligner has a gate for begun answers."""

    ends: TemplateEnds | None
    shortest: int
    adapters: AdapterRules = _BASE_ALONE
    any_end: bool = False
    judges_begun: bool = False

    @classmethod
    def of(cls, config: Any, settings: EngineSettings, tokenizer: Any = None) -> PromptRules:
        """The rules for a deployment. Raises `MismatchError` for another tokenizer or chat template than the
        aligner was fitted with."""
        artifact, adapters = settings.artifact(), settings.adapter_rules()
        shortest = max(artifact.gate.offsets) + 1
        if config.model_config.skip_tokenizer_init:
            if settings.prompts == "chat":
                raise MismatchError(
                    "vLLM was told to skip the tokenizer, so it cannot be compared with the aligner's. Leave "
                    "--skip-tokenizer-init out, or take the responsibility for it with prompts='any'."
                )
            return cls(None, shortest, adapters, any_end=True)
        from inferaligner.models.fingerprint import differences, fingerprint_tokenizer

        reader = _reader(config.model_config) if tokenizer is None else tokenizer
        found = differences(fingerprint_tokenizer(reader), artifact.provenance.target.tokenizer)
        if found:
            raise MismatchError(
                f"The tokenizer is not the one the aligner was fitted with: {'; '.join(found)}. Serve the "
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
        """How a prompt ends; as the template ends one, where that cannot be known."""
        return AS_THE_TEMPLATE if self.ends is None or tokens is None else self.ends.end_of(tokens)

    def objection(self, request: Any) -> str | None:
        """Why a request (the front end's or the scheduler's) cannot be gated, in words for the client; None
        if it can."""
        if request.resumable:
            return "Streaming input cannot be gated: send the whole prompt in one request."
        return self.adapters.objection(request.lora_request) or self.prompt_objection(
            request.prompt_token_ids
        )

    def prompt_objection(self, tokens: Sequence[int] | None) -> str | None:
        """The same about the tokens of a prompt alone."""
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
    """The tokenizer, or the processor of a model that sees: its chat template may be the processor's."""
    if model_config.is_multimodal_model:
        from vllm.transformers_utils.processor import cached_processor_from_config

        return cached_processor_from_config(model_config)
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config)
