"""An artifact as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from inferaligner.artifact import AlignerArtifact, ModelRecord
from inferaligner.cli.layer_ranges import written
from inferaligner.cli.monitor_view import monitor_as_json, monitor_tables
from inferaligner.cli.operating_point_view import point_as_json, point_tables
from inferaligner.cli.tables import RATE, add_columns, area_cells, rate_cells, three, titled
from inferaligner.fit.model_compatibility import relations
from inferaligner.method.vectors import cosine
from inferaligner.models.number_format import DTYPE, format_words
from inferaligner.storage.model_card import describe_reads, gate_words, operating_point, percent
from inferaligner.storage.strength_search_record import (
    false_open_words,
    finalists,
    order_words,
    same_setting,
    strength_words,
)

_FINALISTS_SHOWN = 12
_BAR = 24


def as_json(artifact: AlignerArtifact) -> dict[str, Any]:
    """The artifact as JSON, with lengths and cosines of the vectors per layer in place of the vectors."""
    provenance, gate = artifact.provenance, artifact.gate
    calibration = artifact.calibration
    return {
        "target": provenance.target.model_dump(mode="json"),
        "aligned": None if provenance.aligned is None else provenance.aligned.model_dump(mode="json"),
        "gate_only": artifact.gate_only,
        "transfer": calibration.get("transfer") or {},
        "answers": calibration.get("answers") or {},
        "gate": {
            "kind": gate.kind,
            "reads": [{"layer": read.layer, "offset": read.offset} for read in gate.reads],
            "bias": gate.bias,
        },
        "operating_point": {
            "max_false_open": calibration.get("max_false_open"),
            "paper": bool(calibration.get("paper")),
            **point_as_json(artifact),
        },
        "steering": artifact.steering.model_dump(mode="json"),
        "held_out": calibration.get("held_out") or {},
        "gates": calibration.get("gates") or [],
        "search": calibration.get("search") or {},
        "vectors": {
            "cosine": cosine(artifact.srv, artifact.ssv).tolist(),
            "srv_norm": artifact.srv.norm(dim=-1).tolist(),
            "ssv_norm": artifact.ssv.norm(dim=-1).tolist(),
        },
        "separability": {str(layer): value for layer, value in layer_separability(artifact).items()},
        "relations": []
        if provenance.aligned is None
        else [asdict(one) for one in relations(provenance.target, provenance.aligned)],
        **monitor_as_json(artifact),
        "prompts": provenance.prompts,
        "system_prompt": provenance.system_prompt,
        "versions": provenance.versions,
        "created": provenance.created,
        "digest": artifact.digest(),
    }


def tables(artifact: AlignerArtifact) -> list[Table]:
    """The artifact as tables: settings, gates, held-out open rates, finalists of the search, and more."""
    calibration = artifact.calibration
    shown = [_settings(artifact)]
    if calibration.get("gates"):
        shown.append(_gates(calibration["gates"], calibration.get("max_false_open")))
    shown += point_tables(artifact)
    if (calibration.get("held_out") or {}).get("open"):
        shown.append(_open_rates(calibration["held_out"]))
    if calibration.get("search"):
        shown.append(_finalists(calibration["search"]))
    if calibration.get("transfer"):
        shown.append(map_table(calibration["transfer"]))
    if calibration.get("answers"):
        shown.append(answers_table(calibration["answers"]))
    return shown + monitor_tables(artifact)


def map_table(transfer: Mapping[str, Any]) -> Table:
    """The map between the models: aligned layer and explained variance for each target layer."""
    table = titled(
        f"Map from the aligned model: {percent(transfer['explained'])} of held-out variance explained "
        f"(median of the upper half; trusted from {percent(transfer['least'])})"
    )
    for name in ("layer", "from layer", "map", "λ", "explained"):
        table.add_column(name, justify="left" if name == "map" else "right")
    for one in transfer["layers"]:
        ridge = "-" if one["ridge"] is None else f"{one['ridge']:g}"
        table.add_row(
            str(one["layer"]), str(one["aligned_layer"]), one["kind"], ridge, percent(one["explained"])
        )
    return table


def answers_table(answers: Mapping[str, Any]) -> Table:
    """Cross-entropy of held-out answers with the vectors that were learned from answers."""
    layers = ", ".join(map(str, answers["layers"]))
    table = titled(
        f"Layers {layers}: learned from the aligned model's answers to {answers['prompts']} prompts",
        ["target"],
        ["nats per token of a held-out answer"],
    )
    nats = answers["cross_entropy"]
    table.add_row("bare", f"{nats['bare']:.2f}")
    table.add_row("with the vectors it gave", f"{nats['start']:.2f}")
    table.add_row("with those learned", f"{nats['learned']:.2f}")
    return table


def pair_words(target: ModelRecord, aligned: ModelRecord) -> str:
    """Properties that an aligned model shares with the target, and others, in words."""
    properties = relations(target, aligned)
    same = [one.what for one in properties if one.same]
    other = [one.what + (f" ({one.found})" if one.found else "") for one in properties if not one.same]
    words = [f"the same {', '.join(same)}"] * bool(same) + [f"another {', '.join(other)}"] * bool(other)
    return "; ".join(words)


def layer_chart(artifact: AlignerArtifact) -> Table:
    """Cosine of SRV and SSV by layer as bars, their lengths, and the layers of gate and steering."""
    title = "SRV (target) and SSV (aligned model) by layer"
    table = titled(title, figures=["layer", "cosine"], box=None, pad_edge=False)
    table.add_column("", width=_BAR)
    add_columns(table, figures=["‖SRV‖", "‖SSV‖", "AUROC"])
    areas = layer_separability(artifact)
    table.add_column("")
    lengths = zip(artifact.srv.norm(dim=-1).tolist(), artifact.ssv.norm(dim=-1).tolist(), strict=True)
    for layer, (value, (srv, ssv)) in enumerate(
        zip(cosine(artifact.srv, artifact.ssv).tolist(), lengths, strict=True)
    ):
        marks = ["gate"] * (layer in artifact.gate.layers) + ["steered"] * (layer in artifact.steering.layers)
        bar = Text("█" * round(abs(value) * _BAR), style="cyan" if value >= 0 else "red")
        table.add_row(
            str(layer),
            f"{value:.2f}",
            bar,
            f"{srv:.3g}",
            f"{ssv:.3g}",
            three(areas.get(layer)),
            Text(", ".join(marks), style="bold"),
        )
    return table


def layer_separability(artifact: AlignerArtifact) -> dict[int, float]:
    """Cross-validated AUROC by layer: of the best gate that reads this layer alone, at the last token."""
    best: dict[int, float] = {}
    for trial in artifact.calibration.get("gates") or []:
        if len(trial["reads"]) == 1 and trial["reads"][0][1] == 0 and trial["auroc"] is not None:
            layer = trial["reads"][0][0]
            best[layer] = max(best.get(layer, 0.0), trial["auroc"])
    return dict(sorted(best.items()))


def _settings(artifact: AlignerArtifact) -> Table:
    provenance, steering, prompts = artifact.provenance, artifact.steering, artifact.provenance.prompts
    table = titled("Aligner", show_header=False)
    table.add_column(style="bold")
    table.add_column()

    def row(name: str, value: str) -> None:
        # As Text: rich would read brackets in names, paths and prompts as markup.
        table.add_row(name, Text(value))

    model = provenance.target.model
    row("target", f"{provenance.target.spec} ({model.architecture}, {model.depth} layers × {model.width})")
    row("aligned model", provenance.guide)
    if provenance.aligned is not None:
        row("relation to target", pair_words(provenance.target, provenance.aligned))
    row("gate", gate_words(artifact.gate))
    row("operating point", operating_point(artifact.calibration))
    unit = "× unit SSV" if steering.norm == "unit" else "× SSV"
    where = "from the prompt's last token on" if steering.positions == "from_gate" else "all tokens"
    alpha = strength_words(steering.strength, steering.profile)
    steered = f"layers {written(steering.layers)}, {alpha} {unit}, {where}"
    row("steering", "none: a gate alone, for --on-open refuse" if artifact.gate_only else steered)
    row("fitted in", format_words(provenance.versions) if DTYPE in provenance.versions else "-")
    counts = f"{prompts.get('harmful', '-')} harmful, {prompts.get('harmless', '-')} harmless"
    row("prompts", f"{prompts.get('source', '-')}: {counts}")
    if provenance.system_prompt is not None:
        row("system prompt", provenance.system_prompt)
    row("made", f"{provenance.created}, inferaligner {provenance.versions.get('inferaligner', '-')}")
    return table


def _gates(trials: Sequence[Mapping[str, Any]], max_false_open: float | None) -> Table:
    limit = "" if max_false_open is None else f" at {percent(max_false_open)} false opens"
    table = titled(
        f"Gates compared by cross-validation{limit}: the best of each family, {len(trials)} tried. The first "
        "was chosen (the best separation among gates within one standard error)",
        ["gate", "reads"],
        ["harmful", "in jailbreaks", "harmless in the same", "separation", "AUROC, twins"],
    )
    for trial in best_of_families(trials):
        direct = trial.get("direct")
        table.add_row(
            f"{trial['family']} ({trial['kind']})" if "family" in trial else str(trial["kind"]),
            describe_reads(trial["reads"]),
            percent(trial["true_open"] if direct is None else direct),
            *("-" if trial.get(n) is None else percent(trial[n]) for n in ("attacks", "attacks_harmless")),
            three(trial.get("separation", trial["auroc"])),
            three(trial["auroc_twins"]),
        )
    return table


def best_of_families(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first trial of every family, in their order."""
    best: dict[str, Mapping[str, Any]] = {}
    for trial in trials:
        best.setdefault(str(trial.get("family", trial["kind"])), trial)
    return list(best.values())


def _open_rates(held_out: Mapping[str, Any]) -> Table:
    table = titled("Gate on prompts that took no part in fitting it", ["prompts"], RATE)
    for name, rate in held_out["open"].items():
        table.add_row(escape(name), *rate_cells(rate))
    if held_out.get("auroc"):
        table.add_section()
        table.add_row("AUROC", *area_cells(held_out["auroc"]))
    for name, area in (held_out.get("auroc_benign") or {}).items():
        table.add_row(f"AUROC, harmful against {escape(name)}", *area_cells(area))
    return table


def _finalists(search: Mapping[str, Any]) -> Table:
    trials = finalists(search)
    took = f", {search['seconds']:.0f} s" if search.get("seconds") else ""
    measured = bool(search.get("harmless"))
    notes = [words for words in (false_open_words(search), order_words(search)) if words]
    table = titled(
        f"Steering, on {search['generated']} harmful prompts with the gate held open "
        f"({len(search['trials'])} settings scored{took})",
        caption="\n".join(f"{words}." for words in notes) or None,
        caption_justify="left",
    )
    columns = ["layers", "strength", "cross-entropy", "refusals", "compliance", "gibberish"]
    harmless = ["drift", "harmless: refused", "gibberish"] if measured else []
    for name in (*columns, *harmless, ""):
        table.add_column(name, justify="right" if name else "left")

    def row(trial: Mapping[str, Any], mark: str) -> None:
        cells = [
            written(trial["layers"]),
            f"{trial['strength']:.3g}{' per layer' if trial.get('profile') else ''}",
            three(trial["cross_entropy"]),
            *(percent(trial[name]) for name in ("refusal", "compliance", "gibberish")),
        ]
        if measured:
            cells += [three(trial.get("drift"))]
            cells += [percent(trial.get(f"harmless_{name}")) for name in ("refusal", "gibberish")]
        table.add_row(*cells, mark)

    for trial in trials[:_FINALISTS_SHOWN]:
        row(trial, "chosen" if same_setting(trial, search["chosen"]) else "")
    below = [trial for trial in search.get("below_gate") or [] if trial["refusal"] is not None]
    if below:
        table.add_section()
        row(below[0], "below the gate: needs two passes")
    table.add_section()
    bare = search.get("harmless_unsteered") or {}
    cells = ["", *(percent(bare.get(name)) for name in ("refusal", "gibberish"))] if measured else []
    table.add_row("none", "", three(search["unsteered_cross_entropy"]), "", "", "", *cells, "")
    return table
