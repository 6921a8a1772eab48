"""The other processes of a job, as the host knows them: where they run, whether they live, and what process 0 tells them.

All of it goes through JAX's coordination service, a store of texts that process 0 keeps for all. Unlike a collective, waiting there keeps no
device busy and may last for days: until somebody asks `lpo serve` for something, or until a benchmark's answers are judged.
"""

import atexit
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src import distributed as _jax  # its store has no public name

from foundation.files import Json, differences
from lpo_jax.config import ConfigError

log = logging.getLogger(__name__)

_LOOK_S = 2.0
_SILENT = 20
"""Looks after which a process that has said nothing counts as gone: 40 seconds, in which this process was awake itself."""
_OVER = "over"
_PAGE = 256
"""Messages that are kept together."""
_DAYS_MS = 2**31 - 1  # 24 days

_MOST_TOLD = 20
"""Settings that differ: so many of them are told."""

_lines, _failures, _meetings = itertools.count(), itertools.count(), itertools.count()


def me() -> int:
    """This process's number. JAX's own function for it would wait for all processes' devices."""
    return _jax.global_state.process_id


def count() -> int:
    """How many processes there are."""
    return _jax.global_state.num_processes


def watch() -> None:
    """Begin to tell the others that this process lives, and to watch them, if that isn't done yet; as soon as JAX has connected them.

    When one is gone, or leaves, this process says which one and ends: with exit code 1 if it is just gone, so that whoever has started the job may
    start it again, and with 2 if it has said why.
    """
    if any(isinstance(thread, _Watcher) for thread in threading.enumerate()):
        return
    watcher = _Watcher()
    watcher.start()
    atexit.register(watcher.end)  # before JAX's own farewell, which was registered first


def meet(asked: Json) -> None:
    """Wait until all are there, and see that they were asked for the same; all processes call it.

    Raises:
      ConfigError: they weren't: what each of them says, in all processes.
    """
    name, host = f"lpo/meeting/{next(_meetings)}", socket.gethostname()
    if me() == 0:
        _store().key_value_set(f"{name}/asked", json.dumps(asked))
    theirs = json.loads(_store().blocking_key_value_get(f"{name}/asked", _DAYS_MS))
    unlike = differences(asked, theirs, f"in process {me()} on {host}", "in process 0")
    _store().key_value_set(f"{name}/{me()}", json.dumps([host, unlike]))
    met = [json.loads(_store().blocking_key_value_get(f"{name}/{index}", _DAYS_MS)) for index in range(count())]
    if lines := [line for _, told in met for line in told]:
        left_out = [f"and {len(lines) - _MOST_TOLD} more"] if len(lines) > _MOST_TOLD else []
        listed = "\n  ".join([*lines[:_MOST_TOLD], *left_out])
        raise ConfigError(f"the hosts were asked for different things: start the same command on each, with the same files\n  {listed}")
    log.info("%d processes, %d devices: %s", count(), jax.device_count(), ", ".join(f"{i} on {host}" for i, (host, _) in enumerate(met)))


def all_fail() -> bool:
    """Whether all processes end with an error now, as they do where all see the same fault: each asks when it does."""
    try:
        _store().wait_at_barrier(f"lpo/failed/{next(_failures)}", 10_000)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def leave(why: str, error: BaseException) -> NoReturn:
    """End this process at once, and all others: they are told why.

    They may wait for this process in a collective, and an orderly exit of this one would wait for them.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        time.sleep(
            _LOOK_S * (_SILENT + 3)
        )  # a collective fails where another process has gone: the watcher will say which, and end this one
    print(f"lpo: error: process {me()} on {socket.gethostname()}: {why}", file=sys.stderr)
    _store().key_value_set(f"lpo/left/{me()}", why)
    time.sleep(3 * _LOOK_S)  # until the others have looked: the store may be this process's
    _exit(2)


class Line:
    """What process 0 tells the others, message by message, as JSON holds it. They wait for the next one as long as it takes.

    All processes make their lines in the same order.
    """

    def __init__(self) -> None:
        self._name, self._count = f"lpo/line/{next(_lines)}", itertools.count()

    def say(self, what: Any) -> None:
        """Process 0 alone."""
        _store().key_value_set(self._next(), json.dumps(what))

    def hear(self) -> Any:
        """All the others."""
        return json.loads(_store().blocking_key_value_get(self._next(), _DAYS_MS))

    def _next(self) -> str:
        page, number = divmod(next(self._count), _PAGE)
        if number == 0 and page:
            _store().wait_at_barrier(f"{self._name}/{page}/begun", _DAYS_MS)  # all have read the page before
            if me() == 0:
                _store().key_value_delete(f"{self._name}/{page - 1}/")
        return f"{self._name}/{page}/{number}"


class _Watcher(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="lpo-peers", daemon=True)
        self._me, self._ended, self._hosts = str(me()), threading.Event(), dict[str, str]()

    def end(self) -> None:
        """This process ends in good order, and is not to be missed."""
        self._ended.set()
        self.join()
        try:
            _store().key_value_set(f"lpo/beat/{self._me}", _OVER, True)
        except jax.errors.JaxRuntimeError as error:
            log.warning("process 0 has ended before this one: %s", error)

    def run(self) -> None:
        last, silent = dict[str, str](), dict.fromkeys(map(str, range(count())), 0)
        for beat in itertools.count():
            try:
                if beat == 0:
                    _store().key_value_set(f"lpo/host/{self._me}", socket.gethostname())
                _store().key_value_set(f"lpo/beat/{self._me}", str(beat), True)
                if len(self._hosts) < len(silent):
                    self._hosts = self._read("lpo/host/")
                beats, left = (self._read(f"lpo/{what}/") for what in ("beat", "left"))
            except jax.errors.JaxRuntimeError:
                self._say_and_exit("0", "is gone", 1)  # the store is process 0's
            for other in silent.keys() - {self._me}:
                if other in left:
                    self._say_and_exit(other, f"has left: {left[other]}", 2)
                unchanged = beats.get(other) == last.get(other) != _OVER
                silent[other] = silent[other] + 1 if unchanged else 0
                if silent[other] >= _SILENT:
                    self._say_and_exit(other, f"is gone, it has said nothing for {_SILENT * _LOOK_S:g} s", 1)
            last = beats
            if self._ended.wait(_LOOK_S):
                return

    def _read(self, directory: str) -> dict[str, str]:
        return {key.rpartition("/")[2]: value for key, value in _store().key_value_dir_get(directory)}

    def _say_and_exit(self, other: str, what: str, code: int) -> NoReturn:
        host = self._hosts.get(other, "a host that hasn't said its name")
        remedy = "" if code == 2 else "; the log there may say why. The same command goes on from what is written"
        print(f"lpo: error: process {other} on {host} {what}{remedy}", file=sys.stderr)
        _exit(code)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _store() -> Any:
    return _jax.global_state.client
