"""Which rows of a batch this process reads, and their way onto its devices.

A batch has R rows, numbered 0 to R - 1. It is cut into [microbatches, R / microbatches], and the second dimension lies on the mesh's data,
fsdp and expert axes. The mesh says which rows the devices of a process hold, and these the process reads. The global array is the same for any number
of processes.

Example: 8 rows, 2 microbatches, data = 4 over two processes of two devices. Process 0 reads rows 0, 1 (first microbatch) and 4, 5 (second).
A process's rows needn't be one block. Where the tensor axis spans processes, several processes read the same rows.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.row import PackedRows
from lpo_jax.batch import TreeBatch
from lpo_jax.train.state import batch_sharding


def my_rows(mesh: Mesh, rows: int, microbatches: int = 1) -> list[int]:
    """The rows of a batch that this process's devices hold, microbatch by microbatch."""
    return np.arange(rows).reshape(microbatches, -1)[:, _my_columns(mesh, rows // microbatches)].reshape(-1).tolist()


def to_devices(batch: PackedRows, mesh: Mesh, rows: int, microbatches: int | None = None) -> TreeBatch:
    """The global batch of `rows` rows from each process's `my_rows`.

    Returns:
      Leaves [microbatches, rows / microbatches, ...], or [rows, ...] where `microbatches` is None.
    """
    cut = microbatches or 1
    columns = _my_columns(mesh, rows // cut)
    sharding = batch_sharding(mesh, microbatches is not None)

    def put(x: np.ndarray) -> jax.Array:
        local = x.reshape(cut, len(columns), *x.shape[1:])

        def shard(index: Any) -> np.ndarray:
            wanted = np.arange(rows // cut)[index[0 if microbatches is None else 1]]
            part = local[:, np.searchsorted(columns, wanted)]
            return part[0] if microbatches is None else part

        shape = (rows, *x.shape[1:]) if microbatches is None else (cut, rows // cut, *x.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(put, batch if isinstance(batch, TreeBatch) else TreeBatch.of(batch))


def _my_columns(mesh: Mesh, columns: int) -> np.ndarray:
    """The places along a microbatch that lie on this process's devices, in order."""
    places = batch_sharding(mesh, accumulated=False).addressable_devices_indices_map((columns,))
    return np.unique([np.arange(columns)[index] for index in places.values()])
