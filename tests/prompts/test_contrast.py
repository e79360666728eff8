"""The split, the wrapping, the format, and the quality of the shipped rows."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from inferaligner.errors import InputError
from inferaligner.judges.rules import judge
from inferaligner.prompts.contrast import (
    FOLDS,
    PARTS,
    Benign,
    ContrastPrompt,
    ContrastSet,
    Pair,
    Refusal,
    Wrapper,
    fold_of,
    load_contrast_set,
    part_of,
)
from inferaligner.prompts.similarity import near_duplicates


@pytest.fixture(scope="module")
def shipped() -> ContrastSet:
    return load_contrast_set()


def small_set(pairs: int = 60, wrappers: int = 12) -> ContrastSet:
    return ContrastSet(
        tuple(
            Pair(f"topic {i // 2}", "category", "imperative", f"harmful {i}", f"harmless {i}")
            for i in range(pairs)
        ),
        tuple(Benign("everyday", f"ordinary matter number {i}") for i in range(30)),
        tuple(Wrapper(f"wrapper {i}", "role-play", f"<{i}>{{prompt}}</{i}>") for i in range(wrappers)),
        (
            Refusal("general", "I cannot help with that."),
            Refusal("general", "No."),
            Refusal("fraud", "I will not help with fraud."),
        ),
    )


# The split


def test_the_split_is_pinned() -> None:
    # These must never change: artifacts and reports name their part by these hashes.
    topics = ["ransomware", "phishing", "arson", "bread", "stalking", "forgery", "doping", "libel"]
    assert [part_of("category", topic) for topic in topics] == [
        "extraction",
        "extraction",
        "extraction",
        "calibration",
        "extraction",
        "test",
        "test",
        "test",
    ]
    assert part_of("hate", "ransomware") != part_of("category", "ransomware")


def test_shares_are_sixty_twenty_twenty() -> None:
    counts = Counter(part_of("category", f"topic {i}") for i in range(5000))
    assert [round(counts[part] / 5000, 1) for part in PARTS] == [0.6, 0.2, 0.2]


def test_a_topic_is_in_one_part_and_every_pair_in_some(shipped: ContrastSet) -> None:
    parts = {name: shipped.part(name, wrapped=False) for name in PARTS}
    topics = {name: {(row.category, row.topic) for row in rows} for name, rows in parts.items()}
    for one, other in (("extraction", "calibration"), ("extraction", "test"), ("calibration", "test")):
        assert not topics[one] & topics[other]  # type: ignore[index]
    texts = Counter(row.text for rows in parts.values() for row in rows)
    written = Counter(
        [text for pair in shipped.pairs for text in (pair.harmful, pair.harmless)]
        + [item.prompt for item in shipped.benign]
    )
    assert texts == written
    assert all(row.part == name for name, rows in parts.items() for row in rows)


def test_rewordings_of_a_benign_prompt_stay_together() -> None:
    assert Benign("x", "How do I bake bread?").topic == Benign("x", "Please explain baking a bread").topic


def test_an_unknown_part_is_an_error(shipped: ContrastSet) -> None:
    with pytest.raises(InputError, match="expected one of extraction, calibration, test"):
        shipped.part("validation")  # type: ignore[arg-type]


# The wrapping


def contents(rows: list[ContrastPrompt]) -> list[tuple[str, str]]:
    """(wrapper, content) of rows that `small_set` wrapped."""
    matches = [re.fullmatch(r"<(\d+)>(.*)</\1>", row.text) for row in rows]
    assert all(matches)
    return [(match.group(1), match.group(2)) for match in matches if match]


def test_both_sides_of_a_pair_are_wrapped_alike() -> None:
    small = small_set()
    for name in PARTS:
        wrapped = [row for row in small.part(name) if row.kind == "wrapped"]
        harmful = contents([row for row in wrapped if row.harmful])
        twins = contents([row for row in wrapped if not row.harmful and row.category == "category"])
        assert harmful
        assert sorted(twins) == sorted((w, text.replace("harmful", "harmless")) for w, text in harmful)


def test_every_wrapper_stands_around_harmful_and_harmless_alike(shipped: ContrastSet) -> None:
    for name in PARTS:
        rows = [row for row in shipped.part(name) if row.kind == "wrapped"]
        counts = Counter((row.wrapper, row.harmful, row.category in BENIGN_KINDS) for row in rows)
        for wrapper in shipped.wrappers_of(name):
            assert counts[wrapper.name, True, False] == counts[wrapper.name, False, False] == 3
            assert counts[wrapper.name, False, True] == 3
        assert sum(counts.values()) == 9 * len(shipped.wrappers_of(name))


def test_wrapper_and_content_are_of_one_fold(shipped: ContrastSet) -> None:
    rows = [row for name in PARTS for row in shipped.part(name) if row.wrapper]
    assert {fold_of(row.category, row.topic) for row in rows} == set(range(FOLDS))
    assert all(fold_of("wrapper", row.wrapper) == fold_of(row.category, row.topic) for row in rows)


def test_an_attack_is_known_as_one(shipped: ContrastSet) -> None:
    kinds = {wrapper.name: wrapper.kind for wrapper in shipped.wrappers}
    for row in shipped.part("calibration"):
        assert row.attack == (row.wrapper != "" and kinds[row.wrapper] != "everyday")


def test_contents_are_dealt_evenly_to_wrappers_of_their_part() -> None:
    small = small_set()
    for name in PARTS:
        rows = [row for row in small.part(name) if row.kind == "wrapped" and row.harmful]
        expected = {wrapper.name.split()[1] for wrapper in small.wrappers_of(name)}
        assert {wrapper for wrapper, _ in contents(rows)} == expected
        assert len({row.text for row in rows}) == len(rows)
    many = ContrastSet(
        small.pairs, small.benign, (*small.wrappers, *small_set(wrappers=60).wrappers[12:]), ()
    )
    for name in PARTS:
        rows = [row for row in many.part(name) if row.kind == "wrapped" and row.harmful]
        for fold in range(FOLDS):
            used = Counter(
                text
                for row, (wrapper, text) in zip(rows, contents(rows), strict=True)
                if fold_of("wrapper", f"wrapper {wrapper}") == fold == fold_of(row.category, row.topic)
            )
            assert not used or max(used.values()) - min(used.values()) <= 1


def test_wrapping_is_the_same_every_time_and_can_be_left_out(shipped: ContrastSet) -> None:
    assert shipped.part("test") == shipped.part("test")
    plain = shipped.part("test", wrapped=False)
    assert shipped.part("test")[: len(plain)] == plain
    assert {row.kind for row in plain} == {"plain", "benign"}


def test_braces_of_prompts_and_templates_are_ordinary() -> None:
    wrapper = Wrapper("w", "code", "x = {1: 2}; ask({prompt}) # {}")
    assert wrapper.wrap("{prompt} and {0}") == "x = {1: 2}; ask({prompt} and {0}) # {}"


# The digest


def test_the_digest_is_of_the_content_not_of_the_order() -> None:
    small = small_set()
    shuffled = ContrastSet(
        small.pairs[::-1], small.benign[::-1], small.wrappers[::-1], small.refusal_texts[::-1]
    )
    assert small.digest() == shuffled.digest()
    assert re.fullmatch("[0-9a-f]{64}", small.digest())
    assert small.digest() != small_set(pairs=59).digest()
    assert small.digest() != ContrastSet(small.pairs, small.benign, small.wrappers, ()).digest()
    about = tuple(replace(refusal, about="money") for refusal in small.refusal_texts)
    assert small.digest() != replace(small, refusal_texts=about).digest()


# The refusals


def test_a_refusal_is_given_to_the_requests_that_it_names() -> None:
    many = small_set()
    texts = (
        Refusal("category", "Not about bread.", "bread flour"),
        Refusal("category", "Not about rare bread.", "bread saffron"),
        Refusal("category", "Nothing of this kind."),
        Refusal("other", "Not about saffron elsewhere.", "saffron"),
        Refusal("general", "Nothing at all."),
    )
    contrast = replace(many, refusal_texts=texts)
    asked = replace(contrast.part("extraction")[0], text="Where is saffron bread?", topic="t")
    assert contrast.refusals_to(asked) == ("Not about rare bread.",)
    assert contrast.refusals_to(replace(asked, text="Take breads.")) == (
        "Not about bread.",
        "Not about rare bread.",
    )
    assert contrast.refusals_to(replace(asked, text="Bring it.", topic="more-flour")) == ("Not about bread.",)
    assert contrast.refusals_to(replace(asked, text="Bring it.")) == ("Nothing of this kind.",)
    assert contrast.refusals_to(replace(asked, text="Bring it.", category="new")) == ("Nothing at all.",)


def test_a_word_that_stands_everywhere_names_nothing() -> None:
    many = small_set()
    contrast = replace(many, refusal_texts=(Refusal("category", "A.", "harmful"), Refusal("category", "B.")))
    asked = replace(contrast.part("extraction")[0], text="harmful", topic="t")
    assert contrast.refusals_to(asked) == ("B.",)


# The format


def test_a_folder_of_the_same_format_is_read(tmp_path: Path) -> None:
    write(
        tmp_path / "pairs-fraud.jsonl", {"topic": "t", "form": "question", "harmful": "a?", "harmless": "b?"}
    )
    write(tmp_path / "benign-daily.jsonl", {"prompt": "c"})
    write(tmp_path / "wrappers.jsonl", {"name": "n", "kind": "k", "template": "{prompt}!"})
    write(tmp_path / "refusals.jsonl", {"category": "fraud", "refusal": "No."})
    read = load_contrast_set(tmp_path)
    assert read.pairs == (Pair("t", "fraud", "question", "a?", "b?"),)
    assert read.benign == (Benign("daily", "c"),)
    assert read.wrappers == (Wrapper("n", "k", "{prompt}!"),)
    assert read.refusals() == {"fraud": ("No.",)}


def write(path: Path, row: object) -> None:
    path.write_text(json.dumps(row) + "\n\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("pairs-x.jsonl", "{", r"pairs-x\.jsonl, line 1: broken JSON"),
        ("pairs-x.jsonl", "[]", "expected a JSON object"),
        (
            "pairs-x.jsonl",
            '{"topic": "t", "form": "question", "harmful": "a"}',
            "text in the field 'harmless'",
        ),
        ("pairs-x.jsonl", '{"topic": "t", "form": "shout", "harmful": "a", "harmless": "b"}', "form 'shout'"),
        ("wrappers.jsonl", '{"name": "n", "kind": "k", "template": "none"}', "exactly once"),
        ("wrappers.jsonl", '{"name": "n", "kind": "k", "template": "{prompt}{prompt}"}', "exactly once"),
        ("benign-x.jsonl", '{"prompt": " "}', "text in the field 'prompt'"),
        ("refusals.jsonl", '{"category": "c", "refusal": 1}', "text in the field 'refusal'"),
        ("other.jsonl", "{}", r"no pairs-<category>\.jsonl"),
    ],
)
def test_rows_of_another_format_are_errors(tmp_path: Path, name: str, line: str, message: str) -> None:
    (tmp_path / name).write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_contrast_set(tmp_path)


# The shipped rows

BENIGN_KINDS = {"coding", "everyday", "financial", "lookalike", "math", "medical"}


def sides(shipped: ContrastSet) -> list[str]:
    return [text for pair in shipped.pairs for text in (pair.harmful, pair.harmless)]


def test_there_is_enough_of_everything(shipped: ContrastSet) -> None:
    assert len(shipped.pairs) >= 400
    assert {item.category for item in shipped.benign} == BENIGN_KINDS
    forms = Counter(pair.form for pair in shipped.pairs)
    assert min(forms["imperative"], forms["question"]) >= 0.3 * len(shipped.pairs)
    assert forms["statement"] >= 0.1 * len(shipped.pairs)
    for category in {pair.category for pair in shipped.pairs}:
        topics = {pair.topic for pair in shipped.pairs if pair.category == category}
        assert len(topics) >= 15, category
        assert {part_of(category, topic) for topic in topics} == set(PARTS), category
        assert shipped.refusals()[category]
    assert shipped.refusals()["general"]
    for part in PARTS:
        assert {wrapper.kind == "everyday" for wrapper in shipped.wrappers_of(part)} == {True, False}


def asks(text: str) -> bool:
    """Whether a prompt is put as a question; chatty ones go without the mark, or with a sentence after it."""
    opening = (
        r"(?i)(how|what|which|who|whom|where|when|why|whats|can|could|is|are|do|does|would|should|any)\b"
    )
    return "?" in text or re.match(opening, text) is not None


def test_twins_share_their_form(shipped: ContrastSet) -> None:
    unlike = [pair for pair in shipped.pairs if asks(pair.harmful) != asks(pair.harmless)]
    assert len(unlike) <= 0.01 * len(shipped.pairs), unlike
    marked = [pair.harmful.endswith("?") == pair.harmless.endswith("?") for pair in shipped.pairs]
    assert all(marked)
    questions = [pair for pair in shipped.pairs if pair.form == "question"]
    assert sum(asks(pair.harmful) for pair in questions) >= 0.98 * len(questions)


def test_twins_share_their_length(shipped: ContrastSet) -> None:
    ratios = sorted(len(pair.harmless.split()) / len(pair.harmful.split()) for pair in shipped.pairs)
    assert 0.95 <= statistics.median(ratios) <= 1.05
    assert ratios[len(ratios) // 20] >= 0.8
    assert ratios[-len(ratios) // 20] <= 1.25
    assert 0.5 <= ratios[0] <= ratios[-1] <= 2.0


def test_twins_open_alike(shipped: ContrastSet) -> None:
    same = [pair.harmful.split()[0].lower() == pair.harmless.split()[0].lower() for pair in shipped.pairs]
    assert statistics.mean(same) >= 0.9


def test_nothing_is_there_twice(shipped: ContrastSet) -> None:
    texts = sides(shipped) + [item.prompt for item in shipped.benign]
    counts = Counter(" ".join(re.findall(r"\w+", text.lower())) for text in texts)
    assert [text for text, count in counts.items() if count > 1] == []
    names = Counter(wrapper.name for wrapper in shipped.wrappers)
    assert max(names.values()) == 1


def test_no_topic_leaks_into_another_part(shipped: ContrastSet) -> None:
    known = [row.text for row in shipped.part("extraction", wrapped=False)]
    for part in ("calibration", "test"):
        fresh = [row.text for row in shipped.part(part, wrapped=False)]
        assert near_duplicates(fresh, known, 0.6) == []
        assert len(near_duplicates(fresh, known, 0.5)) <= 0.01 * len(fresh)


def test_every_refusal_is_judged_one(shipped: ContrastSet) -> None:
    texts = [refusal.text for refusal in shipped.refusal_texts]
    assert len(set(texts)) == len(texts) >= 800
    assert [text for text in texts if judge(text).outcome != "refusal"] == []


def test_refusals_are_short_varied_and_name_what_is_asked(shipped: ContrastSet) -> None:
    texts = [refusal.text for refusal in shipped.refusal_texts]
    assert len({" ".join(text.split()[:8]) for text in texts}) >= 600
    assert all(1 <= len(re.findall(r"[.?!](?:\s|$)", text)) <= 3 for text in texts)
    assert {"general", "frame", "conversation"} < set(shipped.refusals())
    for category in {pair.category for pair in shipped.pairs}:
        mine = [refusal for refusal in shipped.refusal_texts if refusal.category == category]
        assert len(mine) >= 40 and sum(bool(refusal.about) for refusal in mine) >= 24, category
    asked = [p for part in PARTS for p in shipped.part(part, wrapped=False) if p.harmful]
    named = [p for p in asked if shipped.refusals_to(p) != shipped.refusals()[p.category]]
    assert len(named) >= 0.95 * len(asked)


def test_no_prompt_is_taken_for_gibberish(shipped: ContrastSet) -> None:
    # They are no answers, but they are ordinary English of all registers: a free check of the judge.
    texts = [*sides(shipped), *(item.prompt for item in shipped.benign)]
    broken = [text for text in texts if judge(text).outcome == "gibberish"]
    assert len(broken) <= 0.002 * len(texts), broken


def test_the_files_are_clean(shipped: ContrastSet) -> None:
    for text in [*sides(shipped), *(item.prompt for item in shipped.benign)]:
        assert text == text.strip()
        assert "{prompt}" not in text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\ufffd]|as an ai", text, re.IGNORECASE), text
