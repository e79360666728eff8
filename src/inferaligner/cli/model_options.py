"""What every command that loads a model takes: TARGET, `--aligner`, and how to load the model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import warn
from inferaligner.errors import ChatTemplateMissingError, InputError

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.artifact import AlignerArtifact
    from inferaligner.models.loading import LoadedModel

_PANEL = "How to load the model"

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="The model to protect: a hub id, a folder, a .gguf file, a PEFT adapter folder or builtin:NAME.",
        show_default=False,
    ),
]
AlignerPlace = Annotated[
    str,
    typer.Option(
        "--aligner",
        "-a",
        metavar="DIR",
        help="What `fit` wrote, or a hub id of an aligner.",
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE", help="auto (as stored), float32, bfloat16 or float16.", rich_help_panel=_PANEL
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N, mps, or balanced to spread the layers over all GPUs.",
        rich_help_panel=_PANEL,
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(metavar="int8|int4", help="Quantise while loading.", rich_help_panel=_PANEL),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME",
        help="A Jinja chat template to use instead of the tokenizer's own, or the name of one of its own; of "
        "several, the one named default is used otherwise.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=_PANEL),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


@dataclass(frozen=True)
class ModelOptions:
    """How to load a model, as the user wrote it."""

    dtype: str = "auto"
    device: str = "auto"
    quantization: str | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False

    def check(self, *specs: str) -> None:
        """Everything that can be known to be wrong before any weights are loaded.

        Raises `InputError`, `MissingExtraError` or `ModelLoadError` as `load_model` would.
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
        """The model, with a tokenizer that renders chats."""
        from inferaligner.models.loading import load_model

        _quieten()
        with RichStages().stage(f"loading {spec}"):
            loaded = load_model(
                spec,
                dtype=self.dtype,
                device=self.device,
                quantization=self.quantization,
                chat_template=self.chat_template,
                trust_remote_code=self.trust_remote_code,
            )
        _check_rendering(loaded, system)
        return loaded


def load_aligner(place: str) -> Aligner:
    """The aligner in a folder or on the hub."""
    from inferaligner.aligner import Aligner

    return Aligner.from_pretrained(place)


def warn_of_format(artifact: AlignerArtifact, loaded: LoadedModel) -> None:
    """Warns where the model is in another precision or quantisation than the bias was fitted for."""
    from inferaligner.models.number_format import other_format

    told = other_format(loaded.model, artifact.provenance.versions)
    if told is not None:
        warn(
            f"{told} Prompts near the gate's threshold may change sides: measure it with "
            "`inferaligner doctor TARGET --aligner DIR --rescore`, or fit on the model as it is served."
        )


def load_artifact(place: str) -> AlignerArtifact:
    """The same without what applies it: transformers takes seconds to import, and need not be."""
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
    """transformers tells of every tensor that it loads; the stages here say as much as one needs."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
