"""A language model as the judge, through any OpenAI-compatible endpoint.

Questions are asked in several threads, each at most `per_minute` a minute in all; refused or failed calls
are repeated with growing pauses; every reply is kept in a cache before it is used, so that an interrupted
run asks nothing twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from inferaligner.errors import InputError, MissingExtraError
from inferaligner.judges.pair_judge import Label, Pair
from inferaligner.judges.reply_cache import ReplyCache, key_of_question
from inferaligner.judges.rubric import Rubric

_MOST_TOKENS = 300


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how hard."""

    model: str
    base_url: str | None = None  # None: OpenAI's own
    api_key: str | None = None
    concurrency: int = 8
    per_minute: int | None = None
    retries: int = 6
    timeout: float = 60.0


class RateLimit:
    """Lets `per_minute` calls through a minute, evenly; the others wait. Threads share one."""

    def __init__(self, per_minute: int | None) -> None:
        self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Returns when it is this caller's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(max(0.0, turn - now))


class LanguageModelJudge:
    """Asks a rubric's question about every answer."""

    def __init__(self, endpoint: Endpoint, rubric: Rubric, cache: ReplyCache) -> None:
        """Raises `MissingExtraError` without the openai package."""
        try:
            import openai
        except ImportError:
            raise MissingExtraError(
                'Judging by a language model needs openai: pip install "inferaligner[eval]"'
            ) from None
        self._openai = openai
        self._endpoint, self._rubric, self._cache = endpoint, rubric, cache
        self._limit = RateLimit(endpoint.per_minute)
        self.name = f"{endpoint.model}, {rubric.name}"
        self.agreement = ""
        self.positive = rubric.positive
        try:
            self._client: Any = openai.OpenAI(
                base_url=endpoint.base_url,
                # A server of one's own needs no key, and the client insists on one.
                api_key=endpoint.api_key or ("none" if endpoint.base_url else None),
                max_retries=0,
                timeout=endpoint.timeout,
            )
        except openai.OpenAIError as error:
            raise InputError(f"The judge cannot be asked: {_first_line(error)} Set OPENAI_API_KEY.") from None

    def judge_pairs(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Label]]:
        """Labels as they come.

        Raises:
            InputError: the endpoint refuses or cannot be reached, after all the retries. What came until then
                is in the cache.
        """
        questions = [self._rubric.ask(prompt, answer) for prompt, answer in pairs]
        waiting = iter(range(len(pairs)))
        stop = threading.Event()
        running: dict[Future[str], int] = {}
        with ThreadPoolExecutor(self._endpoint.concurrency) as threads:
            try:
                while True:
                    # Few more than there are threads: what is not yet asked can still be left.
                    for index in waiting:
                        running[threads.submit(self._reply, questions[index], stop)] = index
                        if len(running) >= 2 * self._endpoint.concurrency:
                            break
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield running.pop(future), self._rubric.read(future.result())
            finally:
                stop.set()

    def _reply(self, question: str, stop: threading.Event) -> str:
        key = key_of_question(self._endpoint.base_url or "", self._endpoint.model, question)
        known = self._cache.get(key)
        if known is not None:
            return known
        reply = self._ask(question, stop)
        self._cache.put(key, reply)
        return reply

    def _ask(self, question: str, stop: threading.Event) -> str:
        openai = self._openai
        passing = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError)
        for attempt in range(self._endpoint.retries + 1):
            if stop.is_set():
                raise InputError("The judging was stopped.")
            self._limit.wait()
            try:
                answer = self._client.chat.completions.create(
                    model=self._endpoint.model,
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    max_tokens=_MOST_TOKENS,
                )
                return str(answer.choices[0].message.content or "")
            except passing as error:
                if attempt == self._endpoint.retries:
                    raise self._gave_up(error) from None
                stop.wait(_pause(error, attempt))
            except openai.APIError as error:
                raise self._gave_up(error) from None
        raise AssertionError("the last attempt returns or raises")

    def _gave_up(self, error: Exception) -> InputError:
        where = self._endpoint.base_url or "the OpenAI API"
        return InputError(
            f"The judge {self._endpoint.model} at {where} did not answer: {_first_line(error)} "
            "Verdicts so far are kept; run the same command again to go on."
        )


def _pause(error: Exception, attempt: int) -> float:
    """Seconds until the next attempt: what the server asks for, or 0.5, 1, 2, …, at most 30."""
    response = getattr(error, "response", None)
    asked = None if response is None else response.headers.get("retry-after")
    try:
        return min(60.0, float(asked)) if asked is not None else min(30.0, 0.5 * 2.0**attempt)
    except ValueError:
        return min(30.0, 0.5 * 2.0**attempt)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    line = text[0][:200] if text else type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
