"""A model's safetensors, on a disk or in a bucket: which file holds which tensor, and each process's share of one."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open

from foundation.files import read_json
from foundation.stores import RemoteFile, RemoteTensors, weights_at
from lpo_jax.config import ConfigError

File = Path | RemoteFile


def tensor_files(directory: Path) -> dict[str, File]:
    """Which file holds which tensor."""
    found = weight_files(directory)
    if not found:
        remedy = (
            "it holds pickled .bin weights, which can run code when loaded; convert them once with "
            "transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
            if list(directory.glob("*.bin"))
            else "download the model's *.safetensors files too"
        )
        raise ConfigError(f"model.path: no .safetensors file in {directory}: {remedy}")
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return {name: file for file in found for name in opened(file).keys()}  # noqa: SIM118
    raw = read_json(index)
    files = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) and Path(file).name == file for file in files.values()):
        raise ConfigError(f"model.path: {index}: no weight_map of tensors to files beside it; copy or download it again")
    there = {file.name: file for file in found}
    return {name: there.get(file, directory / file) for name, file in files.items()}


def weight_files(directory: Path) -> Sequence[File]:
    """A model's *.safetensors: beside its small files, or in the bucket that these are a copy of."""
    return sorted(weights_at(directory)) or sorted(directory.glob("*.safetensors"))


@cache
def _remote(file: RemoteFile) -> RemoteTensors:
    return RemoteTensors(file)  # its header is read once


def opened(file: File, setting: str = "model.path") -> Any:
    """A safetensors file, its header read and checked: safe_open's, or what reads a bucket alike. `setting` names it, for errors.

    Raises:
      ConfigError: it isn't there, or damaged.
    """
    if isinstance(file, RemoteFile):
        return _remote(file)
    remedy = "copy or download it again"
    if not file.is_file():
        raise ConfigError(f"{setting}: {file} is missing or no file; {remedy}")
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise ConfigError(f"{setting}: {file} is a pointer of Git LFS, not the weights; fetch them with `git lfs pull`")
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{setting}: {file} is damaged ({error}); {remedy}") from None


_POINTER = b"version https://git-lfs"
FLOATS = ("F64", "F32", "F16", "BF16")


def shared(stored: Any, dtype: np.dtype, mesh: Mesh) -> jax.Array:
    """A tensor (`get_slice` of an opened file), whose rows are cut over all devices, so that each process reads its own and no others; rows of zeros behind them make them divisible."""
    shape, ways = tuple(stored.get_shape()), mesh.devices.size
    if len(shape) < 2 or shape[0] < ways:  # small
        whole = np.asarray(stored[:]).astype(dtype)
        return jax.make_array_from_callback(shape, NamedSharding(mesh, PartitionSpec()), whole.__getitem__)
    padded = -(-shape[0] // ways) * ways

    def rows(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(padded)
        found = np.asarray(stored[min(start, shape[0]) : min(stop, shape[0])]).astype(dtype)
        return np.concatenate([found, np.zeros((stop - start - len(found), *shape[1:]), dtype)])

    return jax.make_array_from_callback((padded, *shape[1:]), NamedSharding(mesh, PartitionSpec(mesh.axis_names)), rows)


def equal(one: tuple[File, str], other: tuple[File, str]) -> bool:
    """Whether two tensors are equal; each process compares its share."""
    first, second = (opened(file).get_slice(name) for file, name in (one, other))
    count, index, rows = jax.process_count(), jax.process_index(), first.get_shape()[0]
    mine = slice(rows * index // count, rows * (index + 1) // count)
    same = first.get_shape() == second.get_shape() and np.array_equal(first[mine], second[mine])
    return bool(np.all(multihost_utils.process_allgather(np.array(same)))) if count > 1 else bool(same)


def compare(expected: Mapping[str, tuple[int, ...]], files: Mapping[str, File]) -> list[str]:
    """In what a model's tensors, by name, aren't those that are expected."""
    problems = [f"missing: {name}" for name in expected if name not in files]
    # Buffers of old checkpoints (rotary tables, causal masks), and a tied head's copy.
    known_extras = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attn.causal_mask", "lm_head.weight")
    problems += [f"unexpected: {name}" for name in files if name not in expected and not name.endswith(known_extras)]
    for file in sorted(set(files.values()), key=str):
        if isinstance(file, Path) and not file.is_file():
            problems.append(f"missing file: {file.name}")
            continue
        tensors = opened(file)
        there = set(tensors.keys())
        problems += [f"missing in {file.name}: {name}" for name, its in files.items() if its == file and name not in there]
        for name in there & expected.keys():
            shape, dtype = tuple(tensors.get_slice(name).get_shape()), tensors.get_slice(name).get_dtype()
            if shape != expected[name]:
                problems.append(f"shape of {name}: {shape}, expected {expected[name]}")
            if dtype not in FLOATS:
                problems.append(f"dtype of {name}: {dtype}, expected one of {', '.join(FLOATS)}")
    return problems
