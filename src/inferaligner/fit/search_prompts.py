"""What the strength search measures on: prompts with answers that should become likely, or stay so.

Harmful prompts that the aligned model declines, with its answers; others to generate on; and harmless prompts
that open the gate wrongly, with the bare target's own answers to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inferaligner.errors import CalibrationError
from inferaligner.fit.options import FitModel, FitOptions
from inferaligner.fit.progress import Stages
from inferaligner.fit.samples import Samples
from inferaligner.method.decision import opens
from inferaligner.models.generation import Answer, generate_answers
from inferaligner.prompts.encoding import tokenizer_of

Outcome = Callable[[str], str]
"""A judge: an answer in, "refusal", "compliance" or "gibberish" out."""

OUTCOMES = ("refusal", "compliance", "gibberish")
ANSWER_TOKENS = 48
"""Of each answer that is generated while the strength is searched."""

_FORCED_TOKENS = 16  # of the answers that are scored: whether one declines is settled by the first words
SCORED, GENERATED = 16, 32
_HARMLESS = 24


@dataclass(frozen=True)
class Validation:
    """Prompts and answers of the fitting part; `harmless` may be empty."""

    scored: tuple[str, ...]
    answers: tuple[str, ...]  # the aligned model's, to `scored`
    held_out: tuple[str, ...]
    harmless: tuple[str, ...] = ()
    harmless_answers: tuple[str, ...] = ()  # the bare target's beginnings of answers, to `harmless`
    harmless_unsteered: tuple[str, ...] = ()  # outcomes of its answers


def validation(
    target: FitModel,
    aligned: FitModel,
    samples: Samples,
    scores: Sequence[float],
    options: FitOptions,
    outcome: Outcome,
    tell: Stages,
) -> Validation:
    """Asks both models. `scores` are the gate's held-out ones of `samples.fitting`, positive when open; with
    none, harmless prompts are taken as they come.

    Raises `CalibrationError` if the aligned model declines nothing.
    """
    pool = shuffled_harmful(samples)[: 2 * (SCORED + GENERATED)]
    asked, held_out = pool[: 2 * SCORED], pool[2 * SCORED : 2 * SCORED + GENERATED]
    declined = declined_by(aligned, asked, options, outcome, tell)[:SCORED]
    if not declined:
        raise CalibrationError(
            f"The aligned model {aligned.spec} declined none of {len(asked)} harmful prompts, so it cannot "
            "guide. Give a model that declines harmful requests with --aligned."
        )
    harmless = wrongly_opened(samples, scores)
    own = _ask(target, harmless, ANSWER_TOKENS, "target: harmless prompts that open the gate", options, tell)
    beginnings = [
        str(
            tokenizer_of(target.tokenizer).decode(answer.tokens[:_FORCED_TOKENS], skip_special_tokens=True)
        ).strip()
        for answer in own
    ]
    kept = [row for row, beginning in enumerate(beginnings) if beginning]
    return Validation(
        scored=tuple(prompt for prompt, _ in declined),
        answers=tuple(answer for _, answer in declined),
        held_out=tuple(held_out or asked[-GENERATED:]),
        harmless=tuple(harmless[row] for row in kept),
        harmless_answers=tuple(beginnings[row] for row in kept),
        harmless_unsteered=tuple(outcome(own[row].text) for row in kept),
    )


def shuffled_harmful(samples: Samples) -> list[str]:
    """Harmful prompts of the fitting part, in a fixed order by content."""
    rows = [s for s in samples.fitting if s.harmful and not s.wrapped]
    rows.sort(key=lambda s: (s.fold(97), s.content))
    return [s.text for s in rows]


def declined_by(
    aligned: FitModel,
    asked: Sequence[str],
    options: FitOptions,
    outcome: Outcome,
    tell: Stages,
    tokens: int = _FORCED_TOKENS,
) -> list[tuple[str, str]]:
    """Those of the prompts that the aligned model declines, each with how it does, in so many tokens."""
    told = _ask(aligned, asked, tokens, "aligned model: its own answers", options, tell)
    return [
        (prompt, answer.text)
        for prompt, answer in zip(asked, told, strict=True)
        if outcome(answer.text) == "refusal"
    ]


def wrongly_opened(samples: Samples, scores: Sequence[float], most: int = _HARMLESS) -> list[str]:
    """Harmless prompts that open the gate, in a fixed order by content; where they are too few, those that
    come nearest to opening it."""
    rows = [row for row, s in enumerate(samples.fitting) if not s.harmful and not s.wrapped]
    rows.sort(key=lambda row: (samples.fitting[row].fold(97), samples.fitting[row].text))
    if scores:
        opened = [row for row in rows if opens(scores[row])]
        closed = sorted((row for row in rows if not opens(scores[row])), key=lambda row: -scores[row])
        rows = [*opened, *closed]
    return [samples.fitting[row].text for row in rows[:most]]


def _ask(
    side: FitModel, prompts: Sequence[str], tokens: int, what: str, options: FitOptions, tell: Stages
) -> list[Answer]:
    if not prompts:
        return []
    answers: dict[int, Answer] = {}
    with tell.stage(what, len(prompts)) as advance:
        for answer in generate_answers(
            side.model, side.tokenizer, prompts, max_new_tokens=tokens, system=options.system
        ):
            answers[answer.row] = answer
            advance(1)
    return [answers[row] for row in range(len(prompts))]
