"""Every setting of a generation configuration is either heeded, refused, or known to change nothing."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from inferaligner.errors import InputError
from inferaligner.models.generation_settings import (
    ALGORITHMS,
    PROCESSORS,
    SAMPLING,
    WARPERS,
    in_force,
    refuse_ignored_settings,
)

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
"""Settings that every engine has in its own form (ends, lengths, temperature 0 in place of do_sample), and
settings that change the speed of an answer, not its text."""

GROUPS = (SAMPLING, PROCESSORS, WARPERS, ALGORITHMS, WITHOUT_EFFECT)


def test_every_setting_of_transformers_is_known() -> None:
    """A version with a new one fails here: decide what the servers do with it."""
    known = frozenset().union(*GROUPS)
    assert set(GenerationConfig().to_dict()) - known == set()
    assert sum(map(len, GROUPS)) == len(known), "a setting is in two groups"


def test_the_settings_of_a_plain_model_change_nothing() -> None:
    everything = frozenset().union(*GROUPS[:-1])
    assert in_force(GenerationConfig().to_dict(), everything) == {}
    neutral = {"repetition_penalty": 1.0, "num_beams": 1, "length_penalty": 2.0, "no_repeat_ngram_size": 0}
    assert in_force({**neutral, "temperature": 1.0, "top_p": 1.0, "suppress_tokens": []}, everything) == {}
    assert in_force({"num_beams": 4, "length_penalty": 2.0}, everything) == {
        "num_beams": 4,
        "length_penalty": 2.0,
    }


def test_what_is_not_heeded_is_refused_by_its_name() -> None:
    settings = {"no_repeat_ngram_size": 3, "temperature": 0.7, "repetition_penalty": 1.3, "num_beams": 2}
    with pytest.raises(InputError, match=r"no_repeat_ngram_size = 3, num_beams = 2.*Do this instead\."):
        refuse_ignored_settings(
            settings, SAMPLING | {"repetition_penalty"}, "this engine", "Do this instead."
        )
    refuse_ignored_settings({"temperature": 0.7}, SAMPLING, "this engine", "")
