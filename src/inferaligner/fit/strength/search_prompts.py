"""The prompts and answers that the strength search measures on.

- Harmful prompts that the aligned model declines, with its answers, which should become likely.
- Other harmful prompts, which the steered target answers.
- Harmless prompts that open the gate wrongly, with the bare target's own answers, which should stay likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferaligner.errors import CalibrationError
from inferaligner.fit.context import FitContext, FitModel, Outcome
from inferaligner.fit.samples import Samples
from inferaligner.judges.declining_part import declining_part
from inferaligner.method.decision import opens
from inferaligner.models.generation import Answer, generate_answers
from inferaligner.prompts.encoding import tokenizer_of

OUTCOMES = ("refusal", "compliance", "gibberish", "unended")
"""Of a steered answer; "unended" is a refusal that the length limit cut off although the guide's end."""

ANSWER_TOKENS = 128
"""Length limit of the answers that are generated while vectors and strength are chosen; most refusals end
before it."""

_OWN_TOKENS = 16  # of the bare target's own answers to harmless prompts, which are scored
_MOSTLY = 0.5  # of the guide's refusals have to end within the limit, or the target's need not end either
SCORED, GENERATED = 16, 32
"""Harmful prompts whose refusals are scored, and harmful prompts that the steered target answers."""

_HARMLESS = 24


@dataclass(frozen=True)
class GuideAnswer:
    """A refusal of the aligned model: its sentences that decline.

    A vector is the same for every prompt. It can make the target decline; what a request allows instead, it
    cannot know, and steered targets made up offers such as help with the very thing that they declined.
    `ended` says whether the model ended the answer within the length limit.
    """

    text: str
    ended: bool


@dataclass(frozen=True)
class SearchPrompts:
    """Prompts and answers, all of the fitting part; `harmless` may be empty."""

    scored: tuple[str, ...]
    answers: tuple[GuideAnswer, ...]  # the aligned model's, to `scored`
    held_out: tuple[str, ...]
    harmless: tuple[str, ...] = ()
    harmless_answers: tuple[str, ...] = ()  # the bare target's beginnings of answers, to `harmless`
    harmless_unsteered: tuple[str, ...] = ()  # outcomes of its answers

    @property
    def must_end(self) -> bool:
        """Whether a steered refusal has to end, as most of the guide's refusals do."""
        return mostly_end(self.answers)

    def outcome_of(self, answer: Answer, outcome: Outcome) -> str:
        """One of `OUTCOMES`: the judge's, except for a refusal that should have ended and did not."""
        judged = outcome(answer.text)
        return "unended" if judged == "refusal" and self.must_end and not answer.ended else judged


def mostly_end(answers: Sequence[GuideAnswer]) -> bool:
    """Whether at least half of these answers end within the length limit."""
    return bool(answers) and sum(answer.ended for answer in answers) >= _MOSTLY * len(answers)


def search_prompts(context: FitContext, scores: Sequence[float]) -> SearchPrompts:
    """Chooses the prompts, and lets both models answer.

    Args:
        scores: the gate's held-out scores of `context.samples.fitting`, positive = open. Empty: harmless
            prompts are taken in a fixed order.

    Raises:
        CalibrationError: the aligned model declines nothing.
    """
    pool = shuffled_harmful(context.samples)[: 2 * (SCORED + GENERATED)]
    asked, held_out = pool[: 2 * SCORED], pool[2 * SCORED : 2 * SCORED + GENERATED]
    refusals = refusals_of_guide(context, asked)[:SCORED]
    if not refusals:
        raise CalibrationError(
            f"The aligned model {context.guide.spec} declined none of {len(asked)} harmful prompts, so it "
            "cannot guide. Give a model that declines harmful requests with `aligned`."
        )
    harmless = wrongly_opened(context.samples, scores)
    stage = "target: harmless prompts that open the gate"
    own = _answers(context, context.target, harmless, ANSWER_TOKENS, stage)
    tokenizer = tokenizer_of(context.target.tokenizer)
    beginnings = [
        str(tokenizer.decode(answer.tokens[:_OWN_TOKENS], skip_special_tokens=True)).strip() for answer in own
    ]
    kept = [row for row, beginning in enumerate(beginnings) if beginning]
    return SearchPrompts(
        scored=tuple(prompt for prompt, _ in refusals),
        answers=tuple(answer for _, answer in refusals),
        held_out=tuple(held_out or asked[-GENERATED:]),
        harmless=tuple(harmless[row] for row in kept),
        harmless_answers=tuple(beginnings[row] for row in kept),
        harmless_unsteered=tuple(context.outcome(own[row].text) for row in kept),
    )


def shuffled_harmful(samples: Samples) -> list[str]:
    """Harmful prompts of the fitting part, in a fixed order by content."""
    rows = [s for s in samples.fitting if s.harmful and not s.wrapped]
    rows.sort(key=lambda s: (s.fold(97), s.content))
    return [s.text for s in rows]


def refusals_of_guide(context: FitContext, prompts: Sequence[str]) -> list[tuple[str, GuideAnswer]]:
    """The prompts that the aligned model declines, each with its refusal."""
    answers = _answers(context, context.guide, prompts, ANSWER_TOKENS, "aligned model: its own answers")
    return [
        (prompt, GuideAnswer(declining_part(answer.text, context.outcome), answer.ended))
        for prompt, answer in zip(prompts, answers, strict=True)
        if context.outcome(answer.text) == "refusal"
    ]


def wrongly_opened(samples: Samples, scores: Sequence[float], most: int = _HARMLESS) -> list[str]:
    """Harmless prompts that open the gate, in a fixed order by content; where they are too few, also those
    that come nearest to opening it."""
    rows = [row for row, s in enumerate(samples.fitting) if not s.harmful and not s.wrapped]
    rows.sort(key=lambda row: (samples.fitting[row].fold(97), samples.fitting[row].text))
    if scores:
        opened = [row for row in rows if opens(scores[row])]
        closed = sorted((row for row in rows if not opens(scores[row])), key=lambda row: -scores[row])
        rows = [*opened, *closed]
    return [samples.fitting[row].text for row in rows[:most]]


def _answers(
    context: FitContext, model: FitModel, prompts: Sequence[str], tokens: int, stage: str
) -> list[Answer]:
    if not prompts:
        return []
    answers: dict[int, Answer] = {}
    with context.progress.stage(stage, len(prompts)) as advance:
        for answer in generate_answers(
            model.model, model.tokenizer, prompts, max_new_tokens=tokens, system=context.options.system
        ):
            answers[answer.row] = answer
            advance(1)
    return [answers[row] for row in range(len(prompts))]
