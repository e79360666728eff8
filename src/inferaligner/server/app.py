"""The ASGI application: routes, error responses and middleware."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response

from inferaligner.aligner import Aligner
from inferaligner.models.loading import LoadedModel
from inferaligner.server.admin import Admin, SwapAnswer, SwapRequest
from inferaligner.server.auth_middleware import AuthMiddleware
from inferaligner.server.engine.engine import Engine
from inferaligner.server.engine.image_input import ImageInput, turns_and_pictures
from inferaligner.server.engine.projection import PromptProjection, aligner_card, operating_point
from inferaligner.server.engine.token_text import TokenText
from inferaligner.server.errors import ApiError, no_such_model
from inferaligner.server.event_log import EventLog
from inferaligner.server.generation import GenerationRoutes
from inferaligner.server.keys import ApiKeys
from inferaligner.server.metrics import ServerMetrics
from inferaligner.server.prompts import PromptEncoder
from inferaligner.server.schema import (
    TAGS,
    Answer,
    ChatRequest,
    CompletionRequest,
    ErrorBody,
    Health,
    Message,
    ModelCard,
    ModelList,
)
from inferaligner.server.settings import ServerSettings
from inferaligner.server_shared.gate_report import OPEN_HEADER
from inferaligner.server_shared.tolerant_paths import TolerantPaths
from inferaligner.storage.audit_log import AuditFile
from inferaligner.storage.json_io import plain
from inferaligner.version import __version__

log = logging.getLogger("inferaligner.server")

_PAGE_HEADERS = {
    # The page may run its own script and style and connect to this server, and nothing else.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class ProjectionRequest(BaseModel):
    """A conversation; the chart shows its last turn."""

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: list[Message]


def make_app(
    loaded: LoadedModel,
    aligner: Aligner,
    settings: ServerSettings,
    *,
    keys: ApiKeys | None = None,
    audit: AuditFile | None = None,
    audit_text: bool = False,
    folder: str | None = None,
    on_ready: Callable[[], None] | None = None,
) -> FastAPI:
    """Makes the server as an ASGI application. The engine runs from its start-up to its shutdown.

    Args:
        loaded: the target model with its tokenizer.
        aligner: of that model.
        settings: the operator's choices.
        keys: API keys; None for a server that needs none.
        audit: log of the gate's decisions; closed at shutdown.
        audit_text: whether that log holds the prompts.
        folder: folder that the aligner was read from, for `POST /admin/aligner`.
        on_ready: called when the engine is ready.
    """
    state: dict[str, Engine] = {}
    metrics = ServerMetrics(
        lambda: (state["engine"].load.running, state["engine"].load.waiting) if state else (0, 0),
        lambda: state["engine"].aligner.artifact if state else aligner.artifact,
    )
    event_log = EventLog(metrics, audit, loaded.tokenizer if audit_text else None)
    engine = state["engine"] = Engine(loaded, aligner, settings, event_log)
    prompts = PromptEncoder(loaded.reader, aligner.artifact, loaded.model, any_end=settings.prompts == "any")
    generation = GenerationRoutes(engine, prompts, TokenText(prompts.tokenizer))
    prompt_projection = PromptProjection(engine, loaded.model, prompts.reader)
    known_keys = keys or ApiKeys({})
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(engine.start)
        if on_ready is not None:
            on_ready()
        yield
        await run_in_threadpool(engine.stop, drain=True, timeout=60.0)
        if audit is not None:
            audit.close()

    app = FastAPI(
        title="InferAligner",
        version=__version__,
        description="An OpenAI-compatible server whose model is aligned while it generates.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,  # `curl -d` sends another content type
    )
    app.state.engine, app.state.metrics = engine, metrics
    _errors(app)

    def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
        if known_keys.routes:
            statuses = (*statuses, 401, 403)
        return {status: {"model": ErrorBody} for status in statuses}

    generating = problems(400, 403, 404, 413, 429, 500, 503)
    stream = {"text/event-stream": {"schema": {"type": "string", "description": "with stream: true"}}}
    answers: dict[int | str, dict[str, Any]] = {200: {"model": Answer, "content": stream}, **generating}

    @app.post("/v1/chat/completions", responses=answers, tags=["OpenAI"])
    async def chat_completions(request: Request, body: Annotated[ChatRequest, Body()]) -> Response:
        """Answers a conversation."""
        return await generation.chat(request, body)

    @app.post("/v1/completions", responses=answers, tags=["OpenAI"])
    async def completions(request: Request, body: Annotated[CompletionRequest, Body()]) -> Response:
        """Continues raw texts or token ids."""
        return await generation.completion(request, body)

    card = ModelCard(id=settings.model_name, created=started, max_model_len=prompts.limit)

    @app.post("/v1/responses", include_in_schema=False)
    async def responses() -> Response:
        raise ApiError(
            "This server does not serve the Responses API. Use POST /v1/chat/completions "
            "(client.chat.completions.create), or start it with --engine vllm, which serves both.",
            status=404,
            code="endpoint_not_served",
        )

    @app.get("/v1/models", responses=problems(), tags=["OpenAI"])
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[card])

    @app.get("/v1/models/{model:path}", responses=problems(404), tags=["OpenAI"])
    async def model(model: str) -> ModelCard:
        """The model that is served, by its name."""
        if model != settings.model_name:
            raise no_such_model(model, settings.model_name)
        return card

    @app.get("/health", responses=problems(503), tags=["operation"])
    async def health() -> Health:
        """Whether the engine runs. Needs no key."""
        if not engine.alive:
            raise ApiError("The engine has stopped.", status=503)
        load = engine.load
        return Health(status="ok", running=load.running, waiting=load.waiting)

    @app.get("/metrics", responses=problems(), tags=["operation"], response_class=Response)
    async def metrics_page() -> Response:
        """Prometheus metrics."""
        page = await run_in_threadpool(metrics.page)
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/inferaligner", responses=problems(), tags=["InferAligner"])
    async def info() -> dict[str, Any]:
        """The aligner, its operating point, and how this server uses it."""
        return _plain_object(
            {
                "active": True,
                "engine": "transformers",
                "model": settings.model_name,
                "aligner": aligner_card(engine.aligner),
                "operating_point": operating_point(engine.aligner),
                "version": __version__,
                "shadow": settings.shadow,
                "on_open": settings.on_open,
                "prompts": settings.prompts,
                "monitor": settings.monitor and engine.aligner.artifact.monitor is not None,
                "allow_override": settings.allow_override,
                "max_model_len": prompts.limit,
                "images": prompts.sees,
            }
        )

    @app.post("/inferaligner/projection", responses=problems(400, 413, 503), tags=["InferAligner"])
    async def projection(body: Annotated[ProjectionRequest, Body()]) -> dict[str, Any]:
        """Projections of a prompt and of the shipped prompts on the safety vectors, by layer."""
        if not body.messages:
            raise ApiError("There are no messages.", param="messages")
        turns, pictures = await run_in_threadpool(
            turns_and_pictures, body.messages, ImageInput(settings.image_hosts)
        )
        prompt = await run_in_threadpool(prompts.chat, turns, pictures)
        return _plain_object(await run_in_threadpool(prompt_projection.of, prompt))

    admin = Admin(engine, folder)

    @app.post("/admin/aligner", responses=problems(400, 401, 403, 409, 413, 503), tags=["operation"])
    async def swap_aligner(body: Annotated[SwapRequest, Body()]) -> SwapAnswer:
        """Replaces the operating point. Always needs a key for /admin."""
        return await admin.swap(body)

    if settings.playground:
        page = files("inferaligner.server").joinpath("playground.html").read_text(encoding="utf-8")

        @app.get("/", include_in_schema=False)
        async def playground() -> HTMLResponse:
            return HTMLResponse(page, headers=_PAGE_HEADERS)

    routes = {str(getattr(route, "path", "")) for route in app.routes}
    app.add_middleware(
        AuthMiddleware,
        keys=known_keys,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        routes=routes,
    )
    app.add_middleware(TolerantPaths)
    if settings.allow_origins:
        # Outermost: preflight requests carry no key, and a page must be able to read errors of a wrong key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=[OPEN_HEADER],
        )
    return app


def _errors(app: FastAPI) -> None:
    """Every error response has OpenAI's format."""

    @app.exception_handler(ApiError)
    async def ours(request: Request, error: ApiError) -> JSONResponse:
        headers = {"retry-after": "1"} if error.status in (429, 503) else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        message, param = _first_problem(error)
        return JSONResponse(ApiError(message, param=param).body(), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == 404:
            message = (
                f"There is no route {request.method} {request.url.path:.200}. OpenAI's are under /v1, "
                "such as /v1/chat/completions; /openapi.json lists all."
            )
        elif error.status_code == 405:
            message = (
                f"{request.url.path:.200} does not support {request.method}; /openapi.json lists the methods."
            )
        body = ApiError(message, status=error.status_code).body()
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse(ApiError("Internal error.", status=500).body(), 500)


def _first_problem(error: RequestValidationError) -> tuple[str, str | None]:
    """The first error of an invalid request, and the path of its field."""
    problems = error.errors()
    if not problems:
        return "The request cannot be read.", None
    first = problems[0]
    if first["type"] == "json_invalid":
        return "The body is not valid JSON.", None
    if len(first["loc"]) == 1:
        missing = first["type"] == "missing"
        return "The request has no body." if missing else (
            "The body is not a JSON object sent as application/json."
        ), None
    # pydantic puts type tags between the fields; the last part is the field itself, whatever its name.
    *inner, last = first["loc"][1:]
    place = ".".join(str(part) for part in (*(each for each in inner if each not in TAGS), last))
    if last in TAGS and first["type"] != "extra_forbidden":
        place = place.rpartition(".")[0]
    if field := (first.get("ctx") or {}).get("field"):
        place = f"{place}.{field}"
    if first["type"] == "extra_forbidden":
        return f"Unknown field {place!r:.200}; see /openapi.json for the known fields.", place[:200]
    reason = _reason(first)
    return (f"{place}: {reason}" if place else reason)[:1000], place[:200] or None


def _reason(problem: Mapping[str, Any]) -> str:
    limits = problem.get("ctx") or {}
    if problem["type"] == "missing":
        return "This field is required."
    kind = problem["type"].removeprefix("string_")
    if kind in ("too_short", "too_long"):
        thing, one, unit = (
            ("text", "character", "characters")
            if isinstance(problem["input"], str)
            else ("list", "entry", "entries")
        )
        size = "is empty" if not problem["input"] else f"has {len(problem['input'])} {unit}"
        least = kind == "too_short"
        limit = limits["min_length" if least else "max_length"]
        return (
            f"The {thing} {size}; expected at {'least' if least else 'most'} {limit} "
            f"{one if limit == 1 else unit}."
        )
    if problem["type"] == "not_served":
        return f"This value cannot be used: {problem['msg']}. Leave the field out."
    return str(problem["msg"]).encode("utf-8", "replace").decode() + "."


def _plain_object(value: dict[str, Any]) -> dict[str, Any]:
    finite: dict[str, Any] = plain(value)
    return finite
