"""The grid of the search: first layer × width × strength, walked along its valleys.

Along the strength, cross-entropy falls and rises again, and the valleys of neighbouring blocks lie at about
the same strength. So each block is entered at its neighbour's best strength and walked downhill from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from inferaligner.fit.strength.trial import Trial

Score = Callable[[Sequence[int], float], Trial]

STRENGTHS = (0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0)
"""Of six layers; see `scaled`."""

_ENTRY = 3
# Two neighbouring blocks that gain less than this share of the best gain end the walk in their direction.
_HOPELESS = 0.4


def scaled(strength: float, width: int) -> float:
    """The strength for a block of `width` layers: the longer the block, the less each layer needs."""
    return strength * math.sqrt(6 / max(width, 3))


def block_widths(depth: int) -> list[int]:
    """The widths that are tried: one layer, and a tenth, a fifth and a third of the depth or about that."""
    return sorted({1, *(max(1, round(share * depth)) for share in (0.1, 0.2, 0.3))})


def layer_blocks(gate_layer: int, depth: int) -> list[tuple[int, ...]]:
    """Contiguous blocks of layers from the gate's layer upward, of several widths and starts."""
    blocks = [block for starts in _upward(gate_layer, depth).values() for block in starts]
    return blocks or [tuple(range(gate_layer, depth))]


def blocks_below(gate_layer: int, depth: int) -> list[tuple[int, ...]]:
    """Blocks that begin below the gate's layer, nearest first; without the lowest tenth of the layers."""
    step = max(1, depth // 10)
    starts = range(gate_layer - step, max(0, depth // 10 - 1), -step)
    return [
        tuple(range(start, start + width))
        for width in block_widths(depth)
        for start in starts
        if start + width < depth
    ]


def walk(blocks: Iterable[tuple[int, ...]], score: Score, unsteered: float) -> list[Trial]:
    """Scores each block around its best strength. Blocks of one width follow each other, neighbours too."""
    trials: list[Trial] = []
    best = unsteered
    width, entry, poor = 0, _ENTRY, 0
    for block in blocks:
        if len(block) != width:
            width, entry, poor = len(block), _ENTRY, 0
        if poor == 2:
            continue
        valley, entry = _valley(block, score, entry)
        trials += valley
        lowest = min(trial.cross_entropy for trial in valley)
        best = min(best, lowest)
        poor = poor + 1 if unsteered - lowest < _HOPELESS * (unsteered - best) else 0
    return trials


def _valley(block: tuple[int, ...], score: Score, entry: int) -> tuple[list[Trial], int]:
    """The trials from the entry downhill, to both sides of the lowest; and the place of the lowest."""
    trials: dict[int, Trial] = {}

    def at(place: int) -> float:
        if not 0 <= place < len(STRENGTHS):
            return float("inf")
        if place not in trials:
            trials[place] = score(block, scaled(STRENGTHS[place], len(block)))
        return trials[place].cross_entropy

    here = entry
    while True:
        lower = min((here, here + 1, here - 1), key=at)
        if lower == here:
            return [trials[place] for place in sorted(trials)], here
        here = lower


def _upward(gate_layer: int, depth: int) -> dict[int, list[tuple[int, ...]]]:
    step = max(1, depth // 10)
    # The very last layer feeds the head alone; steering it only adds to the logits.
    return {
        width: [
            tuple(range(start, start + width))
            for start in range(gate_layer, depth - 1, step)
            if start + width < depth
        ]
        for width in block_widths(depth)
    }
