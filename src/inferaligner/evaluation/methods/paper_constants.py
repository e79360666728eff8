"""The paper's gate and constants, made from an aligner's vectors; the aligned model is not needed.

The gate reads one layer, the most accurate on 64 harmful and 64 harmless prompts of the fitting part. Its
weight is the unit SRV of these prompts, its bias minus their mean projection. Steering adds 4 times the unit
SSV at all positions, from the gate's layer to three quarters of the depth. The SSV is the artifact's, even if
the artifact steers with vectors learned from answers.
"""

from dataclasses import replace

from inferaligner.aligner import Aligner
from inferaligner.evaluation.methods.gated import GatedSteering
from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.fit.gate.gate_choice import paper_gate
from inferaligner.fit.samples import Sample, samples_from_contrast
from inferaligner.fit.strength.steering_choice import PAPER_STRENGTH, paper_layers
from inferaligner.method.activations import record_activations
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.contrast import load_contrast_set

NAME = "paper"
NEEDS = "vectors"
OPTION_IS_PATH = True
_PER_CLASS = 64


def make(context: MethodContext, option: str) -> Method:
    """With `paper=DIR` the aligner that `fit --paper` wrote there; else one is made as described above."""
    paper = Aligner.from_pretrained(option) if option else _with_constants(context)
    return GatedSteering(NAME, "paper's gate and constants", context, paper)


def _with_constants(context: MethodContext) -> Aligner:
    artifact, target = context.need_aligner(NAME).artifact, context.target
    samples = _extraction()
    ids = encode_chats(
        target.reader,
        [sample.text for sample in samples],
        system=context.system,
        max_length=context_length(target.model.config),
    )
    gate = paper_gate(record_activations(target.model, ids), samples)
    steered = artifact.with_steering(
        layers=paper_layers(gate, len(artifact.ssv)), strength=PAPER_STRENGTH, norm="unit", positions="all"
    )
    return Aligner(replace(steered, gate=gate, monitor=None, learned=None))  # the paper has neither


def _extraction() -> list[Sample]:
    rows = [
        s for s in samples_from_contrast(load_contrast_set()).fitting if s.group == "pairs" and not s.wrapped
    ]
    rows.sort(key=lambda sample: (sample.fold(251), sample.content))
    harmful, harmless = ([s for s in rows if s.harmful is wanted][:_PER_CLASS] for wanted in (True, False))
    return [*harmful, *harmless]
