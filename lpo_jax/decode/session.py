"""Continuous batching as those see it who have samples made, whichever sampler makes them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from lpo_jax.decode.request import Completion, Request


@dataclass(frozen=True)
class Progress:
    """News of a sample."""

    id: str
    sample: int
    text: str  # so far: characters that nothing to come can change
    done: Completion | None


class Batching(Protocol):
    """The samples at work in a sampler's rows, and those that wait for a row. Not for several threads at once."""

    @property
    def busy(self) -> bool:
        """Is anything at work or waiting?"""

    @property
    def room(self) -> int:
        """Rows that nothing waits for."""

    def add(self, request: Request) -> None:
        """Let a request's samples wait for rows."""

    def cancel(self, request_id: str) -> None:
        """Forget a request's samples; their rows are free at once."""

    def advance(self) -> list[Progress]:
        """Fill free rows from those that wait, extend all rows, and say what it brought."""

    def warm_up(self) -> None:
        """Compile all that requests can need; nothing may be at work."""


def completions(session: Batching, requests: Iterable[Request]) -> Iterator[Completion]:
    """Each sample's completion when it is done. Requests are read as rows become free."""
    waiting = iter(requests)
    while True:
        while session.room > 0 and (request := next(waiting, None)) is not None:
            session.add(request)
        if not session.busy:
            return
        yield from (progress.done for progress in session.advance() if progress.done)
