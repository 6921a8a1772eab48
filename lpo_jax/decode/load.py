"""Opening a model to sample from: a Hugging Face directory, a hub id, or the run directory of a training."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lpo_jax.config import ConfigError, LoraConfig, ModelConfig, RunConfig, from_dict
from lpo_jax.decode.request import LoadedModel, Tokenizer
from lpo_jax.export import tokenizer_directory
from lpo_jax.model import hf, lora, peft
from lpo_jax.model.decoder import Model, Params
from lpo_jax.train.state import param_shardings
from lpo_jax.train.weights import restore_params


def open_run(path: str) -> RunConfig | None:
    """The config of the run whose directory `path` is; None: it isn't one."""
    file = Path(path) / "config.json"
    raw = json.loads(file.read_text()) if file.is_file() else {}
    return from_dict(RunConfig, raw) if "stages" in raw else None


def find_tokenizer(path: str) -> str:
    """Where the tokenizer of `load_model`'s model is."""
    run = open_run(path)
    return path if run is None else str(tokenizer_directory(run))


def shape(path: str) -> ModelConfig:
    """The shape of `load_model`'s model, without its weights."""
    run = open_run(path)
    return hf.read_config(hf.locate(path)) if run is None else hf.model_config(run.model)


def default_dtype() -> str:
    """Of weights and matmuls on these devices."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def check_tokenizer(path: str, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that isn't the model's.

    Raises:
      ConfigError: it has more entries than the model's vocabulary, or isn't the one that the run was trained with.
    """
    entries, vocab = max(tokenizer.backend.get_vocab().values()) + 1, shape(path).vocab_size
    if entries > vocab:
        raise ConfigError(f"the tokenizer has {entries} entries, {path}'s vocabulary {vocab}: give the model's own with --tokenizer")
    manifest = Path(path) / "data.json"
    if manifest.is_file() and json.loads(manifest.read_text())["tokenizer_sha256"] != tokenizer.sha256:
        raise ConfigError(f"{path} was trained with another tokenizer: give the one of its shards with --tokenizer")


def load_model(path: str, mesh: Mesh, dtype: str, adapter: str | None = None) -> LoadedModel:
    """A model with its weights in `dtype`, cut over `mesh` as training cuts them; adapters are merged.

    Args:
      path: a Hugging Face directory or hub id, or a run_dir: of that the newest checkpoint.
      adapter: a PEFT directory, merged too.

    Raises:
      ConfigError: `path` is none of these, the run has no checkpoint, or the files don't fit; with the remedy.
    """
    run = open_run(path)
    if run is None:
        directory = hf.locate(path)
        model = Model(hf.read_config(directory), compute_dtype=dtype, param_dtype=dtype)
        params, ids = hf.read_params(directory, model, param_shardings(model, mesh)), _eos_ids(directory)
    else:
        trained, params, frozen = restore_params(path, run, mesh)
        model = Model(trained.config, compute_dtype=dtype, param_dtype=dtype)
        params = _convert(model, mesh, params, frozen, trained.lora)
        ids = _eos_ids(tokenizer_directory(run))
    if adapter is not None:
        adapters, settings = peft.load_peft(adapter, model)
        merged = partial(lora.merge, config=settings)
        params = jax.jit(merged, out_shardings=param_shardings(model, mesh), donate_argnums=0)(params, adapters)
    return LoadedModel(model, params, mesh, ids)


def _convert(model: Model, mesh: Mesh, params: Params, frozen: Params, config: LoraConfig | None) -> Params:
    """What a run trained as plain parameters of `model`."""

    def whole(params: Params, frozen: Params) -> Params:
        merged = params if config is None else lora.merge(frozen, params, config)
        return jax.tree.map(lambda x: x.astype(model.param_dtype), merged)

    return jax.jit(whole, out_shardings=param_shardings(model, mesh))(params, frozen)


def _eos_ids(directory: Path) -> tuple[int, ...]:
    """Every token that config.json and generation_config.json say ends a text."""
    ids: set[int] = set()
    for file in (directory / "config.json", directory / "generation_config.json"):
        found: Any = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        ids |= set(found if isinstance(found, list) else [] if found is None else [found])
    return tuple(sorted(ids))
