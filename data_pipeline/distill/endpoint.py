"""The teacher: any endpoint that speaks OpenAI's chat completions, asked concurrently, within a budget, each request once.

The key is read from the environment by the `openai` package and goes nowhere else.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.pairs import DataError

RETRIED_STATUS = (408, 409, 429)  # and every 5xx


@dataclass(frozen=True)
class TeacherOptions:
    """How an endpoint is asked. Prices in dollars for a million tokens."""

    base_url: str | None = None  # None: OPENAI_BASE_URL, else OpenAI's own
    concurrency: int = 16
    timeout_s: float = 180
    tries: int = 8  # for one request in one run
    backoff_s: float = 1.0  # the first wait; it doubles up to a minute, and each is drawn from its upper half
    price_in: float = 0.0
    price_out: float = 0.0
    budget: float | None = None  # dollars over all runs of a job
    batch: bool = False
    poll_s: float = 60.0  # between looks at a batch


@dataclass
class Bill:
    """What a job has cost so far, all its runs together."""

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0


class Teacher:
    """Answers requests from a journal, or else from the endpoint.

    Raises:
      DataError: there is no key in the environment, or a budget without prices.
    """

    def __init__(self, journal: Journal, options: TeacherOptions, seed: int = 0):
        if options.budget is not None and not options.price_in + options.price_out:
            raise DataError("a budget needs prices: give --price-in and --price-out, in dollars for a million tokens")
        if not os.environ.get("OPENAI_API_KEY"):
            raise DataError("no OPENAI_API_KEY in the environment; set it (for a server that needs none, to any text)")
        self.journal, self.options = journal, options
        self.retries: dict[str, int] = {}  # reason -> how often, in this run
        self._client = openai.AsyncOpenAI(base_url=options.base_url, timeout=options.timeout_s, max_retries=0)
        self._draw = random.Random(seed)
        self._open_at = 0.0  # monotonic time before which nobody asks: the latest Retry-After
        self._reserved = 0.0  # dollars that requests under way may cost at most

    def bill(self) -> Bill:
        total = Bill()
        for answer in self.journal.answers.values():
            total.answers += 1
            total.tokens_in += answer["tokens_in"]
            total.tokens_out += answer["tokens_out"]
            total.dollars += self._price(answer["tokens_in"], answer["tokens_out"]) * (0.5 if answer.get("batch") else 1)
        return total

    async def ask(self, requests: Sequence[dict[str, Any]], progress: Callable[[], object]) -> dict[str, str]:
        """Have every request's answer in the journal, as far as the budget goes.

        Returns:
          Why others have none: key -> "budget", "no answer: ..." (asked again in the next run) or "refused by the endpoint: ...".

        Raises:
          DataError: the endpoint turns down everything that is asked (key, address, quota).
        """
        todo = {key: request for request in requests if (key := content_key(request)) not in self.journal.answers}
        self._spent = self.bill().dollars
        for _ in range(len(requests) - len(todo)):
            progress()
        if self.options.batch:
            from data_pipeline.distill.batch_api import ask_batch

            return await ask_batch(self._client, self.journal, todo, self.options, progress)
        failed: dict[str, str] = {}
        queue = iter(todo.items())

        async def work() -> None:
            for key, request in queue:
                reason = await self._ask_one(key, request)
                if reason:
                    failed[key] = reason
                progress()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.options.concurrency, len(todo))):
                    group.create_task(work())
        except* DataError as errors:
            raise errors.exceptions[0] from None
        return failed

    async def aclose(self) -> None:
        await self._client.close()

    async def _ask_one(self, key: str, request: dict[str, Any]) -> str:
        most = self._price(len(json.dumps(request["messages"])) // 2, request["max_completion_tokens"])
        if self.options.budget is not None and self._spent + self._reserved + most > self.options.budget:
            return "budget"
        self._reserved += most
        reason = ""
        try:
            for attempt in range(self.options.tries):
                wait = self._open_at - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait + self._draw.uniform(0, 0.1) * wait)
                try:
                    completion = await self._client.chat.completions.create(**request)
                    answer = read_completion(completion)
                except (openai.APIError, ValueError) as error:
                    reason = describe(error)
                    pause = self._after(error)
                    if pause is None:
                        return f"refused by the endpoint: {reason}"
                    self.retries[reason] = self.retries.get(reason, 0) + 1
                    if attempt + 1 < self.options.tries:
                        await asyncio.sleep(pause or self._backoff(attempt))
                else:
                    self.journal.add(key, request, answer)
                    self._spent += self._price(answer["tokens_in"], answer["tokens_out"])
                    return ""
            return f"no answer: {reason}"
        finally:
            self._reserved -= most

    def _after(self, error: Exception) -> float | None:
        """Seconds to wait before the next try; 0: as long as the backoff says; None: trying again is of no use.

        Raises:
          DataError: no other request would fare better.
        """
        if not isinstance(error, openai.APIStatusError):
            return 0.0
        if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
            raise DataError(
                f"the endpoint turns requests down ({describe(error)}); check OPENAI_API_KEY, --base-url, --model and your quota"
            )
        if error.status_code not in RETRIED_STATUS and error.status_code < 500:
            return None
        told = retry_after(error.response.headers)
        self._open_at = max(self._open_at, time.monotonic() + told)
        return told

    def _backoff(self, attempt: int) -> float:
        return min(self.options.backoff_s * 2**attempt, 60) * self._draw.uniform(0.5, 1)

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.options.price_in + tokens_out * self.options.price_out) / 1e6


def read_completion(completion: ChatCompletion) -> dict[str, Any]:
    """What is kept of a completion.

    Raises:
      ValueError: it isn't one, whatever its status said.
    """
    if not completion.choices:
        raise ValueError("an answer without choices")
    choice, usage = completion.choices[0], completion.usage
    return {
        "text": choice.message.content,
        "refusal": choice.message.refusal,
        "finish_reason": choice.finish_reason,
        "model": completion.model,
        "tokens_in": usage.prompt_tokens if usage else 0,
        "tokens_out": usage.completion_tokens if usage else 0,
    }


def describe(error: Exception) -> str:
    """An error in few words: its kind, without anything that was sent."""
    if isinstance(error, openai.APIStatusError):
        return f"{error.status_code} {error.code or type(error).__name__}"
    return {"APITimeoutError": "timeout", "APIConnectionError": "connection lost"}.get(type(error).__name__, "unreadable answer")


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait (`retry-after-ms`, or `Retry-After` in seconds or as a date), 0 if it doesn't; a minute at most."""
    from email.utils import parsedate_to_datetime

    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            return min(max(float(value) * scale, 0.0), 60.0)
        except ValueError:
            pass  # a date, or nothing
    try:
        return min(max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0.0), 60.0)
    except ValueError:
        return 0.0
