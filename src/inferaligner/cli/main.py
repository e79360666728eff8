"""`inferaligner`: the list of commands, and how their errors become messages and exit codes.

Exit codes: 0 success; 1 an unexpected error; 2 an error that the user can correct (an `InferAlignerError` or
a wrong option); 130 interrupted.
"""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inferaligner.cli.ablate import ablate
from inferaligner.cli.calibrate import calibrate
from inferaligner.cli.chat import chat
from inferaligner.cli.doctor import doctor
from inferaligner.cli.evaluate import evaluate
from inferaligner.cli.export import export
from inferaligner.cli.fit import fit
from inferaligner.cli.flag_names import flags_of, printing_flags
from inferaligner.cli.generate import generate
from inferaligner.cli.inspect import inspect
from inferaligner.cli.judge import judge
from inferaligner.cli.option_groups import expand_groups
from inferaligner.cli.score import score
from inferaligner.cli.serve import serve
from inferaligner.cli.terminal import DEBUG, fail, note, quieten, tolerate_any_encoding, warn
from inferaligner.errors import InferAlignerError, InferAlignerWarning
from inferaligner.version import __version__


class CommandGroup(TyperGroup):
    """Turns the errors of every command into one message and an exit code, and warnings into messages."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with printing_flags(flags_of(self.commands)), _warnings_on_stderr():
                try:
                    return super().invoke(ctx)
                except InferAlignerError as error:
                    fail(str(error))
                    raise typer.Exit(2) from None
        except KeyboardInterrupt:
            note("Interrupted.")
            raise typer.Exit(130) from None
        except Exception as error:
            if _is_typers_own(error):
                raise
            fail(_unexpected(error))
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=CommandGroup,
    name="inferaligner",
    help="Safety alignment at inference time: a guidance gate scores every prompt, and steering vectors "
    "from an aligned sibling model act on the prompts that open the gate. The answers to all other prompts "
    "stay bit-identical.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"inferaligner {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    quieten()


if find_spec("inferaligner.cli.demo") is not None:
    app.command("demo")(expand_groups(import_module("inferaligner.cli.demo").demo))
for _name, _command in (
    ("fit", fit),
    ("calibrate", calibrate),
    ("score", score),
    ("generate", generate),
    ("chat", chat),
    ("evaluate", evaluate),
    ("judge", judge),
    ("ablate", ablate),
    ("serve", serve),
    ("inspect", inspect),
    ("export", export),
    ("doctor", doctor),
):
    app.command(_name)(expand_groups(_command))


def main() -> None:
    """The entry point of the command `inferaligner`."""
    tolerate_any_encoding()
    try:
        app(prog_name="inferaligner")
    except KeyboardInterrupt:  # before a command had begun, or after it had ended
        note("Interrupted.")
        sys.exit(130)


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Prints each `InferAlignerWarning` once, as a message on stderr; other warnings are unchanged."""
    printed = set()
    with warnings.catch_warnings():
        unchanged = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, InferAlignerWarning):
                unchanged(message, category, *place, **more)
            elif str(message) not in printed:
                printed.add(str(message))
                warn(str(message))

        warnings.simplefilter("always", InferAlignerWarning)
        warnings.showwarning = show
        yield


def _is_typers_own(error: Exception) -> bool:
    """Whether typer handles the error itself: an exit, a usage error or a closed pipe."""
    if isinstance(error, (typer.Exit, typer.Abort, EOFError)) or hasattr(error, "format_message"):
        return True
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _unexpected(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "The memory of the device ran out. Use a smaller --batch-size, --quantization int4, "
            "--device balanced, or a smaller model."
        )
    text = str(error).strip()
    return (
        f"Unexpected {type(error).__name__}{f': {text}' if text else ''}. This is a defect of inferaligner "
        f"or of a package that it uses. Set {DEBUG}=1 to see the traceback, and please report it."
    )


if __name__ == "__main__":
    main()
