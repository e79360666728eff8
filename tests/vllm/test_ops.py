"""The operations against the equations, row by row, in plain torch: no vLLM needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import inferaligner.vllm
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.prompts.template_ends import EndKind
from inferaligner.vllm import ops
from inferaligner.vllm.device_buffers import RowBuffers

WIDTH, SLOTS, TOKENS = 16, 3, 20


MONITOR = AnswerMonitor("test", 1, 2, torch.linspace(-1, 1, WIDTH), 0.5, -0.25)


def buffers() -> RowBuffers:
    gate = GuidanceGate(
        "whitened", (GateRead(0, 0), GateRead(0, 2), GateRead(1, 0)), torch.randn(3, WIDTH), 0.25
    )
    return RowBuffers(gate, SLOTS, TOKENS, torch.device("cpu"), MONITOR)


def read(rows: RowBuffers, hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> None:
    numbers = [number for number, read in enumerate(rows.gate.reads) if read.layer == layer]
    ops.read_gate(
        hidden,
        residual,
        rows.gate.weights[numbers],
        [rows.gate.offsets.index(rows.gate.reads[number].offset) for number in numbers],
        numbers,
        rows.counts,
        rows.read_tokens,
        rows.read_slots,
        rows.partial,
    )


def decide(rows: RowBuffers, kind: type[torch.Tensor] = torch.Tensor) -> None:
    """`kind`: of the buffers that tell the operation which device it is on."""
    ops.decide(
        rows.partial.as_subclass(kind),
        rows.gate.bias,
        rows.decide_row,
        rows.counts,
        rows.read_slots,
        rows.score,
        rows.open,
        rows.slot_of_token,
        rows.steered.as_subclass(kind),
        rows.steer_tokens,
    )


def steer(rows: RowBuffers, stream: torch.Tensor, addition: torch.Tensor) -> None:
    ops.steer(stream, addition, rows.counts, rows.steered, rows.steer_tokens)


@pytest.mark.parametrize("pair", [True, False])
def test_the_score_is_the_affine_sum_over_all_reads(pair: bool) -> None:
    rows = buffers()
    rows.reset_slot(1, open_now=True)
    first, second = torch.randn(2, TOKENS, WIDTH)
    halves = torch.randn(2, TOKENS, WIDTH) if pair else None
    rows.load([[(7, 1)], [(5, 1)]], [1], [], TOKENS)
    for layer, stream in enumerate((first, second)):
        if halves is None:
            read(rows, stream, None, layer)
        else:
            read(rows, stream - halves[layer], halves[layer], layer)
    decide(rows)
    weights = rows.gate.weights
    expected = first[7] @ weights[0] + first[5] @ weights[1] + second[7] @ weights[2] + rows.gate.bias
    assert float(rows.score[1]) == pytest.approx(float(expected), abs=1e-4)
    assert bool(rows.open[1]) == (float(expected) > 0)
    assert torch.isnan(rows.score[[0, 2]]).all()


def test_reads_of_one_prompt_may_come_in_different_passes() -> None:
    rows = buffers()
    rows.reset_slot(0, open_now=True)
    early, late = torch.randn(2, TOKENS, WIDTH)
    rows.load([[], [(19, 0)]], [], [], TOKENS)
    read(rows, early, None, 0)
    decide(rows)
    rows.clear()
    assert torch.isnan(rows.score[0])
    rows.load([[(1, 0)], []], [0], [], TOKENS)
    read(rows, late, None, 0)
    read(rows, late, None, 1)
    decide(rows)
    weights = rows.gate.weights
    expected = early[19] @ weights[1] + late[1] @ (weights[0] + weights[2]) + rows.gate.bias
    assert float(rows.score[0]) == pytest.approx(float(expected), abs=1e-4)


def test_a_missing_read_opens() -> None:
    rows = buffers()
    rows.reset_slot(0, open_now=True)
    rows.load([[(1, 0)], []], [0], [], TOKENS)
    read(rows, torch.full((TOKENS, WIDTH), -100.0) * rows.gate.weights[0].sign(), None, 0)
    decide(rows)
    assert bool(rows.open[0]) and torch.isnan(rows.score[0])


def test_nan_in_the_stream_opens() -> None:
    rows = buffers()
    rows.reset_slot(0, open_now=True)
    rows.load([[(1, 0)], [(0, 0)]], [0], [], TOKENS)
    read(rows, torch.full((TOKENS, WIDTH), torch.nan), None, 0)
    read(rows, torch.zeros(TOKENS, WIDTH), None, 1)
    decide(rows)
    assert bool(rows.open[0])


def test_only_rows_of_open_slots_change() -> None:
    rows = buffers()
    rows.reset_slot(0, open_now=True)
    rows.reset_slot(1, open_now=False)
    stream, addition = torch.randn(TOKENS, WIDTH), torch.randn(WIDTH)
    stream[2] = -0.0
    before = stream.clone()
    rows.load([[], []], [], [(4, 7, 0), (10, 13, 1)], TOKENS)
    steer(rows, stream, addition)
    assert torch.equal(stream[4:7], before[4:7] + addition)
    kept = [number for number in range(TOKENS) if number not in (4, 5, 6)]
    assert torch.equal(stream[kept].view(torch.int32), before[kept].view(torch.int32))


def test_cleared_rows_read_and_steer_nothing() -> None:
    rows = buffers()
    rows.reset_slot(0, open_now=True)
    rows.load([[(1, 0)], [(1, 0)]], [0], [(0, TOKENS, 0)], TOKENS)
    rows.clear()
    stream = torch.randn(TOKENS, WIDTH)
    before = stream.clone()
    read(rows, stream, None, 0)
    decide(rows)
    steer(rows, stream, torch.ones(WIDTH))
    assert torch.equal(stream, before)
    assert torch.isnan(rows.partial).all() and bool((rows.slot_of_token == rows.padding_slot).all())


class OnDevice(torch.Tensor):
    """A CPU tensor that says it lives elsewhere, so that the operations take the path of a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def test_the_gpu_path_gives_the_same() -> None:
    """It works on whole buffers, the unused entries of which all point to the padding slot."""
    rows = buffers()
    for slot in range(SLOTS):
        rows.reset_slot(slot, open_now=True)
    hidden, addition = torch.randn(TOKENS, WIDTH), torch.randn(WIDTH)
    rows.load([[(3, 0), (9, 2)], [(1, 0), (7, 2)]], [0, 2], [(3, 5, 0), (9, 12, 2), (14, 16, 1)], TOKENS)
    read(rows, hidden, None, 0)
    read(rows, hidden, None, 1)
    decide(rows)
    steered = hidden.clone()
    steer(rows, steered, addition)
    score, is_open = rows.score.clone(), rows.open.clone()

    listed = rows.steer_tokens[: rows.counts[-1]].tolist()
    for slot in range(SLOTS):
        rows.reset_slot(slot, open_now=True)
    rows.steered.fill_(False)
    rows.counts.zero_()  # the path of a GPU must not look at them
    away = hidden.as_subclass(OnDevice)
    read(rows, away, None, 0)
    read(rows, away, None, 1)
    decide(rows, OnDevice)
    again = hidden.clone().as_subclass(OnDevice)
    steer(rows, again, addition)
    assert torch.equal(rows.score[[0, 2]], score[[0, 2]]) and torch.equal(rows.open, is_open)
    assert not rows.open[rows.padding_slot]
    assert torch.equal(again.as_subclass(torch.Tensor), steered)
    assert rows.steered[:, 0].nonzero()[:, 0].tolist() == listed
    # What a compiler gets to see is the same again.
    assert torch.equal(ops.steered_stream(hidden, addition, rows.steered), steered)
    assert torch.equal(ops.steered_stream(hidden[None], addition, rows.steered)[0], steered)


@pytest.mark.parametrize("away", [False, True], ids=["cpu", "gpu"])
def test_rows_that_are_not_steered_keep_the_sign_of_zero(away: bool) -> None:
    rows = buffers()
    rows.reset_slot(0, open_now=True)
    rows.load([[], []], [], [(2, 4, 0)], TOKENS)
    stream = torch.full((TOKENS, WIDTH), -0.0)
    steer(rows, stream.as_subclass(OnDevice) if away else stream, torch.ones(WIDTH))
    again = ops.steered_stream(torch.full((TOKENS, WIDTH), -0.0), torch.ones(WIDTH), rows.steered)
    for found in (stream, again):
        assert torch.equal(found[2:4], torch.ones(2, WIDTH))
        assert bool(torch.signbit(found[4:]).all())


def test_a_batch_that_is_open_as_a_whole() -> None:
    rows = buffers()
    for slot in range(SLOTS):
        rows.reset_slot(slot, open_now=True)
    rows.load([[], []], [], [(0, 8, 0), (8, 9, 2), (9, TOKENS, 1)], TOKENS)
    stream, addition = torch.randn(TOKENS, WIDTH), torch.randn(WIDTH)
    expected = stream + addition
    steer(rows, stream, addition)
    assert torch.equal(stream, expected)


def watch(rows: RowBuffers, hidden: torch.Tensor, residual: torch.Tensor | None = None) -> None:
    ops.watch(
        hidden,
        residual,
        MONITOR.weights,
        MONITOR.centre,
        MONITOR.bias,
        rows.counts,
        rows.watch_rows,
        rows.recent,
        rows.token_score,
        rows.over,
        rows.open,
        rows.slot_of_token,
        rows.steered.as_subclass(OnDevice) if isinstance(hidden, OnDevice) else rows.steered,
        rows.steer_tokens,
    )


@pytest.mark.parametrize("away", [False, True], ids=["cpu", "gpu"])
def test_the_monitor_opens_from_the_first_mean_that_is_over(away: bool) -> None:
    """Token by token, beside another answer that is not read; against the equation of `monitor.py`."""
    rows, stream = buffers(), torch.randn(6, TOKENS, WIDTH)
    wanted = torch.tensor([-1.0, -0.5, 0.2, 2.0, 2.0, -5.0])
    stream[:, 3] = (wanted - MONITOR.centre)[:, None] * MONITOR.weights / MONITOR.weights.square().sum()
    for slot in range(SLOTS):
        rows.reset_slot(slot, open_now=False)
    means = MONITOR.running_scores(MONITOR.token_scores(stream[:, 3])[None])[0] + MONITOR.bias
    assert (means > 0).tolist() == [False, False, False, True, True, False]
    first = int((means > 0).nonzero()[0, 0])
    for step in range(6):
        rows.load([[], []], [], [(3, 4, 2), (5, 6, 0)], TOKENS, [(3, 2, step + 1)])
        if away:
            rows.counts.zero_()
            watch(rows, stream[step].as_subclass(OnDevice))
        else:
            watch(rows, stream[step] - 1, torch.ones(TOKENS, WIDTH))
        assert float(rows.token_score[2]) == pytest.approx(
            float(MONITOR.token_scores(stream[step, 3])), abs=1e-5
        )
        assert bool(rows.over[2]) == bool(means[step] > 0)
        assert bool(rows.open[2]) == (step >= first)
        assert rows.steered[:, 0].nonzero()[:, 0].tolist() == ([3] if step >= first else [])
        rows._loaded = TOKENS
        rows.counts[rows.steer_row] = 2  # the path of a GPU has none
        rows.clear()
    assert not rows.open[0] and not rows.open[rows.padding_slot]


def test_nan_in_an_answer_opens_it() -> None:
    rows = buffers()
    rows.reset_slot(1, open_now=False)
    rows.load([[], []], [], [(0, 1, 1)], TOKENS, [(0, 1, 1)])
    watch(rows, torch.full((TOKENS, WIDTH), torch.nan))
    assert bool(rows.open[1]) and bool(rows.over[1]) and bool(rows.steered[0])


@pytest.mark.parametrize(
    ("kind", "turn", "end", "score", "opened"),
    [
        ("template", -1.0, 9.0, -1.0, False),  # the end gate has no say
        ("template", 1.0, -9.0, 1.0, True),
        ("begun", -1.0, 2.0, 2.0, True),
        ("begun", 1.0, 2.0, 1.0, True),
        ("begun", -1.0, -2.0, -1.0, False),
        ("begun", -1.0, torch.nan, torch.nan, True),
        ("begun", torch.nan, -2.0, torch.nan, True),
        ("raw", 9.0, -2.0, -2.0, False),
        ("raw", -9.0, 2.0, 2.0, True),
        ("raw", -9.0, torch.nan, torch.nan, True),
    ],
)
def test_either_of_two_gates_opens(
    kind: EndKind, turn: float, end: float, score: float, opened: bool
) -> None:
    """As `steering.other_ends` decides; what was not read stays NaN, and NaN opens."""
    gate = GuidanceGate("whitened", (GateRead(0, 0), GateRead(1, 0)), torch.ones(2, WIDTH), 0.25)
    ends = EndGate(GuidanceGate("test", (GateRead(1, 0),), torch.ones(1, WIDTH), 0.0), 0.5, -0.5)
    rows = RowBuffers(gate, SLOTS, TOKENS, torch.device("cpu"), end_gate=ends)
    rows.reset_slot(1, open_now=True, kind=kind)
    bias = 0.5 if kind == "begun" else -0.5
    if kind != "raw":
        rows.partial[1, :2] = torch.tensor([turn - 1.25, 1.0])
    if kind != "template":
        rows.partial[1, 2] = end - bias
    rows.load([[], [], []], [1], [], TOKENS)
    ops.decide(
        rows.partial,
        gate.bias,
        rows.decide_row,
        rows.counts,
        rows.read_slots,
        rows.score,
        rows.open,
        rows.slot_of_token,
        rows.steered,
        rows.steer_tokens,
        rows.turn_reads,
    )
    assert float(rows.score[1]) == pytest.approx(score, nan_ok=True)
    assert bool(rows.open[1]) is opened


@pytest.mark.parametrize("score", [-1.0, -1e-30, 0.0, 1e-30, 1.0, torch.nan, torch.inf, -torch.inf])
def test_the_same_scores_open_as_with_transformers(score: float) -> None:
    """One rule for every engine: above 0, or NaN."""
    gate = GuidanceGate("whitened", (GateRead(0),), torch.ones(1, WIDTH), 0.0)
    rows = RowBuffers(gate, SLOTS, TOKENS, torch.device("cpu"))
    rows.reset_slot(0, open_now=True)
    rows.partial[0, 0] = score
    rows.load([[]], [0], [], TOKENS)
    decide(rows)
    assert bool(rows.open[0]) is gate.decide(torch.tensor([score]))[0].open


def test_the_package_docstring_names_the_operations_and_files_that_exist() -> None:
    contract = str(inferaligner.vllm.__doc__)
    (operations,) = re.findall(r"operations (.*?) of `torch\.ops\.inferaligner`", contract, re.DOTALL)
    registered = {
        name.removeprefix("inferaligner::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("inferaligner::")
    }
    assert set(re.findall(r"`(\w+)`", operations)) == registered
    assert set(re.findall(r"`(\w+)`", str(ops.__doc__).splitlines()[0])) == registered
    folder = Path(inferaligner.vllm.__file__).parent
    files = set(re.findall(r"`(\w+\.py)`", contract))
    assert files and files <= {file.name for file in folder.glob("*.py")}
