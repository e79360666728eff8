"""POST /v1/chat/completions and /v1/completions: from a request to jobs, from events to a response."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from inferaligner.server.engine.engine import Engine
from inferaligner.server.engine.image_input import ImageInput, turns_and_pictures
from inferaligner.server.engine.jobs import EnginePrompt, Finished, Job, Listener, Piece
from inferaligner.server.engine.sampling import Sampling
from inferaligner.server.engine.token_text import TokenText
from inferaligner.server.errors import ApiError, no_such_model
from inferaligner.server.event_stream import EventStream
from inferaligner.server.prompts import PromptEncoder
from inferaligner.server.request_stream import Choice, RequestStream, unless_disconnected
from inferaligner.server.schema import ChatRequest, CompletionRequest
from inferaligner.server_shared.gate_report import KEY, OPEN_HEADER
from inferaligner.storage.json_io import plain

_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected
_LONGEST_COMPLETION = 16  # OpenAI's default for raw completions

Chunks = AsyncIterator[dict[str, Any]]


class GenerationRoutes:
    """The two endpoints that generate."""

    def __init__(self, engine: Engine, prompts: PromptEncoder, tokens: TokenText) -> None:
        self._engine = engine
        self._prompts = prompts
        self._tokens = tokens
        self._images = ImageInput(engine.settings.image_hosts)

    async def chat(self, request: Request, body: ChatRequest) -> Response:
        """Answers a conversation with `n` choices."""
        self._check(body)
        if body.top_logprobs and not body.logprobs:
            raise ApiError("top_logprobs needs logprobs: true.", param="top_logprobs")
        if body.continue_final_message and body.messages[-1].role != "assistant":
            raise ApiError("The final message is not the assistant's.", param="continue_final_message")
        messages, pictures = await run_in_threadpool(turns_and_pictures, body.messages, self._images)
        prompt = await run_in_threadpool(
            self._prompts.chat,
            messages,
            pictures,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
        )
        longest = body.max_completion_tokens or body.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        make = self._maker(body, [prompt], longest, None, logprobs=logprobs, param="max_tokens")
        stream = RequestStream(self._engine, "chatcmpl", [prompt], make)
        formatter = _ChatFormatter(
            stream, self._engine.settings.model_name, self._tokens, logprobs is not None
        )
        return await self._answer(request, body, stream, formatter)

    async def completion(self, request: Request, body: CompletionRequest) -> Response:
        """Continues raw texts or token ids with `n` choices each."""
        self._check(body)
        given = body.prompt
        several: Sequence[Any] = (
            [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        )
        prompts = [await run_in_threadpool(self._prompts.raw, each) for each in several]
        longest = _LONGEST_COMPLETION if body.max_tokens is None else body.max_tokens
        if longest == 0 and not body.echo:
            raise ApiError("max_tokens is 0, and the prompt is not to be echoed.", param="max_tokens")
        make = self._maker(
            body,
            prompts,
            longest,
            body.logprobs if body.echo else None,
            logprobs=body.logprobs,
            raw=True,
            param="max_tokens",
        )
        stream = RequestStream(self._engine, "cmpl", prompts, make)
        formatter = _CompletionFormatter(
            stream, self._engine.settings.model_name, self._tokens, body, several
        )
        return await self._answer(request, body, stream, formatter)

    # -- common to both ------------------------------------------------------------------------------

    def _check(self, body: ChatRequest | CompletionRequest) -> None:
        settings = self._engine.settings
        if body.model is not None and body.model != settings.model_name:
            raise no_such_model(body.model, settings.model_name)
        if (body.n or 1) > settings.max_rows:
            raise ApiError(
                f"n is {body.n}; this server generates {settings.max_rows} answers at most.", param="n"
            )
        if body.stream_options is not None and not body.stream:
            raise ApiError("stream_options needs stream: true.", param="stream_options")
        strength = None if body.inferaligner is None else body.inferaligner.strength
        if strength is not None and not settings.allow_override:
            raise ApiError(
                "This server does not let requests set the strength (its operator can: --allow-override).",
                status=403,
                param="inferaligner.strength",
                code="override_not_allowed",
            )

    def _maker(
        self,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[EnginePrompt],
        longest: int | None,
        prompt_logprobs: int | None,
        *,
        logprobs: int | None,
        param: str,
        raw: bool = False,
    ) -> Callable[[str, EnginePrompt, Listener], Job]:
        settings, n = self._engine.settings, body.n or 1
        sampling = self._sampling(body)
        room = min(self._room(prompt, n) for prompt in prompts)
        if longest is not None and longest > room:
            raise ApiError(
                f"{param} is {longest}, but there is room for {room} tokens after this prompt "
                f"of {max(len(prompt.tokens) for prompt in prompts)}.",
                param=param,
                code="context_length_exceeded",
            )
        if room < 1 and longest != 0:
            raise ApiError(
                f"There is no room for an answer: n · prompt must fit into {settings.cache_tokens} tokens.",
                param="n",
            )
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        ours = body.inferaligner
        limits = [room, settings.answer_tokens, self._engine.defaults.max_new_tokens]
        tokens = min(limit for limit in limits if limit is not None) if longest is None else longest

        def make(name: str, prompt: EnginePrompt, listener: Listener) -> Job:
            return Job(
                id=name,
                prompt=prompt,
                listener=listener,
                sampling=sampling,
                max_tokens=tokens,
                min_tokens=min(body.min_tokens or 0, tokens),
                n=n,
                stop=stop,
                stop_ids=tuple(body.stop_token_ids or ()),
                ignore_eos=bool(body.ignore_eos),
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                strength=None if ours is None else ours.strength,
                trace=bool(ours is not None and ours.trace),
                raw=raw,
            )

        return make

    def _room(self, prompt: EnginePrompt, n: int) -> int:
        """Highest number of tokens of an answer, by the model's context and by the cache."""
        used = len(prompt.tokens)
        cache = self._engine.settings.cache_tokens // n - used
        return cache if self._prompts.limit is None else min(self._prompts.limit - used, cache)

    def _sampling(self, body: ChatRequest | CompletionRequest) -> Sampling:
        bias: dict[int, float] = {}
        for name, value in (body.logit_bias or {}).items():
            token = int(name) if name.isascii() and name.isdigit() and len(name) < 9 else -1
            if not 0 <= token < self._prompts.vocabulary:
                raise ApiError(
                    f"logit_bias has {name!r:.40}; expected token ids, 0 to {self._prompts.vocabulary - 1}.",
                    param="logit_bias",
                )
            bias[token] = value
        own = self._engine.defaults
        return Sampling(
            temperature=own.temperature if body.temperature is None else body.temperature,
            top_p=own.top_p if body.top_p is None else body.top_p,
            top_k=own.top_k if body.top_k is None else max(body.top_k, 0),
            min_p=own.min_p if body.min_p is None else body.min_p,
            repetition_penalty=body.repetition_penalty or own.repetition_penalty,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=bias,
            seed=body.seed,
        )

    async def _answer(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        stream: RequestStream,
        formatter: _Formatter,
    ) -> Response:
        try:
            work = stream.until_decided() if body.stream else stream.complete()
            await unless_disconnected(work, request.receive)
        except BaseException:
            stream.cancel()
            raise
        if len(stream.decided) < len(stream.jobs) or (
            not body.stream and any(choice.finished is None for choice in stream.choices)
        ):
            stream.cancel()
            return Response(status_code=_CLOSED_REQUEST)
        opened = any(report.open for report in stream.reports())
        headers = {OPEN_HEADER: "true" if opened else "false"}
        if not body.stream:
            return JSONResponse(plain(formatter.body()), headers=headers)
        usage = bool(body.stream_options is not None and body.stream_options.include_usage)
        return EventStream(formatter.chunks(usage=usage), headers=headers, on_close=stream.cancel)


class _Formatter:
    """Formats the events of a request as a response. Each endpoint has a subclass."""

    whole_object: str
    chunk_object: str

    def __init__(self, stream: RequestStream, model: str, tokens: TokenText) -> None:
        self.stream = stream
        self.tokens = tokens
        self._head = {"id": stream.id, "created": int(time.time()), "model": model}

    def body(self) -> dict[str, Any]:
        """The whole response."""
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [self.choice(at, choice) for at, choice in enumerate(self.stream.choices)],
            "usage": self.stream.usage(),
            KEY: self.stream.report(),
        }

    async def chunks(self, *, usage: bool) -> Chunks:
        """Yields the chunks of a streamed response.

        Every chunk has a choice, as OpenAI's clients expect; only the last one, with `usage`, has none.
        The report is in the chunk that ends the last choice: by then a monitor has read all of them.
        """
        extra: dict[str, Any] = {"usage": None} if usage else {}
        head = {**self._head, "object": self.chunk_object, **extra}
        for first in self.first_choices():
            yield {**head, "choices": [first], KEY: self.stream.report()}
        async for at, event in self.stream.events():
            monitor = event.monitor if isinstance(event, Piece) else None
            made = list(self.pieces(at, event)) or ([] if monitor is None else [self.empty_choice(at)])
            chunks = [{**head, "choices": [choice]} for choice in made]
            if monitor is not None:
                read = len(self.stream.choices[at].tokens) - 1
                chunks[0][KEY] = {"monitor": {"token": read, "score": monitor}}
            if isinstance(event, Finished) and self.stream.finished:
                chunks[-1][KEY] = self.stream.report()
            for chunk in chunks:
                yield chunk
        if usage:
            yield {**head, "choices": [], "usage": self.stream.usage()}

    def choice(self, at: int, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def first_choices(self) -> Sequence[dict[str, Any]]:
        return ()

    def pieces(self, at: int, event: Piece | Finished) -> Sequence[dict[str, Any]]:
        """The chunks' choices for an event; at least one for `Finished`."""
        raise NotImplementedError

    def empty_choice(self, at: int) -> dict[str, Any]:
        """A choice without new text."""
        raise NotImplementedError


class _ChatFormatter(_Formatter):
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, stream: RequestStream, model: str, tokens: TokenText, logprobs: bool) -> None:
        super().__init__(stream, model, tokens)
        self._logprobs = logprobs

    def choice(self, at: int, choice: Choice) -> dict[str, Any]:
        assert choice.finished is not None
        return {
            "index": at,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self.tokens.chat(choice.logprobs) if self._logprobs else None,
            "finish_reason": choice.finished.reason,
            "stop_reason": choice.finished.stop_reason,
        }

    def first_choices(self) -> Sequence[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": at, "delta": delta, "logprobs": None, "finish_reason": None}
            for at in range(len(self.stream.choices))
        ]

    def empty_choice(self, at: int) -> dict[str, Any]:
        return {"index": at, "delta": {}, "logprobs": None, "finish_reason": None}

    def pieces(self, at: int, event: Piece | Finished) -> Sequence[dict[str, Any]]:
        logprobs = None
        if isinstance(event, Piece) and event.logprob is not None:
            logprobs = self.tokens.chat([event.logprob])
        made = []
        if event.text or logprobs is not None:
            delta = {"content": event.text}
            made.append({"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": None})
        if isinstance(event, Finished):
            made.append(
                {
                    "index": at,
                    "delta": {},
                    "logprobs": None,
                    "finish_reason": event.reason,
                    "stop_reason": event.stop_reason,
                }
            )
        return made


class _CompletionFormatter(_Formatter):
    whole_object, chunk_object = "text_completion", "text_completion"

    def __init__(
        self,
        stream: RequestStream,
        model: str,
        tokens: TokenText,
        body: CompletionRequest,
        given: Sequence[str | Sequence[int]],
    ) -> None:
        super().__init__(stream, model, tokens)
        self._body = body
        self._n = stream.jobs[0].n
        self._given = given
        self._offsets = [len(self._prompt(at)) if body.echo else 0 for at in range(len(stream.choices))]

    def _prompt(self, at: int) -> str:
        given = self._given[at // self._n]
        return given if isinstance(given, str) else self.tokens.text(given)

    def choice(self, at: int, choice: Choice) -> dict[str, Any]:
        assert choice.finished is not None
        echo, logprobs = self._body.echo, None
        if self._body.logprobs is not None:
            before = self.stream.decided[at // self._n].prompt_logprobs if echo else ()
            logprobs = self.tokens.completion([*before, *choice.logprobs])
        return {
            "index": at,
            "text": (self._prompt(at) if echo else "") + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finished.reason,
            "stop_reason": choice.finished.stop_reason,
        }

    def first_choices(self) -> Sequence[dict[str, Any]]:
        if not self._body.echo:
            return ()
        made = []
        for at in range(len(self.stream.choices)):
            before = self.stream.decided[at // self._n].prompt_logprobs
            logprobs = self.tokens.completion(before) if self._body.logprobs is not None else None
            made.append({"index": at, "text": self._prompt(at), "logprobs": logprobs, "finish_reason": None})
        return made

    def empty_choice(self, at: int) -> dict[str, Any]:
        return {"index": at, "text": "", "logprobs": None, "finish_reason": None}

    def pieces(self, at: int, event: Piece | Finished) -> Sequence[dict[str, Any]]:
        logprobs = None
        if isinstance(event, Piece) and event.logprob is not None:
            logprobs = self.tokens.completion([event.logprob], self._offsets[at])
            self._offsets[at] += len(logprobs["tokens"][0])
        if isinstance(event, Finished):
            return [
                {
                    "index": at,
                    "text": event.text,
                    "logprobs": None,
                    "finish_reason": event.reason,
                    "stop_reason": event.stop_reason,
                }
            ]
        if not event.text and logprobs is None:
            return []
        return [{"index": at, "text": event.text, "logprobs": logprobs, "finish_reason": None}]
