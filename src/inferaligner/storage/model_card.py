"""The model card of an artifact, and words for its settings that tables share with the card."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from inferaligner.artifact import AlignerArtifact
from inferaligner.method.gate import GuidanceGate
from inferaligner.models.number_format import format_words
from inferaligner.storage.operating_point_record import OperatingPoint, TrafficRecord, read_operating_point
from inferaligner.storage.strength_search_record import (
    false_open_words,
    finalists,
    order_words,
    span,
    strength_words,
)

_CARD = """\
---
library_name: inferaligner
tags: [inferaligner, safety, alignment, steering-vectors]
{% if base_model %}base_model: {{ base_model | tojson }}
{% endif %}---

# Aligner for `{{ target.spec }}`

An [InferAligner](https://arxiv.org/abs/2401.11206) artifact: a guidance gate that looks at \
the end of each prompt\
{% if gate_only %}. It has no steering vectors: open prompts are answered with a text\
{% else %}, and safety steering vectors taken from `{{ aligned }}`{% endif %}. Prompts that do not \
open the gate get exactly the base model's output.

```python
from inferaligner import Aligner

with Aligner.from_pretrained("THIS FOLDER").apply(model, tokenizer\
{{ ', on_open="refuse"' if gate_only }}) as guard:
    model.generate(**inputs)
guard.decisions
```

| Setting | Value |
|---|---|
| Target | `{{ target.spec }}`: {{ target.model.architecture }}, {{ target.model.depth }} layers of width \
{{ target.model.width }} |
| Aligned model | `{{ aligned }}` |
{% if calibration.get("transfer") -%}
| Map from its space | {{ percent(calibration.transfer.explained) }} of held-out variance explained |
{% endif -%}
{% if calibration.get("answers") -%}
| Steered vectors | learned from its answers to {{ calibration.answers.prompts }} prompts |
{% endif -%}
| Gate | {{ gate }} |
| Operating point | {{ operating_point }} |
{% if gate_only -%}
| Steered layers | none |
{% else -%}
| Steered layers | {{ steering.layers | join(", ") }} |
| Strength | {{ strength_words(steering.strength, steering.profile) }} × \
{{ "SSV of length one" if steering.norm == "unit" else "the vectors learned" if calibration.get("answers") \
else "SSV as extracted" }} |
| Positions | {{ steering.positions }} |
{% endif -%}
| Prompts | {{ prompts.source | default("-") | cell }}: {{ prompts.harmful | default("-") }} harmful, \
{{ prompts.harmless | default("-") }} harmless |
| Made | {{ created }}, inferaligner {{ versions.inferaligner | default("-") }}, target in \
{{ format_words(versions) if "target dtype" in versions else "-" }} |

{% if point and point.traffic %}
## Benign traffic at the operating point

| Traffic | open | of | at most, with {{ percent(point.confidence) }} confidence | promise of \
{{ percent(point.max_false_open) }} |
|---|---|---|---|---|
{% for name, record in point.traffic.items() -%}
| {{ name | cell }} | {{ record.open }} | {{ record.n }} | {{ percent(record.bound) }} | \
{{ promise_words(record) }} |
{% endfor %}
{% if point.history %}
Moves of the operating point since the fit: {{ point.history | length }}, the last on \
{{ point.history[-1].date }}.
{% endif %}{% endif %}
{%- if calibration.held_out.open %}
## Gate on held-out prompts

| Prompts | open | 95 % interval | n |
|---|---|---|---|
{% for name, rate in calibration.held_out.open.items() -%}
| {{ name | cell }} | {{ percent(rate.value) }} | {{ percent(rate.low) }} to {{ percent(rate.high) }} \
| {{ rate.n }} |
{% endfor %}
{% set auroc = calibration.held_out.get("auroc") %}{%- if auroc %}
AUROC, harmful against every harmless prompt: {{ "%.3f" | format(auroc.value) }} \
({{ "%.3f" | format(auroc.low) }} to {{ "%.3f" | format(auroc.high) }}).
{% endif %}
{%- for name, area in (calibration.held_out.get("auroc_benign") or {}).items() %}
AUROC, harmful against {{ name | cell }}: {{ "%.3f" | format(area.value) }} \
({{ "%.3f" | format(area.low) }} to {{ "%.3f" | format(area.high) }}).
{% endfor %}{% endif %}
{%- if batch_shift %}
{{ batch_shift }}
{% endif %}
{%- if ends %}
## Begun answers and raw text

A gate of the last token reads prompts that do not end as the chat template ends them. A begun answer is \
judged by the turn before it as well; what is shown here is this gate alone.

| Prompts, held out | open | 95 % interval | n |
|---|---|---|---|
{% for name, rate in ends.items() -%}
| {{ name }} | {{ percent(rate.value) }} | {{ percent(rate.low) }} to {{ percent(rate.high) }} \
| {{ rate.n }} |
{% endfor %}{% endif %}
{%- if calibration.search %}
## Steering, while it was chosen

{% set chosen = calibration.search.chosen %}\
On {{ calibration.search.generated }} harmful prompts of the fitting part, every row steered: \
{{ percent(chosen.refusal) }} refusals\
{% if chosen.get("unended") is not none %} that end, {{ percent(chosen.unended) }} that do not{% endif %}, \
{{ percent(chosen.compliance) }} compliance, \
{{ percent(chosen.gibberish) }} gibberish (built-in rules as judge). \
These prompts took part in the choice; measure on others with `inferaligner generate --compare`.

| Layers | strength | cross-entropy | refusal | gibberish | drift on harmless prompts |
|---|---|---|---|---|---|
{% for trial in finalists(calibration.search) -%}
| {{ span(trial.layers) }}{{ " (chosen)" if loop.first }} \
| {{ strength_words(trial.strength, trial.get("profile")) }} | {{ nats(trial.cross_entropy) }} \
| {{ percent(trial.refusal) }} | {{ percent(trial.gibberish) }} | {{ nats(trial.get("drift")) }} |
{% endfor %}
Cross-entropy is that of the aligned model's answers under the steered target, \
{{ nats(calibration.search.unsteered_cross_entropy) }} nats a token without steering.
{% for words in (false_open_words(calibration.search), order_words(calibration.search)) if words %}
{{ words }}.
{% endfor %}{% endif %}
{%- if monitor %}
## Monitor

{{ monitor }}

{% endif %}
## Limits

The gate is a linear reading of one model's activations. It misses some harmful prompts and opens on some \
harmless ones, at the rates above for prompts like these, and at other rates for other traffic. It is no \
substitute for a policy, for logging or for review.
"""


def model_card(artifact: AlignerArtifact) -> str:
    """The model card of an artifact: Markdown with the hub's metadata block."""
    environment = Environment(undefined=StrictUndefined, autoescape=False)
    environment.filters["cell"] = _cell
    provenance = artifact.provenance
    return environment.from_string(_CARD).render(
        base_model=_hub_id(provenance.target.spec),
        target=provenance.target,
        aligned=provenance.guide,
        gate_only=artifact.gate_only,
        format_words=format_words,
        gate=gate_words(artifact.gate),
        operating_point=operating_point(artifact.calibration),
        steering=artifact.steering,
        calibration={
            "held_out": {"open": {}},
            "search": {},
            **artifact.calibration,
        },
        prompts=provenance.prompts,
        versions=provenance.versions,
        created=provenance.created,
        point=artifact.operating_point,
        promise_words=promise_words,
        percent=percent,
        monitor=monitor_words(artifact),
        span=span,
        strength_words=strength_words,
        nats=lambda value: "-" if value is None else f"{value:.3f}",
        finalists=finalists,
        false_open_words=false_open_words,
        order_words=order_words,
        batch_shift=batch_shift_words(artifact.calibration),
        ends=_ends(artifact.calibration),
    )


def batch_shift_words(calibration: Mapping[str, Any]) -> str | None:
    """The change of scores with the batch, in words; None in artifacts without this measurement."""
    shift = calibration.get("batch_shift")
    if not shift:
        return None
    return (
        f"A prompt's score moved by at most {shift['largest_shift']:.2g} between the prompt alone and in a "
        f"batch ({shift['prompts']} prompts); {shift['near_threshold']} of {shift['of']} ordinary prompts "
        "lie closer to the threshold than that, so their decision may depend on the batch."
    )


def _ends(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Held-out open rates of the gate of begun answers, by the kind of prompt."""
    opened = ((calibration.get("ends") or {}).get("held_out") or {}).get("open") or {}
    words = {
        "opener": "neutral begun answer behind prompts: {}",
        "content": "the begun answer is the prompt: {}",
        "opened content": "the same behind a neutral beginning: {}",
        "raw": "the prompt as raw text: {}",
    }
    named = (name.rpartition(", ") for name in opened)
    return {words[form].format(side): opened[f"{form}, {side}"] for form, _, side in named}


def monitor_words(artifact: AlignerArtifact) -> str | None:
    """The monitor and its operating point, in words; None without a monitor."""
    monitor, point = artifact.monitor, artifact.monitor_point
    if monitor is None:
        return None
    words = (
        f"Answers are read while they are generated: {monitor.kind} at layer {monitor.layer}, averaged over "
        f"{monitor.window} tokens. From the token on at which the score turns positive, a row is steered."
    )
    if point is not None:
        tokens = (artifact.calibration.get("monitor") or {}).get("tokens")
        words += f" On benign prompts' greedy answers of up to {tokens} tokens: {_promises(point)}."
    return words


def gate_words(gate: GuidanceGate) -> str:
    """The kind of a gate and the places it reads, in words."""
    return f"{gate.kind}: {describe_reads([(read.layer, read.offset) for read in gate.reads])}"


def describe_reads(places: Sequence[Sequence[int]]) -> str:
    """`(layer, offset)` pairs in words, such as "layers 3 and 5 at token -1"; tokens count from the prompt's
    end."""
    tokens_of: dict[int, list[int]] = {}
    for layer, offset in places:
        tokens_of.setdefault(layer, []).append(-offset - 1)
    layers_at: dict[tuple[int, ...], list[int]] = {}
    for layer, tokens in tokens_of.items():
        layers_at.setdefault(tuple(tokens), []).append(layer)
    return "; ".join(
        f"{_counted('layer', layers)} at {_counted('token', tokens)}" for tokens, layers in layers_at.items()
    )


def _counted(noun: str, numbers: Sequence[int]) -> str:
    """Such as `layer 3` or `layers 3, 5 and 7`."""
    *others, last = map(str, numbers)
    return f"{noun}s {', '.join(others)} and {last}" if others else f"{noun} {last}"


def operating_point(calibration: Mapping[str, Any]) -> str:
    """The basis of the gate's threshold, in one line."""
    point = read_operating_point(calibration)
    if (point.rule == "paper") if point else calibration.get("paper"):
        return "the paper's: minus the mean projection of the extraction prompts"
    if point is not None and point.held_out:
        return _promises(point)
    limit = point.max_false_open if point else calibration.get("max_false_open")
    if limit is None:
        return "not calibrated"
    words = f"at most {percent(limit)} of benign calibration prompts open it"
    if point is not None and any(record.promised for record in point.traffic.values()):
        words += f"; at most {percent(limit)} of such traffic, with {percent(point.confidence)} confidence"
    return words


def _promises(point: OperatingPoint) -> str:
    own = point.held_out
    kept = [name for name, record in own.items() if record.promised]
    words = []
    if kept:
        each = " each" if len(kept) > 1 else ""
        words.append(
            f"at most {percent(point.max_false_open)} of {', '.join(kept)} opens it,{each} with "
            f"{percent(point.confidence)} confidence"
        )
    words += [
        f"no promise of {percent(point.max_false_open)} for {name} ({record.n} prompts: at most "
        f"{percent(record.bound)})"
        for name, record in own.items()
        if not record.promised
    ]
    return "; ".join(words)


def promise_words(record: TrafficRecord) -> str:
    """Whether the rate is promised for this traffic, in a few words."""
    if record.origin == "out-of-fold":
        return "nominal (out-of-fold scores)" if record.promised else "none (out-of-fold scores)"
    return "yes" if record.promised else "no"


def percent(share: Any) -> str:
    """A share (1 = all) in per cent; a dash for None."""
    if share is None:
        return "-"
    digits = 1 if share == 0 or abs(share) >= 0.001 else 3  # 0.05 % is not "0.1 %"
    return f"{100 * share:.{digits}f} %"


def _cell(text: Any) -> str:
    """Text for a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def _hub_id(spec: str) -> str | None:
    """The hub id that a spec names, or None: the hub refuses cards with any other base_model."""
    repository = spec.partition("@")[0]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository) and not Path(spec).exists():
        return repository
    return None
