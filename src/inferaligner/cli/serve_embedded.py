"""`inferaligner serve --engine transformers`: the embedded server in this process."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from inferaligner.cli.model_options import ModelOptions
from inferaligner.cli.open_options import ServedGateOptions
from inferaligner.cli.option_groups import flag
from inferaligner.cli.terminal import note, warn
from inferaligner.errors import InputError, MissingExtraError
from inferaligner.storage.paths import expanded

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.server.settings import ServerSettings

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


@dataclass(frozen=True)
class EmbeddedOptions:
    """The options of `--engine transformers` alone: address, keys, rotation of the audit log, limits."""

    panel: ClassVar = "The embedded server (--engine transformers)"

    host: str = flag("127.0.0.1", help="Address to listen on; 0.0.0.0 is every address.")
    port: int = flag(8000, min=0, max=65535, help="Port to listen on; 0 is any free port.")
    api_keys: Path | None = flag(
        None,
        metavar="FILE",
        help="Lines of `KEY ROUTE…`, such as `sk-1 /v1`. Without it everybody may use every route except "
        "/admin. With --engine vllm: VLLM_API_KEY or -- --api-key.",
    )
    audit_max_mb: float = flag(
        100.0, min=0, help="Size at which the audit log begins a new file; 0 is never."
    )
    audit_keep: int = flag(10, min=0, help="How many earlier audit log files are kept.")
    max_rows: int = flag(64, min=1, help="The most answers that are generated at the same time.")
    max_queue: int = flag(512, min=1, help="Prompts that may wait; further ones get status 429.")
    cache_tokens: int = flag(131_072, min=64, help="Tokens that the KV cache may hold.")
    answer_tokens: int = flag(1_024, min=1, help="Longest answer to a chat that sets no limit, in tokens.")
    grace: int = flag(60, min=0, help="Seconds that running answers have to end after the server is stopped.")
    playground: bool = flag(True, help="Show the playground at /.")
    image_host: list[str] | None = flag(
        None,
        metavar="HOST",
        help="Fetch images from this host, by https. Without it, only data URLs are accepted.",
    )


def check_packages() -> None:
    """Raises `MissingExtraError` unless the embedded server's packages are installed."""
    missing = [name for module, name in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"The embedded server needs {', '.join(missing)}. Install it with "
            "pip install 'inferaligner[serve]'."
        )


def serve_embedded(
    target: str,
    aligner: str,
    fitted: Aligner,
    settings: ServerSettings,
    options: EmbeddedOptions,
    gate: ServedGateOptions,
    model: ModelOptions,
) -> None:
    """Loads the model, serves it, and returns when the server has been stopped.

    Args:
        target: the model, as on the command line.
        aligner: place of the aligner, as on the command line.
        fitted: the aligner itself.
        settings: the gate's policy and the server's limits.
        options: address, keys and rotation of the audit log.
        gate: the audit log.
        model: how the model is loaded.

    Raises:
        InputError: the address is taken, or a file cannot be read or written.
        MismatchError: the model is not the aligner's.
    """
    from inferaligner.server.app import make_app
    from inferaligner.server.keys import ApiKeys
    from inferaligner.server.run import listen, serve_until_stopped
    from inferaligner.storage.audit_log import AuditFile

    if gate.audit_text and gate.audit_log is None:
        raise InputError("--audit-text was given without --audit-log FILE. Give both, or neither.")
    keys = ApiKeys.read(options.api_keys)
    model.check(target)
    listener = listen(options.host, options.port)
    try:
        audit = None
        if gate.audit_log is not None:
            limit = None if options.audit_max_mb == 0 else int(options.audit_max_mb * 1e6)
            audit = AuditFile(gate.audit_log, max_bytes=limit, keep=options.audit_keep)
        loaded = model.load_for(fitted, target)
        port = listener.getsockname()[1]
        shown = f"[{options.host}]" if ":" in options.host else options.host
        if options.host not in ("127.0.0.1", "::1", "localhost") and not keys.routes:
            warn("Everybody who can reach this address may use the model; --api-keys FILE requires keys.")

        def ready() -> None:
            note(f"Serving {settings.model_name} on http://{shown}:{port}/v1, gate {_gate(settings)}.")
            if settings.playground:
                note(f"Playground: http://{shown}:{port}/   Stop with Ctrl-C.")

        folder = str(expanded(aligner).resolve()) if expanded(aligner).exists() else None
        app = make_app(
            loaded,
            fitted,
            settings,
            keys=keys,
            audit=audit,
            audit_text=gate.audit_text,
            folder=folder,
            on_ready=ready,
        )
        serve_until_stopped(app, listener, grace=options.grace)
    finally:
        listener.close()


def _gate(settings: ServerSettings) -> str:
    if settings.shadow:
        return "in shadow mode: it decides and steers nothing"
    action = "answers with a refusal" if settings.on_open == "refuse" else "steers"
    return f"on: where it opens, it {action}" + (
        "; requests may override it" if settings.allow_override else ""
    )
