"""`inferaligner serve TARGET --aligner DIR [--engine transformers|vllm]`: an OpenAI-compatible server."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from inferaligner.cli.model_options import (
    AlignerPlace,
    ChatTemplate,
    Device,
    Dtype,
    ModelOptions,
    Quantization,
    Target,
    TrustRemoteCode,
)
from inferaligner.cli.open_options import Refusal
from inferaligner.cli.serve_embedded import EmbeddedOptions, serve_embedded
from inferaligner.cli.served_name import FLAG, served_name
from inferaligner.cli.terminal import messages, note
from inferaligner.errors import InputError, MissingExtraError

_PANEL = "What the gate does"
_CLIENTS = "What clients see"
_SERVER = "The embedded server (--engine transformers)"
_VLLM = "vLLM (--engine vllm)"
_ENGINES = ("transformers", "vllm")


def serve(
    context: typer.Context,
    target: Target,
    aligner: AlignerPlace,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="transformers|vllm",
            help="What runs the model; vllm where it is installed, else transformers, in this process.",
            show_default=False,
        ),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Decide and report, never steer.", rich_help_panel=_PANEL)
    ] = False,
    on_open: Annotated[
        str,
        typer.Option(
            metavar="steer|refuse",
            help="What becomes of a request whose gate opens.",
            rich_help_panel=_PANEL,
        ),
    ] = "steer",
    refusal: Refusal = None,
    monitor: Annotated[
        bool,
        typer.Option(
            help="Read answers while they are generated, if the aligner has a monitor.",
            rich_help_panel=_PANEL,
        ),
    ] = True,
    prompts: Annotated[
        str,
        typer.Option(
            metavar="chat|any",
            help="Take chats alone, with begun answers where the aligner has a gate for them; or gate raw "
            "text too.",
            rich_help_panel=_PANEL,
        ),
    ] = "chat",
    allow_override: Annotated[
        bool,
        typer.Option(
            "--allow-override",
            help="Let requests set the strength, down to the bare model. For trials, never for the public.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    audit_log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One JSON line per decision; prompts are hashed.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    audit_text: Annotated[
        bool, typer.Option("--audit-text", help="Put the prompts into the log too.", rich_help_panel=_PANEL)
    ] = False,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            "--served-model-name",
            "--model-name",
            metavar="NAME",
            help="What clients call the model; TARGET as it was given, or the name of its folder.",
            rich_help_panel=_CLIENTS,
            show_default=False,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let web pages of this origin use the server from a browser (CORS), such as "
            "http://localhost:3000; may be given several times, * is every page.",
            rich_help_panel=_CLIENTS,
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is all of them.", rich_help_panel=_SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.", rich_help_panel=_SERVER)] = (
        8000
    ),
    api_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Lines of `KEY ROUTE…`, such as `sk-1 /v1`. Without it everybody may use all but /admin.",
            rich_help_panel=_SERVER,
            show_default=False,
        ),
    ] = None,
    audit_max_mb: Annotated[
        float,
        typer.Option(
            min=0, help="Size at which the log begins a new file; 0: never.", rich_help_panel=_SERVER
        ),
    ] = 100.0,
    audit_keep: Annotated[
        int, typer.Option(min=0, help="Former log files that are kept.", rich_help_panel=_SERVER)
    ] = 10,
    max_rows: Annotated[
        int,
        typer.Option(min=1, help="Answers generated at the same time.", rich_help_panel=_SERVER),
    ] = 64,
    max_queue: Annotated[
        int,
        typer.Option(min=1, help="Prompts that may wait; more get status 429.", rich_help_panel=_SERVER),
    ] = 512,
    cache_tokens: Annotated[
        int,
        typer.Option(min=64, help="Tokens that the KV cache may hold.", rich_help_panel=_SERVER),
    ] = 131_072,
    answer_tokens: Annotated[
        int,
        typer.Option(min=1, help="Longest answer to chats that set no limit.", rich_help_panel=_SERVER),
    ] = 1_024,
    grace: Annotated[
        int,
        typer.Option(
            min=0, help="Seconds that running answers have to end when stopped.", rich_help_panel=_SERVER
        ),
    ] = 60,
    playground: Annotated[
        bool, typer.Option(help="Show the playground at /.", rich_help_panel=_SERVER)
    ] = True,
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Fetch images from this host, by https. Without it they come as data URLs alone.",
            rich_help_panel=_SERVER,
            show_default=False,
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
    async_scheduling: Annotated[
        bool,
        typer.Option("--async-scheduling", help="Schedule one step ahead of the GPU.", rich_help_panel=_VLLM),
    ] = False,
    untested_vllm: Annotated[
        bool,
        typer.Option(
            "--untested-vllm",
            help="Run on a version of vLLM that was not tested; the self-test still has to pass.",
            rich_help_panel=_VLLM,
        ),
    ] = False,
    adapters: Annotated[
        str,
        typer.Option(
            metavar="own|any",
            help="Refuse requests with another LoRA adapter than the aligner's target has; or gate them too.",
            rich_help_panel=_VLLM,
        ),
    ] = "own",
    print_command: Annotated[
        bool,
        typer.Option(
            "--print-command", help="Print the vllm command, and do not run it.", rich_help_panel=_VLLM
        ),
    ] = False,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- VLLM FLAGS]", help="Passed on to vllm serve.", show_default=False),
    ] = None,
) -> None:
    """Serve a model with the gate enforced, to OpenAI's clients.

    Clients cannot switch the gate off. Whatever this cannot serve with the gate, it refuses to serve.
    """
    chosen = engine or ("vllm" if find_spec("vllm") is not None else "transformers")
    if chosen not in _ENGINES:
        raise InputError(f"--engine {chosen} does not exist; expected {' or '.join(_ENGINES)}.")
    _refuse_options_of_the_other(context, chosen)
    name = served_model_name or served_name(target)
    origins = _origins(allow_origin or ())
    if chosen == "transformers":
        if flags:
            raise InputError(f"{flags[0]} stands after --, where flags of vLLM do; give --engine vllm.")
        options = EmbeddedOptions(
            host=host,
            port=port,
            model_name=name,
            shadow=shadow,
            on_open=on_open,
            refusal=refusal,
            monitor=monitor,
            prompts=prompts,
            allow_override=allow_override,
            api_keys=api_keys,
            audit_log=audit_log,
            audit_text=audit_text,
            audit_max_mb=audit_max_mb,
            audit_keep=audit_keep,
            max_rows=max_rows,
            max_queue=max_queue,
            cache_tokens=cache_tokens,
            answer_tokens=answer_tokens,
            grace=grace,
            playground=playground,
            image_hosts=tuple(image_host or ()),
            allow_origins=origins,
        )
        model = ModelOptions(dtype, device, quantization, chat_template, trust_remote_code)
        serve_embedded(target, aligner, options, model)
        return
    from inferaligner.vllm.adapters import serving_flags
    from inferaligner.vllm.checkpoint import served_model
    from inferaligner.vllm.engine_arguments import serve_command
    from inferaligner.vllm.settings import settings_for

    served = served_model(target)
    _refuse_own_flags(flags or [], _OWN_FLAGS if served.adapter is None else (*_OWN_FLAGS, *_LORA_FLAGS))
    settings = settings_for(
        aligner,
        shadow=shadow,
        on_open=on_open,
        monitor=monitor,
        prompts=prompts,
        audit_log=None if audit_log is None else str(audit_log),
        audit_text=audit_text,
        untested_vllm=untested_vllm,
        adapter=None if served.adapter is None else str(served.adapter),
        adapters=adapters,
    )
    # An adapter is served beside its base model, which keeps a name of its own.
    named = [FLAG, name] if served.adapter is None else serving_flags(served.adapter, name)
    # vLLM would let every web page in.
    clients = [*named, "--allowed-origins", json.dumps(origins)]
    command = serve_command(
        served.weights,
        settings,
        [*served.flags, *clients, *(flags or [])],  # of a flag that is given twice, the last one counts
        async_scheduling=async_scheduling,
    )
    if print_command:
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
    """Origins of web pages, as browsers send them."""
    for origin in given:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin):
            raise InputError(
                f"--allow-origin {origin} is no origin of a web page. Expected a scheme, a host and, if "
                "need be, a port, without a path or a slash at the end, such as http://localhost:3000; or *."
            )
    return tuple(given)


_OF_TRANSFORMERS = ("refusal", "allow_override", "host", "port", "api_keys",
                    "audit_max_mb", "audit_keep", "max_rows", "max_queue", "cache_tokens", "answer_tokens",
                    "grace", "playground", "image_host", "dtype", "device", "quantization", "chat_template",
                    "trust_remote_code")  # fmt: skip
_OF_VLLM = ("async_scheduling", "untested_vllm", "adapters", "print_command")


def _refuse_options_of_the_other(context: typer.Context, engine: str) -> None:
    """An option that the chosen engine does not have would be a silent no-op."""
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
            raise InputError(f"{option} is an option of --engine {other}, and {engine} runs here. {instead}")


# Given twice, the last one wins: after these the gate would be another one, or gone.
_OWN_FLAGS = ("--worker-cls", "--scheduler-cls", "--additional-config", "--middleware", "--async-scheduling",
              "--no-async-scheduling", "--worker-extension-cls", "--config")  # fmt: skip
_LORA_FLAGS = ("--enable-lora", "--no-enable-lora", "--lora-modules", "--max-lora-rank")


# With these vLLM renders with another chat template than the tokenizer's, which the plugin compares.
_TEMPLATE_FLAGS = ("--chat-template", "--trust-request-chat-template")
_TEMPLATE_ADVICE = (
    "Save the template that the aligner was fitted with as the tokenizer's own (set tokenizer.chat_template, "
    "then save_pretrained), and serve that folder."
)


def _refuse_own_flags(flags: list[str], own_flags: tuple[str, ...]) -> None:
    for flag in flags:
        name = flag.partition("=")[0].partition(".")[0].replace("_", "-")
        if name in _TEMPLATE_FLAGS:
            raise InputError(
                f"With {flag}, vLLM would render prompts with another chat template than the one that is "
                f"compared with the aligner's. {_TEMPLATE_ADVICE}"
            )
        # vLLM's parser takes abbreviations too.
        if name.startswith("--") and any(own.startswith(name) for own in own_flags if len(name) > 4):
            raise InputError(
                f"{flag} is set by this command, or could replace what it sets. Leave it out; for a set-up "
                "of your own, start from the command that --print-command prints."
            )
