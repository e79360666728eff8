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
from inferaligner.errors import ArtifactError, InputError, MismatchError
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
from inferaligner.method.decision import Decision
from inferaligner.models.fingerprint import differences, fingerprint_model, fingerprint_tokenizer
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.encoding import Reader, tokenizer_of
from inferaligner.prompts.images import Prompt
from inferaligner.steering.end_check import EndCheck, OnUnknownEnd
from inferaligner.steering.gate_choices import OnOpen
from inferaligner.steering.gate_policy import GatePolicy
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import GatePlan, Mode, SteeringPlan
from inferaligner.steering.refusal import CannedRefusal
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
        """Returns the same aligner at the operating point that this traffic sets; nothing is extracted again.

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
        """Returns a context manager that gates and steers `model` inside the `with` block only.

        Args:
            model: the model that the aligner was fitted on.
            tokenizer: its tokenizer, or the processor of a model that sees. With it, a prompt that
                continues after the chat template's end is scored at both ends; without it, such prompts are
                not recognised, and one warning is given.
            mode: "gate" lets the gate decide; "always" steers every row (a control for experiments); "never"
                decides and reports only (shadow mode).
            source: "aligned" steers with the aligned model's vectors, "target" with the target's own (a
                control for experiments).
            on_open: "steer", or "refuse": then every open row's answer is the text `refusal`, and nothing is
                steered. It needs `tokenizer`, and works only in `generate`; `max_new_tokens` cuts the text
                like any other.
            refusal: that text; by default "I'm sorry, but I can't help with that."
            monitor: read answers too, if the aligner has a monitor.
            on_unknown_end: what happens to a prompt whose end the gates were not fitted on: "warn", "refuse"
                (an error), or "allow".

        Returns:
            A guard, to be entered with `with`; its `decisions` has the score and decision of each row.

        Raises:
            MismatchError: the model (or the tokenizer, where given) is not the one it was fitted on.
            InputError: choices that do not go together, or a refusal that the tokenizer cannot write.
            SteeringError: the aligner has no steering vectors, and these arguments require them.

        Example:
            with aligner.apply(model, tokenizer) as guard:
                output = model.generate(**inputs)
            guard.decisions[0].open
        """
        policy = GatePolicy.from_choices(
            shadow=mode == "never", on_open=on_open, refusal=refusal, monitor=monitor
        )
        self.check(model, tokenizer)
        plan = self.plan_for(policy, source)
        ends = EndCheck.of(tokenizer, on_unknown_end, calibrated=self.artifact.end_gate is not None)
        text = None
        if policy.refusal_text is not None:
            if tokenizer is None:
                raise InputError('on_open="refuse" needs the tokenizer: give apply(model, tokenizer, …).')
            text = CannedRefusal.of(policy.refusal_text, tokenizer_of(tokenizer))
        return Guard(model, plan, mode, text, ends)

    def plan_for(self, policy: GatePolicy, source: Source = "aligned") -> SteeringPlan:
        """The plan that an engine enforces under a policy: the gate alone where it refuses or has no vectors.

        Raises:
            InputError, SteeringError: as `GatePolicy.check`.
        """
        policy.check(self.artifact)
        if policy.on_open == "refuse" or self.artifact.gate_only:
            return self.gate_plan()
        return self.plan(source, monitor=policy.monitor)

    def plan(self, source: Source = "aligned", *, monitor: bool = True) -> SteeringPlan:
        """The gate, α·θ_l per steered layer, and the monitor where there is one.

        Args:
            source: whose vectors are added, the aligned model's or the target's own.
            monitor: False leaves the monitor out.

        Raises:
            SteeringError: the aligner has no steering vectors.
        """
        GatePolicy(monitor=monitor).check(self.artifact)
        artifact = self.artifact
        return SteeringPlan(
            artifact.gate,
            artifact.additions(source),
            artifact.steering.positions,
            artifact.monitor if monitor else None,
            artifact.end_gate,
        )

    def gate_plan(self) -> GatePlan:
        """The gate without steering vectors, for engines that refuse or only report."""
        return GatePlan(self.artifact.gate, end_gate=self.artifact.end_gate)

    def check(self, model: PreTrainedModel, tokenizer: Reader | None = None) -> None:
        """Raises `MismatchError`, naming every difference, unless this is the model it was fitted on."""
        expected = self.artifact.provenance.target
        different = differences(fingerprint_model(model), expected.model)
        if tokenizer is not None:
            different += differences(fingerprint_tokenizer(tokenizer), expected.tokenizer)
        if different:
            raise MismatchError(
                f"This aligner was fitted on {expected.spec}, and the model here is another one: "
                + "; ".join(different)
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
        """Scores prompts with the gate, without generating: the forward pass stops at the gate's last layer.

        Args:
            model: the model that the aligner was fitted on.
            tokenizer: its tokenizer, or the processor of a model that sees.
            prompts: texts, conversations or prompts with pictures, rendered with the chat template here.
            advance: called with the number of prompts that a batch has scored.

        Returns:
            One decision per prompt, in their order.

        Raises:
            MismatchError: another model or tokenizer than the aligner's.
            PromptTooLongError: a prompt does not fit into the model's context.
        """
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
        """Writes the artifact with its model card, atomically; replaces an aligner in the same folder."""
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
