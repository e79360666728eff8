"""The labelled prompts of a fit: their labels, their contents for holding out, their weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inferaligner.errors import CalibrationError, InputError
from inferaligner.prompts.contrast import ContrastPrompt, ContrastSet
from inferaligner.prompts.images import ImagePrompt, Prompt, key_of, text_of

MINIMUM_PER_CLASS = 8
"""Least number of prompts of a class: fewer make neither a direction nor a held-out figure."""

MOST_PER_KIND = 200
"""Prompts per kind (harmful, twins, ordinary) that the vectors are taken from."""

TRICKY = "lookalike"
"""Benign prompts that are meant to look dangerous: hard negatives, not traffic."""

Sort = Literal["harmful", "ordinary", "twin", "lookalike"]

SHARES: dict[Sort, float] = {"ordinary": 0.65, "twin": 0.15, "lookalike": 0.2}
"""How much each sort of harmless prompt counts when a gate is fitted, whatever their numbers.

Twins teach a gate what harm is apart from topic and form, but as most of the harmless side they cost dearly
where it matters: a gate has to stay closed on ordinary traffic. Look-alikes at twice their former share close
it on safe prompts that sound dangerous, at no cost elsewhere. Chosen on the public sets of the README.
"""


WRAPPED_SHARE = 0.25
"""Share of the wrapped prompts in every sort, harmful ones too. At a half, the gate caught no more attacks
for their content, and fewer harmful prompts as they are."""


@dataclass(frozen=True)
class Sample:
    """One prompt. `content` is shared by prompts that must not be split between fitting and holding out."""

    text: str
    harmful: bool
    content: str
    group: str  # "pairs", or the kind of ordinary traffic it stands for
    wrapped: bool = False
    attack: bool = False  # in a wrapper that is meant to talk a model out of declining
    shown: ImagePrompt | None = None  # the picture that the target gets in place of the text

    @property
    def prompt(self) -> Prompt:
        """The prompt for the target. The aligned model, which may read text alone, gets `text`."""
        return self.text if self.shown is None else self.shown

    @property
    def ordinary(self) -> bool:
        """Whether it counts as benign traffic, whose false-open rate is limited."""
        return not self.harmful and not self.attack and self.group not in ("pairs", TRICKY)

    @property
    def sort(self) -> Sort:
        """Its role when a gate is fitted."""
        if self.harmful:
            return "harmful"
        return "twin" if self.group == "pairs" else "lookalike" if self.group == TRICKY else "ordinary"

    def fold(self, folds: int) -> int:
        """A stable fold by content."""
        return hashlib.sha256(self.content.encode()).digest()[0] % folds


@dataclass(frozen=True)
class Samples:
    """`fitting` is used to fit (and cross-validate) everything, `test` only for reported figures."""

    fitting: tuple[Sample, ...]
    test: tuple[Sample, ...]
    described: dict[str, Any]

    def for_vectors(self) -> tuple[list[int], list[int]]:
        """Rows of `fitting` for SRV and SSV: harmful prompts against their twins *and* ordinary ones.

        Against twins alone the difference misses what all harmless prompts share, against ordinary prompts
        alone it is mostly the topic; together they steer best (docs/method.md). At most
        `MOST_PER_KIND` of each kind, unwrapped: more prompts move a mean no further. Where pictures are
        among the samples, those count as unwrapped ones.
        """
        rows = [
            row for row, sample in enumerate(self.fitting) if not sample.wrapped or sample.shown is not None
        ]
        rows.sort(key=lambda row: hashlib.sha256(key_of(self.fitting[row].prompt).encode()).digest())
        harmful = [row for row in rows if self.fitting[row].harmful]
        twins = [row for row in rows if not self.fitting[row].harmful and self.fitting[row].group == "pairs"]
        ordinary = [row for row in rows if self.fitting[row].ordinary]
        return harmful[:MOST_PER_KIND], [*twins[:MOST_PER_KIND], *ordinary[:MOST_PER_KIND]]


def importance(samples: Sequence[Sample]) -> list[float]:
    """Weight of each prompt, mean 1 in its class. Sorts have `SHARES`, wrapped prompts `WRAPPED_SHARE`."""
    counts = Counter((sample.sort, sample.wrapped) for sample in samples)
    classes = Counter(sample.harmful for sample in samples)
    sorts = {sort for sort, _ in counts if sort != "harmful"}
    whole = sum(SHARES[sort] for sort in sorts)

    def share(sample: Sample) -> float:
        of_class = 1.0 if sample.harmful else SHARES[sample.sort] / whole
        if (sample.sort, not sample.wrapped) not in counts:
            return of_class
        return of_class * (WRAPPED_SHARE if sample.wrapped else 1 - WRAPPED_SHARE)

    return [share(s) * classes[s.harmful] / counts[s.sort, s.wrapped] for s in samples]


def samples_from_contrast(contrast: ContrastSet) -> Samples:
    """The shipped contrast set: extraction and calibration parts to fit, the test part to report."""
    fitting = [*contrast.part("extraction"), *contrast.part("calibration")]
    test = contrast.part("test")
    return Samples(
        tuple(map(_sample, fitting)),
        tuple(map(_sample, test)),
        {
            "source": "contrast set",
            "digest": contrast.digest(),
            "harmful": sum(p.harmful for p in fitting),
            "harmless": sum(not p.harmful for p in fitting),
            "held out": len(test),
        },
    )


def samples_from_lists(
    harmful: Sequence[Prompt], harmless: Sequence[Prompt], sources: Sequence[str]
) -> Samples:
    """The user's own prompts; a fifth of each class, by content, is held out for the report."""
    for name, prompts in (("harmful", harmful), ("harmless", harmless)):
        if len(set(prompts)) < MINIMUM_PER_CLASS:
            raise CalibrationError(
                f"{len(set(prompts))} different {name} prompts were given; at least {MINIMUM_PER_CLASS} are "
                "needed, and some hundreds are better."
            )
    both = set(harmful) & set(harmless)
    if both:
        raise InputError(
            f"{len(both)} prompts are in both the harmful and the harmless file, the first is "
            f"{min(map(text_of, both))[:60]!r}. Remove them from one side."
        )
    samples = [
        Sample(
            text_of(prompt),
            is_harmful,
            key_of(prompt),
            "pairs",
            shown=None if isinstance(prompt, str) else prompt,
        )
        for prompts, is_harmful in ((harmful, True), (harmless, False))
        for prompt in dict.fromkeys(prompts)
    ]
    held_out = [sample for sample in samples if sample.fold(5) == 0]
    fitting = [sample for sample in samples if sample.fold(5) != 0]
    described = {
        "source": " against ".join(sources),
        "digest": hashlib.sha256("\n".join(key_of(s.prompt) for s in samples).encode()).hexdigest(),
        "harmful": sum(s.harmful for s in fitting),
        "harmless": sum(not s.harmful for s in fitting),
        "held out": len(held_out),
    }
    return Samples(tuple(fitting), tuple(held_out), described)


def _sample(prompt: ContrastPrompt) -> Sample:
    group = "pairs" if prompt.kind == "plain" else prompt.category
    if prompt.kind == "wrapped" and prompt.category not in _KINDS_OF_TRAFFIC:
        group = "pairs"
    return Sample(
        prompt.text,
        prompt.harmful,
        f"{prompt.category}/{prompt.topic}",
        group,
        prompt.kind == "wrapped",
        prompt.attack,
    )


_KINDS_OF_TRAFFIC = ("everyday", "coding", "medical", "financial", "math", TRICKY)
