"""The processes of one run: how they find one another and agree."""

import os

import jax

from lpo_jax.config import ConfigError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Join the other processes of this run, if there are any; call it before anything asks for a device.

    With JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID set they say it all. Without, JAX looks
    around: a TPU pod (its metadata server, or GKE's variables), `srun`, Open MPI. Alone, nothing is started. CPUs talk through gloo.

    Raises:
      ConfigError: some of the variables are set and some aren't, or they aren't numbers.
    """
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if given:
        missing = [name for name in _VARIABLES if name not in given]
        if missing:
            raise ConfigError(f"{', '.join(given)} is set, {', '.join(missing)} isn't: set all three, or none")
        try:
            count, index = int(given["JAX_NUM_PROCESSES"]), int(given["JAX_PROCESS_ID"])
        except ValueError:
            raise ConfigError(f"JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers: {given}") from None
        if not 0 <= index < count:
            raise ConfigError(f"JAX_PROCESS_ID is {index}: with JAX_NUM_PROCESSES={count} it must lie in [0, {count})")
        jax.distributed.initialize(given["JAX_COORDINATOR_ADDRESS"], count, index, cluster_detection_method="deactivate")
        return
    if os.environ.get("SLURM_NTASKS") == "1":  # alone; JAX would hide all but one of its GPUs
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address" not in str(error):  # what JAX says when it finds no cluster
            raise
    except RuntimeError as error:
        if "must be called before" not in str(error):  # a process that has computed something, e.g. a notebook's, goes alone
            raise
