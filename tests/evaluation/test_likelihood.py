"""Likelihoods of given answers, where prompts of a batch leave different room for theirs."""

import pytest

from inferaligner.errors import PromptTooLongError
from inferaligner.evaluation.likelihood import answer_logprobs
from inferaligner.prompts.chat import encode_chats
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def test_a_prompt_needs_room_for_its_own_answers_alone() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model(max_position_embeddings=96)
    around = len(encode_chats(tokenizer, [""])[0])
    full, short = "a" * (95 - around), "a" * (40 - around)
    together = answer_logprobs(model, tokenizer, [full, short], [["b", "c"], ["b" * 56]])
    alone = answer_logprobs(model, tokenizer, [full], [["b", "c"]])
    assert together[0] == pytest.approx(alone[0], abs=1e-4)
    with pytest.raises(
        PromptTooLongError, match=r"Prompt 2 .* has 40 tokens, but the model reads at most 39"
    ):
        answer_logprobs(model, tokenizer, [full, short], [["b", "c"], ["b" * 57]])
