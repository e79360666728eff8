"""`inferaligner serve --engine transformers`: the embedded server in this process."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from inferaligner.cli.model_options import ModelOptions, load_aligner, warn_of_format
from inferaligner.cli.open_options import WhenOpen, check_open
from inferaligner.cli.terminal import note, warn
from inferaligner.errors import InputError, MissingExtraError
from inferaligner.storage.paths import expanded

if TYPE_CHECKING:
    from inferaligner.server.settings import ServerSettings

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


@dataclass(frozen=True)
class EmbeddedOptions:
    """What the command line says about the embedded server."""

    host: str
    port: int
    model_name: str
    shadow: bool
    on_open: str
    refusal: str | None
    monitor: bool
    prompts: str
    allow_override: bool
    api_keys: Path | None
    audit_log: Path | None
    audit_text: bool
    audit_max_mb: float
    audit_keep: int
    max_rows: int
    max_queue: int
    cache_tokens: int
    answer_tokens: int
    grace: int
    playground: bool
    image_hosts: tuple[str, ...]
    allow_origins: tuple[str, ...]


def serve_embedded(target: str, aligner: str, options: EmbeddedOptions, model: ModelOptions) -> None:
    """Loads, serves, and returns when the server has been stopped.

    Raises `InputError`, `MissingExtraError`, and what loading the model or the aligner raises.
    """
    missing = [name for module, name in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"The embedded server needs {', '.join(missing)}. Install it with "
            "pip install 'inferaligner[serve]'."
        )
    from inferaligner.server.app import make_app
    from inferaligner.server.keys import ApiKeys
    from inferaligner.server.run import listen, serve_until_stopped
    from inferaligner.storage.audit_log import AuditFile

    fitted = load_aligner(aligner)
    settings = _settings(options, fitted.artifact)
    keys = ApiKeys.read(options.api_keys)
    model.check(target)
    listener = listen(options.host, options.port)
    try:
        audit = None
        if options.audit_log is not None:
            limit = None if options.audit_max_mb == 0 else int(options.audit_max_mb * 1e6)
            audit = AuditFile(options.audit_log, max_bytes=limit, keep=options.audit_keep)
        loaded = model.load(target, system=fitted.artifact.provenance.system_prompt)
        fitted.check(loaded.model, loaded.reader)
        warn_of_format(fitted.artifact, loaded)
        port = listener.getsockname()[1]
        shown = f"[{options.host}]" if ":" in options.host else options.host
        if options.host not in ("127.0.0.1", "::1", "localhost") and not keys.routes:
            warn("Everybody who can reach this address may use the model; --api-keys FILE asks for keys.")

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
            audit_text=options.audit_text,
            folder=folder,
            on_ready=ready,
        )
        serve_until_stopped(app, listener, grace=options.grace)
    finally:
        listener.close()


def _settings(options: EmbeddedOptions, artifact: Any) -> ServerSettings:
    from inferaligner.server.settings import ServerSettings

    if options.on_open not in ("steer", "refuse"):
        raise InputError(f"--on-open {options.on_open} cannot be used; expected steer or refuse.")
    if options.prompts not in ("chat", "any"):
        raise InputError(f"--prompts {options.prompts} cannot be used; expected chat or any.")
    if options.audit_text and options.audit_log is None:
        raise InputError("--audit-text was given without --audit-log FILE. Give both, or neither.")
    shadowed = options.shadow and options.on_open == "steer" and artifact.gate_only
    text = None
    if not shadowed:
        text = check_open(artifact, WhenOpen(options.on_open), options.refusal, monitor=options.monitor)
    given: dict[str, Any] = {} if text is None else {"refusal": text}
    return ServerSettings(
        model_name=options.model_name,
        shadow=options.shadow,
        on_open=cast(Literal["steer", "refuse"], options.on_open),
        monitor=options.monitor,
        prompts=cast(Literal["chat", "any"], options.prompts),
        allow_override=options.allow_override,
        max_rows=options.max_rows,
        max_queue=options.max_queue,
        cache_tokens=options.cache_tokens,
        answer_tokens=options.answer_tokens,
        playground=options.playground,
        image_hosts=options.image_hosts,
        allow_origins=options.allow_origins,
        **given,
    )


def _gate(settings: ServerSettings) -> str:
    if settings.shadow:
        return "in shadow mode: it decides and steers nothing"
    told = "answers with a refusal" if settings.on_open == "refuse" else "steers"
    return f"on: where it opens, it {told}" + (
        "; requests may override it" if settings.allow_override else ""
    )
