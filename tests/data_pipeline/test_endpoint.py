"""One way to ask an endpoint: what is tried again, what ends a request and what ends a job. The server answers as it is told."""

import asyncio
import contextlib
from collections import Counter

import openai
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from data_pipeline.distill.cost import Prices
from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.distill.writer import Writer, WriterOptions
from data_pipeline.endpoint import Endpoint, describe, each, retry_after
from data_pipeline.pairs import Drops, read
from demos.standin import Standin, serve
from foundation.errors import DataError
from tests.helpers.paths import SEED_PAIRS

BODIES = [{"model": "m", "messages": [{"role": "user", "content": f"{i}"}], "max_completion_tokens": 9} for i in range(6)]
QUOTA = {"error": {"message": "no", "code": "insufficient_quota"}}


def run(use, *replies, monkeypatch):
    """What `use` returns of the address of a server that gives these replies first, then answers."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    left = list(replies)

    class Told(Standin):
        async def chat(self, asked):
            return left.pop(0) if left else await super().chat(asked)

    async def served():
        server = await serve(Told(list(read(SEED_PAIRS, Drops())), 0, 0, None))
        try:
            return await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        finally:
            server.close()

    return asyncio.run(served())


def asking(tries=3):
    """A use: the first body's finish reason or error, and the retries."""

    async def use(url):
        async with contextlib.aclosing(Endpoint(url, timeout_s=20, tries=tries, backoff_s=0.01)) as endpoint:
            try:
                found = await endpoint.ask(lambda c: c.chat.completions.create(**BODIES[0]), lambda a: a.choices[0].finish_reason)
            except (openai.APIError, ValueError) as error:
                found = describe(error)
            return found, endpoint.retries

    return use


def empty():
    return JSONResponse({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": []})


def status(code, **more):
    return JSONResponse(more, code, {"Retry-After-Ms": "1"})


def test_what_may_pass_is_tried_again(monkeypatch):
    replies = status(503), empty(), PlainTextResponse("a page of a proxy")
    assert run(asking(4), *replies, monkeypatch=monkeypatch) == ("stop", Counter({"503 InternalServerError": 1, "unreadable answer": 2}))
    assert run(asking(2), status(429), status(500), monkeypatch=monkeypatch)[0] == "500 InternalServerError"
    assert run(asking(2), status(400), monkeypatch=monkeypatch) == ("400 BadRequestError", Counter())


@pytest.mark.parametrize("reply", [status(401), status(404), status(429, **QUOTA)])
def test_what_no_request_survives_ends_a_job_and_what_one_does_not_only_that(tmp_path, monkeypatch, reply):
    async def use(url):
        journal = Journal(tmp_path / "journal")
        async with contextlib.aclosing(Writer(journal, WriterOptions(url, concurrency=1, tries=2, backoff_s=0.01))) as writer:
            try:
                return await writer.ask(BODIES, lambda: None), len(journal.answers)
            finally:
                journal.close()

    with pytest.raises(DataError, match="check OPENAI_API_KEY, --base-url, --model and your quota"):
        run(use, reply, monkeypatch=monkeypatch)
    failed, answers = run(use, status(400), status(500), status(500), monkeypatch=monkeypatch)
    reasons = ["refused by the endpoint: 400 BadRequestError", "no answer: 500 InternalServerError"]
    assert (failed, answers) == (dict(zip(map(content_key, BODIES), reasons, strict=False)), 4)


@pytest.mark.parametrize(
    "url", ["http://localhost:abc/v1", "http://[::1/v1", "http://localhost:99999/v1", "localhost:8000/v1", "http://", "http://a b/"]
)
def test_an_address_that_is_none_is_said_before_anything_is_asked(url, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(DataError, match="write it as http"):
        Endpoint(None, api_key="none", timeout_s=1, tries=1)
    with pytest.raises(DataError) as error:
        Endpoint("http://me:secret@host:port/", api_key="none", timeout_s=1, tries=1)
    assert "secret" not in str(error.value)


def test_so_many_at_once_and_an_error_ends_them():
    now, most, done = 0, 0, []

    async def work(item):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        if item == 50:
            await asyncio.sleep(0.05)
        now -= 1
        if item == 7:
            raise KeyError(item)
        done.append(item)

    asyncio.run(each(range(5), work, 2))
    assert most == 2 and sorted(done) == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError):
        asyncio.run(each([7, *range(10, 20)], work, 1))
    assert len(done) == 5
    with pytest.raises(KeyError):
        asyncio.run(each([50, 7, *range(10, 20)], work, 2))
    assert done[5:] == [50]  # it was under way, and has been paid for


def test_a_budget_needs_prices():
    with pytest.raises(DataError, match="--price-in"):
        Prices(budget=1)


def test_retry_after_in_each_notation():
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": "2"}) == 2
    assert retry_after({"retry-after": "3600"}) == 60
    assert retry_after({}) == retry_after({"retry-after": "soon"}) == 0
    assert retry_after({"retry-after": "nan"}) == retry_after({"retry-after-ms": "nan"}) == 0
    assert retry_after({"retry-after": "inf"}) == 60
    assert retry_after({"retry-after": f"Wed, 21 Oct 2015 07:28:00 +{'9' * 19}"}) == 0


def test_a_redirect_to_a_port_that_is_none_is_tried_again(monkeypatch):
    astray = PlainTextResponse("", 307, {"Location": "http://127.0.0.1:99999/"})
    assert run(asking(), astray, monkeypatch=monkeypatch) == ("stop", Counter({"unreadable answer": 1}))
