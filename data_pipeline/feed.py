"""The feed: a tf.data pipeline from shard sets to batches of packed rows, where a batch is a pure function of (seed, step).

Step `s` takes rows ``s * rows .. (s + 1) * rows`` of an endless stream (order.py): the split's rows in a new seeded order each epoch. So a
run resumes at any step at once, and what it reads doesn't depend on how many processes share the work; each reads its rows of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.order import mixed_rows, stream_rows
from data_pipeline.row import COLUMNS, PackedRows, pad
from data_pipeline.shards import SPLITS, Manifest, Records, joined, parse
from data_pipeline.tf import tf
from foundation.errors import DataError


class Feed:
    """Batches of a shard set, or of several: their rows are numbered through, and padded to the widest shape among them.

    Attributes:
      sets: each set's manifest, by directory.
      manifest: that of all sets together, see `shards.joined`.
    """

    def __init__(self, *directories: str | Path, seed: int = 0, weights: Sequence[float] | None = None):
        """Args: weights: each set's share of the training batches' rows. None: the sets are joined, and an epoch has each of their rows once.

        Raises:
          DataError: a set isn't there or is damaged, or has another tokenizer than the first.
        """
        self.sets = {str(directory): Manifest.load(directory) for directory in directories}
        self.manifest = joined(self.sets)
        self._seed, self._weights = seed, weights if len(self.sets) > 1 else None
        self._records = {name: Records(*((path, found.splits[name]) for path, found in self.sets.items())) for name in SPLITS}

    def rows(self, split: str) -> int:
        """Number of packed rows in a split, of all sets together."""
        return len(self._records[split])

    def step_rows(self, rows: int, step: int, stream: int = 0) -> np.ndarray:
        """Indices into the train split of a step's batch, [rows]."""
        seed = (self._seed, stream)
        if self._weights is None:
            return stream_rows(seed, self.rows("train"), rows, step)
        return mixed_rows(seed, self._records["train"].sizes, self._weights, rows, step)

    def batches(
        self, rows: int, start_step: int, stop_step: int, stream: int = 0, mine: Sequence[int] | None = None
    ) -> Iterator[PackedRows]:
        """Training batches of `rows` rows.

        Args:
          stream: streams differ in the order of their rows; each stage of a run has its own.
          mine: places in the batch; only these rows are read, in this order. None: all.

        Raises:
          DataError: the split is empty.
        """
        if empty := next((path for path, size in zip(self.sets, self._records["train"].sizes, strict=True) if not size), None):
            raise DataError(f"{empty}: the train split is empty; build the set with a smaller --heldout")
        steps = tf.data.Dataset.range(start_step, stop_step)
        yield from self._read("train", steps, lambda step: self.step_rows(rows, step, stream), range(rows) if mine is None else mine)

    def heldout(self, rows: int, mine: Sequence[int] | None = None) -> Iterator[PackedRows]:
        """The held-out split once, in order; the last batch is filled up with empty rows. `mine`: as in `batches`."""
        yield from self.in_order("heldout", rows, mine)

    def in_order(self, split: str, rows: int, mine: Sequence[int] | None = None, start_row: int = 0) -> Iterator[PackedRows]:
        """A split once, from `start_row` on; the last batch is filled up with empty rows."""
        steps = tf.data.Dataset.range(-(-(self.rows(split) - start_row) // rows))
        yield from self._read(split, steps, lambda step: start_row + step * rows + np.arange(rows), range(rows) if mine is None else mine)

    def pair_ids(self, split: str, row: int) -> list[str]:
        """The ids of a row's pairs, in the order of `PackedRows.pair`."""
        return parse(self._records[split].read(row))[1]

    def _read(self, split: str, steps: tf.data.Dataset, rows_of: Callable[[int], np.ndarray], mine: Sequence[int]) -> Iterator[PackedRows]:
        records, places = self._records[split], np.array(mine)

        def read(step: np.int64) -> np.ndarray:
            return np.array([records.read(row) if row < len(records) else b"" for row in rows_of(int(step))[places]], object)

        def load(step):  # noqa: ANN001, ANN202
            serialised = tf.ensure_shape(tf.numpy_function(read, [step], tf.string), [len(places)])  # an empty text: a row of padding
            return tf.io.parse_example(serialised, {column.name: tf.io.RaggedFeature(tf.int64) for column in COLUMNS})

        batches = steps.map(load, num_parallel_calls=2, deterministic=True).prefetch(2)
        for columns in batches.as_numpy_iterator():
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            yield pad(rows, self.manifest.row_shape)
