"""Golden: the monitor opens at the token that plain numpy says, steers from it on, and does nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from inferaligner.errors import ArtifactError, MismatchError, SteeringError
from inferaligner.method.decision import Decision
from inferaligner.method.monitor import AnswerMonitor, running_means
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import Mode, SteeringPlan
from tests.support.compiled_decoding import compiled_decoding, graphs
from tests.support.host_reads import count_host_reads
from tests.support.steering_cases import Case, make_case
from tests.support.tiny_models import tiny_model

LAYER, WINDOW, TOKENS = 1, 3, 12


@dataclass
class Watched:
    """A case with a monitor, and what the bare model's answers hold at its layer `[rows, tokens, width]`."""

    case: Case
    monitor: AnswerMonitor
    streams: Tensor
    answers: Tensor
    expected: list[int | str | None]

    def guard(self, mode: Mode = "gate", **changes: Any) -> Guard:
        return Guard(self.case.model, replace(self.case.plan, monitor=self.monitor, **changes), mode)

    def generate(self, **settings: Any) -> Any:
        return self.case.generate(**{"max_new_tokens": TOKENS, **settings})

    @property
    def late_rows(self) -> list[int]:
        return [row for row, at in enumerate(self.expected) if isinstance(at, int)]


def streams_of_answers(case: Case, layer: int, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Layer `layer` at the tokens of the bare model's greedy answers (but the last), and the answers."""
    steps: list[Tensor] = []
    hook = case.model.model.layers[layer].register_forward_hook(lambda m, i, o: steps.append(o[:, -1]))
    answers = case.generate(max_new_tokens=TOKENS, rows=rows)
    hook.remove()
    return torch.stack(steps[1:], dim=1).detach(), answers


def reference(streams: Tensor, monitor: AnswerMonitor, ends: Tensor | None = None) -> list[int | None]:
    """The first token number at which the running score is positive, row by row, in plain numpy."""
    opened: list[int | None] = []
    for row, stream in enumerate(streams.double().numpy()):
        scores = stream @ monitor.weights.double().numpy() + monitor.centre
        length = len(scores) if ends is None else min(len(scores), int(ends[row]))
        opened.append(None)
        for number in range(1, length + 1):
            window = [scores[at - 1] if at >= 1 else 0.0 for at in range(number - WINDOW + 1, number + 1)]
            if np.sum(window) / WINDOW + monitor.bias > 0:
                opened[-1] = number
                break
    return opened


def watched(
    opens: Sequence[bool] = (True, False, False, False), *, family: str = "llama", seed: int = 3, **plan: Any
) -> Watched:
    """A threshold half-way between running scores, so that one closed row opens late and one not at all."""
    case = make_case(family, opens=opens, **{"reads": ((1, 0),), "steered": (1, 2, 3), **plan})
    streams, answers = streams_of_answers(case, LAYER)
    for draw in range(seed, seed + 200):
        weights = torch.randn(streams.shape[-1], generator=torch.Generator().manual_seed(draw))
        scores = streams @ weights
        centre = -float(scores.mean())
        monitor = AnswerMonitor("test", LAYER, WINDOW, weights, centre, 0.0)
        highest = running_means(scores + centre, WINDOW).amax(1).sort().values
        monitor = monitor.with_bias(-float(highest[-3] + highest[-2]) / 2)
        at = reference(streams, monitor)
        closed = [number for number, is_open in zip(at, opens, strict=True) if not is_open]
        late = [number for number in closed if number is not None and 3 <= number <= 8]
        if late and None in closed and all(n is None or n > 2 for n in closed):
            expected = ["prompt" if o else n for n, o in zip(at, opens, strict=True)]
            return Watched(case, monitor, streams, answers, expected)
    raise AssertionError("no draw gives a row that opens late and one that stays closed")


@pytest.fixture(scope="module")
def plain() -> Watched:
    return watched()


@contextmanager
def adding(case: Case, masks: Tensor) -> Iterator[None]:
    """The steering by hand: vectors added where `masks` `[rows, tokens]` say so."""
    handles = [
        case.model.model.layers[layer].register_forward_hook(
            lambda m, i, output, add=add: torch.where(masks[:, :, None], output + add, output)
        )
        for layer, add in case.plan.additions.items()
    ]
    yield
    for handle in handles:
        handle.remove()


def test_running_means_are_numpys() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 9))
    for window in (1, 2, 5, 20):
        kernel = np.ones(window) / window
        expected = np.stack([np.convolve(row, kernel)[:9] for row in scores])
        np.testing.assert_allclose(running_means(torch.tensor(scores), window).numpy(), expected, atol=1e-12)


def test_it_opens_where_numpy_says(plain: Watched) -> None:
    with plain.guard() as guard:
        tokens = plain.generate()
        decisions = guard.decisions
    assert [decision.opened_at for decision in decisions] == plain.expected
    assert [decision.open for decision in decisions] == [at is not None for at in plain.expected]
    for row, at in enumerate(plain.expected):
        if at is None:
            assert torch.equal(tokens[row], plain.answers[row])
        elif isinstance(at, int):
            assert torch.equal(tokens[row, :at], plain.answers[row, :at])


@pytest.mark.parametrize("positions", ["from_gate", "all"])
def test_the_steering_begins_with_the_token_that_opened(plain: Watched, positions: Any) -> None:
    """Every logit against a run by hand: the prompt's rows, the late row, the closed rows."""
    case = plain.case
    bare = case.logits(max_new_tokens=TOKENS)
    with plain.guard(positions=positions):
        logits = case.logits(max_new_tokens=TOKENS)
    batch = case.batch()
    prompt = batch["input_ids"].shape[1]
    answers = logits.argmax(-1)
    ids = torch.cat([batch["input_ids"], answers[:, :-1]], dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(answers[:, :-1])], dim=1)
    numbers = torch.arange(ids.shape[1]) - (prompt - 1)
    begin = torch.tensor(
        [
            TOKENS if at is None else at if isinstance(at, int) else -99 if positions == "all" else 0
            for at in plain.expected
        ]
    )
    with torch.no_grad(), adding(case, numbers >= begin[:, None]):
        expected = case.model(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)
        ).logits[:, prompt - 1 :]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    for row, at in enumerate(plain.expected):
        untouched = TOKENS if at is None else at if isinstance(at, int) else 0
        assert torch.equal(logits[row, :untouched], bare[row, :untouched])
        if isinstance(at, int):
            assert not torch.allclose(logits[row, at], bare[row, at], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_closed_batch_keeps_every_bit(plain: Watched, dtype: torch.dtype) -> None:
    case = replace(plain.case, model=tiny_model().to(dtype))
    case.model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    case.model.generation_config.pad_token_id = 0  # type: ignore[union-attr]
    bare = case.logits(max_new_tokens=TOKENS)
    shut = replace(case.plan, gate=case.plan.gate.with_bias(-1e6), monitor=plain.monitor.with_bias(-1e6))
    with Guard(case.model, shut) as guard:
        # As integers: 0.0 equals -0.0.
        assert torch.equal(case.logits(max_new_tokens=TOKENS).view(torch.int8), bare.view(torch.int8))
        assert [decision.opened_at for decision in guard.decisions] == [None] * 4


def test_a_step_waits_for_nothing(plain: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever moves a number to the host, called from this package's code: at the prompt only."""
    embedding = plain.case.model.model.embed_tokens
    with plain.guard(), count_host_reads(embedding, monkeypatch) as counted:
        plain.generate(eos_token_id=7)
    assert counted.passes > 2
    assert {number for number, _ in counted.reads} <= {0, 1}, counted.reads
    assert counted.reads, "the count must include the one read of the prompt"


def test_a_row_alone_is_the_row_in_a_batch(plain: Watched) -> None:
    with plain.guard() as guard:
        together = plain.generate()
        for row, at in enumerate(plain.expected):
            alone = plain.generate(rows=[row])
            assert guard.decisions[0].opened_at == at
            assert torch.equal(alone[0], together[row])


def test_the_next_call_is_watched_afresh(plain: Watched) -> None:
    with plain.guard() as guard:
        for _ in range(2):
            plain.generate()
            assert [decision.opened_at for decision in guard.decisions] == plain.expected
        plain.generate(max_new_tokens=2)
        assert [d.opened_at for d in guard.decisions] == [
            "prompt" if at == "prompt" else None for at in plain.expected
        ]


@pytest.mark.parametrize(
    "options",
    [{"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}],
    ids=["uncached", "static", "chunked"],
)
@pytest.mark.parametrize("plan", [{}, {"reads": ((2, 0),), "steered": (1, 3)}], ids=["one", "late gate"])
def test_ways_of_decoding(options: dict[str, Any], plan: dict[str, Any]) -> None:
    told = watched(**plan)
    with told.guard() as guard:
        expected = told.case.logits(max_new_tokens=TOKENS)
        logits = told.case.logits(max_new_tokens=TOKENS, **options)
        assert [decision.opened_at for decision in guard.decisions] == told.expected
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_sampling_is_the_bare_models_until_it_opens(plain: Watched) -> None:
    settings: dict[str, Any] = {"do_sample": True, "top_k": 5, "num_return_sequences": 2}
    torch.manual_seed(5)
    bare = plain.generate(**settings)
    with plain.guard() as guard:
        torch.manual_seed(5)
        tokens = plain.generate(**settings)
        decisions = guard.decisions
    assert len(decisions) == 8
    for row, decision in enumerate(decisions):
        at = decision.opened_at
        same = 0 if at == "prompt" else TOKENS if at is None else int(at)
        assert torch.equal(tokens[row, :same], bare[row, :same])


def test_an_answer_that_ended_is_not_read(plain: Watched) -> None:
    """What pads a finished row is no answer: the row does not open on it, whatever its company does."""
    row = plain.late_rows[0]
    at = int(plain.expected[row])  # type: ignore[arg-type]
    end = int(plain.answers[row, at - 1])  # the token that opens the row, made the end of text
    firsts = [answer.tolist().index(end) if end in answer else TOKENS for answer in plain.answers]
    expected = reference(plain.streams, plain.monitor, torch.tensor(firsts))
    with plain.guard() as guard:
        plain.generate(eos_token_id=end)
        found = [d.opened_at for d in guard.decisions]
        cached = [d for d in found if d != "prompt"]
        assert cached == [n for n, o in zip(expected, plain.case.opens, strict=True) if not o]
        assert found[row] is None
        plain.generate(generation_config=GenerationConfig(eos_token_id=end, pad_token_id=0), use_cache=False)
        assert [d.opened_at for d in guard.decisions] == found


def test_decoding_by_hand(plain: Watched) -> None:
    """Right padding, a cache, and one token a step."""
    case = plain.case
    with plain.guard() as guard, torch.no_grad():
        expected = plain.generate()
        batch = case.batch("right")
        cache = DynamicCache(config=case.model.config)
        mask = batch["attention_mask"]
        ends = mask.sum(1) - 1
        logits = case.model(**batch, past_key_values=cache).logits[torch.arange(4), ends]
        tokens = [logits.argmax(-1)]
        for step in range(TOKENS - 1):
            mask = torch.cat([mask, torch.ones(4, 1, dtype=torch.long)], dim=1)
            logits = case.model(
                input_ids=tokens[-1][:, None],
                attention_mask=mask,
                position_ids=(ends + 1 + step)[:, None],
                past_key_values=cache,
            ).logits[:, -1]
            tokens.append(logits.argmax(-1))
        assert [decision.opened_at for decision in guard.decisions] == plain.expected
    assert torch.equal(torch.stack(tokens, dim=1), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("plan", [{}, {"reads": ((2, 0),), "steered": (1, 3)}], ids=["one", "late gate"])
def test_prompt_and_answer_in_one_call(plan: dict[str, Any], side: str) -> None:
    """Teacher-forced: the same tokens, the same opening, the same logits as when they were generated."""
    told = watched(**plan)
    case = told.case
    with told.guard() as guard:
        logits = case.logits(max_new_tokens=TOKENS)
    whole = Case(
        case.model,
        [prompt + logits[row, :-1].argmax(-1).tolist() for row, prompt in enumerate(case.prompts)],
        case.plan,
        case.opens,
    )
    batch = whole.batch(side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with told.guard() as guard, guard.prompt_lengths([len(p) for p in case.prompts]), torch.no_grad():
        forced = case.model(**batch, position_ids=positions).logits
        assert [decision.opened_at for decision in guard.decisions] == told.expected
    for row, prompt in enumerate(case.prompts):
        begin = int(batch["attention_mask"][row].argmax()) + len(prompt) - 1
        torch.testing.assert_close(forced[row, begin : begin + TOKENS], logits[row], atol=1e-4, rtol=1e-4)


def test_shadow_mode_reports_and_never_steers(plain: Watched) -> None:
    with plain.guard("never") as guard:
        tokens = plain.generate()
        found = guard.decisions
    assert [decision.opened_at for decision in found] == reference(plain.streams, plain.monitor)
    assert not any(decision.open for decision in found)
    assert torch.equal(tokens, plain.answers)


def test_always_on_steering_has_nothing_to_watch(plain: Watched) -> None:
    with plain.guard("always") as guard:
        watching = plain.generate()
        assert all(decision.opened_at == "prompt" for decision in guard.decisions)
    with plain.case.guard("always"):
        assert torch.equal(plain.generate(), watching)


def test_nan_opens(plain: Watched) -> None:
    calls = 0

    def spoil(module: object, inputs: object, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls != 5:
            return output
        output = output.clone()
        output[3, -1, 0] = torch.nan
        return output

    handle = plain.case.model.model.layers[LAYER].register_forward_hook(spoil)
    quiet = plain.monitor.with_bias(-1e6)
    with Guard(plain.case.model, replace(plain.case.plan, monitor=quiet)) as guard:
        plain.generate()
        found = [decision.opened_at for decision in guard.decisions]
    handle.remove()
    assert found == ["prompt", None, None, 4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 2}, "Beam search"),
        ({"generation_config": GenerationConfig(num_beams=2, max_new_tokens=4)}, "Beam search"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"assistant_model": True}, "assistant_model"),
    ],
)
def test_what_it_cannot_follow_is_refused(plain: Watched, options: dict[str, Any], words: str) -> None:
    if "assistant_model" in options:
        options = {"assistant_model": tiny_model(seed=5)}
    with plain.guard(), pytest.raises(SteeringError, match=f"{words}.*monitor=False"):
        plain.generate(rows=[1], **options)
    with plain.case.guard():  # and only with the monitor
        plain.generate(rows=[1], **options)


def test_a_step_of_several_tokens_is_refused(plain: Watched) -> None:
    """A decoding loop of somebody else's, under generate's announcement."""
    case = plain.case
    ids = case.batch(rows=[1])["input_ids"]
    with plain.guard() as guard, torch.no_grad(), guard._generation({"input_ids": ids}):
        cache = DynamicCache(config=case.model.config)
        case.model(ids, past_key_values=cache)
        with pytest.raises(SteeringError, match="2 tokens a row"):
            case.model(torch.tensor([[5, 6]]), past_key_values=cache)


def test_a_missing_hook_is_told(plain: Watched) -> None:
    with plain.guard():
        plain.case.model.model.layers[LAYER]._forward_hooks.popitem()  # the steer hook of this layer
        plain.case.model.model.layers[LAYER]._forward_hooks.popitem()
        with pytest.raises(SteeringError, match="without the guard's hooks"):
            plain.generate(rows=[1])


def test_plans_that_cannot_be() -> None:
    case = make_case(steered=(1, 2))
    high = AnswerMonitor("test", 2, WINDOW, torch.ones(32), 0.0, 0.0)
    with pytest.raises(SteeringError, match="above the first steered layer 1"):
        SteeringPlan(case.plan.gate, case.plan.additions, monitor=high)
    narrow = AnswerMonitor("test", 1, WINDOW, torch.ones(16), 0.0, 0.0)
    with pytest.raises(MismatchError, match="width 16 and 32"):
        Guard(case.model, replace(case.plan, monitor=narrow))
    for wrong in ({"window": 0}, {"layer": -1}, {"bias": float("nan")}, {"weights": torch.ones(2, 2)}):
        with pytest.raises(ArtifactError):
            replace(high, **wrong)


def test_opened_at() -> None:
    assert Decision(-1.0, False).opened_at is None
    assert Decision(1.0, True).opened_at == "prompt"
    assert Decision(-1.0, True, 4).opened_at == 4


def test_decoding_compiled_by_generate() -> None:
    """One more graph, whatever opens when; the same tokens and the same openings."""
    told = watched()
    torch._dynamo.reset()
    options = {**compiled_decoding(), "max_new_tokens": TOKENS}
    with told.guard() as guard:
        expected = told.generate()
        before = graphs()
        compiled = told.generate(**options)
        assert graphs() > before, "the test must compile"
        assert [decision.opened_at for decision in guard.decisions] == told.expected
        assert torch.equal(compiled, expected)
        before = graphs()
        told.generate(**options)
        told.generate(**{**options, "max_new_tokens": 5})
        assert graphs() <= before + 1  # a cache of another size
    torch._dynamo.reset()
