"""Asks an endpoint that speaks OpenAI's protocol: some requests at once, each tried again where that may help.

The key is read from OPENAI_API_KEY by the `openai` package and goes nowhere else.
"""

import asyncio
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit

import openai

from foundation.errors import DataError, masked

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Kept = TypeVar("Kept")


class Endpoint:
    """A client that tries again.

    Args:
      base_url: see `address`.
      timeout_s: seconds for an answer.
      tries: of one request.
      backoff_s: seconds of the first wait. It doubles up to a minute; each wait is drawn from its upper half.
      seed: of these draws.
    """

    def __init__(
        self, base_url: str | None, *, api_key: str | None = None, timeout_s: float, tries: int, backoff_s: float = 1.0, seed: int = 0
    ):
        self.client = openai.AsyncOpenAI(base_url=address(base_url), api_key=api_key, timeout=timeout_s, max_retries=0)
        self.retries: Counter[str] = Counter()  # by reason
        self._tries, self._backoff_s, self._draw = tries, backoff_s, random.Random(seed)
        self._open_at = 0.0  # monotonic time before which nobody asks: the latest Retry-After

    async def ask(self, send: Callable[[openai.AsyncOpenAI], Awaitable[Answer]], read: Callable[[Answer], Kept]) -> Kept:
        """What `read` keeps of the answer to what `send` sends. An answer that `read` stumbles over counts as none.

        Raises:
          openai.APIError, ValueError: the last try's; `describe` says it in words.
        """
        attempt = 0
        while True:
            attempt += 1
            wait = self._open_at - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait + self._draw.uniform(0, 0.1) * wait)
            try:
                try:
                    answer = await send(self.client)
                except (RecursionError, OverflowError, ExceptionGroup):  # JSON nested without end; a redirect to a port that is none
                    raise ValueError("the answer can't be read") from None
                try:
                    return read(answer)
                except (AttributeError, LookupError, TypeError):
                    raise ValueError("the answer is no completion") from None
            except (openai.APIError, ValueError) as error:
                if not may_pass(error):
                    raise
                self.retries[describe(error)] += 1
                told = retry_after(error.response.headers) if isinstance(error, openai.APIStatusError) else 0.0
                self._open_at = max(self._open_at, time.monotonic() + told)
                if attempt >= self._tries:
                    raise
            await asyncio.sleep(told or min(self._backoff_s * 2 ** (attempt - 1), 60) * self._draw.uniform(0.5, 1))

    async def aclose(self) -> None:
        await self.client.close()


def address(url: str | None) -> str:
    """The URL of an endpoint: this one, else OPENAI_BASE_URL, else OpenAI's own.

    Raises:
      DataError: it can't be one.
    """
    url = url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and not re.search(r"[\s\x00-\x1f]", url) and parts.port != 0
    except ValueError:  # of a port, or an IPv6 address
        good = False
    if not good:
        shown = re.sub(r"//[^/]*@", "//", url)  # without a password
        raise DataError(f"an endpoint can't have the address {shown!r}: write it as http://localhost:8000/v1")
    return url


async def each(items: Iterable[Item], work: Callable[[Item], Awaitable[None]], at_once: int) -> None:
    """Do the work for every item, for `at_once` of them at a time. After an error nothing is begun, what is under way (and paid for) ends, and the first
    error is raised."""
    queue = iter(items)
    errors: list[Exception] = []

    async def worker() -> None:
        for item in queue:
            try:
                await work(item)
            except Exception as error:
                errors.append(error)
            if errors:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    if errors:
        raise errors[0]


def may_pass(error: Exception) -> bool:
    """Whether another try may end better."""
    if not isinstance(error, openai.APIStatusError):
        return True
    return not is_hopeless(error) and (error.status_code in (408, 409, 429) or error.status_code >= 500)


def is_hopeless(error: Exception) -> bool:
    """Whether no other request would fare better: key, address or quota is at fault."""
    return isinstance(error, openai.APIStatusError) and (error.status_code in (401, 403, 404) or error.code == "insufficient_quota")


def describe(error: Exception) -> str:
    """An error in few words: its kind, without anything that was sent."""
    if isinstance(error, openai.APIStatusError):
        return masked(f"{error.status_code} {' '.join(str(error.code or type(error).__name__).split())[:60]}")
    return {"APITimeoutError": "timeout", "APIConnectionError": "connection lost"}.get(type(error).__name__, "unreadable answer")


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait (`retry-after-ms`, or `Retry-After` in seconds or as a date), 0 if it doesn't; a minute at most."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * scale
        except ValueError:
            continue  # a date, or nothing
        return min(max(0.0 if math.isnan(seconds) else seconds, 0.0), 60.0)  # nobody wakes from a sleep of nan seconds
    try:
        return min(max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0.0), 60.0)
    except (ValueError, OverflowError):
        return 0.0
