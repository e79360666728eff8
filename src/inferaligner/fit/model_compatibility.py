"""Compares target and aligned model by their fingerprints."""

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
    """One relation for each of tokenizer, chat template, architecture, width and depth."""
    template = target.tokenizer.chat_template_sha256 == aligned.tokenizer.chat_template_sha256
    vocabulary = target.tokenizer.vocabulary_sha256 == aligned.tokenizer.vocabulary_sha256
    compared = [
        Relation("tokenizer", vocabulary, ""),
        Relation("chat template", template, ""),
    ]
    for name in ("architecture", "width", "depth"):
        mine, its = getattr(target.model, name), getattr(aligned.model, name)
        compared.append(Relation(name, mine == its, f"{mine}" if mine == its else f"{mine} and {its}"))
    return tuple(compared)
