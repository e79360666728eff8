"""Which settings of a model's `generation_config.json` choose its answers, and which an engine has to heed.

`generate` acts on all of them. A server that heeds only some would answer otherwise than the model that was
evaluated, so what it does not heed it must refuse by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from inferaligner.errors import InputError

SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p"})
"""How a token is drawn. Servers take them as defaults; requests may say otherwise."""

PROCESSORS = frozenset(
    {"repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
     "encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens",
     "forced_bos_token_id", "forced_eos_token_id",
     "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
     "sequence_bias"}
)  # fmt: skip
"""What changes the scores of the next token before one is chosen."""

WARPERS = frozenset(
    {"top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "watermarking_config", "renormalize_logits"}
)
"""What changes them after the temperature."""

ALGORITHMS = frozenset(
    {"num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "constraints",
     "force_words_ids", "penalty_alpha", "dola_layers", "guidance_scale", "token_healing", "stop_strings",
     "max_time", "num_return_sequences"}
)  # fmt: skip
"""Other ways to generate than one token after another, and other ends than a token or a length. No server
here has them."""

WITHOUT_EFFECT = frozenset(
    {"max_length", "do_sample", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
     "max_new_tokens", "use_cache", "cache_config", "cache_implementation", "max_cache_len", "low_memory",
     "prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config",
     "output_attentions", "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate",
     "transformers_version", "_from_model_config", "is_assistant", "num_assistant_tokens",
     "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_early_exit",
     "assistant_ensemble_weight", "assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens",
     "max_matching_ngram_size", "speculation_type", "use_mtp"}
)  # fmt: skip
"""What every engine has in its own way (ends, lengths, temperature 0 in place of do_sample), and what changes
how fast an answer comes, not what it says."""

# With these values, beside None, a setting changes nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,), "encoder_repetition_penalty": (1,), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "bad_words_ids": ([],), "min_length": (0,), "min_new_tokens": (0,),
    "remove_invalid_values": (False,), "suppress_tokens": ([],), "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []), "typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,),
    "renormalize_logits": (False,), "temperature": (1,), "top_k": (0,), "top_p": (1,), "min_p": (0,),
    "num_beams": (1,), "num_beam_groups": (1,), "diversity_penalty": (0,), "constraints": ([],),
    "force_words_ids": ([],), "penalty_alpha": (0,), "guidance_scale": (1,), "token_healing": (False,),
    "stop_strings": ([], ""), "num_return_sequences": (1,),
}  # fmt: skip

# They say something about beams alone.
_OF_BEAMS = frozenset({"length_penalty", "early_stopping", "diversity_penalty", "num_beam_groups"})


def in_force(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Those of `names` that change answers, with their values, in the order of their names."""
    beams = settings.get("num_beams") not in (None, 1)
    return {
        name: settings[name]
        for name in sorted(names)
        if settings.get(name) is not None
        and settings[name] not in _NEUTRAL.get(name, ())
        and (beams or name not in _OF_BEAMS)
    }


def check_heeded(settings: Mapping[str, Any], heeded: Collection[str], engine: str, instead: str) -> None:
    """Raises `InputError` that names each setting of a generation configuration that an engine does not heed
    although it changes answers. `heeded` are those that it does, `instead` says what an operator can do."""
    missing = in_force(settings, (SAMPLING | PROCESSORS | WARPERS | ALGORITHMS) - frozenset(heeded))
    if missing:
        told = ", ".join(f"{name} = {value!r:.60}" for name, value in missing.items())
        raise InputError(
            f"The model's generation_config.json sets {told}, which transformers' generate acts on "
            f"and {engine} does not: answers would differ from those that the aligner was evaluated with. "
            f"{instead}"
        )
