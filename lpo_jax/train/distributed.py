"""The processes of one job: how they find one another, agree, and end together."""

import json
import logging
import os
import secrets
import signal
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from foundation.commands import version_of
from foundation.errors import UserError, masked
from foundation.files import Json
from lpo_jax.config import ConfigError, RunConfig, to_dict
from lpo_jax.train import peers
from lpo_jax.train.stop import CheckpointError, TrainingError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def together(command: Callable[[], int], args: Namespace, config: RunConfig | None = None, saves: bool = False) -> int:
    """Run a command in every process of a job, or in this one alone; returns its exit code.

    Where there are several, process 0 speaks for all. When one can't go on, all end, and each says which one it was, and why. So do they when they
    weren't asked for the same.

    Args:
      args: what the command was asked for.
      config: what its CONFIG and settings came to.
      saves: the command itself sees to SIGTERM. Another is ended by it.
    """
    initialize()
    if jax.process_count() == 1:
        return command()
    if jax.process_index() > 0:
        logging.disable(logging.WARNING)
    if not saves:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX only notes it
    with _known_to_the_others():
        peers.meet(_asked(args, config))
        return command()


@contextmanager
def _known_to_the_others() -> Iterator[None]:
    """What raises in this process alone ends it at once, and all others."""
    try:
        yield
    except BaseException as error:
        if peers.all_fail():
            raise
        why = masked(str(error)) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        peers.leave(why, error)


def _asked(args: Namespace, config: RunConfig | None) -> Json:
    """What a process computes follows from this and from what it reads."""
    command = {"command": f"{args.run.__module__}.{args.run.__qualname__}"}
    given = {key: value for key, value in vars(args).items() if key not in ("run", "config", "overrides")}
    versions = {"version": {package: version_of(package) for package in ("lpo-jax", "jax", "jaxlib")}}
    return json.loads(json.dumps(command | versions | given | ({} if config is None else to_dict(config)), default=str))


def first() -> bool:
    """Whether this process writes and speaks for all: process 0, or the only one."""
    return jax.process_index() == 0


def initialize() -> None:
    """Join the other processes of this run, if there are any; call it before anything asks for a device.

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it all. Where they aren't set JAX looks
    around: a TPU pod (its metadata server, or GKE's variables), `srun`, Open MPI. Alone, nothing is started. CPUs talk through gloo.
    For five minutes processes wait for those that are late; from then on they watch one another.

    Raises:
      ConfigError: something is missing, or isn't a number.
    """
    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in (_ADDRESS, _COUNT, _INDEX) if os.environ.get(name)}
    if _COUNT in given or _INDEX in given:
        jax.distributed.initialize(*_explicit(given), cluster_detection_method="deactivate")
    elif os.environ.get("SLURM_NTASKS") != "1":  # there JAX would hide all but one of the process's GPUs
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address" not in str(error):  # what JAX says when it finds no cluster
                raise ConfigError(f"{error} Set {_ADDRESS}, {_COUNT} and {_INDEX}") from None
        except RuntimeError as error:
            if "must be called before" not in str(error):  # in a notebook that has computed something this process goes alone
                raise
    if not jax.distributed.is_initialized():
        return
    peers.watch()
    with _known_to_the_others():
        if jax.default_backend() == "cpu":
            # CPU programs that come out of the cache start their collectives in another order than fresh ones, and gloo aborts (jax 0.10.2).
            jax.config.update("jax_enable_compilation_cache", False)


def _explicit(given: dict[str, str]) -> tuple[str, int, int]:
    """Address, number of processes and this one's index."""
    missing = [name for name in (_ADDRESS, _COUNT, _INDEX) if name not in given]
    if missing:
        raise ConfigError(f"{' and '.join(given)} is set, {' and '.join(missing)} isn't: set all three, or none")
    try:
        count, index = int(given[_COUNT]), int(given[_INDEX])
    except ValueError:
        raise ConfigError(f"{_COUNT} ({given[_COUNT]!r}) and {_INDEX} ({given[_INDEX]!r}) must be numbers") from None
    if not 0 <= index < count:
        raise ConfigError(f"{_INDEX} is {index}: with {_COUNT}={count} it must be 0 to {count - 1}")
    return given[_ADDRESS], count, index


def first_problem(mine: str | None) -> str | None:
    """The first process's problem, in the order of their numbers; None if no process has one. All processes call it together."""
    if jax.process_count() == 1:
        return mine
    text = np.zeros(2048, np.uint8)
    encoded = f"process {jax.process_index()}: {mine}".encode()[: len(text)] if mine else b""
    text[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    for row in multihost_utils.process_allgather(text):
        if row.any():
            return row.tobytes().rstrip(b"\0").decode(errors="replace")
    return None


def from_first(value: Any) -> Any:
    """What process 0 gives, in all processes, as JSON holds it; alone, `value` itself. All call it together; what the others give isn't looked at."""
    if jax.process_count() == 1:
        return value
    mine = np.frombuffer(json.dumps(value).encode() if first() else b"", np.uint8)
    text = np.zeros(int(multihost_utils.broadcast_one_to_all(np.int32(len(mine)))), np.uint8)
    text[: len(mine)] = mine
    return json.loads(multihost_utils.broadcast_one_to_all(text).tobytes())


@contextmanager
def all_or_none() -> Iterator[None]:
    """What raises in one process raises in all, where the others would wait for it: there a ConfigError that quotes it."""
    mine: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001
        mine = error
    problem = first_problem(None if mine is None else str(mine) or repr(mine))
    if mine is not None:
        raise mine
    if problem is not None:
        raise ConfigError(problem)


def known_to_all(error: BaseException) -> bool:
    """Whether every process of the run has got `error`, or one like it."""
    return jax.process_count() == 1 or (isinstance(error, ConfigError | TrainingError) and not isinstance(error, CheckpointError))


def sees_first(directory: Path | epath.Path) -> bool:
    """Whether a directory is here what it is on process 0, where it is there: on one disk, or in a bucket. All call it together."""
    file = directory / f"seen_by_all_{from_first(secrets.token_hex(8))}"
    if first():
        file.touch()
    multihost_utils.sync_global_devices("written")
    seen = file.exists()
    multihost_utils.sync_global_devices("looked")
    if first():
        file.unlink()
    multihost_utils.sync_global_devices("deleted")
    return seen
