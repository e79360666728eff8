"""The model card that is written beside every artifact."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, StrictUndefined

from inferaligner.artifact import AlignerArtifact

_CARD = """\
---
library_name: inferaligner
tags: [inferaligner, safety, alignment, steering-vectors]
base_model: {{ target.spec | tojson }}
---

# Aligner for `{{ target.spec }}`

An [InferAligner](https://arxiv.org/abs/2401.11206) artifact: a guidance gate that looks at the end of each prompt, and \
safety steering vectors taken from `{{ aligned.spec }}`. Prompts that do not open the gate get exactly the \
base model's output.

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
| Gate | {{ gate.kind }}, reads {% for read in gate.reads %}layer {{ read.layer }} at token -{{ read.offset + 1 }}\
{{ ", " if not loop.last }}{% endfor %} |
| Operating point | at most {{ percent(calibration.max_false_open) }} of benign calibration prompts open it |
| Steered layers | {{ steering.layers | join(", ") }} |
| Strength | {{ "%.3g" | format(steering.strength) }} × {{ "SSV of length one" if steering.norm == "unit" else \
"SSV as extracted" }} |
| Positions | {{ steering.positions }} |
| Prompts | {{ prompts.source }}: {{ prompts.harmful }} harmful, {{ prompts.harmless }} harmless |
| Made | {{ created }}, inferaligner {{ versions.inferaligner }}, target in {{ versions["target dtype"] }} |

{% if calibration.held_out.open %}
## Gate on held-out prompts

| Prompts | open | 95 % interval | n |
|---|---|---|---|
{% for name, rate in calibration.held_out.open.items() -%}
| {{ name }} | {{ percent(rate.value) }} | {{ percent(rate.low) }} to {{ percent(rate.high) }} | {{ rate.n }} |
{% endfor %}
{%- if calibration.held_out.auroc %}
AUROC, harmful against every harmless prompt: {{ "%.3f" | format(calibration.held_out.auroc.value) }} \
({{ "%.3f" | format(calibration.held_out.auroc.low) }} to {{ "%.3f" | format(calibration.held_out.auroc.high) }}).
{% endif %}{% endif %}
{%- if calibration.search %}
## Steering, while it was chosen

On {{ calibration.search.generated }} harmful prompts of the fitting part, every row steered: \
{{ percent(calibration.search.chosen.refusal) }} refusals, {{ percent(calibration.search.chosen.compliance) }} \
compliance, {{ percent(calibration.search.chosen.gibberish) }} gibberish (built-in rules as judge). \
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
    provenance = artifact.provenance
    return environment.from_string(_CARD).render(
        target=provenance.target,
        aligned=provenance.aligned,
        gate=artifact.gate,
        steering=artifact.steering,
        calibration={"held_out": {"open": {}}, "search": {}, **artifact.calibration},
        prompts=provenance.prompts,
        versions=provenance.versions,
        created=provenance.created,
        percent=_percent,
    )


def _percent(share: Any) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
