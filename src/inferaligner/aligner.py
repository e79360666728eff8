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
from typing import TYPE_CHECKING, Literal

from transformers import PreTrainedModel

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import ArtifactError, InputError, MismatchError, SteeringError
from inferaligner.fit.context import FitContext, FitModel
from inferaligner.fit.fit import fit_artifact
from inferaligner.fit.operating_point.benign_traffic import unseen
from inferaligner.fit.operating_point.recalibrate import recalibrate
from inferaligner.fit.options import FitChoices, FitOptions, documents_choices
from inferaligner.fit.picture_samples import with_pictures
from inferaligner.fit.progress import NullProgress, Progress
from inferaligner.fit.samples import Samples, samples_from_contrast, samples_from_lists
from inferaligner.judges.rules import judge
from inferaligner.method.activations import Recorder, record_activations
from inferaligner.method.gate import Decision
from inferaligner.models.fingerprint import differences, fingerprint_model, fingerprint_tokenizer
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.encoding import Reader, tokenizer_of
from inferaligner.prompts.images import Prompt
from inferaligner.steering.end_check import EndCheck, OnUnknownEnd
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import GatePlan, Mode, SteeringPlan
from inferaligner.steering.refusal import REFUSAL, CannedRefusal, OnOpen
from inferaligner.storage.model_card import model_card
from inferaligner.storage.paths import expanded

if TYPE_CHECKING:
    from typing_extensions import Unpack

Source = Literal["aligned", "target"]


class Aligner:
    """A guidance gate with steering vectors, fitted for one target model."""

    def __init__(self, artifact: AlignerArtifact) -> None:
        self.artifact = artifact

    # -- fit -----------------------------------------------------------------------------------------

    @classmethod
    @documents_choices
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
        target_name: str | None = None,
        aligned_name: str | None = None,
        sources: Sequence[str] = ("harmful prompts", "harmless prompts"),
        progress: Progress | None = None,
        recorder: Recorder | None = None,
        **choices: Unpack[FitChoices],
    ) -> Aligner:
        """Fits an aligner for `target`; neither model is changed.

        Args:
            target: the fine-tuned model, exactly as it will be served.
            tokenizer: the target's; of a vision-language model its processor, to read prompts with pictures.
            aligned: a sibling that declines harmful requests. Without one the result is a gate alone, to be
                used with `apply(on_open="refuse")`. A model of another width or depth guides through its
                answers or a map (`carry`, docs/transfer.md); it needs its `aligned_tokenizer`.
            aligned_tokenizer: the aligned model's; None takes the target's.
            harmful, harmless: prompts to use instead of the shipped contrast set; both or neither.
            benign: your own traffic, a list or lists by name. Never fitted on; docs/calibration.md says what
                bound holds for it, and how many prompts it takes.
            target_name, aligned_name: names for the artifact; None takes the models' own.
            sources: names of the files of `harmful` and `harmless`, for the artifact.
            progress: a listener to stages and notes.
            recorder: records the target's activations in place of `target`: an engine that serves it.
            choices: {choices}

        Raises:
            CalibrationError: the models do not fit each other, or the data allow no choice.
            InputError: an unusable prompt, a choice out of range, or choices that exclude each other.

        Example:
            aligner = Aligner.fit(target, tokenizer, aligned=aligned, benign=my_prompts, max_false_open=0.01)
            aligner.save_pretrained("my-aligner")
        """
        options = FitOptions(**choices)
        samples = _samples(harmful, harmless, sources)
        context = FitContext(
            FitModel(target, tokenizer, target_name or _name(target), recorder),
            None
            if aligned is None
            else FitModel(aligned, aligned_tokenizer or tokenizer, aligned_name or _name(aligned)),
            with_pictures(samples) if options.pictures == "some" else samples,
            lambda answer: judge(answer).outcome,
            options,
            {} if benign is None else _by_name(benign),
            progress or NullProgress(),
        )
        return cls(fit_artifact(context))

    def calibrate(
        self,
        model: PreTrainedModel,
        tokenizer: Reader,
        benign: Sequence[Prompt] | Mapping[str, Sequence[Prompt]],
        *,
        max_false_open: float | None = None,
        confidence: float | None = None,
    ) -> Aligner:
        """Returns the same aligner at the operating point that this traffic sets; nothing is extracted anew.

        Args:
            model, tokenizer: the target, which scores the prompts.
            benign: exactly the traffic that the threshold will rest on, a list or lists by name. The
                threshold may fall as well as rise. Prompts of the shipped contrast set that the gate was
                fitted on are left out.
            max_false_open, confidence: of the bound; None keeps the aligner's own.

        Raises:
            CalibrationError: no prompts, or only prompts that the gate was fitted on.
            InputError: a share that is not between 0 and 1.
            MismatchError: another model or tokenizer than the aligner's.

        Example:
            moved = aligner.calibrate(target, tokenizer, {"support desk": my_prompts}, max_false_open=0.005)
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
        """The prompts that the gate was fitted on, if they are the shipped contrast set's; else none."""
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
