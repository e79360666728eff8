"""Golden: every way of decoding that transformers offers gives the steered greedy answer, or is refused."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from inferaligner.errors import SteeringError
from inferaligner.steering.plan import SteeringPlan
from tests.support.steering_cases import Case, make_case
from tests.support.tiny_models import tiny_model

ONE_PASS: dict[str, Any] = {"reads": ((1, 0),), "steered": (1, 2)}
ALL: dict[str, Any] = {**ONE_PASS, "positions": "all"}
REPLAY: dict[str, Any] = {"reads": ((2, 0),), "steered": (0, 1, 3)}
REPLAY_ALL: dict[str, Any] = {**REPLAY, "positions": "all"}
PLANS = pytest.mark.parametrize(
    "plan", [ONE_PASS, ALL, REPLAY, REPLAY_ALL], ids=["one", "all", "late", "late-all"]
)


@PLANS
@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"prefill_chunk_size": 4},
        {"prefill_chunk_size": 9},
        {"prefill_chunk_size": 1},
        {"prefill_chunk_size": 4, "cache_implementation": "static"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_same_logits(plan: dict[str, Any], options: dict[str, Any]) -> None:
    case = make_case(**plan)
    bare = case.logits()
    with case.guard() as guard:
        expected = case.logits()
        logits = case.logits(**options)
        assert [decision.open for decision in guard.decisions] == list(case.opens)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    for row in case.open_rows:
        assert not torch.allclose(expected[row], bare[row], atol=1e-2)


@PLANS
@pytest.mark.parametrize("family", ["gemma3", "gpt2", "bloom"])
def test_sliding_windows_and_other_positions(family: str, plan: dict[str, Any]) -> None:
    """Prompts longer than gemma's window of 16, in chunks and uncached."""
    case = make_case(family, lengths=(30, 21, 25, 30), **plan)
    with case.guard():
        expected = case.logits()
        for options in ({"use_cache": False}, {"prefill_chunk_size": 7}):
            torch.testing.assert_close(case.logits(**options), expected, atol=1e-4, rtol=1e-4)


@PLANS
def test_cache_given_and_continued(plan: dict[str, Any]) -> None:
    """The next chat turn is gated afresh, on top of what the earlier, open turn left in the cache."""
    case = make_case(**plan)
    first = case.batch(rows=[0])["input_ids"]
    cache = DynamicCache(config=case.model.config)
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    with case.guard() as guard:
        turn = case.model.generate(first, past_key_values=cache, **settings)
        assert [decision.open for decision in guard.decisions] == [True]
        assert cache.get_seq_length() == first.shape[1] + 3
        closing = torch.tensor([case.prompts[1]])
        longer = torch.cat([turn.sequences, closing], dim=1)
        reply = case.model.generate(longer, past_key_values=cache, output_logits=True, **settings)
        second = guard.decisions
    assert len(second) == 1
    # The same by hand: the second turn's own decision, its tokens computed on the first turn's steered cache.
    by_hand = DynamicCache(config=case.model.config)
    with torch.no_grad(), case.guard("always"):
        case.model(input_ids=first, past_key_values=by_hand)
        for token in turn.sequences[0, first.shape[1] : -1]:
            case.model(input_ids=token[None, None], past_key_values=by_hand)
    rest = longer[:, by_hand.get_seq_length() :]
    with torch.no_grad(), case.guard("always" if second[0].open else "never") as guard:
        expected = case.model(input_ids=rest, past_key_values=by_hand).logits[:, -1]
        assert guard.decisions[0].score == pytest.approx(second[0].score, abs=1e-4)
    torch.testing.assert_close(reply.logits[0], expected, atol=1e-4, rtol=1e-4)


def test_a_closed_turn_after_an_open_one() -> None:
    """The gate of the second turn is not held open by the first."""
    case = make_case()
    batch = case.batch(rows=[0])["input_ids"]
    cache = DynamicCache(config=case.model.config)
    with case.guard() as guard:
        turn = case.model.generate(
            batch, past_key_values=cache, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
        )
        opened = []
        for token in range(3, 40):
            longer = torch.cat([turn.sequences, torch.tensor([[token]])], dim=1)
            continued = DynamicCache(config=case.model.config)
            case.model.generate(turn.sequences, past_key_values=continued, max_new_tokens=1, do_sample=False)
            case.model.generate(longer, past_key_values=continued, max_new_tokens=1, do_sample=False)
            opened.append(guard.decisions[0].open)
            assert guard.decisions[0].open == (guard.decisions[0].score > 0)
    assert any(opened) and not all(opened), "the test needs turns of both kinds"


def test_a_direct_call_on_top_of_an_open_row_stays_open() -> None:
    """Nobody says that a new turn begins: these may be drafted tokens, or the rest of the prompt."""
    case = make_case()
    cache = DynamicCache(config=case.model.config)
    drafts = torch.tensor([case.prompts[1][:3]])
    by_hand = DynamicCache(config=case.model.config)
    with torch.no_grad():
        with case.guard("always"):
            case.model(**case.batch(rows=[0]), past_key_values=by_hand)
            expected = [
                case.model(input_ids=drafts[:, at : at + 1], past_key_values=by_hand) for at in range(3)
            ]
        closes = SteeringPlan(case.plan.gate.with_bias(-1.9), case.plan.additions)
        with case.guard() as guard:
            case.model(**case.batch(rows=[0]), past_key_values=cache)
            guard.plan = closes  # whatever the gate says of the drafts
            logits = case.model(input_ids=drafts, past_key_values=cache).logits
            assert guard.decisions[0].score < 0
            assert guard.decisions[0].open
    torch.testing.assert_close(
        logits[0], torch.stack([step.logits[0, 0] for step in expected]), atol=1e-4, rtol=1e-4
    )


def test_decoding_by_hand() -> None:
    case = make_case()
    batch = case.batch(rows=[0, 1])
    with torch.no_grad(), case.guard() as guard:
        expected = case.logits(rows=[0, 1])
        for return_dict in (True, False):
            mask = batch["attention_mask"]
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            output = case.model(**batch, position_ids=positions, use_cache=True, return_dict=return_dict)
            cache = output[1]
            for step in range(5):
                logits = output[0][:, -1]
                torch.testing.assert_close(logits, expected[:, step], atol=1e-4, rtol=1e-4)
                mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
                output = case.model(
                    input_ids=logits.argmax(-1)[:, None],
                    attention_mask=mask,
                    position_ids=mask.sum(1, keepdim=True) - 1,
                    past_key_values=cache,
                    return_dict=return_dict,
                )
        assert [decision.open for decision in guard.decisions] == [True, False]


@pytest.mark.parametrize("plan", [REPLAY, REPLAY_ALL], ids=["late", "late-all"])
@pytest.mark.parametrize("return_dict", [True, False])
def test_replay_of_a_direct_call(plan: dict[str, Any], return_dict: bool) -> None:
    """The model makes its own cache here; the steered rows' entries must end up in it."""
    case = make_case(**plan)
    batch = case.batch("right", rows=[0, 3])
    with torch.no_grad(), case.guard("always"):
        expected = [next_logits(case, batch, return_dict=True, given=True)]
        expected.append(next_logits(case, batch, return_dict=True, given=False))
    opens = make_case(**plan, opens=(True, False, False, True))
    with torch.no_grad(), opens.guard():
        for want in expected:
            for given in (True, False):
                torch.testing.assert_close(
                    next_logits(opens, batch, return_dict=return_dict, given=given),
                    want,
                    atol=1e-4,
                    rtol=1e-4,
                )


def next_logits(
    case: Case, batch: dict[str, torch.Tensor], *, return_dict: bool, given: bool
) -> torch.Tensor:
    cache = DynamicCache(config=case.model.config) if given else None
    output = case.model(**batch, past_key_values=cache, use_cache=True, return_dict=return_dict)
    return case.model(input_ids=torch.full((2, 1), 5), past_key_values=output[1]).logits


def test_replay_with_labels_gives_the_loss_of_what_is_returned() -> None:
    case = make_case(**REPLAY)
    batch = case.batch("right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad(), case.guard():
        output = case.model(**batch, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_replay_returns_hidden_states_of_the_steered_pass() -> None:
    case = make_case(**REPLAY)
    with torch.no_grad(), case.guard():
        output = case.model(**case.batch(), output_hidden_states=True)
    for row in range(4):
        head = case.model.lm_head(output.hidden_states[-1][row])
        torch.testing.assert_close(head, output.logits[row], atol=1e-4, rtol=1e-4)


@PLANS
def test_sampling(plan: dict[str, Any]) -> None:
    case = make_case(**plan)
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 50, "max_new_tokens": 8}
    answers = []
    for guarded in (False, True, True):
        torch.manual_seed(7)
        if guarded:
            with case.guard():
                answers.append(case.generate(**settings))
        else:
            answers.append(case.generate(**settings))
    bare, first, second = answers
    assert torch.equal(first, second)
    for row in case.closed_rows:
        assert torch.equal(first[row], bare[row])
    assert not torch.equal(first, bare)


@PLANS
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams(plan: dict[str, Any], options: dict[str, Any]) -> None:
    case = make_case(**plan)
    returned = options.get("num_return_sequences", 1)
    bare = case.generate(**options)
    with case.guard() as guard:
        together = case.generate(**options)
        assert [decision.open for decision in guard.decisions] == [o for o in case.opens for _ in range(3)]
        for row in range(4):
            alone = case.generate(rows=[row], **options)
            assert torch.equal(together[row * returned : (row + 1) * returned], alone)
    for row in case.closed_rows:
        mine = slice(row * returned, (row + 1) * returned)
        assert torch.equal(together[mine], bare[mine])
    assert not torch.equal(together, bare)


def test_several_return_sequences() -> None:
    case = make_case()
    with case.guard() as guard:
        torch.manual_seed(3)
        tokens = case.generate(do_sample=True, num_return_sequences=3)
    assert tokens.shape[0] == 12
    assert [decision.open for decision in guard.decisions] == [o for o in case.opens for _ in range(3)]


@PLANS
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("kind", ["prompt lookup", "same weights", "other weights"])
def test_assisted_decoding(plan: dict[str, Any], row: int, kind: str) -> None:
    case = make_case(**plan)
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if kind != "prompt lookup":
        assistant = tiny_model(seed=0 if kind == "same weights" else 5)
        assistant.generation_config.num_assistant_tokens = 3
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        options = {"assistant_model": assistant}
    with case.guard() as guard:
        expected = case.generate(rows=[row], max_new_tokens=12)
        assisted = case.generate(rows=[row], max_new_tokens=12, **options)
        assert torch.equal(assisted, expected)
        assert [decision.open for decision in guard.decisions] == [case.opens[row]]


def test_self_drafting_is_refused() -> None:
    case = make_case()
    bare = case.generate(rows=[0])
    depth = case.model.config.num_hidden_layers
    with case.guard():
        for options in (
            {"assistant_early_exit": 2},
            {"generation_config": GenerationConfig(assistant_early_exit=2, max_new_tokens=4)},
            {"assistant_model": case.model},
        ):
            with pytest.raises(SteeringError, match="Self-drafting"):
                case.generate(rows=[0], **options)
    assert case.model.config.num_hidden_layers == depth
    assert torch.equal(case.generate(rows=[0]), bare)


def test_inputs_embeds() -> None:
    for plan in (ONE_PASS, REPLAY):
        case = make_case(**plan)
        batch = case.batch()
        embeds = case.model.get_input_embeddings()(batch["input_ids"]).detach()
        with case.guard() as guard:
            expected = case.generate()
            tokens = case.model.generate(
                inputs_embeds=embeds, attention_mask=batch["attention_mask"], do_sample=False, **case.settings
            )
            assert [decision.open for decision in guard.decisions] == list(case.opens)
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize("plan", [ONE_PASS, REPLAY], ids=["one", "late"])
def test_prompts_of_one_token(plan: dict[str, Any]) -> None:
    case = make_case(**plan, lengths=(1, 1), opens=(True, False))
    bare = case.logits()
    with case.guard() as guard:
        steered = case.logits()
        assert [decision.open for decision in guard.decisions] == [True, False]
    assert torch.equal(steered[1], bare[1])
    assert not torch.allclose(steered[0, 0], bare[0, 0], atol=1e-2)


def test_no_attention_mask() -> None:
    case = make_case(lengths=(8, 8, 8, 8))
    ids = case.batch()["input_ids"]
    with case.guard() as guard:
        expected = case.generate()
        plain = case.model.generate(ids, do_sample=False, **case.settings)
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        by_name = case.model.generate(input_ids=ids, do_sample=False, **case.settings)
    assert torch.equal(plain[:, 8:], expected)
    assert torch.equal(by_name[:, 8:], expected)


def test_static_cache_used_again() -> None:
    """After reset() the same cache holds a new conversation: gated afresh, replayed where needed."""
    for plan in (ONE_PASS, REPLAY, REPLAY_ALL):
        case = make_case(**plan)
        cache = StaticCache(config=case.model.config, max_cache_len=40)
        with case.guard() as guard:
            expected = case.generate()
            for _ in range(2):
                assert torch.equal(case.generate(past_key_values=cache), expected)
                assert [decision.open for decision in guard.decisions] == list(case.opens)
                cache.reset()


def test_a_step_without_its_prompt_is_refused() -> None:
    case = make_case()
    batch = case.batch(rows=[0])
    with torch.no_grad():
        foreign = case.model(**batch, use_cache=True).past_key_values
        with case.guard():
            for known in (False, True):
                with pytest.raises(SteeringError, match="never passed this guard"):
                    case.model(input_ids=torch.tensor([[5]]), past_key_values=foreign)
                if not known:  # and another conversation's prompt does not vouch for this one
                    case.model(**batch, use_cache=True)


def test_prompt_that_is_cached_already_is_refused() -> None:
    """The gate's token must be computed under the guard."""
    case = make_case(reads=((1, 0), (1, 2)))
    batch = case.batch(rows=[0])
    with torch.no_grad():
        cache = case.model(input_ids=batch["input_ids"][:, :-1], use_cache=True).past_key_values
    with case.guard(), pytest.raises(SteeringError, match="in the cache"):
        case.model.generate(batch["input_ids"], past_key_values=cache, max_new_tokens=2)


def test_a_prompt_shorter_than_the_gates_reach_is_refused() -> None:
    case = make_case(reads=((1, 0), (1, 3)), lengths=(6, 5), opens=(True, False))
    with case.guard() as guard:
        case.generate()
        assert len(guard.decisions) == 2
        short = torch.tensor([[0, 0, 0, 0, 5, 6], [7, 8, 9, 10, 11, 12]])
        mask = (short != 0).long()
        with pytest.raises(SteeringError, match="has 2"):
            case.model.generate(short, attention_mask=mask, max_new_tokens=2)


def test_a_batch_of_another_size_is_refused() -> None:
    case = make_case()
    with torch.no_grad(), case.guard():
        cache = case.model(**case.batch(rows=[0]), use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        with pytest.raises(SteeringError, match="has 2 now"):
            case.model(input_ids=torch.tensor([[5], [5]]), past_key_values=cache)
