"""Checkpoints in Hugging Face's format: config.json and safetensors, read into their sharding and written back.

`lpo_jax.model.families` says which tensor holds which parameter.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from qwix import QArray
from tqdm import tqdm

from foundation import stores
from foundation.files import Json, read_json, shipped, write_json
from foundation.stores import HUB_ID, directory_of, place_of
from lpo_jax.config import ConfigError, ModelConfig, ModelSource
from lpo_jax.model.decoder import Model, Params
from lpo_jax.model.families import FAMILIES, Tensor
from lpo_jax.model.quantized import CODES, quantize
from lpo_jax.model.tensor_files import File, compare, equal, opened, shared, tensor_files
from lpo_jax.model.translate import config_from_hf, config_to_hf
from lpo_jax.tensors import on_host, save_file

MAX_FILE_BYTES = 5 * 10**9


def locate(path: str) -> Path:
    """A model's directory: `path` itself, or what stands for a bucket's or the hub's. A hub id is fetched into LPO_MODELS first, if that is set, by all
    processes together.

    Raises:
      ConfigError: it is none of these.
    """
    if HUB_ID.fullmatch(path) and not Path(path).is_dir() and (place := place_of(path)):
        fetch(path, place)
    found = directory_of(path, ["*.json", "*.safetensors", "tokenizer*", "chat_template*"])
    if found is None:
        raise ConfigError(f"model.path: {path} is neither a directory, nor a hub id, nor a bucket's folder with a model")
    return found


def fetch(hub_id: str, place: str) -> bool:
    """Fill a place with a model of the hub, once; of several processes each copies some of its files. Returns whether there was something to do."""
    index, count = jax.process_index(), jax.process_count()

    def shown(names: Iterable[str]) -> Iterable[str]:
        return tqdm(names, desc=f"fetch {hub_id} into {place}", unit=" files", disable=index > 0)

    found = stores.fetch(hub_id, place, index, count, shown)
    if count > 1:
        multihost_utils.sync_global_devices(f"fetched {place}")
    if found is not None and index == 0:
        stores.finish(place, found)
    if count > 1:
        multihost_utils.sync_global_devices(f"finished {place}")
    return found is not None


def read_config(directory: str | Path) -> ModelConfig:
    """The config of the model in a Hugging Face directory.

    Raises:
      ConfigError: no config.json, a family we don't have, or an option we don't compute; named.
    """
    return _parsed(Path(directory) / "config.json", "model.path", _WITH_WEIGHTS)


_WITH_WEIGHTS = "give a directory with config.json and *.safetensors"


def _parsed(file: Path, setting: str, remedy: str) -> ModelConfig:
    if not file.is_file():
        raise ConfigError(f"{setting}: {file} doesn't exist; {remedy}")
    raw = read_json(file)
    try:
        return config_from_hf(raw)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {file.parent}/{error}") from None


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
        pairs = zip(vars(found).items(), vars(planned_config(source)).values(), strict=True)
        differ = [f"{name} {there!r} there, {here!r} here" for (name, here), there in pairs if there != here]
        if differ:
            raise ConfigError(
                f"model.shape: {source.shape} is no copy of {source.path}'s config.json: {'; '.join(differ)}; correct it or set null"
            )
    return found


def planned_config(source: ModelSource, key: str | None = None, remedy: str | None = None) -> ModelConfig:
    """The model's config without its weights: model.new, else the config.json that is model.shape, else the one in model.path.

    Args:
      key: what names the model, and `remedy` what mends it, where no config's model.path and model.shape do.

    Raises:
      ConfigError: none of them can be read here.
    """
    if source.new is not None:
        return source.new
    if source.shape is not None:
        return _parsed(shipped(source.shape), key or "model.shape", remedy or "correct it, or set null to go by model.path alone")
    assert source.path is not None
    setting, directory = key or "model.path", Path(source.path)
    if not directory.is_dir() and (place := place_of(source.path)):
        directory = stores.directory_at(place) or directory
    if directory.is_dir():
        return _parsed(directory / "config.json", setting, remedy or _WITH_WEIGHTS)
    from huggingface_hub import hf_hub_download

    try:
        return config_from_hf(json.loads(Path(hf_hub_download(source.path, "config.json")).read_text()))
    except (OSError, ValueError) as error:  # what the hub raises when it isn't there or has no such model
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"{setting}: no config.json of {source.path} ({said}); {remedy or 'set model.shape to a copy of it'}") from None


def open_model(source: ModelSource, planned: bool = False) -> Model:
    """The model that a run's config describes, without its weights; `planned`: they needn't be here."""
    shape = planned_config(source) if planned else model_config(source)
    return Model(shape, source.compute_dtype, source.param_dtype, source.remat, source.lora, source.quantize, source.attention)


def _table(model: Model) -> list[Tensor]:
    """The tensors that a model has."""
    present = flatten_dict(model.shapes(), sep=".").keys()
    return [tensor for tensor in FAMILIES[model.config.family].tensors if set(tensor.paths) <= present]


def read_params(directory: str | Path, model: Model, shardings: Params) -> Params:
    """Read a directory's safetensors, tensor by tensor, each straight to where `shardings` puts it.

    Host memory holds one layer's tensor at a time beside the devices' own arrays, or one layer's of all experts; of several processes each reads its
    share of a tensor's rows, and no others. A layer is written into its
    stacked parameter in place. Where `shardings` are a quantised parameter's, each layer is quantised on the devices first: no float copy of more
    than a layer's tensor exists.

    Raises:
      ConfigError: there are no safetensors, or tensors are missing, unexpected or of another shape; all are named.
    """
    files = tensor_files(Path(directory))
    places = flatten_dict(shardings, sep=".")
    layers, inputs = model.config.n_layers, model.inputs()
    if problems := compare(tensor_shapes(model), files):
        raise ConfigError(f"model.path: the tensors of {directory} don't fit its config.json: {_some(problems)}")
    _check_tie(model, files)
    tensors, placed = _table(model), dict[str, Any]()
    total = sum(len(names) for tensor in tensors for names in _names(tensor, model))
    with tqdm(total=total, desc="read weights", unit=" tensors", disable=jax.process_index() > 0) as bar:
        for tensor in tensors:
            for layer, names in enumerate(_names(tensor, model)):
                handles = [(files[name], name) for name in names]
                whole = {path: jax.tree.map(_of_a_layer, places[path]) if tensor.stacked else places[path] for path in tensor.paths}
                cut = {path: place.qvalue if isinstance(place, QArray) else place for path, place in whole.items()}
                for path, part in (_together if jax.process_count() > 1 else _alone)(tensor, handles, model, cut).items():
                    place, own = places[path], whole[path]
                    on_devices = _quantizer(own, tensor.of_experts, inputs[path])(part) if isinstance(own, QArray) else part
                    if tensor.stacked and layer == 0:
                        placed[path] = jax.tree.map(lambda x, s: _zeros((layers, *x.shape), x.dtype, s)(), on_devices, place)
                    placed[path] = _set_layer(placed[path], on_devices, layer) if tensor.stacked else on_devices
                bar.update(len(names))
            for path in tensor.paths:
                if isinstance(places[path], QArray):
                    placed[path] = _packed(placed[path])
    return unflatten_dict(placed, sep=".")


Handles = list[tuple[File, str]]
"""The tensors of a layer, one of each expert: a file, and a name in it."""


def _alone(tensor: Tensor, handles: Handles, model: Model, places: Mapping[str, jax.sharding.NamedSharding]) -> dict[str, jax.Array]:
    """A layer's parameters, laid out on this host."""
    shapes = flatten_dict(model.shapes(), sep=".")
    parts = {path: np.empty(shapes[path].shape[tensor.stacked :], shapes[path].dtype) for path in tensor.paths}
    files = {file: opened(file) for file in {file for file, _ in handles}}
    for index, (file, name) in enumerate(handles):
        for path, part in _split(tensor, files[file].get_tensor(name), shapes).items():
            parts[path][index if tensor.of_experts else ...] = part
    return {path: jax.make_array_from_callback(part.shape, places[path], part.__getitem__) for path, part in parts.items()}


def _together(tensor: Tensor, handles: Handles, model: Model, places: Mapping[str, jax.sharding.NamedSharding]) -> dict[str, jax.Array]:
    """The same of several hosts: each reads its share of the rows, and they are laid out on the devices, over the network between these."""
    shapes = flatten_dict(model.shapes(), sep=".")
    own, mesh = {path: shapes[path] for path in tensor.paths}, next(iter(places.values())).mesh
    assert isinstance(mesh, jax.sharding.Mesh)
    files = {file: opened(file) for file in {file for file, _ in handles}}
    raw = [shared(files[file].get_slice(name), own[tensor.paths[0]].dtype, mesh) for file, name in handles]
    rows = files[handles[0][0]].get_slice(handles[0][1]).get_shape()[0]
    return _layer_of(tensor, tuple(own.items()), rows, tuple(places.items()))(raw)


@cache
def _layer_of(tensor: Tensor, shapes: tuple, rows: int, places: tuple) -> Callable[[list[jax.Array]], dict[str, jax.Array]]:
    def make(raw: list[jax.Array]) -> dict[str, jax.Array]:
        parts = [_split(tensor, one[:rows], dict(shapes)) for one in raw]
        return {path: jax.numpy.stack([part[path] for part in parts]) if tensor.of_experts else parts[0][path] for path in tensor.paths}

    return jax.jit(make, out_shardings=dict(places))


@cache  # the next model of this shape compiles nothing
def _zeros(shape: tuple[int, ...], dtype: np.dtype, place: jax.sharding.NamedSharding) -> Callable[[], jax.Array]:
    return jax.jit(partial(jax.numpy.zeros, shape, dtype), out_shardings=place)


@cache
def _quantizer(own: QArray, leading: int, inputs: int) -> Callable[[jax.Array], QArray]:
    """Codes of 4 bits are bytes until the last layer is read: to write a layer of such an array XLA copies it whole on CPUs."""

    def make(w: jax.Array) -> QArray:
        found = quantize(w, own.qtype, leading, inputs)
        return replace(found, qvalue=found.qvalue.astype(jax.numpy.int8))

    return jax.jit(make, out_shardings=own)


@partial(jax.jit, donate_argnums=0)
def _packed(w: QArray) -> QArray:
    return replace(w, qvalue=w.qvalue.astype(CODES[w.qtype]))


def _of_a_layer(place: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec(*place.spec[1:]))


@partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: Any, value: Any, layer: int) -> Any:
    return jax.tree.map(lambda x, part: jax.lax.dynamic_update_index_in_dim(x, part, layer, 0), stacked, value)


def replace_params(params: Params, model: Model, tensors: Mapping[str, np.ndarray]) -> Params:
    """The parameters with some of a model's tensors in the place of theirs, by Hugging Face's names and in its layout. `params` is used up."""
    flat, shapes = flatten_dict(params, sep="."), flatten_dict(model.shapes(), sep=".")
    for tensor in _table(model):
        for layer, names in enumerate(_names(tensor, model)):
            for expert, name in enumerate(names):
                for path, part in _split(tensor, tensors[name], shapes).items() if name in tensors else ():
                    part, place = part.astype(flat[path].dtype), flat[path].sharding
                    if tensor.of_experts:
                        part = flat[path][layer].at[expert].set(part)
                    flat[path] = jax.device_put(_set_layer(flat[path], part, layer) if tensor.stacked else part, place)
    return unflatten_dict(flat, sep=".")


def write_params(directory: str | Path, model: Model, params: Params, extra: Json | None = None, dtype: str | None = None) -> None:
    """Write config.json (with `extra` keys) and sharded safetensors with their index, as `transformers` reads them.

    `dtype`: of the tensors; None: the parameters'.

    Host memory holds the tensors of one file: MAX_FILE_BYTES at most, or one tensor that is larger. All processes call it together; process 0 writes.
    """
    directory, writes = Path(directory), jax.process_index() == 0
    kind = np.dtype(dtype or model.param_dtype)
    config = config_to_hf(model.config) | {"dtype": str(kind), **(extra or {})}
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", config)
    groups: list[list[str]] = []  # the tensors of each file
    total, size, flat = 0, 0, flatten_dict(params, sep=".")
    for tensor in _table(model):
        names = [name for layer in _names(tensor, model) for name in layer]
        each = sum(flat[path].size for path in tensor.paths) * kind.itemsize // len(names)
        for name in names:
            if not groups or size + each > MAX_FILE_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(name)
            total, size = total + each, size + each
    tensors, index = ((name, tensor.astype(kind, copy=False)) for name, tensor in _tensors(model, params)), dict[str, str]()
    for number, names in enumerate(groups, 1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        for_file = dict(islice(tensors, len(names)))
        if writes:
            save_file(for_file, directory / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    if writes and len(groups) > 1:
        write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _tensors(model: Model, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under Hugging Face's name and in its layout."""
    flat, inputs = flatten_dict(params, sep="."), model.inputs()
    for tensor in _table(model):
        for layer, names in enumerate(_names(tensor, model)):
            parts = {path: on_host(flat[path][layer] if tensor.stacked else flat[path]) for path in tensor.paths}
            for index, name in enumerate(names):
                own = {path: part[index] for path, part in parts.items()} if tensor.of_experts else parts
                yield name, np.ascontiguousarray(_fuse(tensor, own, inputs))


def _names(tensor: Tensor, model: Model) -> list[list[str]]:
    """What a model calls a tensor, by layer."""
    return tensor.names(model.config.n_layers, model.config.experts)


def _fuse(tensor: Tensor, parts: Mapping[str, np.ndarray], inputs: Mapping[str, int]) -> np.ndarray:
    """One layer's parameters, of one of its experts, as the tensor that holds them."""
    if tensor.is_matrix:
        return tensor.fuse([part.reshape(math.prod(part.shape[: inputs[path]]), -1) for path, part in parts.items()]).T
    return tensor.fuse([part if path in _TABLES else part.reshape(-1) for path, part in parts.items()])


def _split(tensor: Tensor, value: Any, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The parameters that a tensor holds, in our layout: the inverse of `_fuse`."""
    fused, layer_shapes = value.T if tensor.is_matrix else value, [shapes[path].shape[_leading(tensor) :] for path in tensor.paths]
    parts = tensor.cut(fused, [math.prod(shape) // math.prod(fused.shape[:-1]) for shape in layer_shapes])
    return {path: part.reshape(shape) for path, part, shape in zip(tensor.paths, parts, layer_shapes, strict=True)}


def _leading(tensor: Tensor) -> int:
    """How many dims of its parameters count what has a tensor each: layers, and experts."""
    return tensor.stacked + tensor.of_experts


_TABLES = ("embed", "positions", "blocks.router")  # they are stored as they are: what is looked up, and what has a row for each expert


def _some(problems: list[str]) -> str:
    """A few of many, on one line."""
    return "; ".join(" ".join(problem.split()) for problem in problems[:8]) + (
        f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    )


def _check_tie(model: Model, files: Mapping[str, File]) -> None:
    """Refuse a head of its own where config.json says that the head is the embedding table."""
    if not model.config.tied_head or "lm_head.weight" not in files:
        return
    table = next(tensor.name for tensor in _table(model) if tensor.paths == ("embed",))
    if not equal((files["lm_head.weight"], "lm_head.weight"), (files[table], table)):
        raise ConfigError(
            f"model.path: {files['lm_head.weight'].parent}: config.json says tie_word_embeddings, but lm_head.weight isn't {table}: "
            "set it to false, or take lm_head.weight out"
        )


def tensor_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors, as Hugging Face has them."""
    shapes, inputs, expected = flatten_dict(model.shapes(), sep="."), model.inputs(), dict[str, tuple[int, ...]]()
    for tensor in _table(model):
        parts = {path: np.broadcast_to(np.int8(0), shapes[path].shape[_leading(tensor) :]) for path in tensor.paths}
        names = (name for layer in _names(tensor, model) for name in layer)
        expected |= dict.fromkeys(names, _fuse(tensor, parts, inputs).shape)
    return expected
