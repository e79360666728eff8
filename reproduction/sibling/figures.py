"""Measures a sibling as a model, before it guides anything.

    python -m reproduction.sibling.figures --target builtin:smollm2-135m --sibling out/sibling/adapter \
        -o out/figures [--data FOLDER]

Without `--data` the prompts are the contrast set's test part, which no sibling has learned from; with it, 200
harmful prompts of five public sets, the over-refusal prompts of XSTest, Alpaca and MedQA. Of an answer only
what is counted is kept: whether it declines, ends and loops, its length, and how a refusal opens. Resumes
where it stopped; writes OUTPUT/figures.json and prints the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from inferaligner.evaluation.likelihood import answer_logprobs
from inferaligner.evaluation.suites.reading_questions import READING
from inferaligner.judges.degeneracy import degeneracy
from inferaligner.judges.rules import judge
from inferaligner.models.generation import end_tokens
from inferaligner.models.loading import load_model
from inferaligner.prompts.contrast import ContrastPrompt, load_contrast_set
from inferaligner.prompts.similarity import near_duplicates
from inferaligner.statistics.intervals import clopper_pearson
from reproduction.benchmark_prompts import BENIGN, HARMFUL, sample
from reproduction.sibling.answers import answer_tokens, own_answers
from reproduction.sibling.prompts import Asked, Draw, draw_prompts
from reproduction.sibling.rows import collate, own_rows
from reproduction.sibling.training import divergence

console = Console()

HARMFUL_TOKENS, HARMLESS_TOKENS = 120, 32
"""Answer tokens to harmful prompts, within which a refusal is to end, and to the others, of which only
whether they decline is counted."""

_OPENING_WORDS = 8
_PER_SET = 40
_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class Outcome:
    """One answer. `opening` holds the first eight words of a refusal."""

    declined: bool
    ended: bool
    looped: bool
    tokens: int
    opening: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="builtin:smollm2-135m", help="the sibling's base")
    parser.add_argument("--sibling", required=True)
    parser.add_argument(
        "--data", type=Path, help="folder of public prompts; default: the contrast set's test part"
    )
    parser.add_argument("--chat-template", help="a Jinja file, for a model without a template of its own")
    parser.add_argument("--count", type=int, default=100, help="prompts of each kind of the contrast set")
    parser.add_argument("--samples", type=int, default=0, help="refusals to print")
    parser.add_argument(
        "--skip-reading", action="store_true", help="leave out the accuracy of the reading suite"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    sibling = load_model(options.sibling, dtype="bfloat16", chat_template=options.chat_template)
    groups = contrast_groups(options.count) if options.data is None else public_groups(options.data)
    outcomes = {}
    for name, asked in groups.items():
        outcomes[name] = measured(sibling, name, asked, options.output / "outcomes.jsonl", options.samples)
        console.print(f"{name}: {summary(outcomes[name])}")
    figures: dict[str, Any] = {name: summary(found) for name, found in outcomes.items()}
    base = load_model(options.target, dtype="bfloat16", chat_template=options.chat_template)
    harmless = {name: asked for name, asked in groups.items() if not asked[0].harmful}
    figures["closeness"] = {
        name: closeness(base, sibling, asked, options.output / "own_answers.jsonl")
        for name, asked in harmless.items()
    }
    if not options.skip_reading:
        figures["reading"] = {"base": reading(base), "sibling": reading(sibling)}
    (options.output / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print_table(figures)


def contrast_groups(count: int) -> dict[str, list[Asked]]:
    """Prompts of the test part by kind."""
    counts = Draw(count, count, count, count, count, count)
    groups: dict[str, list[Asked]] = {}
    for one in draw_prompts(load_contrast_set(), ["test"], counts, seed=1):
        side = "harmful" if one.harmful else "twin" if one.source == "plain" else "harmless"
        groups.setdefault(f"{one.source} {side}", []).append(one)
    return groups


def public_groups(data: Path) -> dict[str, list[Asked]]:
    """Forty prompts of each harmful set, no near-duplicates of the contrast set's, and harmless ones."""
    known = [pair.harmful for pair in load_contrast_set().pairs]
    groups = {}
    for name, read in HARMFUL.items():
        public = read(data)
        doubled = set(near_duplicates(public, known))
        fresh = [prompt for row, prompt in enumerate(public) if row not in doubled]
        groups[name] = [_asked(prompt, True) for prompt in sample(fresh, _PER_SET)]
    for name, count in (("XSTest safe", 120), ("Alpaca", 60), ("MedQA", 40)):
        groups[name] = [_asked(prompt, False) for prompt in sample(BENIGN[name](data), count)]
    return groups


def measured(sibling: Any, group: str, asked: Sequence[Asked], file: Path, samples: int = 0) -> list[Outcome]:
    """The outcome of each prompt, in its order."""
    known: dict[str, Outcome] = {}
    if file.exists():
        for row in map(json.loads, file.read_text("utf-8").splitlines()):
            if row.pop("group") == group:
                known[row.pop("key")] = Outcome(**row)
    keys = [hashlib.sha256(one.key.encode()).hexdigest()[:16] for one in asked]
    missing = [row for row, key in enumerate(keys) if key not in known]
    tokens = HARMFUL_TOKENS if asked[0].harmful else HARMLESS_TOKENS
    ends = end_tokens(sibling.model)
    stream = answer_tokens(
        sibling.model, sibling.tokenizer, [asked[row] for row in missing], tokens=tokens, batch_size=50
    )
    with file.open("a", encoding="utf-8") as out:
        for at, answer in stream:
            text = sibling.tokenizer.decode(answer, skip_special_tokens=True).strip()
            found = outcome(text, len(answer), answer[-1] in ends)
            key = keys[missing[at]]
            known[key] = found
            out.write(json.dumps({"group": group, "key": key, **asdict(found)}) + "\n")
            out.flush()
            if found.declined and samples > 0:
                samples -= 1
                console.print(f"[dim]{asked[missing[at]].prompt.text[-90:]!r}[/]\n   {text}", highlight=False)
    return [known[key] for key in keys]


def outcome(text: str, tokens: int, ended: bool) -> Outcome:
    """What is counted of an answer."""
    declined = judge(text).outcome == "refusal"
    looped = degeneracy(text) in ("loop", "repetition") or repeats_itself(text)
    opening = " ".join(text.split()[:_OPENING_WORDS]) if declined else ""
    return Outcome(declined, ended, looped, tokens, opening)


def repeats_itself(text: str, share: float = 0.4) -> bool:
    """Whether `share` of the trigrams of 20 words or more stood in the text before."""
    words = _WORD.findall(text.lower())
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= 20 and 1 - len(set(trigrams)) / len(trigrams) >= share


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares and counts of one group."""
    refusals = [one for one in outcomes if one.declined]
    declined = clopper_pearson(len(refusals), len(outcomes))
    return {
        "n": len(outcomes),
        "declined": declined.value,
        "declined low": declined.low,
        "declined high": declined.high,
        "ended": sum(one.ended for one in outcomes) / len(outcomes),
        "looped": sum(one.looped for one in outcomes) / len(outcomes),
        "median tokens of a refusal": statistics.median([one.tokens for one in refusals]) if refusals else 0,
        "openings": len({one.opening for one in refusals}),
    }


@torch.no_grad()
def closeness(base: Any, sibling: Any, asked: Sequence[Asked], file: Path) -> dict[str, float]:
    """Over the base's own answers: KL(base ‖ sibling) in nats per token, and the share of tokens at which
    both would say the same next."""
    answers = own_answers(base.model, base.tokenizer, asked, file, tokens=24)
    rows = sorted(own_rows(base.tokenizer, asked, answers, longest=10**6), key=lambda row: row.length)
    total = same = count = 0.0
    for start in range(0, len(rows), 16):
        batch = collate(rows[start : start + 16], base.tokenizer.pad_token_id)
        known, learned = _logits(base.model, batch), _logits(sibling.model, batch)
        total += float(divergence(known, learned).sum())
        same += float((known.argmax(-1) == learned.argmax(-1)).sum())
        count += len(known)
    return {"KL": total / count, "same token": same / count}


def reading(loaded: Any, per_batch: int = 30) -> float:
    """Accuracy of the shipped reading suite."""
    items, right = READING.source.items(None), 0
    for start in range(0, len(items), per_batch):
        batch = items[start : start + per_batch]
        values = answer_logprobs(
            loaded.model,
            loaded.tokenizer,
            [str(item.prompt) for item in batch],
            [item.choices for item in batch],
        )
        for item, logprobs in zip(batch, values, strict=True):
            right += item.choices[max(range(len(logprobs)), key=lambda at: logprobs[at])] == item.answer
    return right / len(items)


def print_table(figures: Mapping[str, Any]) -> None:
    """One row a group, and the closeness of the harmless ones."""
    table = Table(
        "prompts", "n", "declined", "ended", "loops", "median tokens", "openings", "KL", "same token"
    )
    for name, row in figures.items():
        if name in ("closeness", "reading"):
            continue
        close = figures["closeness"].get(name, {})
        span = f"{row['declined']:.1%} [{row['declined low']:.1%}, {row['declined high']:.1%}]"
        known = (f"{close['KL']:.3f}", f"{close['same token']:.1%}") if close else ("", "")
        table.add_row(
            name,
            str(row["n"]),
            span,
            f"{row['ended']:.1%}",
            f"{row['looped']:.1%}",
            f"{row['median tokens of a refusal']:g}",
            str(row["openings"]),
            *known,
        )
    console.print(table)
    if "reading" in figures:
        told = figures["reading"]
        console.print(f"reading suite: sibling {told['sibling']:.1%}, base {told['base']:.1%}")


def _logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    said = batch["answer"][:, 1:]
    logits = model(
        input_ids=batch["input_ids"].to(model.device),
        attention_mask=batch["attention_mask"].to(model.device),
        use_cache=False,
    ).logits
    chosen: torch.Tensor = logits[:, :-1][said.to(logits.device)].float()
    return chosen


def _asked(text: str, harmful: bool) -> Asked:
    prompt = ContrastPrompt(text, harmful, "public", "plain", "", "test")
    return Asked((("user", text),), prompt, "plain")


if __name__ == "__main__":
    main()
