"""Does the promise of the operating point hold? Random splits of real gate scores.

    python -m reproduction.operating_point --scores FILE.jsonl [--max-false-open 0.01] [-o OUT.json]

FILE holds benign scores of one gate that saw none of the prompts, as JSON lines: {"kind": "medical",
"score": -1.3}. (`--kind-field` names another field; rows without it are of one kind, "all".) For every
kind, each split draws `--calibration-share` of its scores, puts the threshold where `fit --benign` would,
and counts how many of the other scores lie above.

How "within the promise" is counted. The promise is about the false-open rate of the traffic, which nobody
sees: the rate among m held-out scores is itself an estimate, and lies above ε now and then even where the
true rate is below. So three counts are told, per kind:

- `within`: splits whose held-out count x does not contradict the promise: the exact one-sided lower bound
  of the rate, at the same confidence, is at most ε; that is, P(Binomial(m, ε) ≥ x) > 1 - confidence. A
  promise that is just broken may pass too, so read it with the two others.
- `raw`: splits with x / m ≤ ε, no allowance made. This may be less than the confidence although all is
  well. `raw_expected` says how often it happens by exchangeability alone, exactly and for any
  distribution without ties (x is beta-binomial); `raw` well below that is a defect.
- `population`: splits whose threshold keeps the rate over *all* scores of the kind, those of the
  calibration among them, at most ε. Here the file is the population and nothing is estimated. Drawing
  from it without putting back is kinder than the theorem's endless traffic: expect no less than the
  confidence.

What this cannot show. Random splits are exchangeable by construction: the procedure is tested on real
scores, with their ties and tails, not whether tomorrow's traffic is like today's (`calibrate --drift`
watches that). `--in-order` takes the file's order instead, the first scores for calibration: one split,
worth as much as one observation.

The splits of one file overlap, so their counts are not independent, and no interval is printed around
them. A kind with too few scores for ε is bounded by its largest calibration score, and measured against
the rate that its size does allow (`epsilon` in the output).
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from inferaligner.fit.operating_point.threshold import promised_threshold


@dataclass(frozen=True)
class Kept:
    """One kind of traffic over all splits; the counts are explained in the module's docstring."""

    kind: str
    calibration: int
    evaluation: int
    epsilon: float
    promised: bool
    splits: int
    within: int
    raw: int
    raw_expected: float
    population: int
    mean_rate: float  # false-open rate of the held-out scores, mean over the splits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--kind-field", default="kind")
    parser.add_argument("--max-false-open", type=float, default=0.01)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--calibration-share", type=float, default=0.5)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-order", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    found = simulate(
        read_kinds(options.scores, options.kind_field),
        max_false_open=options.max_false_open,
        confidence=options.confidence,
        calibration_share=options.calibration_share,
        splits=options.splits,
        seed=None if options.in_order else options.seed,
    )
    show(found, options.confidence)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps([asdict(kept) for kept in found], indent=2), encoding="utf-8")


def simulate(
    kinds: Mapping[str, Sequence[float]],
    *,
    max_false_open: float = 0.01,
    confidence: float = 0.95,
    calibration_share: float = 0.5,
    splits: int = 100,
    seed: int | None = 0,
) -> list[Kept]:
    """Random splits of every kind's scores; the module's docstring describes the counts.

    `seed` None: one split, in the order of the scores.

    Raises:
        ValueError: a kind of fewer than two scores, or a share that leaves a side empty.
    """
    return [
        _simulate(kind, list(scores), max_false_open, confidence, calibration_share, splits, seed)
        for kind, scores in kinds.items()
    ]


def read_kinds(file: Path, field: str = "kind") -> dict[str, list[float]]:
    """Scores by kind. Raises `SystemExit` for a row without a finite score."""
    kinds: dict[str, list[float]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        score = row.get("score") if isinstance(row, dict) else None
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise SystemExit(f"{file}, line {number}: expected an object with a finite number 'score'.")
        kinds.setdefault(str(row.get(field, "all")), []).append(float(score))
    return kinds


def raw_expected(n: int, m: int, allowed: int, most: int) -> float:
    """P(at most `most` of m new scores lie above the (`allowed` + 1)-th largest of n), exchangeable, no ties.

    Beta-binomial: the ranks of n + m scores in random order.
    """
    whole = _log_choose(n + m, m)
    return sum(
        math.exp(_log_choose(x + allowed, x) + _log_choose(n + m - x - allowed - 1, m - x) - whole)
        for x in range(min(most, m) + 1)
    )


def show(found: Sequence[Kept], confidence: float) -> None:
    table = Table(title=f"Splits that keep the promise (confidence {confidence:g})", title_justify="left")
    table.add_column("kind")
    for name in ("n", "m", "ε", "within", "raw", "raw expected", "population", "mean rate"):
        table.add_column(name, justify="right")
    for kept in found:
        table.add_row(
            kept.kind,
            str(kept.calibration),
            str(kept.evaluation),
            f"{kept.epsilon:.3g}{'' if kept.promised else ' (too few)'}",
            f"{kept.within} of {kept.splits}",
            str(kept.raw),
            f"{kept.raw_expected * kept.splits:.1f}",
            str(kept.population),
            f"{kept.mean_rate:.2%}",
        )
    Console().print(table)


def _simulate(
    kind: str,
    scores: list[float],
    max_false_open: float,
    confidence: float,
    calibration_share: float,
    splits: int,
    seed: int | None,
) -> Kept:
    n = round(len(scores) * calibration_share)
    m = len(scores) - n
    if n < 1 or m < 1 or splits < 1:
        raise ValueError(f"{kind}: {len(scores)} scores cannot be split into {n} and {m}, {splits} times.")
    if seed is None:
        splits = 1
    shuffle = random.Random(seed)
    within = raw = population = total = 0
    _, ranks = promised_threshold({kind: scores[:n]}, max_false_open, confidence)
    rank = ranks[kind]
    epsilon = max_false_open if rank.promised else rank.bound
    most = math.floor(epsilon * m + 1e-9)
    for _ in range(splits):
        if seed is not None:
            shuffle.shuffle(scores)
        threshold, _ = promised_threshold({kind: scores[:n]}, max_false_open, confidence)
        above = sum(score > threshold for score in scores[n:])
        everywhere = sum(score > threshold for score in scores)
        total += above
        raw += above <= most
        within += binom.sf(above - 1, m, epsilon) > 1.0 - confidence
        population += everywhere <= epsilon * len(scores) + 1e-9
    expected = raw_expected(n, m, rank.allowed, most)
    rate = total / (splits * m)
    return Kept(kind, n, m, epsilon, rank.promised, splits, within, raw, expected, population, rate)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


if __name__ == "__main__":
    main()
