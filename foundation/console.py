"""What long work shows, and what it hides."""

import io
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

_ACCELERATORS = "accel*", "vfio/*", "nvidia*", "kfd", "dxg"
"""What Linux calls TPUs (old and new), NVIDIA's and AMD's GPUs, and those of WSL."""


def on_cpu_only() -> None:
    """On a machine without an accelerator have JAX ask for none, before it is imported: libtpu, where it is installed, would say at length that it
    finds no TPU, and hold a lock. JAX_PLATFORMS, where it is set, stays.
    """
    if not any(any(Path("/dev").glob(name)) for name in _ACCELERATORS):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


@contextmanager
def captured_stderr(doing: str | None = None) -> Iterator[io.StringIO]:
    """Catch what is written to file descriptor 2, by C++ too; the text is there at the end. After an error it is written out after all.

    Where stderr is a terminal, `doing` stands on it meanwhile, with the time that has passed.
    """
    sys.stderr.flush()
    saved, stop, text = os.dup(2), threading.Event(), io.StringIO()
    with tempfile.TemporaryFile() as caught, os.fdopen(saved, "w") as real:

        def show() -> None:
            with tqdm(desc=doing, bar_format="{desc}: {elapsed}", file=real, disable=None, leave=False) as bar:
                while not stop.wait(0.5):
                    bar.refresh()

        os.dup2(caught.fileno(), 2)
        clock = threading.Thread(target=show, daemon=True)
        if doing is not None:
            clock.start()
        try:
            yield text
        finally:
            stop.set()
            if doing is not None:
                clock.join()
            sys.stderr.flush()
            os.dup2(saved, 2)
            caught.seek(0)
            text.write(caught.read().decode(errors="replace"))
            if sys.exc_info()[0] is not None:
                real.write(text.getvalue())
