"""The processes of one run: how they find one another and agree."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from lpo_jax.config import ConfigError
from lpo_jax.train.stop import CheckpointError, TrainingError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def initialize() -> None:
    """Join the other processes of this run, if there are any; call it before anything asks for a device.

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it all. Where they aren't set JAX looks
    around: a TPU pod (its metadata server, or GKE's variables), `srun`, Open MPI. Alone, nothing is started. CPUs talk through gloo.

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
    if jax.distributed.is_initialized() and jax.default_backend() == "cpu":
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


def leave_if_alone(error: BaseException) -> None:
    """End this process at once if the others may not know `error`, print it first.

    The others wait for this process in their next step, and an orderly exit of this one would wait for them. Once it is gone they notice.
    """
    if known_to_all(error):
        return
    if isinstance(error, TrainingError):
        print(f"lpo: error: process {jax.process_index()}: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(2)
