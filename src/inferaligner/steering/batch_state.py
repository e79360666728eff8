"""The state of one batch of prompts: which rows are open, and which tokens the present pass steers.

A *scope* begins when a batch of prompts enters the model and lasts until the next batch. A *pass* is one
forward call within it: a prefill (or a chunk of one), a decoding step, or a check of drafted tokens. A *row*
is one sequence of the batch. Positions count tokens of the padded batch, cached tokens included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from inferaligner.errors import SteeringError
from inferaligner.method.decision import Decision, opens
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GuidanceGate
from inferaligner.steering.monitor_state import AnswerWatch
from inferaligner.steering.other_ends import OtherEnds
from inferaligner.steering.plan import Mode, Positions
from inferaligner.steering.prompt_spans import PromptSpans
from inferaligner.steering.row_state import CarriedRows

Steers = Literal["nothing", "everything", "open_rows", "monitored", "by_position"]
"""Which tokens of a pass are steered. All but the last are for decoding steps, and are known before the step:
a compiled decoding step needs one graph for each. "monitored": the rows that are open once the monitor's
layer has seen the token, which only the device knows."""


@dataclass
class Pass:
    """One forward call: tokens `start … start + length - 1` of every row."""

    start: int
    length: int
    reads_gate: bool
    steers: Steers  # in a pass that reads the gate, `latch` may change it to "nothing" for the layers above
    reads_answer: bool = False  # whether the monitor has tokens to read
    replayed_rows: Tensor | None = None  # indices of the rows of a second prefill
    mask: Tensor | None = field(default=None, repr=False)  # cached by `PromptScope.steered_columns`


class PromptScope:
    """The decisions on one batch. They are latched: an open row stays open until the scope ends."""

    def __init__(
        self,
        spans: PromptSpans,
        gate: GuidanceGate,
        mode: Mode,
        positions: Positions,
        end_gate: EndGate | None = None,
    ) -> None:
        """
        Args:
            spans: where the prompts begin and end.
            gate: the guidance gate.
            mode: whether the gate decides.
            positions: whether steering begins at the prompt's last token or at its first.
            end_gate: reads the ends of rows that do not end as the template ends them; None: `gate` does.
        """
        self.gate = gate
        self.other_ends = OtherEnds.of(spans, EndGate.uncalibrated(gate) if end_gate is None else end_gate)
        self.mode = mode
        self.positions = positions
        self.spans = spans
        self.first_end = int(spans.ends.min())
        self.last_end = int(spans.ends.max())
        self.seen: int | None = None  # tokens that passed the guard, and those cached before
        self.decoding: Pass | None = None  # describes each decoding step; set once all rows are decided
        self.any_open = False  # known to the host together with `decoding`
        self.traced = False  # whether compiled code made scores and decisions
        self.scores: Tensor | None = None  # [rows] float32, on the device of the gate's layers
        self.open: Tensor | None = None  # [rows] bool
        self.strengths: Tensor | None = None  # [rows]: scales what is added; None is 1 for all
        self.prefill: list[dict[str, Any]] = []  # keyword arguments of the prefill passes, kept for a replay
        self.cache_before: Any = None
        self.watch: AnswerWatch | None = None  # where a monitor reads the answers
        self._kept: Tensor | None = None  # [rows] bool: open since an earlier scope of the same cache
        self._on_host: Tensor | None = None  # the host's copy of `open`, if `latch` made one
        self._cache: Callable[[], Any] = lambda: None
        self._on_device: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def carrying(cls, rows: CarriedRows, gate: GuidanceGate, mode: Mode, positions: Positions) -> PromptScope:
        """A scope of rows that were decided in earlier batches and are decoded from here on."""
        nowhere = torch.zeros(len(rows), dtype=torch.long)
        scope = cls(PromptSpans(nowhere, nowhere), gate, mode, positions)
        scope.scores, scope.open, scope.strengths, scope.watch = (
            rows.scores,
            rows.open,
            rows.strengths,
            rows.watch,
        )
        scope.seen = 1
        scope._settle(rows.open.cpu())
        return scope

    def carried(self) -> CarriedRows:
        """The state of the rows now. Raises `SteeringError` before all of them are decided."""
        if not self.settled or self.scores is None or self.open is None:
            raise SteeringError("These rows are not decided yet; run their whole prompts first.")
        return CarriedRows(self.scores, self.open, self.strengths, self.watch)

    def scale(self, strengths: Sequence[float]) -> None:
        """Scales what is added to each row; called before the prompt runs.

        Raises `SteeringError` unless there is one strength per row.
        """
        if len(strengths) != self.rows:
            raise SteeringError(f"{len(strengths)} strengths were given for {self.rows} rows.")
        self.strengths = torch.tensor(strengths, dtype=torch.float32)

    @property
    def acting(self) -> Tensor | None:
        """`[rows]` bool: open rows to which something is added. A strength of 0 changes no bit."""
        if self.open is None or self.strengths is None:
            return self.open
        return self.open & (self.strengths != 0).to(self.open.device)

    @property
    def rows(self) -> int:
        """Rows of the batch; beams and return sequences count once the first pass has begun."""
        return len(self.spans.ends)

    @property
    def settled(self) -> bool:
        """Whether every row is decided, and the host knows it."""
        return self.decoding is not None

    def begin_pass(self, rows: int, length: int, start: int) -> Pass:
        """Describes a pass, before the model runs.

        Args:
            rows: rows of the pass.
            length: tokens per row.
            start: tokens that are cached already.

        Raises:
            SteeringError: the tokens' positions are unknown, or the batch is another one.
        """
        if self.seen is None:
            self._begin(rows, start)
        self.check_rows(rows)
        if not self.settled:
            if start > (self.seen or 0):
                raise SteeringError(
                    f"Tokens {self.seen} to {start - 1} reached the cache without passing this guard. "
                    "Run the whole prompt inside the `with aligner.apply(model)` context."
                )
            return Pass(
                start, length, reads_gate=True, steers="by_position", reads_answer=self.answers_in_prompt
            )
        # Without a cache, every decoding step repeats the prompt. If it does not, the model keeps a state of
        # its own, and the positions of these tokens are unknown.
        if start + length <= self.last_end:
            raise SteeringError(
                f"A decoding step of {length} tokens came without the prompt and without a cache that this "
                "guard knows, so its positions are unknown. Use one of the caches of transformers."
            )
        watched = self.watch is not None
        steers: Steers = "by_position" if self.any_open or watched else "nothing"
        return Pass(start, length, reads_gate=False, steers=steers, reads_answer=watched)

    def replay_pass(self, rows: Tensor, length: int, start: int) -> Pass:
        """Describes the second run of a prefill pass for `rows` (indices), which are decided already."""
        return Pass(start, length, reads_gate=False, steers="by_position", replayed_rows=rows)

    @property
    def answers_in_prompt(self) -> bool:
        """Whether the prompt's pass holds answer tokens that a monitor reads."""
        return self.watch is not None and self.spans.lasts is not None

    def answer_numbers(self, now: Pass, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each token's number in its row's answer `[rows, tokens]`, and the last one's `[rows]`.

        Tokens of the prompt have numbers below 1.
        """
        _, ends, _ = self.places_on(stream.device)
        columns = torch.arange(stream.shape[1], device=stream.device) + now.start
        if now.reads_gate and self.spans.lasts is not None:
            lasts = self.spans.lasts.to(stream.device)
        else:
            lasts = columns[-1:].expand(self.rows)
        return columns - ends[:, None], lasts - ends

    def check_rows(self, rows: int) -> None:
        """Raises `SteeringError` unless a pass has the rows of this batch."""
        if rows != self.rows:
            raise SteeringError(
                f"The batch had {self.rows} rows at its prompt and has {rows} now; "
                "decisions cannot be carried over. Start a new generate() call for another batch."
            )

    def _begin(self, rows: int, start: int) -> None:
        if rows % self.rows:
            raise SteeringError(f"{self.rows} prompts became {rows} rows; expected a multiple.")
        times = rows // self.rows
        self.spans = self.spans.repeated(times)
        if self.other_ends is not None:
            self.other_ends = self.other_ends.repeated(times)
        reach, first = max(self.gate.offsets), int(self.spans.reads.min())
        shortest = int((self.spans.reads - self.spans.begins).min()) + 1
        if shortest <= reach:
            raise SteeringError(
                f"The gate reads {reach + 1} tokens from the end of a prompt, but a prompt of this batch has "
                f"{shortest}. Render prompts with the chat template that the aligner was fitted on."
            )
        if first - reach < start:
            raise SteeringError(
                f"The gate reads the prompt from token {first - reach} on, but {start} tokens are "
                "in the cache already and will not be computed again. Give the new turn at least "
                f"{reach + 1} uncached tokens, or start without the cache."
            )
        self.seen = start

    def places_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Returns `(row numbers, ends, reads)`, each `[rows]`, on a device; copied once per device.

        `reads` are the positions of the last tokens that the guidance gate reads: the prompts' ends, except
        for begun answers.
        """
        if device in self._on_device:
            return self._on_device[device]
        ends = self.spans.ends.to(device)
        reads = ends if self.spans.turns is None else self.spans.turns.to(device)
        places = (torch.arange(self.rows, device=device), ends, reads)
        if not torch.compiler.is_compiling():  # see hooks.py on what compiled code makes
            self._on_device[device] = places
        return places

    def add_scores(self, part: Tensor) -> None:
        """Adds the dot products `[rows]` of one read, 0 for rows whose token is not in this pass.

        The first call adds the bias too.
        """
        if self.scores is None:
            self.scores = part + self.gate.bias
        else:
            self.scores = self.scores + part.to(self.scores.device)

    def latch(self, now: Pass, length: int) -> None:
        """Stores, on the device, the decision of each row whose prompt ends in this pass.

        Called at the gate's last layer.

        `length` is the number of tokens per row, taken from the stream's shape (see hooks.py).
        """
        assert self.scores is not None
        self.traced = torch.compiler.is_compiling()
        _, ends, reads = self.places_on(self.scores.device)

        def here(places: Tensor) -> Tensor:
            return (places >= now.start) & (places < now.start + length)

        if self.mode != "gate":
            opened = torch.full_like(self.scores, self.mode == "always", dtype=torch.bool) & here(ends)
        else:
            opened = opens(self.scores) & here(reads)
            if self.other_ends is not None:
                opened = self.other_ends.opened(opened, here(ends))
        self.open = opened if self.open is None else self.open | opened
        if self.mode == "gate" and not torch.compiler.is_compiling():
            self._spare_closed(now)

    def _spare_closed(self, now: Pass) -> None:
        """Spares the layers above the gate their work where no row is open.

        The pass that decides the last row copies the decisions to the host here, not at its end. An earlier
        pass does not wait: its open rows are steered by position, which needs no copy on the host.
        """
        assert self.open is not None
        end = now.start + now.length
        if self.last_end < end:
            self._on_host = self.open.cpu()
            closed = not self._on_host.any()
        else:
            closed = end <= self.first_end and self._kept is None
        closed = closed and not self.answers_in_prompt
        if closed:
            now.steers = "nothing"

    def end_pass(self, now: Pass) -> bool:
        """Called after a pass that reads the gate; returns True if it decided the last undecided row.

        The host waits for the device once per prompt batch: here, unless `latch` has done so.
        """
        assert self.open is not None and self.scores is not None
        if self._on_host is None:
            # Copies, because the next run of a CUDA graph overwrites its output.
            self.open, self.scores = self.open.clone(), self.scores.clone()
        self.seen = now.start + now.length
        if self.last_end >= self.seen:
            return False
        if self.other_ends is not None:
            self.scores = self.other_ends.reported(self.scores)
        if self.watch is not None:
            self.watch.begin(self.open)
        self._settle(self.open.cpu() if self._on_host is None else self._on_host)
        return True

    def _settle(self, open_rows: Tensor) -> None:
        """Sets `decoding` from the host's copy `[rows]` of the decisions."""
        self.any_open = bool(open_rows.any())
        alike = self.strengths is None and bool(open_rows.all())
        steers: Steers = "nothing" if not self.any_open else "everything" if alike else "open_rows"
        watched = self.watch is not None and steers != "everything"
        self.decoding = Pass(
            self.last_end + 1,
            1,
            reads_gate=False,
            steers="monitored" if watched else steers,
            reads_answer=watched,
        )

    def belongs_to(self, cache: Any) -> None:
        """Keeps a weak reference to the KV cache that holds this batch."""
        # Older model code makes a new tuple or list in every pass; it is of no use as a reference.
        if cache is not None and not isinstance(cache, (tuple, list)):
            self._cache = weakref.ref(cache)

    def follows(self, cache: Any) -> bool:
        """Whether a later call with this cache continues the same batch."""
        return cache is not None and self._cache() is cache

    def keep_open(self, earlier: PromptScope) -> None:
        """Keeps the open rows of an earlier scope of the same cache open, from their first new token on."""
        if earlier.open is not None and earlier.rows == self.rows:
            self._kept = self.open = earlier.open.clone()
            if earlier.watch is not None and earlier.watch.begun:
                self._kept = self.open = self.open | (earlier.watch.opened_at > 0).to(self.open.device)

    def steered_columns(self, now: Pass, stream: Tensor) -> tuple[int, Tensor]:
        """Returns which tokens a pass that steers by position steers.

        Args:
            now: the pass.
            stream: the residual stream `[rows, tokens, width]`.

        Returns:
            The first column with steered tokens, and a mask `[rows, columns from there on, 1]`.
        """
        compiling = torch.compiler.is_compiling()  # then the first column would be compiled in
        every = compiling or self.positions == "all" or self._kept is not None
        first = 0 if every else min(max(self.first_end - now.start, 0), now.length)
        if now.mask is None or now.mask.device != stream.device or compiling:
            mask = self._mask(now, stream, first)
            if compiling:
                return first, mask
            now.mask = mask
        return first, now.mask

    def _mask(self, now: Pass, stream: Tensor, first: int) -> Tensor:
        def rows(values: Tensor) -> Tensor:
            values = values.to(stream.device)
            kept = values if now.replayed_rows is None else values[now.replayed_rows.to(stream.device)]
            return kept[:, None]

        columns = torch.arange(first, stream.shape[1], device=stream.device)
        numbers = columns + now.start - rows(self.places_on(stream.device)[1])
        if self.open is None:  # below the gate's layer: the monitor alone has decided
            mask = torch.zeros_like(numbers, dtype=torch.bool)
        elif self.positions == "all":
            mask = rows(self.open).expand(-1, len(columns))
        else:
            inside = numbers >= 0
            if self._kept is not None:
                inside = inside | rows(self._kept)
            mask = rows(self.open) & inside
        if self.watch is not None and now.reads_answer:
            mask = mask | self.watch.steered(numbers)
        if self.strengths is not None:
            mask = mask & rows(self.strengths != 0)
        return mask[:, :, None]

    def scaled(self, addition: Tensor, now: Pass | None = None) -> Tensor:
        """Scales an addition `[width]` for the rows of a pass: `[rows, 1, width]` where strengths differ."""
        if self.strengths is None:
            return addition
        strengths = self.strengths.to(addition)
        if now is not None and now.replayed_rows is not None:
            strengths = strengths[now.replayed_rows.to(addition.device)]
        return strengths[:, None, None] * addition

    def decisions(self) -> list[Decision]:
        """One decision per row, in the order of the batch; empty before the prompts are decided."""
        if not self.settled or self.scores is None or self.open is None:
            return []
        opened = [0] * self.rows if self.watch is None else self.watch.opened_at.tolist()
        rows = zip(self.scores.tolist(), self.open.tolist(), opened, strict=True)
        steers = self.mode != "never"
        return [
            Decision(score, is_open or (steers and number > 0), None if is_open or not number else number)
            for score, is_open, number in rows
        ]
