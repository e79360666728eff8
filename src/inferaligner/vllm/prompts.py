"""Which prompts can be gated at all.

The gate was fitted on the last tokens of prompts as the chat template ends them. At the end of any other text
it reads something it was never shown, and a client could choose that text. So prompts that end otherwise are
refused, unless the operator says `prompts="any"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferaligner.errors import InferAlignerError, MismatchError
from inferaligner.vllm.adapters import AdapterRules
from inferaligner.vllm.settings import EngineSettings

_BASE_ALONE = AdapterRules(None, others=False)


@dataclass(frozen=True)
class PromptRules:
    """`ending`: token ids that every prompt must end with; `shortest`: tokens that the gate must find;
    `adapters`: which LoRA adapters a request may have."""

    ending: tuple[int, ...]
    shortest: int
    adapters: AdapterRules = _BASE_ALONE

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
            return cls((), shortest, adapters)
        from inferaligner.models.fingerprint import differences, fingerprint_tokenizer
        from inferaligner.prompts.chat import template_suffix

        reader = _reader(config.model_config) if tokenizer is None else tokenizer
        found = differences(fingerprint_tokenizer(reader), artifact.provenance.target.tokenizer)
        if found:
            raise MismatchError(
                f"The tokenizer is not the one the aligner was fitted with: {'; '.join(found)}. Serve the "
                "model with the tokenizer and chat template it was fitted with, or fit an aligner for this "
                "one."
            )
        if settings.prompts == "any":
            return cls((), shortest, adapters)
        try:
            return cls(tuple(template_suffix(reader)), shortest, adapters)
        except InferAlignerError as error:
            raise MismatchError(f"The end of a chat prompt is unknown: {error}") from None

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
        if self.ending and tuple(tokens[-len(self.ending) :]) != self.ending:
            return (
                "The prompt does not end as the model's chat template ends it, where the guidance gate "
                "reads. Use the chat endpoint with the model's own template and add_generation_prompt, "
                "without a prefilled answer; the operator can allow other prompts with `prompts: any`."
            )
        return None


def _reader(model_config: Any) -> Any:
    """The tokenizer, or the processor of a model that sees: its chat template may be the processor's."""
    if model_config.is_multimodal_model:
        from vllm.transformers_utils.processor import cached_processor_from_config

        return cached_processor_from_config(model_config)
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config)
