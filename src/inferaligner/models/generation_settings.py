"""Which settings of a model's `generation_config.json` change its answers, by their kind.

`generate` applies all of them. A server that applies only some would give other answers than the model that
was evaluated, so it must refuse the settings that it does not apply, by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from inferaligner.errors import InputError

SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p"})
"""How a token is drawn. Servers use them as defaults; a request may override them."""

PROCESSORS = frozenset(
    {"repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
     "encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens",
     "forced_bos_token_id", "forced_eos_token_id",
     "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
     "sequence_bias"}
)  # fmt: skip
"""Changes of the next token's scores before a token is drawn."""

WARPERS = frozenset(
    {"top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "watermarking_config", "renormalize_logits"}
)
"""Changes of the scores after the temperature."""

ALGORITHMS = frozenset(
    {"num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "constraints",
     "force_words_ids", "penalty_alpha", "dola_layers", "guidance_scale", "token_healing", "stop_strings",
     "max_time", "num_return_sequences"}
)  # fmt: skip
"""Other ways to generate than one token after another, and other ends than a token or a length. No server of
this package has them."""

# Values with which a setting changes nothing, besides None.
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

# Settings with an effect only if there are several beams.
_OF_BEAMS = frozenset({"length_penalty", "early_stopping", "diversity_penalty", "num_beam_groups"})


def in_force(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The settings among `names` that change answers, with their values, sorted by name."""
    beams = settings.get("num_beams") not in (None, 1)
    return {
        name: settings[name]
        for name in sorted(names)
        if settings.get(name) is not None
        and settings[name] not in _NEUTRAL.get(name, ())
        and (beams or name not in _OF_BEAMS)
    }


def refuse_ignored_settings(
    settings: Mapping[str, Any], heeded: Collection[str], engine: str, instead: str
) -> None:
    """Refuses a generation configuration with a setting that changes answers and that an engine does not
    apply.

    Args:
        settings: The generation configuration.
        heeded: The names of the settings that the engine applies.
        engine: The engine's name, for the message.
        instead: What an operator can do, for the message.

    Raises:
        InputError: There are such settings; the message names them.
    """
    missing = in_force(settings, (SAMPLING | PROCESSORS | WARPERS | ALGORITHMS) - frozenset(heeded))
    if missing:
        listed = ", ".join(f"{name} = {value!r:.60}" for name, value in missing.items())
        raise InputError(
            f"The model's generation_config.json sets {listed}, which transformers' generate applies "
            f"and {engine} does not: answers would differ from those that the aligner was evaluated with. "
            f"{instead}"
        )
