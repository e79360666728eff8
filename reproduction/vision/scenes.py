"""Pictures of coloured shapes and of bars, with questions about them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from reproduction.vision.pages import DRAWN, GRID, Page
from reproduction.vision.raster import Colour

COLOURS: dict[str, Colour] = {
    "red": (220, 30, 30),
    "blue": (30, 60, 220),
    "green": (20, 150, 40),
    "yellow": (240, 210, 20),
    "purple": (130, 30, 160),
    "orange": (245, 140, 10),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star")
NUMBERS = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True)
class Figure:
    """One shape, in cell (row, column) of a 4 x 4 raster."""

    colour: str
    shape: str
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """Shapes, or the bars of a chart from left to right with their heights (1 to 7 patches)."""

    figures: tuple[Figure, ...] = ()
    bars: tuple[tuple[str, int], ...] = ()


def any_scene(rng: random.Random) -> Scene:
    """One to four shapes, or three bars."""
    if rng.random() < 0.3:
        colours, heights = rng.sample(sorted(COLOURS), 3), rng.sample(range(1, 8), 3)
        return Scene(bars=tuple(zip(colours, heights, strict=True)))
    cells = rng.sample(range(16), rng.randint(1, 4))
    return Scene(
        tuple(Figure(rng.choice(sorted(COLOURS)), rng.choice(SHAPES), cell // 4, cell % 4) for cell in cells)
    )


def draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    """At `DRAWN` pixels. Shapes are shaken a little within their cells."""
    picture = Image.new("RGB", (DRAWN, DRAWN), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    cell, patch = DRAWN / 4, DRAWN / GRID
    for figure in scene.figures:
        x = (figure.column + 0.5) * cell + rng.uniform(-5, 5)
        y = (figure.row + 0.5) * cell + rng.uniform(-5, 5)
        _shape(pen, figure, x, y, rng.uniform(0.3, 0.42) * cell)
    for number, (colour, height) in enumerate(scene.bars):
        left, bottom = (1 + 2 * number) * patch + patch / 4, DRAWN - 6
        pen.rectangle(
            (left, bottom - height * patch * 0.97, left + 1.4 * patch, bottom), fill=COLOURS[colour]
        )
    if scene.bars:
        pen.line((patch / 2, DRAWN - 6, DRAWN - patch / 2, DRAWN - 6), fill=(0, 0, 0), width=3)
    return picture


def scene_page(scene: Scene, rng: random.Random, tokenizer: Any) -> Page:
    """The picture with the tokens of its words: a shape's colour, and to its right its name."""

    def token(word: str) -> int:
        return int(tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0])

    page = Page(np.asarray(draw_scene(scene, rng).reduce(2)))
    for figure in scene.figures:
        corner = 2 * figure.row * GRID + 2 * figure.column
        page.tokens += [(corner, token(figure.colour)), (corner + 1, token(figure.shape))]
    for number, (colour, height) in enumerate(scene.bars):
        page.tokens.append(((GRID - height) * GRID + 1 + 2 * number, token(colour)))
    return page


def questions(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question about the scene, with its answer in a word."""
    if scene.bars:
        tallest = rng.random() < 0.5
        pick = (max if tallest else min)(scene.bars, key=lambda bar: bar[1])
        return f"Which bar is the {'tallest' if tallest else 'shortest'}? Answer with its colour.", pick[0]
    kind, figures = rng.random(), scene.figures
    if kind < 0.35:
        return "How many shapes are in the picture? Answer with a word.", NUMBERS[len(figures)]
    figure = rng.choice(figures)
    if kind < 0.7 and sum(other.shape == figure.shape for other in figures) == 1:
        return f"What colour is the {figure.shape}? Answer with a word.", figure.colour
    if sum(other.colour == figure.colour for other in figures) == 1:
        return f"What shape is {figure.colour}? Answer with a word.", figure.shape
    return "How many shapes are in the picture? Answer with a word.", NUMBERS[len(figures)]


def _shape(pen: ImageDraw.ImageDraw, figure: Figure, x: float, y: float, r: float) -> None:
    fill = COLOURS[figure.colour]
    if figure.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif figure.shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)
    elif figure.shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=fill)
    else:
        points = []
        for number in range(10):
            angle, reach = np.pi * (number / 5 - 0.5), r if number % 2 == 0 else 0.42 * r
            points.append((x + reach * float(np.cos(angle)), y + reach * float(np.sin(angle))))
        pen.polygon(points, fill=fill)
