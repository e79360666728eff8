"""Pages of text with the tokens of each patch: the training data of the vision tower.

The tower sees a picture as `GRID` x `GRID` patches. A token of the language model belongs to the patch in
which its first character begins; a patch in which no token begins is blank. The text consists of pieces of
the contrast set's extraction and calibration prompts and of single words of the tokenizer's vocabulary, never
of the test part.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inferaligner.prompts.contrast import load_contrast_set
from reproduction.vision.raster import (
    BLACK,
    CELLS,
    CELLS_PER_STOP,
    LINES,
    WHITE,
    Colour,
    PageStyle,
    draw_text,
    fits,
    lay_out,
)

GRID = LINES
SIDE = 160
"""The tower's picture in pixels; pages are drawn at twice that, and reduced."""
DRAWN = 2 * SIDE

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'\"-()/$%&"

SPELLINGS = CELLS_PER_STOP * len(CHARACTERS)
"""Possible contents of a patch: every character in each of its cells."""

_INKS: tuple[Colour, ...] = (BLACK, (20, 20, 90), (120, 0, 0), (0, 70, 20), (60, 60, 60))
_PAPERS: tuple[Colour, ...] = (WHITE, (250, 245, 225), (225, 235, 250), (240, 240, 240), (255, 240, 240))


@dataclass
class Page:
    """A picture `[side, side, 3]` uint8; tokens by patch; characters by patch."""

    pixels: np.ndarray
    tokens: list[tuple[int, int]] = field(default_factory=list)  # (patch, token id)
    characters: list[tuple[int, int]] = field(default_factory=list)  # (patch, one of SPELLINGS)


def any_style(rng: random.Random) -> PageStyle:
    """A random style of the training pages."""
    ink, paper = rng.choice(_INKS), rng.choice(_PAPERS)
    if rng.random() < 0.15:
        ink, paper = paper, ink
    return PageStyle(DRAWN, ink, paper, (rng.randint(-2, 2), rng.randint(-3, 3)))


class Texts:
    """Draws the texts of pages."""

    def __init__(self, tokenizer: Any) -> None:
        contrast = load_contrast_set()
        known = [p for part in ("extraction", "calibration") for p in contrast.part(part, wrapped=False)]
        sentences = [" ".join(prompt.text.split()) for prompt in known]
        self.words = [sentence.split(" ") for sentence in sentences]
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        self.lexicon = [token[1:] for token, _ in vocabulary if re.fullmatch("Ġ[A-Za-z]{2,14}", token)][
            :12000
        ]
        used = {word for words in self.words for word in words if re.search("[A-Za-z]", word)}
        self.used = sorted(used)

    def draw(self, rng: random.Random) -> str:
        """About forty words: pieces of prompts, and single words."""
        words: list[str] = []
        while len(words) < 40:
            kind = rng.random()
            if kind < 0.45:
                sentence = rng.choice(self.words)
                start = rng.randrange(max(1, len(sentence) - 3))
                words += sentence[start : start + rng.randint(3, 12)]
            elif kind < 0.7:
                words += [rng.choice(self.used) for _ in range(4)]
            elif kind < 0.95:
                # Frequent words come first in a tokenizer's vocabulary.
                words += [self.lexicon[int(len(self.lexicon) * rng.random() ** 2)] for _ in range(4)]
            else:
                words += [f"{rng.randint(1, 9)}."]
        if rng.random() < 0.5:
            words[0] = words[0].capitalize()
        return " ".join(words)


def text_page(text: str, style: PageStyle, tokenizer: Any) -> Page:
    """The page with the tokens of its patches; words without room at the end are left out."""
    words = [word for word in text.split(" ") if len(word) <= CELLS]
    while not fits(" ".join(words)):
        words = words[: int(len(words) * 0.93)] if len(words) > 14 else words[:-1]
    text = " ".join(words)
    page = Page(np.asarray(draw_text(text, style).reduce(2)))
    page.tokens, page.characters = what_stands(text, tokenizer)
    return page


def what_stands(text: str, tokenizer: Any) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The tokens and the characters of a page with this text, each with the number of its patch."""
    # Pages are read line by line, and the tower cannot tell a line break in the text from a wrapped line.
    flowing = text.replace("\n", " ")
    encoded = tokenizer(flowing, add_special_tokens=False, return_offsets_mapping=True)
    starts = {}
    for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        starts[begin + (flowing[begin : begin + 1] == " " and end > begin + 1)] = token
    tokens, characters = [], []
    for word in lay_out(text):
        for at, character in enumerate(word.text):
            patch = GRID * word.line + (word.cell + at) // CELLS_PER_STOP
            if (known := CHARACTERS.find(character)) >= 0:
                characters.append((patch, CELLS_PER_STOP * known + (word.cell + at) % CELLS_PER_STOP))
            if word.start + at in starts:
                tokens.append((patch, starts[word.start + at]))
    return tokens, characters
