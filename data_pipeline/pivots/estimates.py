"""p(success | prefix): asked of a model's endpoint, judged, and found in a journal ever after."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import openai

from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.endpoint import Endpoint, address, describe, each, is_hopeless
from data_pipeline.pivots.places import SIDES, Side, Track, wanted
from data_pipeline.pivots.success import Judges, Together
from foundation.errors import DataError, masked
from foundation.files import Json


@dataclass(frozen=True)
class Search:
    """What is asked, and what counts. Threshold and samples are the defaults of codelion/pts."""

    model: str  # its name at the endpoint
    samples: int = 50  # of each prefix; the standard error of a difference is at most sqrt(1 / (2 samples))
    temperature: float = 1.0  # the model's own distribution
    max_tokens: int = 512  # of a continuation; one that is longer fails
    threshold: float = 0.2  # least |p after - p before| of a pivotal token
    sides: tuple[Side, ...] = SIDES
    seed: int = 0


@dataclass(frozen=True)
class Asking:
    """How the endpoint is asked; results don't depend on it."""

    base_url: str | None = None  # None: OPENAI_BASE_URL, else OpenAI's own
    concurrency: int = 4  # each of so many samples
    timeout_s: float = 180
    tries: int = 8
    backoff_s: float = 1.0


class DroppedError(Exception):
    """The pair can't be searched; the message is the reason it's counted under."""


class Estimates:
    """p(success | prefix), asked for once and found in the journal ever after."""

    def __init__(self, what: Search, asking: Asking, judges: Judges, journal: Journal, tell: Callable[[], object]):
        self._what, self._judges, self._journal, self._tell = what, judges, journal, tell
        self._endpoint = Endpoint(
            asking.base_url, api_key=os.environ.get("OPENAI_API_KEY") or "none", timeout_s=asking.timeout_s, tries=asking.tries,
            backoff_s=asking.backoff_s, seed=what.seed,
        )  # fmt: skip
        self._host = urlsplit(address(asking.base_url)).hostname
        self._room = asyncio.Semaphore(asking.concurrency)
        self._together = Together(judges)
        self._under_way: dict[str, asyncio.Task[None]] = {}  # pairs, and a pair's sides, begin alike
        self._broken: Exception | None = None

    async def aclose(self) -> None:
        await self._endpoint.aclose()

    async def search(self, track: Track) -> dict[int, float]:
        """p at the places that the search looks at."""
        known: dict[int, float] = {}

        async def look(place: int) -> None:
            known[place] = await self._p(track, place)

        while places := wanted(known, len(track.cuts) - 1, self._what.threshold):
            await each(places, look, len(places))
        return known

    async def _p(self, track: Track, place: int) -> float:
        body = self._request(track, place)
        key = content_key(body)
        judged = content_key({"of": key, "pair": [track.pair.id, track.pair.cwe]})
        if judged not in self._journal.answers:
            if key not in self._journal.answers:
                if key not in self._under_way:
                    self._under_way[key] = asyncio.create_task(self._ask(key, body))
                await self._under_way[key]
            said = self._journal.answers[key]["said"]
            programs = [track.program(place, text, end != "length") for text, end in said]
            passed = iter(await self._together.passed(track.pair, [program for program in programs if program is not None]))
            verdicts = [program is not None and next(passed) for program in programs]
            self._journal.add(judged, {"of": key, "pair": track.pair.id, "side": track.side, "place": place}, {"passed": verdicts})
        verdicts = self._journal.answers[judged]["passed"]
        return sum(verdicts) / len(verdicts)

    def _request(self, track: Track, place: int) -> Json:
        """The seed is the prefix's own: two that are alike are one request."""
        what, ids = self._what, track.ids[: track.cuts[place][0]]
        seed = int(content_key({"seed": what.seed, "prompt": ids})[:7], 16)
        body = {"model": what.model, "prompt": ids, "n": what.samples, "max_tokens": what.max_tokens}
        body |= {"temperature": what.temperature, "seed": seed}
        return body | ({"stop": [f"\n{track.fence[1]}\n"]} if track.fence[1] else {})

    async def _ask(self, key: str, body: Json) -> None:
        def read(answer: openai.types.Completion) -> list[tuple[str, str]]:
            said = [(choice.text, str(choice.finish_reason)) for choice in sorted(answer.choices, key=lambda choice: choice.index)]
            if len(said) != self._what.samples or not all(isinstance(text, str) for text, _ in said):
                raise ValueError("another number of samples")
            return said

        async with self._room:
            if self._broken:  # nobody else waits for all its tries
                raise self._broken
            try:
                said = await self._endpoint.ask(lambda client: client.completions.create(**body), read)
            except (openai.APIError, ValueError) as error:
                told = self._told(error)
                self._broken = None if isinstance(told, DroppedError) else told
                raise told from None
        self._journal.add(key, body, {"said": said})
        self._tell()

    def _told(self, error: Exception) -> Exception:
        """What an error means: for one pair, or for the job."""
        said = masked(" ".join(str(error).split()))[:300]
        refused = isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422)
        if refused and ("context_length" in said or "context length" in said):
            return DroppedError(f"too long for the endpoint ({said})")
        remedy = "run the same command again to go on"
        if is_hopeless(error):
            remedy = "check OPENAI_API_KEY, --base-url and --model"
        elif isinstance(error, ValueError):
            remedy = "does --base-url speak OpenAI's /completions, and give --samples completions of one prompt (its `n`)?"
        elif refused:
            remedy = "prompts are token ids: is --tokenizer that of the model there, and does it take --samples completions at once?"
        return DataError(f"{self._host} gave no continuation ({describe(error)}: {said}); {remedy}")
