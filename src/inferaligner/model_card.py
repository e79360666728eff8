"""The model card that is written beside every artifact."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from inferaligner.artifact import AlignerArtifact
from inferaligner.gate import GuidanceGate

_CARD = """\
---
library_name: inferaligner
tags: [inferaligner, safety, alignment, steering-vectors]
{% if base_model %}base_model: {{ base_model | tojson }}
{% endif %}---

# Aligner for `{{ target.spec }}`

An [InferAligner](https://arxiv.org/abs/2401.11206) artifact: a guidance gate that looks at \
the end of each prompt, and safety steering vectors taken from `{{ aligned.spec }}`. Prompts that do not \
open the gate get exactly the base model's output.

```python
from inferaligner import Aligner

with Aligner.from_pretrained("THIS FOLDER").apply(model, tokenizer) as guard:
    model.generate(**inputs)
guard.decisions
```

| Setting | Value |
|---|---|
| Target | `{{ target.spec }}`: {{ target.model.architecture }}, {{ target.model.depth }} layers of width \
{{ target.model.width }} |
| Aligned model | `{{ aligned.spec }}` |
| Gate | {{ gate }} |
| Operating point | {{ operating_point }} |
| Steered layers | {{ steering.layers | join(", ") }} |
| Strength | {{ "%.3g" | format(steering.strength) }} × \
{{ "SSV of length one" if steering.norm == "unit" else "SSV as extracted" }} |
| Positions | {{ steering.positions }} |
| Prompts | {{ prompts.source | default("-") | cell }}: {{ prompts.harmful | default("-") }} harmful, \
{{ prompts.harmless | default("-") }} harmless |
| Made | {{ created }}, inferaligner {{ versions.inferaligner | default("-") }}, target in \
{{ versions["target dtype"] | default("-") }} |

{% if calibration.held_out.open %}
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
{% endif %}{% endif %}
{%- if calibration.search %}
## Steering, while it was chosen

{% set chosen = calibration.search.chosen %}\
On {{ calibration.search.generated }} harmful prompts of the fitting part, every row steered: \
{{ percent(chosen.refusal) }} refusals, {{ percent(chosen.compliance) }} compliance, \
{{ percent(chosen.gibberish) }} gibberish (built-in rules as judge). \
These prompts took part in the choice; measure on others with `inferaligner generate --compare`.
{% endif %}
## Limits

The gate is a linear reading of one model's activations. It misses some harmful prompts and opens on some \
harmless ones, at the rates above for prompts like these, and at other rates for other traffic. It is no \
substitute for a policy, for logging or for review.
"""


def model_card(artifact: AlignerArtifact) -> str:
    """The card as Markdown with the hub's metadata block."""
    environment = Environment(undefined=StrictUndefined, autoescape=False)
    environment.filters["cell"] = _cell
    provenance = artifact.provenance
    return environment.from_string(_CARD).render(
        base_model=_hub_id(provenance.target.spec),
        target=provenance.target,
        aligned=provenance.aligned,
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
        percent=percent,
    )


def gate_words(gate: GuidanceGate) -> str:
    """How a gate is made and where it looks."""
    return f"{gate.kind}: {reads_words([(read.layer, read.offset) for read in gate.reads])}"


def reads_words(places: Sequence[Sequence[int]]) -> str:
    """`(layer, offset)` pairs in words; tokens are counted from the prompt's end."""
    return ", ".join(f"layer {layer} at token -{offset + 1}" for layer, offset in places)


def operating_point(calibration: Mapping[str, Any]) -> str:
    """Where the gate's threshold came from."""
    if calibration.get("paper"):
        return "the paper's: minus the mean projection of the extraction prompts"
    if calibration.get("max_false_open") is None:
        return "not calibrated"
    return f"at most {percent(calibration['max_false_open'])} of benign calibration prompts open it"


def percent(share: Any) -> str:
    """A share of one as per cent; a dash where nothing was measured."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _cell(text: Any) -> str:
    """Text in a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def _hub_id(spec: str) -> str | None:
    """The model on the hub that a spec names; the hub refuses a card whose base_model is anything else."""
    repository = spec.partition("@")[0]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository) and not Path(spec).exists():
        return repository
    return None
