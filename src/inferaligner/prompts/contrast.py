"""The contrast set that ships with the package: harmful requests beside harmless twins of the same form.

A gate fitted on harmful *commands* and harmless *questions* learns the form of a sentence. Here each harmful
request has a twin with the same form, a similar length and, as far as possible, the same domain words.
Ordinary traffic (benign prompts) is on the harmless side too. Wrappers (role play, "ignore the rules", but
also everyday framings) go around harmful and harmless contents *alike*, so that a wrapper is no sign of harm.

The files are JSON lines in the folder `contrast/` beside this module: `pairs-<category>.jsonl`,
`benign-<kind>.jsonl`, `wrappers.jsonl`, `refusals.jsonl`.

The set is split by *content*, never by row: prompts of one topic are in one part, and so is each wrapper.
Calibration and test part therefore have topics and wrappers that extraction has not. Each part is split into
folds in the same way.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

from inferaligner.errors import InputError
from inferaligner.prompts.similarity import content_words, near_duplicate_key

Part = Literal["extraction", "calibration", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
Kind = Literal["plain", "wrapped", "benign"]
Form = Literal["imperative", "question", "statement"]

# Shares of the topics; the remaining topics are the test part.
_EXTRACTION, _CALIBRATION = 0.6, 0.2
FOLDS = 5
"""Number of folds of a part, split by content and by wrapper: a wrapper goes around contents of its own fold
alone, so that cross-validation holds out contents and wrappers together."""

# A word in a larger share of the harmful prompts does not identify a request.
_COMMON = 0.02

# The number of pairs (both sides) and of benign prompts that each wrapper is put around.
_PAIRS_PER_WRAPPER, _BENIGN_PER_WRAPPER = 3, 3


@dataclass(frozen=True)
class Pair:
    """A harmful request and its harmless twin."""

    topic: str
    category: str
    form: Form
    harmful: str
    harmless: str


@dataclass(frozen=True)
class Benign:
    """An ordinary prompt without a twin; `category` is the kind of traffic ("medical", "coding", ...)."""

    category: str
    prompt: str

    @property
    def topic(self) -> str:
        """A key that rewordings of this prompt share."""
        return near_duplicate_key(self.prompt)


@dataclass(frozen=True)
class Wrapper:
    """A text around a prompt; its template has `{prompt}` exactly once."""

    name: str
    kind: str
    template: str

    @property
    def attack(self) -> bool:
        """Whether the wrapper is a jailbreak; the others are ordinary framings."""
        return self.kind != "everyday"

    def wrap(self, prompt: str) -> str:
        """The template with `prompt` in place of `{prompt}`; other braces are ordinary characters."""
        before, _, after = self.template.partition("{prompt}")
        return f"{before}{prompt}{after}"


_Content = TypeVar("_Content", Pair, Benign)


@dataclass(frozen=True)
class ContrastPrompt:
    """One prompt of a part, with its origin.

    Attributes:
        text: The prompt.
        harmful: Whether it is the harmful side of a pair.
        category: The hazard category of a pair, or the kind of benign traffic.
        kind: `plain` (a side of a pair), `wrapped` (a side of a pair or a benign prompt in a wrapper) or
            `benign`.
        topic: The topic; both sides of a pair share category and topic.
        part: The part of the set.
        wrapper: The name of the wrapper, or "".
        attack: Whether the wrapper is a jailbreak.
    """

    text: str
    harmful: bool
    category: str
    kind: Kind
    topic: str
    part: Part
    wrapper: str = ""
    attack: bool = False


@dataclass(frozen=True)
class Refusal:
    """An answer that declines.

    Attributes:
        category: The hazard category that it fits; `general` fits any request, `frame` a request in a
            jailbreak's wrapper, `conversation` a later turn of a conversation.
        text: The answer.
        about: Words of the requests that it fits, of which a request has at least one; "" if it fits every
            request of its category.
    """

    category: str
    text: str
    about: str = ""


@dataclass(frozen=True)
class ContrastSet:
    """Pairs, benign prompts, wrappers and model refusals; everything derived from them is deterministic."""

    pairs: tuple[Pair, ...]
    benign: tuple[Benign, ...]
    wrappers: tuple[Wrapper, ...]
    refusal_texts: tuple[Refusal, ...]

    def part(self, name: Part, *, wrapped: bool = True) -> list[ContrastPrompt]:
        """The prompts of one part: both sides of its pairs, its benign prompts, and wrapped versions.

        Each wrapper of the part goes around some pairs, both sides alike, and around some benign prompts,
        from its own fold if it has any. The choice depends on the content alone.

        Args:
            name: The part.
            wrapped: Whether to add the wrapped versions.

        Raises:
            InputError: There is no such part.
        """
        if name not in PARTS:
            raise InputError(f"contrast part {name!r}: expected one of {', '.join(PARTS)}")
        pairs = [pair for pair in self.pairs if part_of(pair.category, pair.topic) == name]
        benign = [item for item in self.benign if part_of("benign", item.topic) == name]
        prompts: list[ContrastPrompt] = []

        def add(
            kind: Kind, harmful: bool, source: Pair | Benign, text: str, wrapper: Wrapper | None = None
        ) -> None:
            prompt = ContrastPrompt(text, harmful, source.category, kind, source.topic, name)
            if wrapper is not None:
                prompt = replace(prompt, text=wrapper.wrap(text), wrapper=wrapper.name, attack=wrapper.attack)
            prompts.append(prompt)

        for pair in pairs:
            add("plain", True, pair, pair.harmful)
            add("plain", False, pair, pair.harmless)
        for item in benign:
            add("benign", False, item, item.prompt)
        if wrapped:
            wrappers = self.wrappers_of(name)
            for wrapper, pair in _dealt(wrappers, pairs, _PAIRS_PER_WRAPPER):
                add("wrapped", True, pair, pair.harmful, wrapper)
                add("wrapped", False, pair, pair.harmless, wrapper)
            for wrapper, item in _dealt(wrappers, benign, _BENIGN_PER_WRAPPER):
                add("wrapped", False, item, item.prompt, wrapper)
        return prompts

    def wrappers_of(self, name: Part) -> list[Wrapper]:
        """The wrappers that only this part uses."""
        return [wrapper for wrapper in self.wrappers if part_of("wrapper", wrapper.name) == name]

    def refusals(self) -> dict[str, tuple[str, ...]]:
        """The refusals that fit every request of their category, in the order of the file; see `Refusal`."""
        by_category: dict[str, list[str]] = {}
        for refusal in self.refusal_texts:
            if not refusal.about:
                by_category.setdefault(refusal.category, []).append(refusal.text)
        return {category: tuple(texts) for category, texts in by_category.items()}

    def refusals_to(self, prompt: ContrastPrompt) -> tuple[str, ...]:
        """The refusals that name the subject of `prompt` most exactly, in the order of the file.

        They share the rarest words with the prompt and its topic. If no refusal shares a word that identifies
        the request, they are the refusals of its category, or the general ones.
        """
        words = {word: self._rarity(word) for word in content_words(f"{prompt.text} {prompt.topic}")}
        shared = {
            refusal.text: sum(words.get(word, 0.0) for word in content_words(refusal.about))
            for refusal in self.refusal_texts
            if refusal.about and refusal.category == prompt.category
        }
        most = max(shared.values(), default=0.0)
        if most > 0:
            return tuple(text for text, score in shared.items() if score == most)
        known = self.refusals()
        return known.get(prompt.category) or known.get("general", ())

    def _rarity(self, word: str) -> float:
        """log(harmful prompts / harmful prompts with `word`); 0 for a word that many prompts have."""
        count = self._holders.get(word, 0)
        share = max(count, 1) / len(self.pairs)
        return -math.log(share) if share < _COMMON else 0.0

    @functools.cached_property
    def _holders(self) -> Counter[str]:
        """The number of harmful prompts that each content word is in."""
        return Counter(word for pair in self.pairs for word in content_words(pair.harmful))

    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal; it does not depend on the order of files and rows."""
        rows: list[object] = [
            asdict(item) for group in (self.pairs, self.benign, self.wrappers) for item in group
        ]
        texts = [[row.category, row.text, row.about] for row in self.refusal_texts]
        rows += [[part for part in text if part] for text in texts]
        lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def part_of(category: str, topic: str) -> Part:
    """The part of a topic, by a hash of the topic alone, so that new content does not move old content."""
    share = int.from_bytes(_hash(f"part\n{category}\n{topic}")[:8], "big") / 2**64
    if share < _EXTRACTION:
        return "extraction"
    return "calibration" if share < _EXTRACTION + _CALIBRATION else "test"


def fold_of(category: str, topic: str) -> int:
    """The fold of a topic, or of a wrapper (category "wrapper")."""
    return _hash(f"{category}/{topic}")[0] % FOLDS


def load_contrast_set(folder: Path | None = None) -> ContrastSet:
    """Loads the shipped set (once), or a set of the same format.

    Args:
        folder: The folder of the other set; None for the shipped one.

    Raises:
        InputError: A file is missing or a row has another format; the message names file and line.

    Example:
        harmful = [p.text for p in load_contrast_set().part("extraction") if p.harmful]
    """
    if folder is None:
        return _shipped()
    names = sorted(entry.name for entry in folder.glob("*.jsonl"))
    pairs: list[Pair] = []
    benign: list[Benign] = []
    wrappers: list[Wrapper] = []
    refusals: list[Refusal] = []
    for name in names:
        stem = name.removesuffix(".jsonl")
        for place, row in _rows(folder / name):
            if stem.startswith("pairs-"):
                topic, form, harmful, harmless = _fields(row, ("topic", "form", "harmful", "harmless"), place)
                if form not in get_args(Form):
                    raise InputError(f"{place}: form {form!r}; expected one of {', '.join(get_args(Form))}")
                pairs.append(Pair(topic, stem.removeprefix("pairs-"), cast(Form, form), harmful, harmless))
            elif stem.startswith("benign-"):
                benign.append(Benign(stem.removeprefix("benign-"), *_fields(row, ("prompt",), place)))
            elif stem == "wrappers":
                wrapper = Wrapper(*_fields(row, ("name", "kind", "template"), place))
                if wrapper.template.count("{prompt}") != 1:
                    raise InputError(f"{place}: the template must hold {{prompt}} exactly once")
                wrappers.append(wrapper)
            elif stem == "refusals":
                category, refusal = _fields(row, ("category", "refusal"), place)
                about = _fields(row, ("about",), place)[0] if "about" in row else ""
                refusals.append(Refusal(category, refusal, about))
    if not pairs:
        raise InputError(f"{folder} has no pairs-<category>.jsonl: expected the files of a contrast set")
    return ContrastSet(tuple(pairs), tuple(benign), tuple(wrappers), tuple(refusals))


@functools.cache
def _shipped() -> ContrastSet:
    return load_contrast_set(Path(str(importlib.resources.files("inferaligner.prompts") / "contrast")))


def _rows(file: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file.name}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: broken JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected a JSON object")
        yield place, row


def _fields(row: Mapping[str, object], names: Sequence[str], place: str) -> list[str]:
    values: list[str] = []
    for name in names:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{place}: expected a text in the field {name!r}")
        values.append(value)
    return values


def _dealt(
    wrappers: Sequence[Wrapper], contents: Sequence[_Content], each: int
) -> Iterator[tuple[Wrapper, _Content]]:
    """Deals `each` contents to every wrapper, fold by fold; all contents of a fold are used equally often."""
    for fold in range(FOLDS):
        of_fold = [content for content in contents if fold_of(content.category, content.topic) == fold]
        of_fold = of_fold or list(contents)
        of_fold.sort(key=lambda content: _hash(f"wrap\n{_text(content)}"))
        here = [wrapper for wrapper in wrappers if fold_of("wrapper", wrapper.name) == fold]
        here.sort(key=lambda wrapper: _hash(f"deal\n{wrapper.name}"))
        count = min(each, len(of_fold))
        for turn, wrapper in enumerate(here):
            for step in range(count):
                yield wrapper, of_fold[(turn * count + step) % len(of_fold)]


def _text(content: Pair | Benign) -> str:
    return content.harmful if isinstance(content, Pair) else content.prompt


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
