"""Several processes on this machine, and what each of them runs: `python -m tests.helpers.multihost rows|slow|commands|lost ARG...`."""

import json
import logging
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from data_pipeline.feed import Feed
from evaluation import cli as eval_cli
from lpo_jax import cli
from lpo_jax.batch import TreeBatch
from lpo_jax.config import ConfigError
from lpo_jax.decode.sampler import Session
from lpo_jax.sharding import MESH_AXES
from lpo_jax.train import distributed, peers, stage
from lpo_jax.train.placement import my_rows, to_devices
from tests.helpers.paths import REPO


def start(count, *command):
    """`count` processes that share eight devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={8 // count} --xla_backend_optimization_level=0"
    # XLA on CPUs makes as many threads as a process has cores or devices, and cuts its sums by their number: NPROC gives each process 8.
    env = os.environ | {"XLA_FLAGS": flags, "NPROC": "8", "PYTHONPATH": str(REPO), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            env=env | {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(count)
    ]  # fmt: skip


def finish(processes, codes, timeout_s=400):
    """Their outputs; no process outlives this."""
    try:
        texts = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == codes, "\n".join(texts)
    return texts


def rows(shards):
    """The global batch is the feed's, however the mesh lies over the processes; and what one process knows all know."""
    distributed.initialize()
    feed, devices = Feed(shards), np.array(jax.devices())
    whole = TreeBatch.of(next(feed.batches(16, 3, 4)))
    mixed = devices[[0, 4, 1, 5, 2, 6, 3, 7]]  # a process's rows are no block
    for order, shape in ((devices, (8, 1, 1)), (devices, (2, 2, 2)), (devices, (1, 1, 8)), (mixed, (4, 2, 1)), (mixed, (2, 1, 4))):
        mesh = Mesh(order.reshape(*shape[:2], 1, shape[2]), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
        for cut in (1, 2):
            mine = my_rows(mesh, 16, cut)
            batch = to_devices(next(feed.batches(16, 3, 4, mine=mine)), mesh, 16, cut)
            for ours, theirs in zip(
                jax.tree.leaves(multihost_utils.process_allgather(batch, tiled=True)), jax.tree.leaves(whole), strict=True
            ):
                np.testing.assert_array_equal(ours.reshape(theirs.shape), theirs)
        print(f"rows {shape} {len(mine)}")  # one piece: gloo writes to the same pipe whenever it likes

    me = jax.process_index()
    try:
        with distributed.all_or_none():
            if me == 1:
                raise OSError("my disk is gone")
    except (OSError, ConfigError) as error:
        print(f"{type(error).__name__} {error}")
    with distributed.all_or_none():
        pass


def slow(*args):
    """`lpo`, where every step takes a tenth of a second more: a signal comes in the middle of a run."""
    fast = stage.to_devices

    def to_devices_slowly(*to):
        time.sleep(0.1)
        return fast(*to)

    stage.to_devices = to_devices_slowly
    return cli.main(list(args))


def commands(file, pause_s="0"):
    """Commands of a JSON file, [program, argument ...] each, one after another; each segment of decoding takes so much longer. {} in the file's name:
    the process's number."""
    advance = Session.advance
    Session.advance = lambda self: (time.sleep(float(pause_s)), advance(self))[1]
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)  # as in `lpo`, which Orbax's import comes behind
    peers._LOOK_S = 0.25  # whoever is gone is missed after 5 seconds
    for program, *args in json.loads(open(file.format(os.environ["JAX_PROCESS_ID"])).read()):
        if code := {"lpo": cli.main, "lpo-eval": eval_cli.main}[program](args):
            return code
    return 0


def lost(*args):
    """`lpo`, where process 1 dies as soon as JAX has connected it."""
    peers._LOOK_S = 0.25
    if os.environ["JAX_PROCESS_ID"] == "1":
        peers.watch = lambda: os._exit(9)
    return cli.main(list(args))


if __name__ == "__main__":
    sys.exit({"rows": rows, "slow": slow, "commands": commands, "lost": lost}[sys.argv[1]](*sys.argv[2:]))
