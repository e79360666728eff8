"""Whether an aligner fits a loaded model, and whether its gate acts on that model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from inferaligner.aligner import Aligner
from inferaligner.cli.environment import Finding
from inferaligner.models.anatomy import dissect, input_device
from inferaligner.models.fingerprint import differences, fingerprint_model, fingerprint_tokenizer
from inferaligner.models.loading import LoadedModel
from inferaligner.models.number_format import format_words, number_format, other_format
from inferaligner.models.weight_digest import weight_digest
from inferaligner.prompts.chat import encode_chats
from inferaligner.steering.gate_choices import REFUSAL
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import GatePlan, SteeringPlan
from inferaligner.steering.refusal import CannedRefusal

_PROMPT = "Which flour should I take for bread?"

# Larger than any score, and still finite in float32 after a sum.
_FORCED = 1e30
_DEFECT = "please report this, with the model's name"


def compare(aligner: Aligner, loaded: LoadedModel) -> list[Finding]:
    """One finding each for model, width, depth, tokenizer, chat template, number format and weights."""
    expected = aligner.artifact.provenance.target
    anatomy = dissect(loaded.model)
    depth, width = aligner.artifact.srv.shape
    tokenizer = fingerprint_tokenizer(loaded.reader)
    template = tokenizer.chat_template_sha256 == expected.tokenizer.chat_template_sha256
    # The template has a line of its own; all other differences are the tokenizer's.
    other = differences(
        tokenizer.model_copy(update={"chat_template_sha256": expected.tokenizer.chat_template_sha256}),
        expected.tokenizer,
    )
    return [
        _finding("model", differences(fingerprint_model(loaded.model), expected.model), _name(loaded)),
        _finding("width", _number("width", anatomy.width, width), str(width)),
        _finding("depth", _number("depth", anatomy.depth, depth), str(depth)),
        _finding("tokenizer", other, f"{len(loaded.tokenizer)} tokens"),
        _finding("chat template", [] if template else ["the chat template is another one"], "the same"),
        _format(aligner, loaded),
        *_weights(aligner, loaded),
    ]


def _weights(aligner: Aligner, loaded: LoadedModel) -> list[Finding]:
    """The finding about the weights; none if they cannot be compared."""
    provenance = aligner.artifact.provenance
    if (
        provenance.target.weights is None
        or differences(fingerprint_model(loaded.model), provenance.target.model)
        or other_format(loaded.model, provenance.versions) is not None
    ):
        return []
    if weight_digest(loaded.model) == provenance.target.weights:
        return [Finding("weights", "ok", "the same")]
    return [
        Finding(
            "weights",
            "doubtful",
            "other weights than the aligner was fitted on, or an adapter merged on another device",
            "check the scores with doctor … --rescore; after more training, fit again",
        )
    ]


def _format(aligner: Aligner, loaded: LoadedModel) -> Finding:
    difference = other_format(loaded.model, aligner.artifact.provenance.versions)
    if difference is None:
        return Finding("number format", "ok", format_words(number_format(loaded.model)))
    return Finding("number format", "doubtful", difference, "check the scores with doctor … --rescore")


@torch.no_grad()
def self_test(aligner: Aligner, loaded: LoadedModel) -> list[Finding]:
    """Forces the gate open and closed on one prompt: open must change the logits, closed no bit of them."""
    if aligner.artifact.gate_only:
        return _self_test_of_refusal(aligner, loaded)
    model: Any = loaded.model
    plan = aligner.plan()
    system = aligner.artifact.provenance.system_prompt
    ids = torch.tensor(encode_chats(loaded.reader, [_PROMPT], system=system)).to(input_device(model))

    def logits(bias: float | None) -> Tensor:
        if bias is None:
            return torch.as_tensor(model(input_ids=ids).logits)
        forced = SteeringPlan(plan.gate.with_bias(bias), plan.additions, plan.positions)
        with Guard(model, forced):
            return torch.as_tensor(model(input_ids=ids).logits)

    bare = logits(None)
    changed = not torch.equal(logits(_FORCED), bare)
    same = torch.equal(logits(-_FORCED), bare)
    return [
        Finding("gate forced open", "ok", "the logits change")
        if changed
        else Finding(
            "gate forced open", "differs", "the logits do not change: steering has no effect", _DEFECT
        ),
        _closed(same),
    ]


def _self_test_of_refusal(aligner: Aligner, loaded: LoadedModel) -> list[Finding]:
    """The self-test of a gate alone: open must give the refusal, closed change no bit of the logits."""
    model: Any = loaded.model
    gate = aligner.artifact.gate
    refusal = CannedRefusal.of(REFUSAL, loaded.tokenizer)
    system = aligner.artifact.provenance.system_prompt
    ids = torch.tensor(encode_chats(loaded.reader, [_PROMPT], system=system)).to(input_device(model))

    def generate(bias: float | None) -> tuple[Tensor, Tensor]:
        guard = None if bias is None else Guard(model, GatePlan(gate.with_bias(bias)), "gate", refusal)
        with nullcontext() if guard is None else guard:
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=len(refusal.tokens),
                min_new_tokens=len(refusal.tokens),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=loaded.tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return output.sequences[0, ids.shape[1] :], torch.stack(output.logits)

    bare = generate(None)
    refused = generate(_FORCED)[0].tolist() == list(refusal.tokens)
    same = all(torch.equal(*pair) for pair in zip(generate(-_FORCED), bare, strict=True))
    return [
        Finding("gate forced open", "ok", "the answer is the refusal")
        if refused
        else Finding("gate forced open", "differs", "the answer is not the refusal", _DEFECT),
        _closed(same),
    ]


def _closed(same: bool) -> Finding:
    if same:
        return Finding("gate forced closed", "ok", "logits bit-identical to the bare model's")
    return Finding("gate forced closed", "differs", "the logits differ from the bare model's", _DEFECT)


def _finding(name: str, differing: list[str], value: str) -> Finding:
    if not differing:
        return Finding(name, "ok", value)
    return Finding(
        name,
        "differs",
        "; ".join(differing),
        "use the model that the aligner was fitted on, or fit an aligner for this one",
    )


def _number(name: str, actual: int, expected: int) -> list[str]:
    return [] if actual == expected else [f"the {name} is {actual}, expected {expected}"]


def _name(loaded: LoadedModel) -> str:
    return f"{type(loaded.model).__name__} from {loaded.spec}"
