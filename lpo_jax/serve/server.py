"""`lpo serve`: OpenAI's HTTP API over the continuous batcher, for one model or a pair that co-decodes."""

import asyncio
import contextlib
import hmac
import json
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import FrameType
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from foundation.files import Json
from lpo_jax.config import ConfigError
from lpo_jax.serve.driver import Driver, Ticket
from lpo_jax.serve.protocol import Answer, Refusal, Served, read
from lpo_jax.train.stop import EXIT_CODE

log = logging.getLogger(__name__)
_T = TypeVar("_T")

SEGMENT_STEPS = 8  # tokens between looks: how often streams go on and who waits can begin
MAX_BODY_BYTES = 2**20
BODY_TIMEOUT_S = 30.0  # within which a body must have arrived
HEAD_TIMEOUT_S = 10.0  # and in front of it a head


def bind(host: str, port: int) -> socket.socket:
    """A socket that doesn't listen yet: whoever comes before the server is ready is refused. Another server of ours can't have its port, either.

    Raises:
      ConfigError: the address can't be had.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        _claims.append(_claim(bound.getsockname()[1]))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ConfigError(f"{host}:{port} can't be listened on: {error}; give another --host or --port") from None
    return bound


_claims: list[socket.socket] = []  # as long as the process lives


def _claim(port: int) -> socket.socket:
    """A name that one process has. SO_REUSEADDR lets several bind a port, as long as none listens, and the second would fail when it is ready."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if sys.platform.startswith("linux"):
        try:
            claim.bind(f"\0lpo-serve-{port}")
        except OSError:
            claim.close()
            raise OSError("another `lpo serve` is starting there") from None
    return claim


def address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def application(driver: Driver, served: Served, key: str | None) -> Starlette:
    """The ASGI application. It starts the driver and stops it.

    Args:
      key: what clients must show (/health is open); None: nothing.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        driver.start()
        yield
        await asyncio.to_thread(driver.stop)

    def guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def check(request: Request) -> Response:
            if key is not None:
                scheme, _, shown = request.headers.get("authorization", "").partition(" ")
                if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), key.encode()):
                    raise Refusal(401, "the API key is missing or wrong", code="invalid_api_key")
            return await handler(request)

        return check

    def answering(chat: bool) -> Callable[[Request], Awaitable[Response]]:
        async def complete(request: Request) -> Response:
            asked = await asyncio.to_thread(read, await _body(request), chat, served)
            answer, ticket = Answer(asked, served), driver.admit(asked.requests)
            if asked.stream:
                return _Events(_events(answer, ticket), ticket)
            with contextlib.closing(ticket):
                done = await _unless_gone(request, ticket.completions())
            return await _nobody(request) if done is None else JSONResponse(answer.whole(done))

        return guarded(complete)

    async def models(_: Request) -> Response:
        one = {"object": "model", "created": 0, "owned_by": "lpo-jax"}
        adapters = [{"id": name, **one, "parent": served.name} for name in served.adapters]
        return JSONResponse({"object": "list", "data": [{"id": served.name, **one}, *adapters]})

    async def health(_: Request) -> Response:
        facts = {"status": "failed" if driver.failed else "ok", "rows": driver.rows, "unfinished": driver.unfinished()}
        return JSONResponse(facts, 503 if driver.failed else 200)

    routes = [
        Route("/v1/completions", answering(chat=False), methods=["POST"]),
        Route("/v1/chat/completions", answering(chat=True), methods=["POST"]),
        Route("/v1/models", guarded(models)),
        Route("/health", health),
    ]
    handlers: Mapping[Any, Any] = {Refusal: _refuse, HTTPException: _refuse, ClientDisconnect: _nobody, Exception: _broken}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


class _Impatient(H11Protocol):
    """A connection is closed where a request's head doesn't arrive within `HEAD_TIMEOUT_S`: half a head would hold it for ever."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            if self._waiting is None:
                self._wait()
        else:
            self._arrived()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _arrived(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class Server(uvicorn.Server):
    """Ends also when the driver fails; when it ends, gives what is at work so many seconds, or until a second signal."""

    def __init__(self, driver: Driver, served: Served, key: str | None, grace_s: float):
        app = application(driver, served, key)
        super().__init__(
            uvicorn.Config(
                app, http=_Impatient, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=int(grace_s) + 5
            )
        )
        self._driver, self._served, self._grace_s = driver, served, grace_s
        self.told = 0
        """The signal that has ended it first."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for bound in sockets or []:
            names = ", ".join((self._served.name, *self._served.adapters))
            log.info("ready: %s/v1 serves %s, %d rows", address(bound), names, self._driver.rows)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._driver.failed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop.call_later(self._grace_s, self._give_up)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._loop.call_soon_threadsafe(self._give_up)
        else:
            self.told = sig
            super().handle_exit(sig, frame)

    def _give_up(self) -> None:
        self._driver.close(Refusal(503, "the server is shutting down", code="shutting_down"))


def run(bound: socket.socket, driver: Driver, served: Served, key: str | None, grace_s: float) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the process' exit code.

    After SIGTERM it is that of a training which was told to stop, so that whoever has started the job starts it again: its machine may have been
    taken. After Ctrl-C it is 0, and 1 if decoding has failed.
    """
    # uvicorn repeats the signal that has ended it, when it has ended: then it is answered.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    server = Server(driver, served, key, grace_s)
    try:
        server.run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 1 if driver.failed else EXIT_CODE if server.told == signal.SIGTERM else 0


# --- In.


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # A page in somebody's browser can send anything else to this machine, unasked.
        raise Refusal(415, "send Content-Type: application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise Refusal(413, f"the body has more than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise Refusal(408, f"the body hasn't arrived within {BODY_TIMEOUT_S:g} s") from None
    return bytes(body)


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T | None:
    """The work's result; None if the client leaves first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()


# --- Out.


class _Events(StreamingResponse):
    """Server-sent events. The ticket is closed however it ends, also before the first."""

    def __init__(self, events: AsyncIterator[str], ticket: Ticket):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.closing(self._ticket):
            await super().__call__(scope, receive, send)


async def _events(answer: Answer, ticket: Ticket) -> AsyncIterator[str]:
    try:
        for chunk in answer.begin():
            yield _event(chunk)
        async for news in ticket:
            if (more := answer.more(news)) is not None:
                yield _event(more)
        for chunk in answer.end():
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except Refusal as refusal:  # the status has been sent
        yield _event(refusal.body())


def _event(content: Json) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = Refusal(error.status_code, error.detail)
    assert isinstance(error, Refusal)
    headers = {429: {"Retry-After": "1"}, 503: {"Retry-After": "10"}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status)
    return JSONResponse(error.body(), error.status, headers)


async def _nobody(*_: object) -> Response:
    """The client has left."""
    return Response(status_code=499)


async def _broken(_: Request, error: Exception) -> Response:
    """A fault of ours; Starlette raises it again, and uvicorn logs it."""
    return JSONResponse(Refusal(500, f"internal error: {type(error).__name__}").body(), 500)
