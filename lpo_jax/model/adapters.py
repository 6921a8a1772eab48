"""A model's adapters: which matrices have one, their first values, the names of their dimensions.

`lpo_jax.model.linear` computes with them, `lpo_jax.model.lora` merges them.

Dims: L layers, R rank, in and out a matrix's input and output dims: D -> N, H for `blocks.q`, N, H -> D for `blocks.o`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from lpo_jax.config import ConfigError, LoraConfig
from lpo_jax.model.decoder import Model, Params

X = TypeVar("X")


def init(key: jax.Array, model: Model, config: LoraConfig) -> Params:
    """Adapters that change nothing yet, float32: a [L?, *in, R] uniform in +-1 / sqrt(fan in) as in PEFT, b [L?, R, *out] zero.

    Raises:
      ConfigError: `config.targets` is no regular expression or matches no matrix; the valid paths are named.
    """
    dims, inputs, targets = matrix_dims(model), model.inputs(), _targets(model, config)
    adapters = {}
    for path, own in zip(targets, jax.random.split(key, len(targets)), strict=True):
        layers, into, out = split_dims(path, dims[path], inputs[path])
        bound = math.prod(into) ** -0.5  # kaiming_uniform(a=sqrt(5))
        a = jax.random.uniform(own, (*layers, *into, config.rank), jnp.float32, -bound, bound)
        adapters[path] = {"a": a, "b": jnp.zeros((*layers, config.rank, *out), jnp.float32)}
    return unflatten_dict(adapters, sep=".")


def axes(model: Model, config: LoraConfig) -> Params:
    """For each leaf of `init`, the names of its dimensions (see `lpo_jax.sharding.RULES`); the rank is never cut."""
    names, inputs = flatten_dict(model.axes(), sep="."), model.inputs()
    names |= {"head": names["embed"][::-1]} if model.config.tied_head else {}
    tree = {}
    for path in _targets(model, config):
        layers, into, out = split_dims(path, names[path], inputs[path])
        tree[path] = {"a": (*layers, *into, None), "b": (*layers, None, *out)}
    return unflatten_dict(tree, sep=".")


def _targets(model: Model, config: LoraConfig) -> list[str]:
    """The paths of the matrices that `config.targets` matches."""
    try:
        pattern = re.compile(config.targets)
    except re.error as error:
        raise ConfigError(f"lora.targets {config.targets!r} is no regular expression: {error}") from None
    targets = [path for path in model.inputs() if pattern.fullmatch(target(model, path))]
    if targets:
        return targets
    others = [path for path in flatten_dict(model.shapes(), sep=".") if pattern.fullmatch(path)]
    why = f"only {', '.join(others)}, and embeddings, norms and biases have no adapters" if others else "no parameter"
    raise ConfigError(
        f"lora.targets {config.targets!r} matches {why}; it must fully match one of: {', '.join(target(model, path) for path in model.inputs())}"
    )


def target(model: Model, path: str) -> str:
    """What `LoraConfig.targets` calls a matrix. A tied head has a name of its own, so that one gets an adapter only where it is asked for:
    merged, such a model isn't tied any more."""
    return "tied_head" if path == "head" and model.config.tied_head else path


def matrix_dims(model: Model) -> dict[str, tuple[int, ...]]:
    """The dims of each matrix that may have an adapter, by its path. A tied head is one of them: the embedding table, transposed."""
    shapes = {path: x.shape for path, x in flatten_dict(model.shapes(), sep=".").items()}
    shapes |= {"head": shapes["embed"][::-1]} if model.config.tied_head else {}
    return {path: shapes[path] for path in model.inputs()}


def untied(model: Model, adapters: Params) -> Model:
    """What `lpo_jax.model.lora.merge` makes of a model: where a tied head has an adapter, one whose head is a matrix of its own.

    PEFT's merge unties it too. Adding the head's change to the shared table would change the embeddings.
    """
    return replace(model, config=replace(model.config, tied_head=model.config.tied_head and "head" not in adapters))


def split_dims(path: str, dims: Sequence[X], inputs: int) -> tuple[tuple[X, ...], tuple[X, ...], tuple[X, ...]]:
    """A matrix's dims, or their names, in three parts: the layer axis or nothing, inputs, outputs."""
    layers = int(path.startswith("blocks."))
    return tuple(dims[:layers]), tuple(dims[layers : layers + inputs]), tuple(dims[layers + inputs :])
