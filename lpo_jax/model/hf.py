"""Checkpoints in Hugging Face's format: config.json and safetensors, read into their sharding and written back.

`lpo_jax.model.families` says which tensor holds which parameter.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from foundation.files import Json, directory_of, write_json
from lpo_jax.config import ConfigError, ModelConfig, ModelSource
from lpo_jax.model.decoder import Model, Params
from lpo_jax.model.families import FAMILIES, Tensor, config_from_hf, config_to_hf

MAX_FILE_BYTES = 5 * 10**9


def locate(path: str) -> Path:
    """A model's directory: `path` itself, or a snapshot of the hub id that it is.

    Raises:
      ConfigError: it is neither.
    """
    found = directory_of(path, ["*.json", "*.safetensors", "tokenizer*"])
    if found is None:
        raise ConfigError(f"model.path: {path} is neither a directory nor a hub id")
    return found


def read_config(directory: str | Path) -> ModelConfig:
    """The config of the model in a Hugging Face directory.

    Raises:
      ConfigError: no config.json, a family we don't have, or an option we don't compute; named.
    """
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise ConfigError(f"model.path: {file} doesn't exist; give a directory with config.json and *.safetensors")
    return config_from_hf(json.loads(file.read_text()))


def model_config(source: ModelSource) -> ModelConfig:
    """The config of the model that a run trains, from the weights' own config.json.

    Raises:
      ConfigError: the config.json that the run was planned with (model.shape) says something else.
    """
    if source.path is None:
        assert source.new is not None
        return source.new
    found = read_config(locate(source.path))
    if source.shape is not None:
        planned = planned_config(source)
        differ = [
            f"{f.name} {getattr(planned, f.name)!r} there, {getattr(found, f.name)!r} here"
            for f in dataclasses.fields(found)
            if getattr(planned, f.name) != getattr(found, f.name)
        ]
        if differ:
            raise ConfigError(
                f"model.shape: {source.shape} is no copy of {source.path}'s config.json: {'; '.join(differ)}; correct it or set null"
            )
    return found


def planned_config(source: ModelSource) -> ModelConfig:
    """The model's config without its weights: model.new, else the config.json that is model.shape, else the one in model.path.

    Raises:
      ConfigError: none of them can be read here.
    """
    if source.new is not None:
        return source.new
    if source.shape is not None:
        file = Path(source.shape)
        if not file.is_file():
            raise ConfigError(f"model.shape: {file} doesn't exist here; correct it, or set null to go by model.path alone")
        return config_from_hf(json.loads(file.read_text()))
    assert source.path is not None
    if Path(source.path).is_dir():
        return read_config(source.path)
    from huggingface_hub import hf_hub_download

    try:
        return config_from_hf(json.loads(Path(hf_hub_download(source.path, "config.json")).read_text()))
    except (OSError, ValueError) as error:  # what the hub raises when it isn't there or has no such model
        raise ConfigError(f"model.path: no config.json of {source.path} ({error}); set model.shape to a copy of it") from None


def table(config: ModelConfig) -> tuple[Tensor, ...]:
    """The tensors that a model of this config has."""
    present = flatten_dict(Model(config).shapes(), sep=".")
    return tuple(tensor for tensor in FAMILIES[config.family].tensors if set(tensor.paths) <= present.keys())


def read_params(directory: str | Path, model: Model, shardings: Params) -> Params:
    """Read a directory's safetensors, tensor by tensor, each straight to where `shardings` puts it.

    Host memory holds one tensor at a time beside the devices' own arrays. A layer is written into its stacked parameter in place.

    Raises:
      ConfigError: there are no safetensors, or tensors are missing, unexpected or of another shape; all are named.
    """
    files = _tensor_files(Path(directory))
    shapes, places = flatten_dict(model.shapes(), sep="."), flatten_dict(shardings, sep=".")
    tensors = table(model.config)
    problems = _compare(_expected(model.config, tensors, shapes), files)
    if problems:
        raise ConfigError(f"model.path: the tensors of {directory} don't fit its config.json:\n  " + "\n  ".join(problems))
    layers = model.config.n_layers
    placed: dict[str, jax.Array] = {}
    total = sum(layers if "{layer}" in tensor.name else 1 for tensor in tensors)
    with tqdm(total=total, desc="read weights", unit=" tensors", disable=jax.process_index() > 0) as bar:
        for tensor in tensors:
            stacked = "{layer}" in tensor.name
            for layer in range(layers if stacked else 1):
                value = _read(files, tensor.name.format(layer=layer))
                for path, part in _split(tensor, value, {p: _layer_shape(shapes[p].shape, stacked) for p in tensor.paths}).items():
                    part = part.astype(shapes[path].dtype)
                    if not stacked:
                        placed[path] = jax.make_array_from_callback(part.shape, places[path], part.__getitem__)
                        continue
                    if layer == 0:
                        placed[path] = _zeros(shapes[path], places[path])
                    spec = jax.sharding.PartitionSpec(*places[path].spec[1:])
                    slice_place = jax.sharding.NamedSharding(places[path].mesh, spec)
                    on_devices = jax.make_array_from_callback(part.shape, slice_place, part.__getitem__)
                    placed[path] = _set_layer(placed[path], on_devices, layer)
                bar.update()
    return unflatten_dict(placed, sep=".")


def _zeros(shape: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> jax.Array:
    return jax.jit(partial(jax.numpy.zeros, shape.shape, shape.dtype), out_shardings=place)()


@partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: jax.Array, value: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, value, layer, 0)


def write_params(directory: str | Path, model: Model, params: Params, extra: Json | None = None) -> None:
    """Write config.json (with `extra` keys) and sharded safetensors with their index, as `transformers` reads them.

    Host memory holds the tensors of one file: MAX_FILE_BYTES at most, or one tensor that is larger.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = config_to_hf(model.config) | {"dtype": str(np.dtype(model.param_dtype)), **(extra or {})}
    write_json(directory / "config.json", config)
    parts: list[tuple[Path, list[str]]] = []
    group: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        file = directory / f"part-{len(parts)}.safetensors"
        save_file(group, file, {"format": "pt"})
        parts.append((file, list(group)))
        group.clear()

    for name, value in _tensors(model, params):
        if group and sum(v.nbytes for v in group.values()) + value.nbytes > MAX_FILE_BYTES:
            flush()
        group[name] = value
        total += value.nbytes
    flush()
    if len(parts) == 1:
        shutil.move(parts[0][0], directory / "model.safetensors")
        return
    index: dict[str, str] = {}
    for number, (file, names) in enumerate(parts, 1):  # their number stands in their names
        final = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        shutil.move(file, directory / final)
        index |= dict.fromkeys(names, final)
    write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _tensors(model: Model, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under Hugging Face's name and in its layout."""
    flat, inputs = flatten_dict(params, sep="."), model.inputs()
    for tensor in table(model.config):
        stacked = "{layer}" in tensor.name
        for layer in range(model.config.n_layers if stacked else 1):
            parts = {path: np.asarray(flat[path][layer] if stacked else flat[path]) for path in tensor.paths}
            yield tensor.name.format(layer=layer), np.ascontiguousarray(_fuse(tensor, parts, inputs))


def _fuse(tensor: Tensor, parts: Mapping[str, np.ndarray], inputs: Mapping[str, int]) -> np.ndarray:
    """One layer's parameters as the tensor that holds them."""
    if tensor.is_matrix:
        return tensor.fuse([part.reshape(math.prod(part.shape[: inputs[path]]), -1) for path, part in parts.items()]).T
    return tensor.fuse([part if path in _TABLES else part.reshape(-1) for path, part in parts.items()])


def _split(tensor: Tensor, value: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The parameters that a tensor holds, in our layout: the inverse of `_fuse`."""
    fused = value.T if tensor.is_matrix else value
    outputs = [math.prod(shape) // math.prod(fused.shape[:-1]) for shape in shapes.values()]
    return {path: part.reshape(shape) for (path, shape), part in zip(shapes.items(), tensor.cut(fused, outputs), strict=True)}


_TABLES = ("embed", "positions")  # they are looked up, not multiplied, and so stored as they are


def _layer_shape(shape: tuple[int, ...], stacked: bool) -> tuple[int, ...]:
    return shape[1:] if stacked else shape


def _expected(config: ModelConfig, tensors: tuple[Tensor, ...], shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors."""
    expected: dict[str, tuple[int, ...]] = {}
    inputs = Model(config).inputs()
    for tensor in tensors:
        stacked = "{layer}" in tensor.name
        parts = {path: np.broadcast_to(np.int8(0), _layer_shape(shapes[path].shape, stacked)) for path in tensor.paths}
        shape = _fuse(tensor, parts, inputs).shape
        expected |= {tensor.name.format(layer=layer): shape for layer in range(config.n_layers if stacked else 1)}
    return expected


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Which file holds which tensor."""
    if not list(directory.glob("*.safetensors")):
        legacy = list(directory.glob("*.bin"))
        remedy = (
            "it holds pickled .bin weights, which can run code when loaded; convert them once with "
            "transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
            if legacy
            else "download the model's *.safetensors files too"
        )
        raise ConfigError(f"model.path: no .safetensors file in {directory}: {remedy}")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return {name: directory / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    files: dict[str, Path] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            files |= dict.fromkeys(tensors.keys(), file)
    return files


def _compare(expected: Mapping[str, tuple[int, ...]], files: Mapping[str, Path]) -> list[str]:
    problems = [f"missing: {name}" for name in expected if name not in files]
    # Buffers of old checkpoints (rotary tables, causal masks), and a tied head's copy.
    known_extras = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attn.causal_mask", "lm_head.weight")
    problems += [f"unexpected: {name}" for name in files if name not in expected and not name.endswith(known_extras)]
    for file in sorted(set(files.values())):
        if not file.is_file():
            problems.append(f"missing file: {file.name}")
            continue
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if name in expected and tuple(tensors.get_slice(name).get_shape()) != expected[name]:
                    problems.append(f"shape of {name}: {tuple(tensors.get_slice(name).get_shape())}, expected {expected[name]}")
    return problems


def _read(files: Mapping[str, Path], name: str) -> np.ndarray:
    with safe_open(files[name], framework="np") as tensors:
        return tensors.get_tensor(name)
