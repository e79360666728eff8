"""`inferaligner serve TARGET --aligner DIR [--engine transformers|vllm]`: an OpenAI-compatible server."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Annotated, ClassVar

import typer

from inferaligner.cli.model_options import AlignerPlace, ModelOptions, Target, load_aligner
from inferaligner.cli.open_options import ServedGateOptions
from inferaligner.cli.option_groups import flag
from inferaligner.cli.serve_embedded import EmbeddedOptions, check_packages, serve_embedded
from inferaligner.cli.served_name import FLAG, served_name
from inferaligner.cli.terminal import messages, note
from inferaligner.errors import InputError, MissingExtraError

_ENGINES = ("transformers", "vllm")


@dataclass(frozen=True)
class VllmOptions:
    """The options of `--engine vllm` alone."""

    panel: ClassVar = "vLLM (--engine vllm)"

    async_scheduling: bool = flag(False, "--async-scheduling", help="Schedule one step ahead of the GPU.")
    untested_vllm: bool = flag(
        False,
        "--untested-vllm",
        help="Run on a version of vLLM that was not tested; the self-test must still pass.",
    )
    adapters: str = flag(
        "own",
        metavar="own|any",
        help="own: refuse requests with another LoRA adapter than the target's. any: gate them too.",
    )
    print_command: bool = flag(False, "--print-command", help="Print the vllm command instead of running it.")


@dataclass(frozen=True)
class ClientOptions:
    """What clients see."""

    panel: ClassVar = "What clients see"

    served_model_name: str | None = flag(
        None,
        "--served-model-name",
        "--model-name",
        metavar="NAME",
        help="The model's name for clients (by default TARGET as given, or the name of its folder).",
    )
    allow_origin: list[str] | None = flag(
        None,
        metavar="ORIGIN",
        help="Let web pages of this origin use the server from a browser (CORS), such as "
        "http://localhost:3000. Repeatable; * is every page.",
    )


def serve(
    *,
    context: typer.Context,
    target: Target,
    aligner: AlignerPlace,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="transformers|vllm",
            help="The engine that runs the model (by default vllm where it is installed, else transformers).",
        ),
    ] = None,
    gate: ServedGateOptions,
    clients: ClientOptions,
    embedded: EmbeddedOptions,
    model: ModelOptions,
    vllm: VllmOptions,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- VLLM FLAGS]", help="Passed on to vllm serve."),
    ] = None,
) -> None:
    """Serve a model with the gate enforced, through an OpenAI-compatible API.

    Unless --allow-override is set, clients cannot switch steering off. A request that cannot be gated is
    refused.
    """
    chosen = engine or ("vllm" if find_spec("vllm") is not None else "transformers")
    if chosen not in _ENGINES:
        raise InputError(f"--engine {chosen} does not exist; expected {' or '.join(_ENGINES)}.")
    _refuse_options_of_the_other(context, chosen)
    name = clients.served_model_name or served_name(target)
    origins = _origins(clients.allow_origin or ())
    if chosen == "transformers":
        if flags:
            raise InputError(
                f"{flags[0]} stands after --, where flags of vLLM stand. Give --engine vllm, or leave it out."
            )
        check_packages()
    fitted = load_aligner(aligner)
    policy = gate.policy(fitted.artifact, shadow=gate.shadow, prompts=gate.prompts)
    if chosen == "transformers":
        from inferaligner.server.settings import ServerSettings

        settings = ServerSettings(
            **policy.model_dump(),
            model_name=name,
            allow_override=gate.allow_override,
            allow_origins=origins,
            max_rows=embedded.max_rows,
            max_queue=embedded.max_queue,
            cache_tokens=embedded.cache_tokens,
            answer_tokens=embedded.answer_tokens,
            playground=embedded.playground,
            image_hosts=tuple(embedded.image_host or ()),
        )
        serve_embedded(target, aligner, fitted, settings, embedded, gate, model)
        return
    from inferaligner.vllm.adapters import serving_flags
    from inferaligner.vllm.checkpoint import served_model
    from inferaligner.vllm.engine_arguments import serve_command
    from inferaligner.vllm.settings import settings_for

    served = served_model(target)
    _refuse_own_flags(flags or [], _OWN_FLAGS if served.adapter is None else (*_OWN_FLAGS, *_LORA_FLAGS))
    engine_settings = settings_for(
        aligner,
        **policy.model_dump(),
        audit_log=None if gate.audit_log is None else str(gate.audit_log),
        audit_text=gate.audit_text,
        untested_vllm=vllm.untested_vllm,
        adapter=None if served.adapter is None else str(served.adapter),
        adapters=vllm.adapters,
    )
    # An adapter is served beside its base model, which keeps a name of its own.
    named = [FLAG, name] if served.adapter is None else serving_flags(served.adapter, name)
    # vLLM's own default allows every web page.
    origin_flags = [*named, "--allowed-origins", json.dumps(origins)]
    command = serve_command(
        served.weights,
        engine_settings,
        [*served.flags, *origin_flags, *(flags or [])],  # vLLM takes the last value of a repeated flag
        async_scheduling=vllm.async_scheduling,
    )
    if vllm.print_command:
        print(shlex.join(command))
        return
    if find_spec("vllm") is None:
        raise MissingExtraError(
            "vLLM is not installed. Install it with pip install 'inferaligner[vllm]' (docs/vllm.md says "
            "how on a machine without a GPU)."
        )
    note("The same without this command:")
    messages().print(shlex.join(command), soft_wrap=True, highlight=False, markup=False)
    # The server takes this process's place, so that signals and exit codes are its own.
    os.execv(sys.executable, [sys.executable, "-m", "inferaligner.vllm.launch", *command[1:]])


def _origins(given: Sequence[str]) -> tuple[str, ...]:
    """Checks origins of web pages, as browsers send them. Raises `InputError` for anything else."""
    for origin in given:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin):
            raise InputError(
                f"--allow-origin {origin} is not the origin of a web page. Expected a scheme, a host and, if "
                "needed, a port, without a path or a slash at the end, such as http://localhost:3000; or *."
            )
    return tuple(given)


_OF_VLLM = [each.name for each in fields(VllmOptions)]
_OF_TRANSFORMERS = ["allow_override", *(each.name for each in fields(EmbeddedOptions) + fields(ModelOptions))]


def _refuse_options_of_the_other(context: typer.Context, engine: str) -> None:
    """Raises `InputError` for an option that the chosen engine does not have, instead of ignoring it."""
    foreign = _OF_VLLM if engine == "transformers" else _OF_TRANSFORMERS
    for name in foreign:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            other = next(each for each in _ENGINES if each != engine)
            if engine == "transformers":
                instead = f"Give --engine {other}, or leave it out."
            elif name == "chat_template":
                instead = _TEMPLATE_ADVICE
            else:
                instead = "Leave it out; vLLM's own flags go after --, such as -- --port 8000."
            raise InputError(
                f"{option} is an option of --engine {other}, but the engine here is {engine}. {instead}"
            )


# vLLM takes the last value of a repeated flag: these would replace the gate, or remove it.
_OWN_FLAGS = ("--worker-cls", "--scheduler-cls", "--additional-config", "--middleware", "--async-scheduling",
              "--no-async-scheduling", "--worker-extension-cls", "--config")  # fmt: skip
_LORA_FLAGS = ("--enable-lora", "--no-enable-lora", "--lora-modules", "--max-lora-rank")


# With these vLLM renders with another chat template than the tokenizer's, which the plugin checks.
_TEMPLATE_FLAGS = ("--chat-template", "--trust-request-chat-template")
_TEMPLATE_ADVICE = (
    "Save the template that the aligner was fitted with as the tokenizer's own (set tokenizer.chat_template, "
    "then save_pretrained), and serve that folder."
)


def _refuse_own_flags(flags: list[str], own_flags: tuple[str, ...]) -> None:
    for given in flags:
        name = given.partition("=")[0].partition(".")[0].replace("_", "-")
        if name in _TEMPLATE_FLAGS:
            raise InputError(
                f"With {given}, vLLM would render prompts with another chat template than the one that is "
                f"compared with the aligner's. {_TEMPLATE_ADVICE}"
            )
        # vLLM's parser takes abbreviations too.
        if name.startswith("--") and any(own.startswith(name) for own in own_flags if len(name) > 4):
            raise InputError(
                f"{given} is set by this command, or could replace a flag that it sets. Leave it out; for "
                "your own set-up, start from the command that --print-command prints."
            )
