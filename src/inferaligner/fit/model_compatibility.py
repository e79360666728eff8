"""What target and aligned model have in common, by their fingerprints."""

from __future__ import annotations

from dataclasses import dataclass

from inferaligner.artifact import ModelRecord


@dataclass(frozen=True)
class Relation:
    """One thing that two models have in common, or do not."""

    what: str
    same: bool
    found: str


def relations(target: ModelRecord, aligned: ModelRecord) -> tuple[Relation, ...]:
    """What the two have in common by their fingerprints."""
    ours, theirs = target.tokenizer, aligned.tokenizer
    template = ours.chat_template_sha256 == theirs.chat_template_sha256
    found = [
        Relation("tokenizer", ours.vocabulary_sha256 == theirs.vocabulary_sha256, ""),
        Relation("chat template", template, ""),
    ]
    for name in ("architecture", "width", "depth"):
        mine, its = getattr(target.model, name), getattr(aligned.model, name)
        found.append(Relation(name, mine == its, f"{mine}" if mine == its else f"{mine} and {its}"))
    return tuple(found)
