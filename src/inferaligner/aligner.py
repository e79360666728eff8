"""The public class: fit an aligner, apply it, save it, load it.

aligner = Aligner.fit(target, tokenizer, aligned=aligned, benign=my_prompts, max_false_open=0.01)
with aligner.apply(target) as guard:
    out = target.generate(**inputs)
guard.decisions
aligner.save_pretrained("my-aligner")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import ArtifactError, InputError, MismatchError, SteeringError
from inferaligner.fit.fit import fit_artifact
from inferaligner.fit.operating_point.benign_traffic import unseen
from inferaligner.fit.operating_point.recalibrate import recalibrate
from inferaligner.fit.options import MONITOR_TOKENS, Carry, FitModel, FitOptions
from inferaligner.fit.picture_samples import Pictures, with_pictures
from inferaligner.fit.progress import Stages
from inferaligner.fit.samples import Samples, samples_from_contrast, samples_from_lists
from inferaligner.fit.transfer.linear_map import LayerMatch, MapKind
from inferaligner.judges.rules import judge
from inferaligner.method.activations import Recorder, record_activations
from inferaligner.method.decision import Decision
from inferaligner.models.fingerprint import differences, fingerprint_model, fingerprint_tokenizer
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.encoding import Reader, tokenizer_of
from inferaligner.prompts.images import Prompt
from inferaligner.steering.end_check import EndCheck, OnUnknownEnd
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import GatePlan, Mode, Positions, SteeringPlan
from inferaligner.steering.refusal import REFUSAL, CannedRefusal, OnOpen
from inferaligner.storage.model_card import model_card
from inferaligner.storage.paths import expanded

Source = Literal["aligned", "target"]


class Aligner:
    """A guidance gate with steering vectors, fitted for one target model."""

    def __init__(self, artifact: AlignerArtifact) -> None:
        self.artifact = artifact

    # -- fit -----------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        target: PreTrainedModel,
        tokenizer: Reader,
        *,
        aligned: PreTrainedModel | None = None,
        aligned_tokenizer: Reader | None = None,
        harmful: Sequence[Prompt] | None = None,
        harmless: Sequence[Prompt] | None = None,
        benign: Sequence[Prompt] | Mapping[str, Sequence[Prompt]] | None = None,
        pictures: Pictures = "none",
        max_false_open: float | None = None,
        confidence: float = 0.95,
        gate_layer: int | None = None,
        steer_layers: Sequence[int] | None = None,
        strength: float | None = None,
        positions: Positions | None = None,
        paper: bool = False,
        system: str | None = None,
        carry: Carry | None = None,
        match_layers: LayerMatch = "best",
        map_kind: MapKind | None = None,
        accept_poor_map: bool = False,
        monitor: bool = False,
        monitor_tokens: int = MONITOR_TOKENS,
        target_name: str | None = None,
        aligned_name: str | None = None,
        sources: Sequence[str] = ("harmful prompts", "harmless prompts"),
        stages: Stages | None = None,
        recorder: Recorder | None = None,
    ) -> Aligner:
        """Extracts, calibrates and returns an aligner; nothing about either model is changed.

        Args:
            target: the fine-tuned model, exactly as it will be served.
            aligned: a sibling that declines harmful requests. Without one the result is a gate alone, to be
                used with `apply(on_open="refuse")`. A model of another width or depth guides through its
                answers or a map (`carry`, docs/transfer.md); it needs its `aligned_tokenizer`.
            tokenizer: the target's; of a vision-language model its processor, to read prompts with pictures.
            harmful, harmless: prompts to use instead of the shipped contrast set; both or neither.
            pictures: "some" shows a target that sees some of these prompts in pictures too (docs/vision.md).
                The aligned model is asked the same in text.
            benign: your own traffic, a list or lists by name. Never fitted on; at most `max_false_open`
                (0.02 by default) of each opens the gate, with this `confidence` (docs/calibration.md says
                what is assumed, and how many prompts it takes). Without it, `max_false_open` (0.08 by
                default) is a limit for the contrast set's ordinary prompts, which are harder than traffic.
            gate_layer, steer_layers, strength, positions: fix a choice that is otherwise made from data.
            paper: the paper's own choices for whatever is not fixed.
            system: the system prompt that the model is served with, if any.
            carry: how an aligned model of another shape guides: "answers", by vectors that are learned from
                them (the default), or "map", by its own vectors through a linear map. A sibling of the
                target's shape guides by its own vectors as they are, unless "answers" is asked for.
            match_layers, map_kind, accept_poor_map: how that map is made, and whether one that explains too
                little is used all the same.
            monitor: fit an answer monitor too, which `apply` then uses (docs/monitor.md). The target answers
                some of these prompts for it, `monitor_tokens` tokens each; no answer is written or kept.
            recorder: records the target's activations in place of `target`: an engine that serves it.

        Raises:
            CalibrationError: the models do not fit each other, or the data allow no choice.
            InputError: an unusable prompt or option.
        """
        if steer_layers is not None and not steer_layers:
            raise InputError(
                "steer_layers is empty; give the layers to steer, or None to choose them from data."
            )
        options = FitOptions(
            max_false_open=max_false_open,
            confidence=confidence,
            gate_layer=gate_layer,
            steer_layers=None if steer_layers is None else tuple(sorted(set(steer_layers))),
            strength=strength,
            positions=positions,
            paper=paper,
            system=system,
            carry=carry,
            match_layers=match_layers,
            map_kind=map_kind,
            accept_poor_map=accept_poor_map,
            monitor=monitor,
            monitor_tokens=monitor_tokens,
        )
        artifact = fit_artifact(
            FitModel(target, tokenizer, target_name or _name(target), recorder),
            None
            if aligned is None
            else FitModel(aligned, aligned_tokenizer or tokenizer, aligned_name or _name(aligned)),
            _shown(_samples(harmful, harmless, sources), pictures),
            benign={} if benign is None else _by_name(benign),
            options=options,
            outcome=lambda answer: judge(answer).outcome,
            stages=stages,
        )
        return cls(artifact)

    def calibrate(
        self,
        model: PreTrainedModel,
        tokenizer: Reader,
        benign: Sequence[Prompt] | Mapping[str, Sequence[Prompt]],
        *,
        max_false_open: float | None = None,
        confidence: float | None = None,
    ) -> Aligner:
        """The same aligner at the operating point that this traffic sets; nothing is extracted anew.

        The threshold rests on exactly the prompts given here, by name if there are several kinds, and may
        fall as well as rise. None keeps the aligner's own `max_false_open` and `confidence`. Prompts of the
        shipped contrast set that the gate was fitted on are left out.

        Raises:
            CalibrationError: no prompts, or none that the gate was not fitted on.
            MismatchError: another model or tokenizer than the aligner's.
        """
        traffic, _ = unseen(_by_name(benign), self.fitted_prompts())
        scores = {
            name: [decision.score for decision in self.score(model, tokenizer, prompts)]
            for name, prompts in traffic.items()
        }
        return Aligner(
            recalibrate(self.artifact, scores, max_false_open=max_false_open, confidence=confidence)
        )

    def fitted_prompts(self) -> list[str]:
        """What the gate was fitted on, where that can be known: the shipped contrast set."""
        contrast = load_contrast_set()
        prompts = self.artifact.provenance.prompts
        if prompts.get("text digest", prompts.get("digest")) != contrast.digest():
            return []
        return [sample.text for sample in samples_from_contrast(contrast).fitting]

    # -- apply ---------------------------------------------------------------------------------------

    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: Reader | None = None,
        *,
        mode: Mode = "gate",
        source: Source = "aligned",
        on_open: OnOpen = "steer",
        refusal: str | None = None,
        monitor: bool = True,
        on_unknown_end: OnUnknownEnd = "warn",
    ) -> Guard:
        """A context that gates and steers `model` while it is open; the model is left as it was.

        `mode` and `source` are for controls: always-on steering, shadow mode, the target's own vectors.
        With `on_open="refuse"` nothing is steered, and every open row's answer is the text `refusal`; this
        needs the tokenizer, and calls of `generate`. `max_new_tokens` cuts that text as it would any other.
        An aligner with a monitor reads answers too, unless `monitor` is False.

        With the tokenizer, a prompt that goes on behind the chat template's end is gated there and where it
        really ends; `on_unknown_end` says what becomes of one whose end the gates were not fitted on. Without
        it nothing of that can be seen, which is said once.

        Raises:
            MismatchError: the model (or the tokenizer, where given) is not the one it was fitted on.
            InputError: a refusal that cannot be written, or without `on_open="refuse"`; a monitor with it.
            SteeringError: the aligner is a gate alone, and is asked to steer.
        """
        self.check(model, tokenizer)
        ends = EndCheck.of(tokenizer, on_unknown_end, calibrated=self.artifact.end_gate is not None)
        if on_open == "refuse":
            if tokenizer is None:
                raise InputError('on_open="refuse" needs the tokenizer: give apply(model, tokenizer, …).')
            if monitor and self.artifact.monitor is not None:
                raise InputError(
                    "This aligner has a monitor, which steers answers that have begun; with "
                    'on_open="refuse" nothing is steered. Give monitor=False to leave answers unread.'
                )
            text = CannedRefusal.of(REFUSAL if refusal is None else refusal, tokenizer_of(tokenizer))
            return Guard(model, self.gate_plan(), mode, text, ends)
        if refusal is not None:
            raise InputError('A refusal was given without on_open="refuse"; give both, or neither.')
        if self.artifact.gate_only and mode == "never":
            return Guard(model, self.gate_plan(), mode, end_check=ends)
        return Guard(model, self.plan(source, monitor=monitor), mode, end_check=ends)

    def plan(self, source: Source = "aligned", *, monitor: bool = True) -> SteeringPlan:
        """What an engine needs: the gate, α·θ_l per layer, and the monitor where there is one.

        Raises `SteeringError` for a gate alone.
        """
        artifact = self.artifact
        if artifact.gate_only:
            raise SteeringError(
                "This aligner is a gate alone, fitted without an aligned model: it has nothing to steer "
                'with. Answer open prompts with a text: --on-open refuse, or apply(on_open="refuse").'
            )
        return SteeringPlan(
            artifact.gate,
            artifact.additions(source),
            artifact.steering.positions,
            artifact.monitor if monitor else None,
            artifact.end_gate,
        )

    def gate_plan(self) -> GatePlan:
        """What an engine needs where nothing is to be steered: the gate alone."""
        return GatePlan(self.artifact.gate, end_gate=self.artifact.end_gate)

    def check(self, model: PreTrainedModel, tokenizer: Reader | None = None) -> None:
        """Raises `MismatchError`, naming every difference, unless this aligner was fitted on such a model."""
        expected = self.artifact.provenance.target
        found = differences(fingerprint_model(model), expected.model)
        if tokenizer is not None:
            found += differences(fingerprint_tokenizer(tokenizer), expected.tokenizer)
        if found:
            raise MismatchError(
                f"This aligner was fitted on {expected.spec}, and the model here is another one: "
                + "; ".join(found)
                + ". Use the model it was fitted on, or fit an aligner for this one."
            )

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: Reader,
        prompts: Sequence[Prompt],
        *,
        advance: Callable[[int], None] | None = None,
    ) -> list[Decision]:
        """The gate's decision on each prompt, without generating: the forward stops at the gate's last
        layer."""
        self.check(model, tokenizer)
        gate = self.artifact.gate
        ids = encode_chats(
            tokenizer,
            prompts,
            system=self.artifact.provenance.system_prompt,
            max_length=context_length(model.config),
        )
        recorded = record_activations(model, ids, layers=gate.layers, offsets=gate.offsets, advance=advance)
        return gate.decide(gate.scores(recorded.values, recorded.layers, recorded.offsets))

    # -- keep ----------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the artifact with its model card, atomically; replaces an aligner that is there."""
        return self.artifact.write(folder, model_card(self.artifact))

    @classmethod
    def from_pretrained(cls, place: str | Path) -> Aligner:
        """Loads and verifies an artifact from a folder, or from the hub (`owner/name`)."""
        folder = expanded(place)
        if not os.path.exists(folder) and _looks_like_hub_id(str(place)):
            folder = _download(str(place))
        return cls(AlignerArtifact.read(folder))

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads the artifact and its card; returns the address of the commit."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "aligner")
            info = api.upload_folder(
                folder_path=str(folder), repo_id=repository, commit_message="Upload an InferAligner aligner"
            )
        return str(info.commit_url)


def _samples(
    harmful: Sequence[Prompt] | None, harmless: Sequence[Prompt] | None, sources: Sequence[str]
) -> Samples:
    if harmful is None and harmless is None:
        return samples_from_contrast(load_contrast_set())
    if harmful is None or harmless is None:
        raise InputError(
            "Harmful and harmless prompts belong together: give both, or neither for the shipped contrast "
            "set."
        )
    return samples_from_lists(harmful, harmless, sources)


def _shown(samples: Samples, pictures: Pictures) -> Samples:
    return with_pictures(samples) if pictures == "some" else samples


def _by_name(benign: Sequence[Prompt] | Mapping[str, Sequence[Prompt]]) -> dict[str, Sequence[Prompt]]:
    return dict(benign) if isinstance(benign, Mapping) else {"benign": benign}


def _name(model: PreTrainedModel) -> str:
    return str(getattr(model.config, "_name_or_path", "") or type(model).__name__)


def _looks_like_hub_id(place: str) -> bool:
    return place.count("/") == 1 and not place.startswith((".", "/", "~"))


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repository, allow_patterns=["aligner.json", "vectors.safetensors", "README.md"])
        )
    except Exception as error:  # its own errors, and whatever the HTTP library of the day raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"{repository} is neither a folder here nor an aligner that the hub could deliver ({reason}). "
            "Check the spelling and the folder you are in."
        ) from None
