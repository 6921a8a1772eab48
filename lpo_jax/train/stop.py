"""How a run ends before its end."""

import logging
import os
import signal
import types

import jax
from jax.experimental import multihost_utils

from foundation.errors import UserError

log = logging.getLogger(__name__)

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again. A job that was told to stop, a training or a server, ends with it


class TrainingError(UserError):
    """A run that can't go on; the message says where it stands and what to do."""


class CheckpointError(TrainingError):
    """A checkpoint couldn't be written, perhaps by this process alone."""


class Preempted(Exception):  # noqa: N818
    """The run was asked to stop and has saved; the same command goes on. `lpo train` exits with EXIT_CODE."""


class StopRequest:
    """SIGTERM (a preemption) or SIGINT (Ctrl-C) stops a run after a step; a second SIGINT ends the process at once.

    With several processes JAX's coordination service catches SIGTERM in any of them and has all agree on the step, without a collective;
    SIGINT is passed on to it as SIGTERM.

    Used as a context manager, which puts the handlers in place and takes them away.
    """

    def __init__(self) -> None:
        self._came = False
        self._numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it wasn't Python's

    def reached(self, step: int) -> bool:
        """Whether to stop after this step. All processes call it once a step, with consecutive numbers, and get the same answer."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self._came

    def _note(self, number: int, _: types.FrameType | None) -> None:
        log.warning("%s: saving and stopping after this step; Ctrl-C stops at once", signal.Signals(number).name)
        self._came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
