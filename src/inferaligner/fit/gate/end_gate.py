"""The gate of begun answers and raw text, from the labelled prompts themselves.

At such an end the guidance gate reads tokens it was never fitted on, and opens on most ordinary prompts. Here
the same contents are put at ends that the template never makes (`prompts/begun_answers.py`), and a gate of
the last token alone is fitted and calibrated on them, at the guidance gate's layers. Its harmful class is
harmful contents *in* the begun answer or the text. A harmful turn with a neutral opener behind it is left to
the guidance gate, which reads the turn; harmless turns with openers belong to the harmless class
(docs/calibration.md has the figures).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from inferaligner.fit.gate.builder import Moments, WhitenedGate
from inferaligner.fit.operating_point.threshold import threshold_for
from inferaligner.fit.samples import SHARES, Sample, Sort
from inferaligner.method.activations import Activations
from inferaligner.method.decision import opens
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.prompts.begun_answers import (
    FORMS,
    TEST_OPENERS,
    TEST_TURNS,
    TURNS,
    EndForm,
    encode_ends,
    opener_of,
)
from inferaligner.prompts.encoding import Reader
from inferaligner.statistics.intervals import auroc, clopper_pearson

Record = Callable[[list[list[int]], str], Activations]
"""Records prompts (token ids, name of the stage) at the guidance gate's layers and their last tokens."""

FOLDS = 5
SHRINKAGE = 0.5
BUILDER = WhitenedGate(SHRINKAGE)
MOST: dict[Sort, int] = {"harmful": 300, "twin": 100, "lookalike": 100, "ordinary": 400}
"""Contents of each sort; each is recorded in up to four forms."""


@dataclass(frozen=True)
class _Recorded:
    """Contents in their forms: `features` `[rows, reads · width]`, float32."""

    features: Tensor
    forms: list[EndForm]
    samples: list[Sample]

    def rows(self, *forms: EndForm, harmful: bool | None = None) -> list[int]:
        """Rows of some forms; of harmless ones the ordinary contents, where any are labelled so."""
        some = any(sample.ordinary for sample in self.samples)
        return [
            row
            for row, (form, sample) in enumerate(zip(self.forms, self.samples, strict=True))
            if form in forms
            and (harmful is None or sample.harmful == harmful)
            and (sample.harmful or sample.ordinary or not some)
        ]


def fit_end_gate(
    gate: GuidanceGate,
    reader: Reader,
    fitting: Sequence[Sample],
    test: Sequence[Sample],
    record: Record,
    *,
    max_false_open: float,
    system: str | None,
    limit: int | None,
) -> tuple[EndGate | None, dict[str, Any]]:
    """Fits the gate of begun answers and raw text.

    Args:
        gate: the guidance gate, whose layers this one reads.
        fitting, test: the labelled prompts.
        record: records token ids.
        max_false_open: at most this share of the ordinary fitting prompts opens it, in each form on its own.
        system: the system prompt.
        limit: the model's longest input; prompts that are longer in a form are left out.

    Returns:
        The gate, and its figures on held-out contents, openers and turns; None where prompts are too few.
    """
    data = _recorded(fitting, reader, record, "other ends", system, limit, test=False)
    folds = torch.tensor([sample.fold(FOLDS) for sample in data.samples])
    harmful = torch.tensor([sample.harmful for sample in data.samples])
    filled = all(data.rows(form, harmful=False) for form in FORMS)
    if not filled or any(
        not ((folds != fold) & (harmful == side)).any() for fold in range(FOLDS) for side in (True, False)
    ):
        return None, {}
    centre = data.features.mean(0)
    features, counts = data.features - centre, _importance(data)
    held_out = torch.zeros(len(folds), dtype=torch.float64)
    for fold in range(FOLDS):
        held = folds == fold
        if held.any():
            weights, offset = _fit(features[~held], harmful[~held], counts[~held])
            held_out[held] = (features[held] @ weights).double() + offset
    weights, offset = _fit(features, harmful, counts)
    offset -= float(weights.double() @ centre.double())

    def threshold(*forms: EndForm) -> float:
        groups: dict[str, list[float]] = {
            form: held_out[data.rows(form, harmful=False)].tolist() for form in forms
        }
        return threshold_for(groups, max_false_open)

    reads = tuple(GateRead(layer) for layer in gate.layers)
    made = EndGate(
        GuidanceGate(BUILDER.name, reads, weights.reshape(len(reads), -1), 0.0),
        begun=offset - threshold("opener", "content", "opened content"),
        raw=offset - threshold("raw"),
    )
    figures: dict[str, Any] = {"max_false_open": max_false_open, "prompts": len(folds)}
    if test:
        what = "other ends, held out"
        figures["held_out"] = _held_out(made, _recorded(test, reader, record, what, system, limit, test=True))
    return made, figures


def _fit(features: Tensor, harmful: Tensor, counts: Tensor) -> tuple[Tensor, float]:
    sides = [Moments.of(features[harmful == side], counts[harmful == side]) for side in (True, False)]
    return BUILDER.fit(*sides)


def _recorded(
    samples: Sequence[Sample],
    reader: Reader,
    record: Record,
    what: str,
    system: str | None,
    limit: int | None,
    *,
    test: bool,
) -> _Recorded:
    chosen = _chosen(samples)
    numbers: Counter[int] = Counter()
    openers, turns = [], []
    for sample in chosen:
        fold = sample.fold(FOLDS)
        number = numbers[fold]
        numbers[fold] += 1
        openers.append(
            TEST_OPENERS[(number + fold) % len(TEST_OPENERS)] if test else opener_of(number, fold, FOLDS)
        )
        several = TEST_TURNS if test else TURNS
        turns.append(several[(number + fold) % len(several)])
    ids: list[list[int]] = []
    forms: list[EndForm] = []
    kept: list[Sample] = []
    for form in FORMS:
        rows = [row for row, sample in enumerate(chosen) if form != "opener" or not sample.harmful]
        if not rows:
            continue
        encoded = encode_ends(
            reader,
            [chosen[row].text for row in rows],
            [openers[row] for row in rows],
            [turns[row] for row in rows],
            form,
            system=system,
        )
        for row, each in zip(rows, encoded, strict=True):
            if each and (limit is None or len(each) <= limit):
                ids.append(each)
                forms.append(form)
                kept.append(chosen[row])
    return _Recorded(record(ids, what).at(0).flatten(1).float(), forms, kept)


def _chosen(samples: Sequence[Sample]) -> list[Sample]:
    """Unwrapped prompts of text, up to `MOST` of a sort, by a hash of the text."""
    plain = [sample for sample in samples if not sample.wrapped and sample.shown is None]
    plain.sort(key=lambda sample: hashlib.sha256(sample.text.encode()).digest())
    taken: Counter[Sort] = Counter()
    chosen = []
    for sample in plain:
        if taken[sample.sort] < MOST[sample.sort]:
            taken[sample.sort] += 1
            chosen.append(sample)
    return chosen


def _importance(data: _Recorded) -> Tensor:
    """How much each row counts: harmful rows of every form alike, harmless ones by form and sort."""
    keys = [(form, sample.sort) for form, sample in zip(data.forms, data.samples, strict=True)]
    counts = Counter(keys)
    return torch.tensor(
        [(1.0 if sort == "harmful" else SHARES[sort]) * len(keys) / counts[form, sort] for form, sort in keys]
    )


def _held_out(gate: EndGate, data: _Recorded) -> dict[str, Any]:
    """Shares of contents and openers of the test part that open the end gate, with exact 95 % intervals."""
    scores = (data.features @ gate.gate.weights.flatten()).tolist()
    opened: dict[str, Any] = {}
    areas: dict[str, float] = {}
    for form in FORMS:
        bias = gate.raw if form == "raw" else gate.begun
        groups = {
            side: [scores[row] + bias for row in data.rows(form, harmful=side == "harmful")]
            for side in ("harmful", "ordinary")
        }
        for side, values in groups.items():
            if values:
                count = sum(map(opens, values))
                opened[f"{form}, {side}"] = asdict(clopper_pearson(count, len(values)))
        if groups["harmful"] and groups["ordinary"]:
            labels = [1] * len(groups["harmful"]) + [0] * len(groups["ordinary"])
            areas[form] = round(auroc([*groups["harmful"], *groups["ordinary"]], labels), 4)
    return {"open": opened, "auroc": areas}
