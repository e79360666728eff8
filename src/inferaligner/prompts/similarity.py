"""Near-duplicates among prompts, by their content words.

Used to leave out benchmark rows that repeat a contrast prompt in other words (a gate that is tested on
paraphrases of its fitting prompts looks better than it is; 24 % of AdvBench repeats itself), and to keep
near-duplicates in one part of a split. Two prompts are compared by the Jaccard similarity |a ∩ b| / |a ∪ b|
of their content words: lower-cased, without stop words, without endings.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

# Function words, and words that any request may begin with ("write", "explain", "how do I"): the remaining
# words are the subject of the prompt.
_STOP_WORDS = """
    a about after all also although am an and any are around as ask at away back be because been before being
    best between both but by can could did do does doing done down each else etc even ever every few for from
    get gets getting give given go going got had has have having he help helping her here hers herself him
    himself his how i if in into is it its itself just kind let lets like lot make makes making many may me
    might mine more most much must my myself need needs never no nor not now of off often on once one only or
    other our ours out over own please quite rather really same see shall she should so some someone
    something still such sure tell than that the their theirs them then there these they thing things this
    those through to too under until up upon us use used uses using very want wants was way ways we well were
    what when where which while who whom whose why will wish with within without would yes yet you your yours
    yourself create describe develop discuss draft explain generate list outline provide show suggest teach
    write m s t d ll re ve
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())

# Scripts written without spaces are cut into overlapping pairs of characters.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+|[^\W_]+")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]")
_VOWEL = re.compile(r"[aeiouy]")


def content_words(text: str) -> frozenset[str]:
    """The stems of a text's content words; all words if it has only stop words."""
    words: list[str] = []
    # Curly apostrophes and accents must not make two prompts different.
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    for word in _WORD.findall(plain):
        if _UNSPACED.match(word) and len(word) > 2:
            words.extend(word[i : i + 2] for i in range(len(word) - 1))
        else:
            words.append(word)
    return frozenset(stem(word) for word in words if word not in STOP_WORDS) or frozenset(words)


def stem(word: str) -> str:
    """The word without the commonest English endings: plural, -ing, -ed, -er, -ly."""
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith(("ss", "us", "is")):
            word = word[: len(word) - len(ending)] + instead
            break
    for ending in ("ing", "ed", "er", "ly"):
        body = word[: -len(ending)]
        if word.endswith(ending) and len(body) >= 3 and _VOWEL.search(body):
            # "planning" and "plan", but "selling" and "sell".
            word = body[:-1] if body[-1] == body[-2] and body[-1] not in "lsz" else body
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def near_duplicates(a: Sequence[str], b: Sequence[str], threshold: float = 0.6) -> list[int]:
    """The indices of the texts of `a` whose similarity to some text of `b` reaches `threshold`, ascending."""
    words_of_b = [content_words(text) for text in b]
    holders: dict[str, list[int]] = defaultdict(list)
    for index, words in enumerate(words_of_b):
        for word in words:
            holders[word].append(index)
    duplicates = []
    for index, text in enumerate(a):
        words = content_words(text)
        shared: dict[int, int] = defaultdict(int)
        for word in words:
            for other in holders.get(word, ()):
                shared[other] += 1
        if any(
            count / (len(words) + len(words_of_b[other]) - count) >= threshold
            for other, count in shared.items()
        ):
            duplicates.append(index)
    return duplicates


def near_duplicate_key(text: str) -> str:
    """A key that is the same for rewordings of one prompt: its content words in alphabetical order."""
    return " ".join(sorted(content_words(text)))
