"""Every figure is well-formed SVG with one mark per datum, and nothing in it depends on when it was drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from inferaligner.errors import MissingExtraError
from inferaligner.reporting import figures
from inferaligner.reporting.figures import svg as svg_module
from inferaligner.reporting.figures.svg import PALETTE
from inferaligner.statistics.intervals import clopper_pearson

pytest.importorskip("matplotlib")

_SCORES = {"harmful": [2.0, 1.0, 0.5, -0.2], "twins": [-1.0, -0.5, 0.4], "ordinary": [-2.0, -1.5]}
_OUTCOMES = {"refusal": 3, "compliance": 1, "gibberish": 0}
_SHARES = {"refusal": 0.5, "compliance": 0.25, "gibberish": 0.25}

FIGURES: dict[str, Callable[[str], str]] = {
    "scores": lambda name: figures.score_distributions(_SCORES, name=name),
    "roc": lambda name: figures.roc_curves(
        _SCORES["harmful"], {"twins": _SCORES["twins"], "ordinary": _SCORES["ordinary"]}, name=name
    ),
    "rates": lambda name: figures.open_rates(
        {"harmful": clopper_pearson(9, 10), "coding": clopper_pearson(0, 10)}, name=name
    ),
    "outcomes": lambda name: figures.outcome_bars(
        {"harmful": {"bare": _OUTCOMES, "<with>": {"refusal": 4}}, "harmless": {"bare": {"compliance": 4}}},
        name=name,
    ),
    "finalists": lambda name: figures.finalists(
        [("1-2 × 0.2", _SHARES), ("2 × 0.3", _SHARES)], chosen=1, name=name
    ),
    "surface": lambda name: figures.strength_surface(
        [
            figures.Point((1, 2), 0.2, 2.9, number=2),
            figures.Point((1, 2), 0.3, 2.8),
            figures.Point((2,), 0.3, 3.2),
            figures.Point((3, 4), 0.3, 2.95),
            figures.Point((3, 4), 0.2, 2.7, per_layer=True, number=1),
        ],
        unsteered=3.0,
        chosen=1,
        gate=2,
        name=name,
    ),
    "tradeoff": lambda name: figures.tradeoff(
        {
            m: (clopper_pearson(1, 10), clopper_pearson(n, 10))
            for n, m in enumerate(("bare", "ours", "a", "b"))
        },
        across="answered",
        up="accuracy",
        chosen="ours",
        name=name,
    ),
    "time": lambda name: figures.time_bars(
        {
            "bare": {"any": clopper_pearson(1, 4)},
            "ours": dict.fromkeys(("open", "closed"), clopper_pearson(2, 4)),
        },
        label="seconds",
        name=name,
    ),
    "cosine": lambda name: figures.cosine_by_layer([1.0, 0.9, 0.7], steered=(1, 2), gate=(0,), name=name),
}
# How many marks with an id of this form a figure of the data above has.
MARKS = [
    ("scores", "group-", 3),
    ("scores", "threshold", 1),
    ("roc", "curve-", 2),
    ("roc", "point-", 2),
    ("rates", "point-", 2),
    ("tradeoff", "point-", 4),
    ("time", "bar-", 3),
    ("rates", "interval-", 2),
    ("outcomes", "bar-", 4),  # parts of no width are not drawn
    ("finalists", "bar-", 6),
    ("surface", "cell-", 4),  # one with a strength per layer is a mark alone
    ("surface", "finalist-", 2),
    ("surface", "gate-", 2),  # in every panel
    ("cosine", "point-", 3),
    ("cosine", "steered-", 2),
    ("cosine", "gate-", 1),
]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_one_accessible_svg_element(name: str) -> None:
    root = ElementTree.fromstring(FIGURES[name]("f"))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert root.attrib["role"] == "img"
    assert "width" not in root.attrib, "a fixed width does not fit a phone"
    named = {element.attrib["id"]: element for element in root.iter() if "id" in element.attrib}
    for place in root.attrib["aria-labelledby"].split():
        assert named[place].text


@pytest.mark.parametrize(("name", "mark", "count"), MARKS)
def test_each_datum_has_its_mark(name: str, mark: str, count: int) -> None:
    assert len(re.findall(rf'id="f-{mark}', FIGURES[name]("f"))) == count


@pytest.mark.parametrize("name", FIGURES)
def test_ids_and_references_stay_inside_the_figure(name: str) -> None:
    drawn = FIGURES[name]("f")
    identifiers = re.findall(r'\bid="([^"]+)"', drawn)
    assert len(identifiers) == len(set(identifiers))
    assert all(identifier.startswith("f-") for identifier in identifiers)
    referred = re.findall(r'(?:url\(#|href="#)([^)"]+)', drawn)
    assert set(referred) <= set(identifiers)


@pytest.mark.parametrize("name", FIGURES)
def test_colours_and_fonts_are_the_pages(name: str) -> None:
    drawn = FIGURES[name]("f")
    literal = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", drawn)) - {"#000000"}
    assert not literal, "a colour outside the palette does not follow the dark scheme"
    assert set(re.findall(r"var\(--(\w+)", drawn)) <= set(PALETTE)
    assert "font-family:" not in drawn
    assert "<text" in drawn, "text must stay text"


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_data_give_the_same_figure(name: str) -> None:
    assert FIGURES[name]("f") == FIGURES[name]("f")


def test_names_are_escaped() -> None:
    drawn = FIGURES["outcomes"]("f")
    assert "<with>" not in drawn
    assert "&lt;with&gt;" in drawn


def test_the_roc_runs_through_the_operating_point() -> None:
    drawn = figures.roc_curves([1.0, -1.0], {"twins": [-2.0, 2.0]})
    assert "50% of harmful and 50.0% of twins open" in drawn


def test_every_palette_colour_has_a_dark_counterpart() -> None:
    from importlib.resources import files

    css = files("inferaligner.reporting").joinpath("templates/style.css").read_text(encoding="utf-8")
    light, _, dark = css.partition("prefers-color-scheme: dark")
    for name, colour in PALETTE.items():
        assert f"--{name}: {colour};" in light
        assert re.search(rf"--{name}: #[0-9a-f]{{6}};", dark)


def test_a_missing_matplotlib_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> object:
        return None if name == "matplotlib" else find_spec(name)

    monkeypatch.setattr(svg_module, "find_spec", without)
    with pytest.raises(MissingExtraError, match=r"inferaligner\[report\]"):
        figures.require_matplotlib()


def test_harmful_groups_have_a_colour_of_their_own() -> None:
    drawn = figures.score_distributions(_SCORES, harmful=["harmful"], name="f")
    colours = [
        re.search(r"stroke: var\(--(\w+)", drawn[drawn.index(f'id="f-group-{row}"') :]).group(1)  # type: ignore[union-attr]
        for row in range(3)
    ]
    assert colours == ["warm", "accent", "accent"]


def test_the_method_of_the_verdict_stands_out() -> None:
    drawn = FIGURES["tradeoff"]("f")
    fills = [
        re.search(r"fill: var\(--(\w+)", drawn[drawn.index(f'id="f-point-{at}"') :]).group(1)  # type: ignore[union-attr]
        for at in range(4)
    ]
    assert fills[1] == "accent" and "accent" not in (fills[0], *fills[2:])
