"""`inferaligner serve TARGET --aligner DIR [--engine transformers|vllm]`: an OpenAI-compatible server."""

from __future__ import annotations

import json
import os
import re
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
    load_aligner,
)
from inferaligner.cli.open_options import PANEL, Monitor, OnOpen, Refusal, policy_of
from inferaligner.cli.serve_embedded import ProcessOptions, check_packages, serve_embedded
from inferaligner.cli.served_name import FLAG, served_name
from inferaligner.cli.terminal import messages, note
from inferaligner.errors import InputError, MissingExtraError
from inferaligner.steering.gate_policy import AllowedPrompts

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
            help="The engine that runs the model (by default vllm where it is installed, else transformers).",
            show_default=False,
        ),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Decide and report, never steer.", rich_help_panel=PANEL)
    ] = False,
    on_open: OnOpen = "steer",
    refusal: Refusal = None,
    monitor: Monitor = True,
    prompts: Annotated[
        AllowedPrompts,
        typer.Option(
            help="Accept only chats, with begun answers where the aligner has a gate for them; or gate raw "
            "text too.",
            rich_help_panel=PANEL,
        ),
    ] = "chat",
    allow_override: Annotated[
        bool,
        typer.Option(
            "--allow-override",
            help="Let requests set the strength, down to the bare model. For trials, never for the public.",
            rich_help_panel=PANEL,
        ),
    ] = False,
    audit_log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One JSON line per decision; prompts are hashed.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    audit_text: Annotated[
        bool, typer.Option("--audit-text", help="Put the prompts into the log too.", rich_help_panel=PANEL)
    ] = False,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            "--served-model-name",
            "--model-name",
            metavar="NAME",
            help="The model's name for clients (by default TARGET as given, or the name of its folder).",
            rich_help_panel=_CLIENTS,
            show_default=False,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let web pages of this origin use the server from a browser (CORS), such as "
            "http://localhost:3000. Repeatable; * is every page.",
            rich_help_panel=_CLIENTS,
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every address.", rich_help_panel=_SERVER)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port to listen on; 0 is any free port.", rich_help_panel=_SERVER
        ),
    ] = 8000,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Lines of `KEY ROUTE…`, such as `sk-1 /v1`. Without it everybody may use every route except "
            "/admin.",
            rich_help_panel=_SERVER,
            show_default=False,
        ),
    ] = None,
    audit_max_mb: Annotated[
        float,
        typer.Option(
            min=0, help="Size at which the audit log begins a new file; 0 is never.", rich_help_panel=_SERVER
        ),
    ] = 100.0,
    audit_keep: Annotated[
        int, typer.Option(min=0, help="Earlier audit log files to keep.", rich_help_panel=_SERVER)
    ] = 10,
    max_rows: Annotated[
        int,
        typer.Option(min=1, help="Answers generated at the same time.", rich_help_panel=_SERVER),
    ] = 64,
    max_queue: Annotated[
        int,
        typer.Option(
            min=1, help="Prompts that may wait; further ones get status 429.", rich_help_panel=_SERVER
        ),
    ] = 512,
    cache_tokens: Annotated[
        int,
        typer.Option(min=64, help="Tokens that the KV cache may hold.", rich_help_panel=_SERVER),
    ] = 131_072,
    answer_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Longest answer to a chat that sets no limit, in tokens.", rich_help_panel=_SERVER
        ),
    ] = 1_024,
    grace: Annotated[
        int,
        typer.Option(
            min=0,
            help="Seconds that running answers have to end after the server is stopped.",
            rich_help_panel=_SERVER,
        ),
    ] = 60,
    playground: Annotated[
        bool, typer.Option(help="Show the playground at /.", rich_help_panel=_SERVER)
    ] = True,
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Fetch images from this host, by https. Without it, only data URLs are accepted.",
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
            help="Run on a version of vLLM that was not tested; the self-test must still pass.",
            rich_help_panel=_VLLM,
        ),
    ] = False,
    adapters: Annotated[
        str,
        typer.Option(
            metavar="own|any",
            help="Refuse requests with another LoRA adapter than the target's; or gate them too.",
            rich_help_panel=_VLLM,
        ),
    ] = "own",
    print_command: Annotated[
        bool,
        typer.Option(
            "--print-command", help="Print the vllm command instead of running it.", rich_help_panel=_VLLM
        ),
    ] = False,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- VLLM FLAGS]", help="Passed on to vllm serve.", show_default=False),
    ] = None,
) -> None:
    """Serve a model with the gate enforced, through an OpenAI-compatible API.

    Clients cannot switch the gate off. A request that cannot be gated is refused.
    """
    chosen = engine or ("vllm" if find_spec("vllm") is not None else "transformers")
    if chosen not in _ENGINES:
        raise InputError(f"--engine {chosen} does not exist; expected {' or '.join(_ENGINES)}.")
    _refuse_options_of_the_other(context, chosen)
    name = served_model_name or served_name(target)
    origins = _origins(allow_origin or ())
    if chosen == "transformers":
        if flags:
            raise InputError(
                f"{flags[0]} stands after --, where flags of vLLM stand. Give --engine vllm, or leave it out."
            )
        check_packages()
    fitted = load_aligner(aligner)
    policy = policy_of(
        fitted.artifact, shadow=shadow, on_open=on_open, refusal=refusal, monitor=monitor, prompts=prompts
    )
    if chosen == "transformers":
        from inferaligner.server.settings import ServerSettings

        settings = ServerSettings(
            **policy.model_dump(),
            model_name=name,
            allow_override=allow_override,
            max_rows=max_rows,
            max_queue=max_queue,
            cache_tokens=cache_tokens,
            answer_tokens=answer_tokens,
            playground=playground,
            image_hosts=tuple(image_host or ()),
            allow_origins=origins,
        )
        process = ProcessOptions(
            host=host,
            port=port,
            api_keys=api_keys,
            audit_log=audit_log,
            audit_text=audit_text,
            audit_max_mb=audit_max_mb,
            audit_keep=audit_keep,
            grace=grace,
        )
        model = ModelOptions(dtype, device, quantization, chat_template, trust_remote_code)
        serve_embedded(target, aligner, fitted, settings, process, model)
        return
    from inferaligner.vllm.adapters import serving_flags
    from inferaligner.vllm.checkpoint import served_model
    from inferaligner.vllm.settings import as_shell, serve_command, settings_for

    served = served_model(target)
    _refuse_own_flags(flags or [], _OWN_FLAGS if served.adapter is None else (*_OWN_FLAGS, *_LORA_FLAGS))
    engine_settings = settings_for(
        aligner,
        **policy.model_dump(),
        audit_log=None if audit_log is None else str(audit_log),
        audit_text=audit_text,
        untested_vllm=untested_vllm,
        adapter=None if served.adapter is None else str(served.adapter),
        adapters=adapters,
    )
    # An adapter is served beside its base model, which keeps a name of its own.
    named = [FLAG, name] if served.adapter is None else serving_flags(served.adapter, name)
    # vLLM's own default allows every web page.
    clients = [*named, "--allowed-origins", json.dumps(origins)]
    command = serve_command(
        served.weights,
        engine_settings,
        [*served.flags, *clients, *(flags or [])],  # vLLM takes the last value of a repeated flag
        async_scheduling=async_scheduling,
    )
    if print_command:
        print(as_shell(command))
        return
    if find_spec("vllm") is None:
        raise MissingExtraError(
            "vLLM is not installed. Install it with pip install 'inferaligner[vllm]' (docs/vllm.md says "
            "how on a machine without a GPU)."
        )
    note("The same server without this command:")
    messages().print(as_shell(command), soft_wrap=True, highlight=False, markup=False)
    # The server replaces this process, so that signals and exit codes are the server's own.
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


_OF_TRANSFORMERS = ("allow_override", "host", "port", "api_keys",
                    "audit_max_mb", "audit_keep", "max_rows", "max_queue", "cache_tokens", "answer_tokens",
                    "grace", "playground", "image_host", "dtype", "device", "quantization", "chat_template",
                    "trust_remote_code")  # fmt: skip
_OF_VLLM = ("async_scheduling", "untested_vllm", "adapters", "print_command")


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
                f"{flag} is set by this command, or could replace a flag that it sets. Leave it out; for "
                "your own set-up, start from the command that --print-command prints."
            )
