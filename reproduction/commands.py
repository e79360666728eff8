"""`inferaligner` commands, run in this process with the arguments that a user would type."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Sequence

from inferaligner.errors import InferAlignerError
from reproduction.stage_store import console


def inferaligner(*arguments: object) -> None:
    """Prints and runs a command.

    Raises:
        InferAlignerError: The command ended with an error, whose message it has printed.
    """
    from inferaligner.cli.main import app

    words = [str(argument) for argument in arguments]
    console.print("$ " + shlex.join(["inferaligner", *words]), style="dim", soft_wrap=True, highlight=False)
    try:
        code = app(args=words, prog_name="inferaligner", standalone_mode=False)
    finally:
        gc.collect()  # models have reference cycles
    if code:
        raise InferAlignerError(f"`inferaligner {words[0]}` ended with code {code}; its message is above.")


def repeated(option: str, values: Sequence[object]) -> list[str]:
    """The words `--option value` for each value."""
    return [word for value in values for word in (option, str(value))]
