"""A run's model, its tokenizer, and its weights: new, read from a directory, or from the run's own checkpoints."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
from etils import epath
from jax.sharding import Mesh

from foundation.console import waiting
from foundation.files import read_object, sampled_sha256
from foundation.stores import HUB_ID, weights_at
from lpo_jax.config import ConfigError, MeshConfig, RunConfig, from_dict
from lpo_jax.model import adapters, hf, lora, peft
from lpo_jax.model.decoder import Model, Params
from lpo_jax.sharding import make_mesh
from lpo_jax.train import checkpoint
from lpo_jax.train.checkpoint import Progress
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.state import TrainState, abstract, abstract_state, base_shardings, param_shardings, trainable_shapes, trainable_shardings


def open_run(path: str | Path) -> RunConfig | None:
    """The config of the run whose directory `path` is; None: it isn't one. Of its paths those that a model is read from are as they are from here."""
    file = epath.Path(path) / "config.json"
    raw = read_object(file)
    return _from_here(from_dict(RunConfig, raw, str(file)), path) if "stages" in raw else None


def _from_here(config: RunConfig, path: str | Path) -> RunConfig:
    """Relative paths count from where the run was trained: where its directory is now tells that, if it still has its name."""
    own, place = Path(config.run_dir), Path(path).absolute()
    if "://" in str(path) or own.is_absolute() or place.parts[-len(own.parts) :] != own.parts:
        return config
    home, model, data = place.parents[len(own.parts) - 1], config.model, config.data

    def here(value: str) -> str:
        there = home / value
        return os.path.relpath(there) if there.exists() and not Path(value).exists() else value

    model = replace(model, path=model.path and here(model.path), adapter=model.adapter and here(model.adapter))
    return replace(config, model=model, data=replace(data, path=here(data.path), tokenizer=data.tokenizer and here(data.tokenizer)))


def check_here(path: str | Path, config: RunConfig) -> None:
    """Refuse a run of which something that its model is read from isn't there.

    Raises:
      ConfigError: what that is, and where it was looked for. Of what may be a hub id the hub says so.
    """
    for key, value in config.stands_on().items():
        if "://" not in value and not HUB_ID.fullmatch(value) and not Path(value).exists():
            whole = Path(value).is_absolute()
            where = (
                "there any more: put it there"
                if whole
                else f"in {Path.cwd()}: call this where the run was trained, from where its paths count"
            )
            raise ConfigError(f"{path} needs {value} (its {key}), which isn't {where}")


def tokenizer_directory(config: RunConfig) -> Path:
    """Where a run's tokenizer is: beside its model's weights, else in its shards."""
    return Path(config.data.path) / "tokenizer" if config.model.path is None else hf.locate(config.model.path)


def load_params(config: RunConfig, model: Model, mesh: Mesh) -> tuple[Params, Params]:
    """What is trained and what is frozen, sharded. Without LoRA: (`load_base`, {}); with it: (new adapters, `load_base`)."""
    base = load_base(config, model, mesh)
    if model.lora is None:
        return base, {}
    new = jax.jit(partial(adapters.init, model=model, config=model.lora), out_shardings=trainable_shardings(model, mesh))
    made = new(jax.random.key(config.seed))
    if model.lora.dora:
        fill = jax.jit(partial(adapters.with_norms, model=model), out_shardings=trainable_shardings(model, mesh), donate_argnums=0)
        made = fill(made, base)
    return made, base


def load_base(config: RunConfig, model: Model, mesh: Mesh) -> Params:
    """The parameters that a run starts from, sharded: those of model.path, or random; model.adapter is merged into them.

    Under adapters they are quantised as model.quantize says.
    """
    shardings = base_shardings(model, mesh)
    if config.model.path is not None:
        params = hf.read_params(hf.locate(config.model.path), model, shardings)
    else:
        params = jax.jit(lambda key: model.base(model.init(key)), out_shardings=shardings)(jax.random.key(config.seed))
    if config.model.adapter is not None:
        merged, params = merge_adapter(config.model.adapter, model, mesh, params)
        if merged != model:
            raise ConfigError(
                f"model.adapter: {config.model.adapter} adapts this model's tied head, and merged it makes another model: merge it once "
                "with peft (merge_and_unload, save_pretrained) or `lpo export --merge`, and give that as model.path"
            )
    return params


def merge_adapter(directory: str, model: Model, mesh: Mesh, params: Params) -> tuple[Model, Params]:
    """A model with a PEFT directory's adapters merged into it, and its whole tensors (modules_to_save) in the place of theirs.

    `params` is used up. The model is another, if its tied head had an adapter: see `lpo_jax.model.adapters.untied`.
    """
    found = peft.read_peft(directory, model)
    model = adapters.untied(model, found.adapters)
    merge = jax.jit(partial(lora.merge, config=found.config), out_shardings=param_shardings(model, mesh), donate_argnums=0)
    return model, hf.replace_params(merge(params, found.adapters), model, found.saved)


def identity(path: str) -> str:
    """What tells the weights at a path from others at the same path at another time, without reading them whole.

    Args:
      path: as `open_run` takes it, of a Hugging Face model, or a PEFT directory.
    """
    run = open_run(path)
    if run is None:
        directory = hf.locate(path)
        return directory.name if weights_at(directory) else sampled_sha256(sorted(directory.glob("*.safetensors")))
    base = "" if run.model.path is None or not run.model.lora else identity(run.model.path)
    return f"{checkpoint.newest(epath.Path(path))} {base}".strip()


def restore_params(path: str | Path, config: RunConfig, mesh: Mesh | None = None) -> tuple[Model, Params, Params]:
    """A run's model with what it trained, and what is frozen, from its newest checkpoint; as `restore_run`."""
    return restore_run(path, config, mesh)[1:]


def restore_run(
    path: str | Path, config: RunConfig, mesh: Mesh | None = None, best: bool = False
) -> tuple[Progress, Model, Params, Params]:
    """A checkpoint's place in its run, the model, what it trained, and what is frozen; cut over `mesh`, or all devices that are here.

    Nothing is read of what an optimizer keeps. All processes call it together.

    From the newest checkpoint, or with `best` from the one with the best `config.best_metric`.

    Raises:
      ConfigError: the run has no checkpoint yet.
      TrainingError: none can be read.
    """
    check_here(path, config)
    mesh, model = mesh or make_mesh(MeshConfig(data=1, fsdp=-1)), hf.open_model(config.model)
    shapes = abstract(trainable_shapes(model), trainable_shardings(model, mesh))
    with waiting(f"read {path}"):
        found = checkpoint.restore_params(epath.Path(path), shapes, config.best_metric if best else None)
    if found is None:
        raise ConfigError(f"{path}: no checkpoint; run `lpo train` first")
    progress, params = found
    return progress, model, params, load_base(config, model, mesh) if model.lora else {}


def float_base(config: RunConfig) -> RunConfig:
    """The same run with its adapters beside the weights as they were before they were quantised: adapters are merged into these."""
    return replace(config, model=replace(config.model, quantize=None))


def checkpoint_targets(config: RunConfig, model: Model, mesh: Mesh) -> dict[str, TrainState]:
    """How each stage's state lies here, to restore a checkpoint into. What an optimizer keeps doesn't depend on the stage's length."""
    return {name: abstract_state(model, optimizer(stage.optim, 1, model), mesh) for name, stage in config.stages.items()}
