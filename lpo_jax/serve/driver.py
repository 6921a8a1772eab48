"""The thread that decodes for a server: requests come from its event loop, news go back to it.

A session isn't for several threads, and an event loop must not wait for a device. So the thread has the session and takes orders from a queue,
between segments or whenever nothing is at work; all bookkeeping of clients is the event loop's own.

Where several processes share the mesh, process 0 tells the others its orders in front of each segment, and their sessions do as its own does.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from queue import SimpleQueue

import jax

from foundation.files import Json
from lpo_jax.config import ConfigError
from lpo_jax.decode.cross_sampler import CrossSampler
from lpo_jax.decode.request import Completion, Request, SamplingConfig
from lpo_jax.decode.sampler import Sampler
from lpo_jax.decode.session import Batching, Progress
from lpo_jax.serve.protocol import Refusal
from lpo_jax.train.peers import Line

log = logging.getLogger(__name__)

Order = Request | str | None
"""A request to take on, the id of one to cancel, or the end."""


class Driver:
    """A session, and who waits for what of it. Methods are the event loop's, except where they say otherwise.

    Args:
      max_waiting: samples that may wait for a row.
    """

    def __init__(self, sampler: Sampler | CrossSampler, max_waiting: int):
        self.sampler, self.rows, self.capacity = sampler, sampler.rows, sampler.rows + max_waiting
        self.failed = False
        self._session: Batching = sampler.session(streams=True)
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._line = None if jax.process_count() == 1 else Line()
        self._thread = threading.Thread(target=self._drive, name="lpo-decode", daemon=True)
        self._tickets: dict[str, Ticket] = {}  # by request
        self._closed: Refusal | None = None  # what everybody hears from now on

    def warm_up(self) -> None:
        """Compile all that requests can need; before `start`, in any thread."""
        self._session.warm_up()

    def start(self) -> None:
        """Begin to work for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the segment that it is at; in any thread but the event loop's."""
        self._orders.put(None)
        self._thread.join()

    def follow(self) -> None:
        """Do as process 0's driver does, in place of `start`; until that stops."""
        assert self._line is not None
        while True:
            for order in map(_from_json, self._line.hear()):
                if order is None:
                    return
                with contextlib.suppress(ConfigError):  # process 0 tells the client
                    self._obey(order)
            if self._session.busy:
                self._session.advance()

    def unfinished(self) -> int:
        """Samples at work and waiting, as clients see it."""
        return sum(ticket.unfinished for ticket in {id(ticket): ticket for ticket in self._tickets.values()}.values())

    def admit(self, requests: Sequence[Request]) -> "Ticket":
        """Take requests on; the ticket must be closed.

        Raises:
          Refusal: there are too many, or none are taken any more.
        """
        asked, before = sum(request.n for request in requests), self.unfinished()
        if self._closed is not None:
            raise self._closed
        if asked > self.capacity:
            raise Refusal(
                400, f"{asked} completions in one request are more than the {self.capacity} that this server takes at a time", "n"
            )
        if before + asked > self.capacity:
            raise Refusal(429, f"{before} completions are at work or waiting, at most {self.capacity} may: try again later", None, "busy")
        ticket = Ticket(self, requests)
        self._tickets |= dict.fromkeys(ticket.ids, ticket)
        for request in requests:
            self._orders.put(request)
        return ticket

    def close(self, refusal: Refusal) -> None:
        """Take nothing on any more, and answer all that is unfinished with a refusal."""
        self._closed = refusal
        for ticket in self._tickets.values():
            ticket.fail(refusal)

    def forget(self, ticket: "Ticket") -> None:
        """Free what a ticket holds."""
        for name in ticket.ids:
            if self._tickets.pop(name, None) is not None and ticket.unfinished:
                self._orders.put(name)

    def _deliver(self, news: Sequence[Progress]) -> None:
        for progress in news:
            if progress.id in self._tickets:  # else its client has left
                self._tickets[progress.id].hear(progress)

    def _refuse(self, name: str, refusal: Refusal) -> None:
        if name in self._tickets:
            self._tickets[name].fail(refusal)

    def _fail(self, error: BaseException) -> None:
        self.failed = True
        self.close(Refusal(500, f"decoding has failed: {type(error).__name__}"))

    # --- The thread.

    def _drive(self) -> None:
        try:
            while True:
                orders = self._next()
                if self._line is not None:
                    self._line.say([_to_json(order) for order in orders])
                for order in orders:
                    if order is None:
                        return
                    try:
                        self._obey(order)
                    except ConfigError as error:
                        assert isinstance(order, Request)
                        self._tell(self._refuse, order.id, Refusal(400, str(error)))
                if self._session.busy:
                    self._tell(self._deliver, self._session.advance())
        except BaseException as error:
            log.exception("decoding has failed")
            self._tell(self._fail, error)

    def _next(self) -> list[Order]:
        """The orders that have come; where nothing is at work, one is waited for."""
        orders = [] if self._session.busy else [self._orders.get()]
        while not self._orders.empty():
            orders.append(self._orders.get())
        return orders

    def _obey(self, order: Request | str) -> None:
        if isinstance(order, str):
            self._session.cancel(order)
        else:
            self._session.add(order)

    def _tell(self, what: Callable[..., None], *about: object) -> None:
        if not self._loop.is_closed():  # else nobody is left to be told
            self._loop.call_soon_threadsafe(what, *about)


def _to_json(order: Order) -> Json | str | None:
    return asdict(order) if isinstance(order, Request) else order


def _from_json(order: Json | str | None) -> Order:
    if not isinstance(order, dict):
        return order
    sampling: Json = {key: tuple(x) if isinstance(x, list) else x for key, x in order["sampling"].items()}
    return Request(**order | {"sampling": SamplingConfig(**sampling)})


class Ticket:
    """What a client waits for: iterate to hear of it. Only the latest news of each sample are kept, so a slow client costs nothing."""

    def __init__(self, driver: Driver, requests: Sequence[Request]):
        self.ids = [request.id for request in requests]
        self.unfinished = sum(request.n for request in requests)
        self._driver, self._latest = driver, dict[int, Progress]()
        self._refusal: Refusal | None = None
        self._event = asyncio.Event()

    def hear(self, news: Progress) -> None:
        self._latest[news.sample] = news
        self.unfinished -= news.done is not None
        self._event.set()

    def fail(self, refusal: Refusal) -> None:
        """Let the client hear a refusal, unless all is done."""
        if self.unfinished:
            self._refusal = refusal
            self._event.set()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        """News until all samples are done.

        Raises:
          Refusal: they won't be.
        """
        while self.unfinished or self._latest:
            await self._event.wait()
            self._event.clear()
            latest, self._latest = self._latest, {}
            for news in latest.values():
                yield news
            if self._refusal is not None:
                raise self._refusal

    async def completions(self) -> dict[int, Completion]:
        """All samples' completions by number."""
        return {news.sample: news.done async for news in self if news.done}

    def close(self) -> None:
        """Nobody waits any more."""
        self._driver.forget(self)
