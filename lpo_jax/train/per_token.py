"""What a frozen model said of each scored token of a train split: computed once, kept in a directory, joined to batches.

A JSON file says what was computed of what. Each `BLOCK_ROWS` rows have a file, rows-00000.safetensors and so on, that is there or not, never
half: so the work can be stopped and repeated.

Dims: B rows and N scored tokens of a batch; S scored tokens of all rows of a file, in the rows' order.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from data_pipeline.row import PackedRows
from data_pipeline.shards import Manifest
from foundation import files
from lpo_jax.config import ConfigError
from lpo_jax.tensors import save_file

BLOCK_ROWS = 256

Columns = dict[str, np.ndarray]
"""Values of the scored tokens by name, [B, N, ...] each."""
Compute = Callable[[PackedRows], tuple[np.ndarray, Mapping[str, np.ndarray]]]
"""A batch -> which of its tokens are scored, [B, N] bool, and columns. B may be larger than the given part of the batch: all of it."""


def missing(directory: Path, rows: int) -> list[int]:
    """The first rows of the blocks that aren't there."""
    return [start for start in range(0, rows, BLOCK_ROWS) if not _file(directory, start).is_file()]


def write(
    directory: Path, rows: int, blocks: Iterable[int], batches: Callable[[int], Iterable[PackedRows]], compute: Compute, title: str
) -> None:
    """Compute and write the blocks that begin with these rows; `batches` gives the split's batches from a row on.

    Raises:
      ConfigError: they can't be written.
    """
    wanted = list(blocks)
    sizes = [min(BLOCK_ROWS, rows - start) for start in wanted]
    quiet = jax.process_index() > 0
    with tqdm(total=rows, initial=rows - sum(sizes), desc=title, unit=" rows", dynamic_ncols=True, disable=quiet) as bar:
        for start, size in zip(wanted, sizes, strict=True):
            _write_block(_file(directory, start), _block(compute, batches(start), size))
            bar.update(size)


def join(
    batches: Iterable[PackedRows], rows: Iterable[np.ndarray], directory: Path, scored: Callable[[PackedRows], np.ndarray]
) -> Iterator[tuple[PackedRows, Columns]]:
    """Batches with what was computed of them.

    Args:
      rows: those of the split that each batch holds.
      scored: which tokens were, [B, N] bool. At others, columns are 0.
    """
    for batch, read in zip(batches, rows, strict=True):
        where = scored(batch)
        found = [_read(directory, row) for row in read]
        columns = {}
        for name, first in found[0].items():
            columns[name] = np.zeros((*where.shape, *first.shape[1:]), first.dtype)
            columns[name][where] = np.concatenate([part[name] for part in found])
        yield batch, columns


def hash_of(manifest: Manifest) -> str:
    """A hash of the train split's content."""
    return hashlib.sha256("".join(shard["sha256"] for shard in manifest.splits["train"]["shards"]).encode()).hexdigest()


def _block(compute: Compute, batches: Iterable[PackedRows], size: int) -> dict[str, np.ndarray]:
    """The tensors of one file: those of the first `size` rows of the batches."""
    counts, parts = [0], []
    for batch in batches:
        scored, columns = compute(batch)
        scored = scored[: size - len(counts) + 1]
        parts.append({name: np.asarray(x)[: len(scored)][scored] for name, x in columns.items()})
        counts += scored.sum(1).tolist()
        if len(counts) > size:
            break
    return {"starts": np.cumsum(counts)} | {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write_block(file: Path, tensors: dict[str, np.ndarray]) -> None:
    try:
        with files.replaced(file) as unfinished:
            save_file(tensors, unfinished)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} can't be written: {error}; what is finished stays, and the same command goes on from there") from None


def _read(directory: Path, row: int) -> Columns:
    """A row's columns, [its scored tokens, ...] each."""
    with safe_open(_file(directory, row), framework="np") as tensors:
        start, stop = tensors.get_slice("starts")[row % BLOCK_ROWS : row % BLOCK_ROWS + 2]
        return {name: tensors.get_slice(name)[start:stop] for name in tensors.keys() if name != "starts"}  # noqa: SIM118 (no mapping)


def _file(directory: Path, row: int) -> Path:
    return directory / f"rows-{row // BLOCK_ROWS:05d}.safetensors"
