from __future__ import annotations

import torch

from inferaligner.fit.monitor.answer_streams import answer_streams
from inferaligner.prompts.chat import encode_chats
from tests.support.steering_cases import trace_of_hooks
from tests.support.tiny_aligner import PROMPTS
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def test_streams_are_those_of_a_teacher_forced_pass() -> None:
    """Row by row: greedy tokens, one whole pass over them, the layer's output at each."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.pad_token_id = 0
    before = trace_of_hooks(model)
    found: dict[int, torch.Tensor] = {}
    for batch in answer_streams(model, tokenizer, PROMPTS, layers=(1, 3), tokens=6, batch_size=2):
        assert batch.values.shape[1:] == (6, 2, 32)
        found.update({row: batch.values[at, : batch.lengths[at]] for at, row in enumerate(batch.rows)})
    assert trace_of_hooks(model) == before
    assert sorted(found) == list(range(len(PROMPTS)))
    for row, ids in enumerate(encode_chats(tokenizer, PROMPTS)):
        prompt = torch.tensor([ids])
        answer = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
        )
        with torch.no_grad():
            hidden = model(answer, output_hidden_states=True).hidden_states
        # `hidden_states[l + 1]` is after layer l, but for the last layer, which is after the final norm.
        expected = hidden[2][0, len(ids) :]
        torch.testing.assert_close(found[row][:, 0], expected[: len(found[row])], atol=1e-4, rtol=1e-4)


def test_the_end_of_text_ends_an_answer() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = torch.tensor([encode_chats(tokenizer, PROMPTS[:1])[0]])
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    third = int(answer[0, prompt.shape[1] + 2])
    first = answer[0, prompt.shape[1] :].tolist().index(third)
    model.generation_config.eos_token_id = [third]
    batches = list(answer_streams(model, tokenizer, PROMPTS[:1], layers=(0,), tokens=6))
    assert batches[0].lengths.tolist() == [first]
