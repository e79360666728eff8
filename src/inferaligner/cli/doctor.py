"""`inferaligner doctor [TARGET --aligner DIR]`: the environment, and whether an aligner fits a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from inferaligner.cli.environment import Finding, examine
from inferaligner.cli.model_options import (
    AsJson,
    ChatTemplate,
    Device,
    Dtype,
    ModelOptions,
    Quantization,
    TrustRemoteCode,
    load_aligner,
)
from inferaligner.cli.terminal import print_json, results
from inferaligner.errors import InputError

_STYLES = {"ok": "green", "missing": "yellow", "differs": "bold red"}


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[TARGET]", help="A model to check an aligner against.", show_default=False),
    ] = None,
    aligner: Annotated[
        str | None,
        typer.Option("--aligner", "-a", metavar="DIR", help="The aligner to check.", show_default=False),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Check the environment and, with TARGET and --aligner, whether the two fit and the gate acts.

    Exits with 0 if all is fine, with 2 if something does not fit.
    """
    if (target is None) != (aligner is None):
        raise InputError(
            "TARGET and --aligner belong together: give both, or neither for the environment alone."
        )
    report = {"environment": examine()}
    if target is not None and aligner is not None:
        options = ModelOptions(dtype, device, quantization, chat_template, trust_remote_code)
        report.update(_check_pair(target, aligner, options))
    fine = all(finding.state != "differs" for findings in report.values() for finding in findings)
    if as_json:
        print_json({"ok": fine, **{name: [asdict(f) for f in findings] for name, findings in report.items()}})
    else:
        for name, findings in report.items():
            results().print(_table(name, findings))
    if not fine:
        raise typer.Exit(2)


def _check_pair(target: str, aligner: str, options: ModelOptions) -> dict[str, list[Finding]]:
    fitted = load_aligner(aligner)
    options.check(target)
    loaded = options.load(target, system=fitted.artifact.provenance.system_prompt)

    from inferaligner.cli.compatibility import compare, self_test

    found = compare(fitted, loaded)
    if any(finding.state == "differs" for finding in found):
        return {"compatibility": found}
    return {"compatibility": found, "gate self-test": self_test(fitted, loaded)}


def _table(name: str, findings: Sequence[Finding]) -> Table:
    table = Table(title=name, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    for finding in findings:
        told = finding.found + (f" ({finding.advice})" if finding.advice else "")
        table.add_row(finding.name, Text(finding.state, style=_STYLES[finding.state]), Text(told))
    return table
