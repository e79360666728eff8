"""The golden checks of steering as plain functions, for any device and precision, and without pytest.

`python -m benchmarks.gpu` runs them where there is a GPU. A check is a function of a `Subject`; it raises
`GoldenError` with what was found and what was expected, and returns a note for the report otherwise.

What is compared with what:
- bits, where the package promises them: closed rows, and an independent computation of equation 4 by hooks
  that are written out here and know which rows are open;
- numbers within `Subject.tolerance` (a share of the largest logit), where batches of different shapes are
  compared: matrix products round with their shape, for the bare model as well. Answers are compared up to the
  first token that differs, that token's logits included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.models.anatomy import dissect, residual, with_residual
from inferaligner.steering.batch_state import Pass
from inferaligner.steering.hooks import GateHook
from inferaligner.steering.plan import GatePlan, Positions
from tests.support.numpy_llama import NumpyLlama
from tests.support.steering_cases import Case, make_case, trace_of_hooks
from tests.support.tiny_models import tiny_model

# Experts work on groups of rows: a steered row goes to other experts, and the groups of the others change.
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.05}
_SCORE = 1e-3  # scores are about 1, and summed in float32 whatever the model's precision is


class GoldenError(Exception):
    """A promise that was not kept."""


@dataclass(frozen=True)
class Subject:
    """A family of tiny models with random weights, on a device, in a precision."""

    family: str
    device: torch.device
    dtype: torch.dtype
    layers: int | None = None  # default: the family's

    @property
    def least(self) -> float:
        """The share of the largest logit by which an open row must move at least."""
        return 2 * TOLERANCES[self.dtype]

    @cached_property
    def rounding(self) -> float:
        """By which share the bare model's logits move with the shape of the batch, and without a cache."""
        case = self._case()
        bare = case.logits()
        apart = [_answers_apart(case.logits(rows=[row]), bare[row : row + 1]) for row in range(4)]
        return max(*apart, _answers_apart(case.logits(use_cache=False), bare))

    @cached_property
    def tolerance(self) -> float:
        """The share of the largest logit by which two computations of one thing may differ."""
        # A mixture of experts may choose another expert after rounding, which moves the bare model as much.
        return max(TOLERANCES[self.dtype], min(4 * self.rounding, 0.5))

    @cached_property
    def model(self) -> Any:
        """In eval mode; cases share it."""
        cut = {} if self.layers is None else {"num_hidden_layers": self.layers}
        return tiny_model(self.family, **cut).to(self.device, self.dtype)

    def case(self, **plan: Any) -> Case:
        """Four prompts, of which the gate opens for the first and the third unless `plan` says otherwise."""
        assert self.tolerance  # measured now, while no guard is on the model
        return self._case(**plan)

    def _case(self, **plan: Any) -> Case:
        if self.layers is not None:
            plan = {"reads": ((0, 0),), "steered": tuple(range(self.layers)), **plan}
        return make_case(model=self.model, device=self.device, **plan)


Check = Callable[[Subject], str]


def expect(kept: bool, fault: str) -> None:
    """Raises `GoldenError` unless the promise was kept."""
    if not kept:
        raise GoldenError(fault)


# -- the checks ----------------------------------------------------------------------------------------


def the_bare_model_repeats_its_bits(subject: Subject) -> str:
    """The control: without it, bits could not be compared at all."""
    case = subject.case()
    _expect_bits(case.logits(), case.logits(), range(4), "the bare model's second run")
    return "two runs of the bare model are bit-identical"


def a_closed_batch_keeps_its_bits(subject: Subject) -> str:
    """No row is open: every logit of prefill and decoding is the bare model's."""
    for positions in _POSITIONS:
        case = subject.case(opens=(False,) * 4, positions=positions)
        bare = case.logits()
        with case.guard() as guard:
            _expect_bits(case.logits(), bare, range(4), f"closed, positions {positions}")
            _expect_decisions(guard.decisions, case.opens)
    return "all logits are the bare model's, bit for bit"


def open_rows_follow_the_equation(subject: Subject) -> str:
    """Mixed batches, gate below the steered layers: the same bits as hooks that add α·θ_l by hand."""
    greatest = 0.0
    for positions in _POSITIONS:
        case = subject.case(positions=positions)
        bare = case.logits()
        with case.guard() as guard:
            steered = case.logits()
            decisions = guard.decisions
        _expect_decisions(decisions, case.opens)
        with _added_by_hand(case, positions):
            by_hand = case.logits()
        if subject.family in MIXTURES:
            _expect_close(steered, by_hand, subject.tolerance, "mixed batch against hooks by hand")
        else:
            _expect_bits(steered, bare, case.closed_rows, f"closed rows, positions {positions}")
            _expect_bits(steered, by_hand, range(4), f"hooks by hand, positions {positions}")
        for row in case.open_rows:
            change = _share(steered[row, 0], bare[row, 0])
            expect(change > subject.least, f"open row {row} moved by {change:.2g} only")
        scores = _scores_by_hand(case)
        found = torch.tensor([decision.score for decision in decisions], dtype=torch.float64)
        greatest = max(greatest, float((scores - found).abs().max()))
    expect(greatest <= _SCORE, f"a score differs from the sum in float64 by {greatest:.2g}; allowed {_SCORE}")
    same = "the logits" if subject.family in MIXTURES else "the bits"
    return f"{same} of hooks by hand; scores within {greatest:.1g} of float64 (allowed {_SCORE})"


def numpy_agrees(subject: Subject) -> str:
    """float32 Llama against the paper's equations and the whole model in numpy, float64."""
    if subject.family != "llama" or subject.dtype != torch.float32:
        return "not asked: the numpy model is a Llama, and exact enough for float32 alone"
    worst = 0.0
    for plan in (_ONE_PASS, _REPLAY):
        for positions in _POSITIONS:
            case = subject.case(positions=positions, **plan)
            with case.guard():
                logits = case.logits().double().cpu().numpy()
                tokens = case.generate().tolist()
            plain = NumpyLlama(case.model)
            additions = {layer: vector.double().numpy() for layer, vector in case.plan.additions.items()}
            for row, prompt in enumerate(case.prompts):
                first = len(prompt) - 1 if positions == "from_gate" else 0
                whole = prompt + tokens[row]
                expected, _ = plain.run(whole, additions if case.opens[row] else None, first)
                expected = expected[len(prompt) - 1 : -1]
                worst = max(worst, float(np.abs(logits[row] - expected).max() / np.abs(expected).max()))
    expect(worst <= subject.tolerance, f"logits differ from numpy's by {worst:.2g} of the largest")
    return f"logits within {worst:.1g} of the largest (allowed {subject.tolerance:.2g})"


def a_row_alone_is_the_row_in_its_batch(subject: Subject) -> str:
    """The decision, and the answer within rounding; the bare model's own rounding stands beside it."""
    case = subject.case()
    worst = 0.0
    with case.guard() as guard:
        together = case.logits()
        for row in range(4):
            alone = case.logits(rows=[row])
            _expect_decisions(guard.decisions, case.opens[row : row + 1])
            worst = max(
                worst, _expect_close(alone, together[row : row + 1], subject.tolerance, f"row {row} alone")
            )
    return (
        f"within {worst:.1g} (allowed {subject.tolerance:.2g}); the bare model itself {subject.rounding:.1g}"
    )


def cached_is_uncached(subject: Subject) -> str:
    """Without a cache, and with a prefill in chunks."""
    options: list[dict[str, Any]] = [{"use_cache": False}, {"prefill_chunk_size": 4}]
    worst = 0.0
    for plan in (_ONE_PASS, _REPLAY):
        case = subject.case(**plan)
        with case.guard():
            cached = case.logits()
            for option in options:
                worst = max(
                    worst, _expect_close(case.logits(**option), cached, subject.tolerance, str(option))
                )
    return f"within {worst:.1g} (allowed {subject.tolerance:.2g})"


def a_replay_steers_as_if_it_had_known(subject: Subject) -> str:
    """Steered layers below the gate: closed rows keep their bits, open rows are those of hooks by hand."""
    worst = 0.0
    for positions in _POSITIONS:
        case = subject.case(positions=positions, **_REPLAY)
        bare = case.logits()
        with case.guard() as guard:
            steered = case.logits()
            _expect_decisions(guard.decisions, case.opens)
        with _added_by_hand(case, positions):
            by_hand = case.logits()
        if subject.family not in MIXTURES:
            _expect_bits(steered, bare, case.closed_rows, f"closed rows of a replay, {positions}")
        worst = max(worst, _expect_close(steered, by_hand, subject.tolerance, f"replay, {positions}"))
    return f"within {worst:.1g} of hooks by hand (allowed {subject.tolerance:.2g})"


def every_batch_is_gated_afresh(subject: Subject) -> str:
    """Under one guard: an open batch, a closed one, and the open one again."""
    case = subject.case()
    bare = case.logits(rows=case.closed_rows)
    with case.guard() as guard:
        first = case.logits(rows=case.open_rows)
        _expect_bits(case.logits(rows=case.closed_rows), bare, range(2), "the closed batch after an open one")
        _expect_decisions(guard.decisions, (False, False))
        _expect_bits(case.logits(rows=case.open_rows), first, range(2), "the open batch, run again")
    return "a closed batch after an open one keeps its bits"


def hooks_go_after_an_error(subject: Subject) -> str:
    """An error in the middle of a layer: nothing is left on the model, and its bits are its own."""
    case = subject.case()
    before, bare = trace_of_hooks(case.model), case.logits()

    class Broken(Exception):
        pass

    def break_off(*_: Any) -> None:
        raise Broken

    last = dissect(case.model).layers[-1]
    try:
        with case.guard():
            handle = last.register_forward_hook(break_off)
            try:
                case.logits()
            finally:
                handle.remove()
    except Broken:
        pass
    else:
        raise GoldenError("the layer's error did not come out of generate()")
    expect(trace_of_hooks(case.model) == before, "hooks or attributes were left on the model")
    _expect_bits(case.logits(), bare, range(4), "the model after the error")
    return "no hooks left, bits as before"


def a_score_does_not_depend_on_its_batch(subject: Subject) -> str:
    """The gate's sum over a stream of a real model's width, in a batch of 64 rows and for each row alone."""
    rows, width = 64, 4096
    draw = torch.Generator().manual_seed(0)
    stream = torch.randn(rows, 1, width, generator=draw).to(subject.device, subject.dtype)
    weight = torch.randn(width, generator=draw)
    # The second read keeps the layer from being the last one, which decides.
    gate = GuidanceGate("test", (GateRead(0), GateRead(1)), torch.stack([weight, weight]), 0.0)

    def scores(part: Tensor) -> Tensor:
        summed: list[Tensor] = []
        numbers = torch.arange(len(part), device=part.device)
        ends = torch.zeros_like(numbers)
        scope = SimpleNamespace(
            places_on=lambda device: (numbers, ends, ends), add_scores=summed.append, other_ends=None
        )
        now = Pass(0, 1, reads_gate=True, steers="nothing")
        state: Any = SimpleNamespace(scope=scope, now=now)
        GateHook(state, GatePlan(gate), 0, part.device)(nn.Identity(), (), part)
        return summed[0]

    together = scores(stream)
    alone = torch.cat([scores(stream[row : row + 1]) for row in range(rows)])
    worst = float(((together - alone).abs() / together.abs().mean()).max())
    expect(
        worst <= 1e-5, f"scores alone and in a batch differ by {worst:.2g} of the mean score; allowed 1e-5"
    )
    return "the same bits" if torch.equal(together, alone) else f"within {worst:.1g} of the mean score"


def decoding_adds_no_wait(subject: Subject) -> str:
    """The host waits for the device as often for a token as it does for the bare model's."""
    case = subject.case()
    with count_waits(subject.device) as counted:
        torch.ones(1, device=subject.device).item()
    expect(len(counted) > 0, "a value that the host read was not counted as a wait")
    per_token = {}
    for name, guarded in (("bare", False), ("guarded", True)):
        with case.guard() if guarded else nullcontext():
            case.generate(max_new_tokens=4)
            waits = []
            for new_tokens in (4, 12):
                with count_waits(subject.device) as counted:
                    case.generate(max_new_tokens=new_tokens)
                waits.append(len(counted))
        per_token[name] = (waits[1] - waits[0]) / 8
    bare, guarded_waits = per_token["bare"], per_token["guarded"]
    expect(guarded_waits <= bare, f"{guarded_waits} waits a token with the guard, {bare} without")
    how = "synchronising calls" if subject.device.type == "cuda" else "values read by the host, on the CPU"
    return f"{guarded_waits:g} {how} a token, with the guard and without"


CONTROL: Check = the_bare_model_repeats_its_bits
CHECKS: Mapping[str, Check] = {
    check.__name__.replace("_", " "): check
    for check in (
        a_closed_batch_keeps_its_bits,
        open_rows_follow_the_equation,
        a_replay_steers_as_if_it_had_known,
        a_row_alone_is_the_row_in_its_batch,
        cached_is_uncached,
        every_batch_is_gated_afresh,
        hooks_go_after_an_error,
        a_score_does_not_depend_on_its_batch,
        decoding_adds_no_wait,
        numpy_agrees,
    )
}

# -- compiled decoding ---------------------------------------------------------------------------------


def compiled_decoding_is_eager_decoding(subject: Subject, options: Mapping[str, Any]) -> str:
    """`options` make generate() compile its decoding steps; see `TOLERANCES` for what may differ.

    Batches with closed, open and mixed rows take turns under one guard: a CUDA graph overwrites what it
    returned, and nothing of the guard may rest there.
    """
    from torch._dynamo.utils import counters

    case = subject.case()
    # All of one shape, so that a graph more is a kind of batch more.
    batches = [case.closed_rows, [0, 1], case.open_rows, [3, 2], case.closed_rows]
    bare = [case.logits(rows=rows) for rows in batches]
    counters.clear()
    bare_compiled = [case.logits(rows=rows, **options) for rows in batches]
    expect(counters["stats"]["unique_graphs"] > 0, "generate() compiled nothing, so nothing was compared")
    skipped = counters["inductor"]["cudagraph_skips"]
    worst, same_bits = 0.0, 0
    with case.guard() as guard:
        eager = [case.logits(rows=rows) for rows in batches]
        counters.clear()
        for number, rows in enumerate(batches):
            compiled = case.logits(rows=rows, **options)
            opens = tuple(case.opens[row] for row in rows)
            _expect_decisions(guard.decisions, opens)
            what = f"batch {number} (rows {rows}), compiled"
            worst = max(worst, _expect_close(compiled, eager[number], subject.tolerance, what))
            for at, is_open in enumerate(opens):
                mine, base = compiled[at : at + 1], bare_compiled[number][at : at + 1]
                if not is_open:
                    _expect_close(mine, base, subject.tolerance, f"closed row {rows[at]}, compiled")
                    same_bits += torch.equal(mine, base)
                else:
                    change = _share(mine[:, 0], bare[number][at : at + 1, 0])
                    expect(change > subject.least, f"open row {rows[at]} moved by {change:.2g} only")
        graphs = counters["stats"]["unique_graphs"]
        expect(graphs > 0, "generate() compiled nothing under the guard")
        mine_skipped = counters["inductor"]["cudagraph_skips"]
        # A device without CUDA graphs gives each graph up, the bare model's too.
        expect(
            mine_skipped == 0 or skipped > 0,
            f"CUDA graphs were given up {mine_skipped} times with the guard, and never without",
        )
    for number, rows in enumerate(batches):
        after = case.logits(rows=rows)
        _expect_bits(after, bare[number], range(len(rows)), "eager decoding after the guard")
    closed = sum(not case.opens[row] for rows in batches for row in rows)
    return (
        f"logits within {worst:.1g} of eager ones (allowed {subject.tolerance:.2g}); {same_bits} of {closed} "
        f"closed rows have the compiled bare model's bits; {graphs} graphs; CUDA graphs given up "
        f"{mine_skipped} times"
    )


# -- how they compare ----------------------------------------------------------------------------------

_POSITIONS: tuple[Positions, ...] = ("from_gate", "all")
_ONE_PASS: dict[str, Any] = {"reads": ((1, 0),), "steered": (1, 2)}
_REPLAY: dict[str, Any] = {"reads": ((2, 0),), "steered": (0, 1, 3)}


def _expect_decisions(decisions: Sequence[Any], opens: Sequence[bool]) -> None:
    found = [decision.open for decision in decisions]
    expect(found == list(opens), f"decisions are {found}; expected {list(opens)}")


def _expect_bits(found: Tensor, right: Tensor, rows: Sequence[int], what: str) -> None:
    for row in rows:
        if not torch.equal(found[row], right[row]):
            share = _share(found[row], right[row])
            raise GoldenError(
                f"{what}: row {row} differs by {share:.2g} of the largest logit, expected no bit"
            )


def _share(found: Tensor, right: Tensor) -> float:
    """The largest difference as a share of the largest logit; infinite where one of them is NaN."""
    share = float((found.double() - right.double()).abs().max() / right.double().abs().max())
    return share if share == share else float("inf")


def _answers_apart(found: Tensor, right: Tensor) -> float:
    """The largest difference of logits `[rows, new, vocabulary]`, up to each row's first other token."""
    worst = 0.0
    for mine, base in zip(found, right, strict=True):
        apart = (mine.argmax(-1) != base.argmax(-1)).nonzero().flatten().tolist()
        until = apart[0] + 1 if apart else len(base)
        worst = max(worst, _share(mine[:until], base[:until]))
    return worst


def _expect_close(found: Tensor, right: Tensor, tolerance: float, what: str) -> float:
    worst = _answers_apart(found, right)
    expect(worst <= tolerance, f"{what}: logits differ by {worst:.2g} of the largest; allowed {tolerance}")
    return worst


@contextmanager
def _added_by_hand(case: Case, positions: Positions) -> Iterator[None]:
    """Equation 4 without anything of the package: x_l = x'_l + α·θ_l, in the stream's precision."""
    end = max(map(len, case.prompts)) - 1  # padded on the left, so all prompts end in one column
    seen = {layer: 0 for layer in case.plan.layers}

    def hook_of(layer: int) -> Callable[[nn.Module, object, object], object]:
        def add(module: nn.Module, inputs: object, output: object) -> object:
            stream = residual(output).clone()
            first = 0 if positions == "all" else max(end - seen[layer], 0)
            seen[layer] += stream.shape[1]
            for row in case.open_rows:
                stream[row, first:] += case.plan.additions[layer].to(stream)
            return with_residual(output, stream)

        return add

    layers = dissect(case.model).layers
    handles = [layers[layer].register_forward_hook(hook_of(layer)) for layer in case.plan.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scores_by_hand(case: Case) -> Tensor:
    """Equation 3 in float64, from what the layers of the bare model return for the padded batch: `[rows]`."""
    total = torch.full((len(case.prompts),), case.plan.gate.bias, dtype=torch.float64)
    layers, caught = dissect(case.model).layers, {}

    def catch(layer: int) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, inputs: object, output: object) -> None:
            caught[layer] = residual(output)[:, -1].double().cpu()

        return note

    handles = [layers[layer].register_forward_hook(catch(layer)) for layer in case.plan.gate.layers]
    try:
        case.generate(max_new_tokens=1)
    finally:
        for handle in handles:
            handle.remove()
    for read, weight in zip(case.plan.gate.reads, case.plan.gate.weights, strict=True):
        total += caught[read.layer] @ weight.double()
    return total


# What CUDA's debug mode says of each such call. (Switching the mode on has a warning of its own.)
_SYNCHRONISED = "called a synchronizing CUDA operation"


class _HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations whose result the host reads, which on an accelerator makes it wait."""

    def __init__(self, noted: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted = noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self._noted.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def count_waits(device: torch.device) -> Iterator[list[str]]:
    """The calls within it that made the host wait for the device: CUDA reports them itself."""
    noted: list[str] = []
    if device.type != "cuda":
        with _HostReads(noted):
            yield noted
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield noted
        finally:
            torch.cuda.set_sync_debug_mode(before)
            noted.extend(str(one.message) for one in caught if _SYNCHRONISED in str(one.message))
