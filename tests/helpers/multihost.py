"""What each of several processes runs in tests/lpo_jax/train/test_distributed.py: `python -m tests.helpers.multihost rows|slow ARG...`."""

import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from data_pipeline.feed import Feed
from lpo_jax import cli
from lpo_jax.batch import TreeBatch
from lpo_jax.config import ConfigError
from lpo_jax.sharding import MESH_AXES
from lpo_jax.train import distributed, stage
from lpo_jax.train.placement import my_rows, to_devices


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


if __name__ == "__main__":
    sys.exit({"rows": rows, "slow": slow}[sys.argv[1]](*sys.argv[2:]))
