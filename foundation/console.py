"""What long work shows, and what it hides."""

import io
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from foundation.errors import UserError

BEAT_S = 0.5
"""So often the time that has passed is shown anew."""


@contextmanager
def ticking(bar: "tqdm[Any]") -> Iterator["tqdm[Any]"]:
    """A bar whose clock goes on while nothing is done, so that a long step isn't taken for a stop. A log file has lines only where something was done.

    The bar is closed at the end.
    """
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(BEAT_S) and not bar.disable:  # as it is once it has been closed
            bar.refresh()

    clock = threading.Thread(target=tick, daemon=True)
    alive = not bar.disable and bar.fp.isatty()
    if alive:
        clock.start()
    try:
        yield bar
    finally:
        stop.set()
        if alive:
            clock.join()  # first: it would draw a closed bar once more
        bar.close()


def waiting(doing: str | None, file: TextIO | None = None) -> AbstractContextManager["tqdm[Any]"]:
    """Where `file` (default: stderr) is a terminal, `doing` stands on it meanwhile, with the time that has passed. For what says nothing itself."""
    return ticking(tqdm(desc=doing, bar_format="{desc}: {elapsed}", file=file, disable=None if doing else True, leave=False))


@contextmanager
def captured_stderr(doing: str | None = None) -> Iterator[io.StringIO]:
    """Catch what is written to file descriptor 2, by C++ too; the text is there at the end. After an error it is written out after all, but for one of
    ours, which says itself what is wrong, and after Ctrl-C. `doing` is what is `waiting` meanwhile.
    """
    sys.stderr.flush()
    saved, text = os.dup(2), io.StringIO()
    with tempfile.TemporaryFile() as caught, os.fdopen(saved, "w") as real:
        os.dup2(caught.fileno(), 2)
        try:
            with waiting(doing, real):
                yield text
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            caught.seek(0)
            text.write(caught.read().decode(errors="replace"))
            error = sys.exc_info()[1]
            if isinstance(error, Exception) and not isinstance(error, UserError):
                real.write(text.getvalue())
