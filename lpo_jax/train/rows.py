"""Which rows of a batch this process reads, and their way onto its devices.

A batch of R rows, numbered 0 to R - 1, is cut into [microbatches, R / microbatches]; the second dimension lies on the mesh's data and fsdp
axes. What the devices of one process hold follows from the mesh: it needn't be one block, and where the tensor axis spans processes
several of them hold, and so read, the same rows. The global array is the same for any number of processes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from lpo_jax.batch import TreeBatch
from lpo_jax.train.state import batch_sharding


class Data(Protocol):
    """What training needs of its data; `data_pipeline.feed.Feed` has it."""

    @property
    def manifest(self) -> Any: ...
    def rows(self, split: str) -> int: ...
    def step_rows(self, rows: int, step: int, stream: int) -> np.ndarray: ...
    def batches(self, rows: int, start_step: int, stop_step: int, stream: int, mine: Sequence[int]) -> Iterator[TreeBatch]: ...
    def heldout(self, rows: int, mine: Sequence[int]) -> Iterator[TreeBatch]: ...
    def in_order(self, split: str, rows: int, mine: Sequence[int] | None = None, start_row: int = 0) -> Iterator[TreeBatch]: ...
    def pair_ids(self, split: str, row: int) -> list[str]: ...


def my_rows(mesh: Mesh, rows: int, microbatches: int = 1) -> list[int]:
    """The rows of a batch that this process's devices hold, microbatch by microbatch."""
    return np.arange(rows).reshape(microbatches, -1)[:, _my_columns(mesh, rows // microbatches)].reshape(-1).tolist()


def to_devices(batch: TreeBatch, mesh: Mesh, rows: int, microbatches: int | None = None) -> TreeBatch:
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

    return jax.tree.map(put, batch)


def _my_columns(mesh: Mesh, columns: int) -> np.ndarray:
    """The places along a microbatch that lie on this process's devices, in order."""
    places = batch_sharding(mesh, accumulated=False).addressable_devices_indices_map((columns,))
    return np.unique([np.arange(columns)[index] for index in places.values()])
