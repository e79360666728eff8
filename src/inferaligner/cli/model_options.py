"""Options of every command that loads a model: TARGET, `--aligner`, dtype, device, quantization, template."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from inferaligner.cli.option_groups import flag
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import warn
from inferaligner.errors import ChatTemplateMissingError, InputError

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.artifact import AlignerArtifact
    from inferaligner.models.loading import LoadedModel


Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="The model to protect: a hub id, a folder, a .gguf file, a PEFT adapter folder or builtin:NAME.",
    ),
]
AlignerPlace = Annotated[
    str,
    typer.Option(
        "--aligner",
        "-a",
        metavar="DIR",
        help="The folder of an aligner, as `fit` writes it, or the hub id of one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else.")]


@dataclass(frozen=True)
class ModelOptions:
    """The options for loading a model, of every command that loads one."""

    panel: ClassVar = "How to load the model"

    dtype: str = flag("auto", metavar="DTYPE", help="auto (as stored), float32, bfloat16 or float16.")
    device: str = flag(
        "auto",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N, mps, or balanced to spread the layers over all GPUs.",
    )
    quantization: str | None = flag(None, metavar="int8|int4", help="Quantise while loading.")
    chat_template: str | None = flag(
        None,
        metavar="FILE|NAME",
        help="A Jinja chat template to use instead of the tokenizer's own, or the name of one of the "
        "tokenizer's templates. Without it, the tokenizer's own is used; of several, the one named "
        "default.",
    )
    trust_remote_code: bool = flag(
        False, "--trust-remote-code", help="Run code that is shipped with the model."
    )

    def check(self, *specs: str) -> None:
        """Checks the options and specs without loading weights.

        Raises:
            InputError, MissingExtraError, ModelLoadError: As `load_model`.
        """
        from inferaligner.models.placement import read_device, read_dtype, read_quantization
        from inferaligner.models.sources import resolve
        from inferaligner.models.templates import read_choice

        _quieten()
        read_dtype(self.dtype)
        read_quantization(self.quantization, read_device(self.device))
        if self.chat_template is not None:
            read_choice(self.chat_template)
        for spec in specs:
            resolve(spec)

    def load(self, spec: str, *, system: str | None = None) -> LoadedModel:
        """Loads the model, and checks that its chat template can render a prompt with the system prompt."""
        from inferaligner.models.loading import load_model

        _quieten()
        with RichStages().stage(f"loading {spec}"):
            loaded = load_model(spec, **asdict(self))
        _check_rendering(loaded, system)
        return loaded

    def load_for(self, aligner: Aligner | None, spec: str) -> LoadedModel:
        """Loads the model that an aligner was fitted on.

        Warns if the model has another precision or quantization than at fit time.

        Raises:
            MismatchError: The model is another one.
        """
        self.check(spec)
        if aligner is None:
            return self.load(spec)
        loaded = self.load(spec, system=aligner.artifact.provenance.system_prompt)
        aligner.check(loaded.model, loaded.reader)
        warn_of_format(aligner.artifact, loaded)
        return loaded

    def with_template(self, choice: str | None) -> ModelOptions:
        """The options for an aligned model: its own chat template for "own", else `choice`, if any."""
        return replace(self, chat_template=None if choice == "own" else choice or self.chat_template)


def load_aligner(place: str) -> Aligner:
    """Reads the aligner in a folder or on the hub."""
    from inferaligner.aligner import Aligner

    return Aligner.from_pretrained(place)


def warn_of_format(artifact: AlignerArtifact, loaded: LoadedModel) -> None:
    """Warns if the model has another precision or quantization than at fit time."""
    from inferaligner.models.number_format import other_format

    difference = other_format(loaded.model, artifact.provenance.versions)
    if difference is not None:
        warn(
            f"{difference} Prompts near the gate's threshold may change sides. Measure this with "
            "`inferaligner doctor TARGET --aligner DIR --rescore`, or fit on the model as it is served."
        )


def load_artifact(place: str) -> AlignerArtifact:
    """Reads an artifact without importing transformers, which takes seconds."""
    from inferaligner.artifact import AlignerArtifact

    if os.path.isdir(place):
        return AlignerArtifact.read(place)
    return load_aligner(place).artifact


def _check_rendering(loaded: LoadedModel, system: str | None) -> None:
    from inferaligner.prompts.chat import render_chat

    try:
        render_chat(loaded.reader, "a", system=system)
    except (ChatTemplateMissingError, InputError) as error:
        raise type(error)(f"{loaded.spec}: {error}") from None


def _quieten() -> None:
    """Switches off transformers' messages and bars; the stages of the command line replace them."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
