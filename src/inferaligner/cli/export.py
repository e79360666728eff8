"""`inferaligner export DIR --to gguf`: writes a control vector for llama.cpp."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from inferaligner.cli.inspect import Place
from inferaligner.cli.model_options import load_artifact
from inferaligner.cli.output_file import check_output_file
from inferaligner.cli.terminal import note, warn


class Format(str, Enum):
    """Formats of export."""

    gguf = "gguf"


def export(
    place: Place,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    to: Annotated[Format, typer.Option(help="gguf: a control vector for llama.cpp.")] = Format.gguf,
) -> None:
    """Export the steering vectors, strength included, as a control vector for llama.cpp.

    The file has no gate: llama.cpp steers every prompt, at every token.
    """
    check_output_file(output)
    artifact = load_artifact(place)

    from inferaligner.storage.control_vector import write_control_vector

    write_control_vector(artifact, output)
    warn(
        "The file has no gate: llama.cpp steers every prompt, harmless ones too, at every token. Expect "
        "refusals and changed answers on benign traffic. To avoid that, serve with inferaligner."
    )
    note(f"Written to {output}. Use it: llama-server -m MODEL.gguf --control-vector {output}")
