"""POST /v1/chat/completions and /v1/completions: from a request to jobs, from their words to an answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from inferaligner.server.engine.engine import Engine
from inferaligner.server.engine.image_input import ImageDoor, turns_of
from inferaligner.server.engine.jobs import Finished, Job, Listener, Piece, Prompt
from inferaligner.server.engine.sampling import Sampling
from inferaligner.server.engine.token_text import TokenText
from inferaligner.server.errors import ApiError, no_such_model
from inferaligner.server.event_stream import EventStream
from inferaligner.server.prompts import PromptMaker
from inferaligner.server.request_stream import Choice, Exchange, unless_gone
from inferaligner.server.schema import ChatRequest, CompletionRequest
from inferaligner.serving.gate_report import KEY, OPEN_HEADER
from inferaligner.storage.json_io import plain

_CLOSED_REQUEST = 499  # nginx's number for a client that did not wait
_LONGEST_COMPLETION = 16  # OpenAI's default for raw completions

Chunks = AsyncIterator[dict[str, Any]]


class Generation:
    """Both endpoints, which differ in the words they use."""

    def __init__(self, engine: Engine, prompts: PromptMaker, tokens: TokenText) -> None:
        self._engine = engine
        self._prompts = prompts
        self._tokens = tokens
        self._door = ImageDoor(engine.settings.image_hosts)

    async def chat(self, request: Request, body: ChatRequest) -> Response:
        """One conversation, `n` answers."""
        self._check(body)
        if body.top_logprobs and not body.logprobs:
            raise ApiError("top_logprobs needs logprobs: true.", param="top_logprobs")
        if body.continue_final_message and body.messages[-1].role != "assistant":
            raise ApiError("The final message is not the assistant's.", param="continue_final_message")
        messages, pictures = await run_in_threadpool(turns_of, body.messages, self._door)
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
        exchange = Exchange(self._engine, "chatcmpl", [prompt], make)
        shape = _Chat(exchange, self._engine.settings.model_name, self._tokens, logprobs is not None)
        return await self._answer(request, body, exchange, shape)

    async def completion(self, request: Request, body: CompletionRequest) -> Response:
        """Raw texts or token ids, `n` answers each."""
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
        exchange = Exchange(self._engine, "cmpl", prompts, make)
        shape = _Completion(exchange, self._engine.settings.model_name, self._tokens, body, several)
        return await self._answer(request, body, exchange, shape)

    # -- common to both ------------------------------------------------------------------------------

    def _check(self, body: ChatRequest | CompletionRequest) -> None:
        settings = self._engine.settings
        if body.model is not None and body.model != settings.model_name:
            raise no_such_model(body.model, settings.model_name)
        if (body.n or 1) > settings.max_rows:
            raise ApiError(
                f"n is {body.n}; this server makes {settings.max_rows} answers at most.", param="n"
            )
        if body.stream_options is not None and not body.stream:
            raise ApiError("stream_options needs stream: true.", param="stream_options")
        asked = None if body.inferaligner is None else body.inferaligner.strength
        if asked is not None and not settings.allow_override:
            raise ApiError(
                "This server does not let requests set the strength (its operator can: --allow-override).",
                status=403,
                param="inferaligner.strength",
                code="override_not_allowed",
            )

    def _maker(
        self,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[Prompt],
        longest: int | None,
        prompt_logprobs: int | None,
        *,
        logprobs: int | None,
        param: str,
        raw: bool = False,
    ) -> Callable[[str, Prompt, Listener], Job]:
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

        def make(name: str, prompt: Prompt, listener: Listener) -> Job:
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

    def _room(self, prompt: Prompt, n: int) -> int:
        """Tokens that an answer may have: what the model reads, and what the cache holds."""
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
        self, request: Request, body: ChatRequest | CompletionRequest, exchange: Exchange, shape: _Shape
    ) -> Response:
        try:
            work = exchange.until_decided() if body.stream else exchange.complete()
            await unless_gone(work, request.receive)
        except BaseException:
            exchange.cancel()
            raise
        if len(exchange.decided) < len(exchange.jobs) or (
            not body.stream and any(choice.finished is None for choice in exchange.choices)
        ):
            exchange.cancel()
            return Response(status_code=_CLOSED_REQUEST)
        opened = any(report.open for report in exchange.reports())
        headers = {OPEN_HEADER: "true" if opened else "false"}
        if not body.stream:
            return JSONResponse(plain(shape.whole()), headers=headers)
        usage = bool(body.stream_options is not None and body.stream_options.include_usage)
        return EventStream(shape.chunks(usage=usage), headers=headers, on_close=exchange.cancel)


class _Shape:
    """What both endpoints' answers have in common."""

    whole_object: str
    chunk_object: str

    def __init__(self, exchange: Exchange, model: str, tokens: TokenText) -> None:
        self.exchange = exchange
        self.tokens = tokens
        self._head = {"id": exchange.id, "created": int(time.time()), "model": model}

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [self.choice(at, choice) for at, choice in enumerate(self.exchange.choices)],
            "usage": self.exchange.usage(),
            KEY: self.exchange.report(),
        }

    async def chunks(self, *, usage: bool) -> Chunks:
        """The answer piece by piece.

        Every chunk has a choice, as OpenAI's clients expect it; `usage` alone adds one without, at the end.
        The report is in the chunk that ends the last choice: by then a monitor has read all of them.
        """
        extra: dict[str, Any] = {"usage": None} if usage else {}
        head = {**self._head, "object": self.chunk_object, **extra}
        for first in self.openings():
            yield {**head, "choices": [first], KEY: self.exchange.report()}
        async for at, event in self.exchange.events():
            monitor = event.monitor if isinstance(event, Piece) else None
            made = list(self.pieces(at, event)) or ([] if monitor is None else [self.nothing(at)])
            chunks = [{**head, "choices": [choice]} for choice in made]
            if monitor is not None:
                read = len(self.exchange.choices[at].tokens) - 1
                chunks[0][KEY] = {"monitor": {"token": read, "score": monitor}}
            if isinstance(event, Finished) and self.exchange.finished:
                chunks[-1][KEY] = self.exchange.report()
            for chunk in chunks:
                yield chunk
        if usage:
            yield {**head, "choices": [], "usage": self.exchange.usage()}

    def choice(self, at: int, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def openings(self) -> Sequence[dict[str, Any]]:
        return ()

    def pieces(self, at: int, event: Piece | Finished) -> Sequence[dict[str, Any]]:
        """What an event adds to a choice; of one that finishes it, something in any case."""
        raise NotImplementedError

    def nothing(self, at: int) -> dict[str, Any]:
        """A choice to which nothing is added."""
        raise NotImplementedError


class _Chat(_Shape):
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, exchange: Exchange, model: str, tokens: TokenText, logprobs: bool) -> None:
        super().__init__(exchange, model, tokens)
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

    def openings(self) -> Sequence[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": at, "delta": delta, "logprobs": None, "finish_reason": None}
            for at in range(len(self.exchange.choices))
        ]

    def nothing(self, at: int) -> dict[str, Any]:
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


class _Completion(_Shape):
    whole_object, chunk_object = "text_completion", "text_completion"

    def __init__(
        self,
        exchange: Exchange,
        model: str,
        tokens: TokenText,
        body: CompletionRequest,
        given: Sequence[str | Sequence[int]],
    ) -> None:
        super().__init__(exchange, model, tokens)
        self._body = body
        self._n = exchange.jobs[0].n
        self._given = given
        self._offsets = [len(self._prompt(at)) if body.echo else 0 for at in range(len(exchange.choices))]

    def _prompt(self, at: int) -> str:
        given = self._given[at // self._n]
        return given if isinstance(given, str) else self.tokens.text(given)

    def choice(self, at: int, choice: Choice) -> dict[str, Any]:
        assert choice.finished is not None
        echo, logprobs = self._body.echo, None
        if self._body.logprobs is not None:
            before = self.exchange.decided[at // self._n].prompt_logprobs if echo else ()
            logprobs = self.tokens.completion([*before, *choice.logprobs])
        return {
            "index": at,
            "text": (self._prompt(at) if echo else "") + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finished.reason,
            "stop_reason": choice.finished.stop_reason,
        }

    def openings(self) -> Sequence[dict[str, Any]]:
        if not self._body.echo:
            return ()
        made = []
        for at in range(len(self.exchange.choices)):
            before = self.exchange.decided[at // self._n].prompt_logprobs
            logprobs = self.tokens.completion(before) if self._body.logprobs is not None else None
            made.append({"index": at, "text": self._prompt(at), "logprobs": logprobs, "finish_reason": None})
        return made

    def nothing(self, at: int) -> dict[str, Any]:
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
