"""Figures of an artifact: vectors by layer, the compared gates, and the strength search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferaligner.artifact import AlignerArtifact
from inferaligner.cli.layer_ranges import written
from inferaligner.errors import InputError
from inferaligner.method.vectors import cosine
from inferaligner.reporting.figures import require_matplotlib
from inferaligner.storage.model_card import describe_reads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GATES_SHOWN = 12
_TARGET, _ALIGNED, _GATE, _GOOD, _BAD, _BROKEN = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#228833",
    "#ee6677",
    "#bbbbbb",
)


def draw(artifact: AlignerArtifact, folder: Path) -> list[Path]:
    """Draws the figures that the artifact has data for.

    Args:
        artifact: to draw.
        folder: for the PNG files; created where it does not exist.

    Returns:
        The files.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: the folder cannot be written to.
    """
    require_matplotlib()
    search = artifact.calibration.get("search") or {}
    figures = {"vectors.png": _vectors(artifact)}
    if artifact.calibration.get("gates"):
        figures["gates.png"] = _gates(artifact.calibration["gates"])
    if search.get("trials"):
        figures["strength.png"] = _strengths(search)
        figures["finalists.png"] = _finalists(search)
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=150)
            files.append(folder / name)
    except OSError as error:
        raise InputError(
            f"The figures cannot be written to {folder}: {error.strerror}. Give another folder."
        ) from None
    return files


def _figure(width: float, height: float) -> Figure:
    # Not pyplot, which keeps every figure in memory and looks for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _vectors(artifact: AlignerArtifact) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = _figure(7, 5)
    upper, lower = figure.subplots(2, 1, sharex=True)
    layers = range(len(artifact.srv))
    upper.plot(layers, cosine(artifact.srv, artifact.ssv).tolist(), color="black", marker=".")
    upper.set_ylabel("cosine(SRV, SSV)")
    upper.set_ylim(min(-0.05, float(cosine(artifact.srv, artifact.ssv).min())), 1.05)
    for vectors, name, colour in (
        (artifact.srv, "SRV (target)", _TARGET),
        (artifact.ssv, "SSV (aligned)", _ALIGNED),
    ):
        lower.plot(layers, vectors.norm(dim=-1).tolist(), color=colour, marker=".", label=name)
    lower.set_ylabel("length of the mean difference")
    lower.set_yscale("log")
    lower.set_xlabel("decoder layer")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (upper, lower):
        for number, layer in enumerate(artifact.steering.layers):
            axis.axvspan(
                layer - 0.5,
                layer + 0.5,
                color=_ALIGNED,
                alpha=0.12,
                label="steered" if not number else None,
                lw=0,
            )
        for number, layer in enumerate(artifact.gate.layers):
            axis.axvline(layer, color=_GATE, ls="--", label="gate reads" if not number else None)
    lower.legend(fontsize=8)
    return figure


def _gates(trials: Sequence[Mapping[str, Any]]) -> Figure:
    shown = list(trials[:_GATES_SHOWN])[::-1]
    figure = _figure(9, 1.6 + 0.35 * len(shown))
    axis = figure.subplots()
    rows = range(len(shown))
    opens = [trial["true_open"] or 0 for trial in shown]
    axis.barh(rows, opens, color=_TARGET, height=0.6, label="harmful prompts that open it")
    for name, marker, label in (("auroc", "o", "AUROC"), ("auroc_twins", "D", "AUROC, twins")):
        axis.plot([trial[name] for trial in shown], rows, marker, color="black", ms=4, label=label)
    names = [f"{trial['kind']}: {describe_reads(trial['reads'])}" for trial in shown]
    axis.set_yticks(list(rows), names, fontsize=7)
    axis.set_xlim(0, 1.02)
    axis.set_xlabel("at the promised false-open rate, held out", fontsize=9)
    figure.legend(fontsize=8, ncols=3, loc="outside upper right")
    return figure


def _strengths(search: Mapping[str, Any]) -> Figure:
    """Cross-entropy against strength, with a line per block of layers."""
    blocks: dict[tuple[int, ...], list[tuple[float, float]]] = {}
    for trial in search["trials"]:
        if trial["cross_entropy"] is not None:
            blocks.setdefault(tuple(trial["layers"]), []).append((trial["strength"], trial["cross_entropy"]))
    figure = _figure(8, 5)
    axis = figure.subplots()
    starts = [layers[0] for layers in blocks] or [0]
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    low, high, colours = min(starts), max(max(starts), min(starts) + 1), colormaps["viridis"]
    for layers, points in blocks.items():
        points.sort()
        axis.plot(
            [strength for strength, _ in points],
            [value for _, value in points],
            marker=".",
            lw=0.8,
            color=colours((layers[0] - low) / (high - low)),
        )
    figure.colorbar(
        ScalarMappable(Normalize(low, high), colours), ax=axis, label="first steered layer"
    ).ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if search["unsteered_cross_entropy"] is not None:
        axis.axhline(search["unsteered_cross_entropy"], color="black", ls="--", lw=0.8, label="not steered")
        # Settings with a far higher cross-entropy would compress the rest of the figure.
        values = [value for points in blocks.values() for _, value in points]
        axis.set_ylim(top=max(search["unsteered_cross_entropy"], min(values, default=0)) * 1.3)
    chosen = search["chosen"]
    if chosen["cross_entropy"] is not None:
        axis.plot(
            chosen["strength"],
            chosen["cross_entropy"],
            "*",
            ms=14,
            color=_ALIGNED,
            label=f"chosen: layers {written(chosen['layers'])} × {chosen['strength']:.3g}",
        )
    axis.set_xlabel("intervention strength")
    axis.set_ylabel("cross-entropy of the aligned model's answers")
    axis.legend(fontsize=8)
    return figure


def _finalists(search: Mapping[str, Any]) -> Figure:
    """Shares of refusal, compliance and gibberish for each setting with generated answers."""
    trials = sorted(
        (trial for trial in search["trials"] if trial["refusal"] is not None),
        key=lambda trial: trial["refusal"],
    )
    figure = _figure(8, 1.4 + 0.4 * len(trials))
    axis = figure.subplots()
    rows, left = range(len(trials)), [0.0] * len(trials)
    for name, colour in (("refusal", _GOOD), ("compliance", _BAD), ("gibberish", _BROKEN)):
        shares = [float(trial[name] or 0) for trial in trials]
        axis.barh(rows, shares, left=left, color=colour, label=name, height=0.6)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    chosen = (list(search["chosen"]["layers"]), search["chosen"]["strength"])
    names = []
    for trial in trials:
        mark = " (chosen)" if (list(trial["layers"]), trial["strength"]) == chosen else ""
        names.append(f"layers {written(trial['layers'])} × {trial['strength']:.3g}{mark}")
    axis.set_yticks(list(rows), names, fontsize=8)
    axis.set_xlim(0, 1)
    axis.set_xlabel(f"share of {search['generated']} answers to harmful prompts, gate held open", fontsize=9)
    figure.legend(fontsize=8, ncols=3, loc="outside upper right")
    return figure
