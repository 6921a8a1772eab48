"""What a frozen model said of each scored token of a train split: computed once, kept in a directory, joined to batches.

A JSON file says what was computed of what. Each `BLOCK_ROWS` rows have a file, rows-00000.safetensors and so on, that is there or not, never
half: so the work can be stopped and repeated. A file says itself what it belongs to (`key_of`) and what its content's hash is.

Dims: B rows and N scored tokens of a batch; S scored tokens of all rows of a file, in the rows' order.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from data_pipeline.row import PackedRows
from data_pipeline.shards import Manifest
from foundation import files
from foundation.console import ticking
from foundation.files import Json
from lpo_jax.config import ConfigError
from lpo_jax.tensors import save_file
from lpo_jax.train.distributed import first, sees_first
from lpo_jax.train.stop import TrainingError

BLOCK_ROWS = 256

Columns = dict[str, np.ndarray]
"""Values of the scored tokens by name, [B, N, ...] each."""
Compute = Callable[[PackedRows], tuple[np.ndarray, Mapping[str, np.ndarray]]]
"""A batch -> which of its tokens are scored, [B, N] bool, and columns. B may be larger than the given part of the batch: all of it."""


def key_of(facts: Json) -> str:
    """A hash of what was computed of what."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def unsound(directory: Path, rows: int, key: str) -> list[int]:
    """The first rows of the blocks that aren't here, are damaged, or belong to something else."""
    return [start for start in range(0, rows, BLOCK_ROWS) if not _sound(_file(directory, start), key)]


def missing(directory: Path, rows: int, key: str) -> list[int]:
    """As `unsound`, in any process; all call it together."""
    wanted = np.isin(np.arange(0, rows, BLOCK_ROWS), unsound(directory, rows, key))
    if jax.process_count() > 1:
        wanted = multihost_utils.process_allgather(wanted).any(0)
    return (BLOCK_ROWS * np.flatnonzero(wanted)).tolist()


def write(
    directory: Path,
    rows: int,
    batches: Callable[[int], Iterable[PackedRows]],
    compute: Compute,
    key: str,
    title: str,
    facts: tuple[str, Json],
) -> None:
    """Compute and write what is `missing`. All processes call it together, and afterwards each has all of it.

    On a disk that all see, process 0 writes for all. Processes with other disks write there, too: each reads its own.

    Args:
      batches: of the split, from a row on; of each batch this process's rows.
      facts: the file that says what is computed of what, and that. `key` is made of it.

    Raises:
      ConfigError: they can't be written.
    """
    wanted = missing(directory, rows, key)
    writes = jax.process_count() == 1 or not sees_first(directory) or first()
    if writes:
        files.write_json(directory / facts[0], facts[1])
    sizes = [min(BLOCK_ROWS, rows - start) for start in wanted]
    quiet = not first()
    with ticking(tqdm(total=rows, initial=rows - sum(sizes), desc=title, unit=" rows", dynamic_ncols=True, disable=quiet)) as bar:
        for start, size in zip(wanted, sizes, strict=True):
            block = _block(compute, batches(start), size)
            if writes:
                _write_block(_file(directory, start), block, key)
            bar.update(size)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all is written")


def join(
    batches: Iterable[PackedRows], rows: Iterable[np.ndarray], directory: Path, key: str, scored: Callable[[PackedRows], np.ndarray]
) -> Iterator[tuple[PackedRows, Columns]]:
    """Batches with what was computed of them.

    Args:
      rows: those of the split that each batch holds.
      scored: which tokens were, [B, N] bool. At others, columns are 0.

    Raises:
      TrainingError: a file is gone, or is another one by now.
    """
    for batch, read in zip(batches, rows, strict=True):
        where = scored(batch)
        found = [_read(_file(directory, row), row, key) for row in read]
        columns = {}
        for name, one in found[0].items():
            columns[name] = np.zeros((*where.shape, *one.shape[1:]), one.dtype)
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


def _write_block(file: Path, tensors: dict[str, np.ndarray], key: str) -> None:
    try:
        with files.replaced(file) as unfinished:
            save_file(tensors, unfinished, {"of": f"{key} {_hash(tensors)}"})  # of several entries safetensors draws the order
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} can't be written: {error}; what is finished stays, and the same command goes on from there") from None


def _hash(tensors: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return found.hexdigest()


def _told(tensors: Any, key: str) -> tuple[str, str]:
    """What an open file says that it belongs to, and its content's hash; files of earlier versions say nothing: (`key`, "")."""
    of, _, digest = (tensors.metadata() or {}).get("of", key).partition(" ")
    return of, digest


def _sound(file: Path, key: str) -> bool:
    try:
        with safe_open(file, framework="np") as tensors:
            of, digest = _told(tensors, key)
            return of == key and digest in ("", _hash({name: tensors.get_tensor(name) for name in tensors.keys()}))  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):
        return False


def _read(file: Path, row: int, key: str) -> Columns:
    """A row's columns, [its scored tokens, ...] each."""
    try:
        with safe_open(file, framework="np") as tensors:
            if _told(tensors, key)[0] != key:
                raise TrainingError(f"{file} is another one than when the stage began: something else writes to this directory")
            start, stop = tensors.get_slice("starts")[row % BLOCK_ROWS : row % BLOCK_ROWS + 2]
            return {name: tensors.get_slice(name)[start:stop] for name in tensors.keys() if name != "starts"}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{file}, which was there when the stage began, can't be read: {error}; run the same command again") from None


def _file(directory: Path, row: int) -> Path:
    return directory / f"rows-{row // BLOCK_ROWS:05d}.safetensors"
