"""A language model as the judge, through any OpenAI-compatible endpoint.

Several threads ask questions, at most `per_minute` a minute in all. The openai client repeats calls that fail
for a passing reason, with growing pauses. Every reply is cached before it is used, so that an interrupted run
asks no question twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError, MissingExtraError
from inferaligner.judges import Judge, Judgement, JudgeOptions, Pair
from inferaligner.judges.reply_cache import ReplyCache, key_of_question
from inferaligner.judges.rubric import RUBRICS, Rubric

NAME = "language-model"
OPTION = "a model: --model NAME, or --judge language-model=NAME"
_MOST_TOKENS = 300


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint with the limits of its use; `timeout` is in seconds."""

    model: str
    base_url: str | None = None  # None for OpenAI's own
    api_key: str | None = None
    concurrency: int = 8
    per_minute: int | None = None
    retries: int = 6
    timeout: float = 60.0


class RateLimit:
    """Spaces the calls of all threads evenly, `per_minute` of them a minute."""

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


class LanguageModelJudge(Judge):
    """Asks a language model the question of a rubric about every answer."""

    def __init__(self, endpoint: Endpoint, rubric: Rubric, cache: ReplyCache) -> None:
        """Prepares the client; nothing is asked yet.

        Raises:
            MissingExtraError: the openai package is not installed.
            InputError: OpenAI's own endpoint needs a key and there is none.
        """
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
        self.positive, self.kinds = rubric.positive, rubric.kinds
        try:
            self._client: Any = openai.OpenAI(
                base_url=endpoint.base_url,
                # The client insists on a key; the user's own server may need none.
                api_key=endpoint.api_key or ("none" if endpoint.base_url else None),
                max_retries=endpoint.retries,
                timeout=endpoint.timeout,
            )
        except openai.OpenAIError as error:
            raise InputError(f"The judge cannot be asked: {_first_line(error)} Set OPENAI_API_KEY.") from None

    def judge(self, prompt: str, answer: str) -> Judgement:
        """Asks about one answer. Raises as `judge_each`."""
        return self._rubric.read(self._reply(self._rubric.ask(prompt, answer), threading.Event()))

    def judge_each(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Judgement]]:
        """Asks about all answers, several at a time.

        Raises:
            InputError: the endpoint refuses, or cannot be reached after all retries. The replies until then
                are in the cache.
        """
        questions = [self._rubric.ask(prompt, answer) for prompt, answer in pairs]
        waiting = iter(range(len(pairs)))
        stop = threading.Event()
        running: dict[Future[str], int] = {}
        with ThreadPoolExecutor(self._endpoint.concurrency) as threads:
            try:
                while True:
                    # A short queue: when the caller stops, the other questions are never asked.
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
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        reply = self._ask(question, stop)
        self._cache.put(key, reply)
        return reply

    def _ask(self, question: str, stop: threading.Event) -> str:
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
        except self._openai.APIError as error:
            raise self._gave_up(error) from None
        return str(answer.choices[0].message.content or "")

    def _gave_up(self, error: Exception) -> InputError:
        where = self._endpoint.base_url or "the OpenAI API"
        return InputError(
            f"The judge {self._endpoint.model} at {where} did not answer: {_first_line(error)} "
            "The judgements until then are kept; run the same command again to continue."
        )


def make(option: str, options: JudgeOptions) -> Judge:
    """Makes the judge of the model `option`.

    Raises:
        InputError: there is no such rubric, or the cache cannot be used.
    """
    if options.rubric not in RUBRICS:
        raise InputError(f"There is no rubric {options.rubric!r}; expected one of {', '.join(RUBRICS)}.")
    endpoint = Endpoint(option, options.base_url, options.api_key, options.concurrency, options.per_minute)
    cache = options.cache or Path.home() / ".cache" / "inferaligner" / "judge-replies.sqlite"
    return LanguageModelJudge(endpoint, RUBRICS[options.rubric], ReplyCache(cache))


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    line = text[0][:200] if text else type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
