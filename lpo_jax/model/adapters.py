"""A model's adapters: which matrices have one, their first values, the names of their dimensions. `lpo_jax.model.lora` merges them.

Dims: L layers, R rank, in and out a matrix's input and output dims: D -> N, H for `blocks.q`, N, H -> D for `blocks.o`.
"""

import math
import re
from collections.abc import Sequence
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
    shapes, inputs = flatten_dict(model.shapes(), sep="."), model.inputs()
    targets = _targets(model, config)
    adapters = {}
    for path, own in zip(targets, jax.random.split(key, len(targets)), strict=True):
        layers, into, out = split_dims(path, shapes[path].shape, inputs[path])
        bound = math.prod(into) ** -0.5  # kaiming_uniform(a=sqrt(5))
        a = jax.random.uniform(own, (*layers, *into, config.rank), jnp.float32, -bound, bound)
        adapters[path] = {"a": a, "b": jnp.zeros((*layers, config.rank, *out), jnp.float32)}
    return unflatten_dict(adapters, sep=".")


def axes(model: Model, config: LoraConfig) -> Params:
    """For each leaf of `init`, the names of its dimensions (see `lpo_jax.sharding.RULES`); the rank is never cut."""
    names, inputs = flatten_dict(model.axes(), sep="."), model.inputs()
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
    targets = [path for path in model.inputs() if pattern.fullmatch(path)]
    if targets:
        return targets
    others = [path for path in flatten_dict(model.shapes(), sep=".") if pattern.fullmatch(path)]
    if others:
        why = f"only {', '.join(others)}, and embeddings, norms and biases have no adapters"
    elif model.config.tied_head and pattern.fullmatch("head"):
        why = "only the head, which is tied: it is the embedding table and no parameter of its own"
    else:
        why = "no parameter"
    raise ConfigError(f"lora.targets {config.targets!r} matches {why}; it must fully match one of: {', '.join(model.inputs())}")


def split_dims(path: str, dims: Sequence[X], inputs: int) -> tuple[tuple[X, ...], tuple[X, ...], tuple[X, ...]]:
    """A matrix's dims, or their names, in three parts: the layer axis or nothing, inputs, outputs."""
    layers = int(path.startswith("blocks."))
    return tuple(dims[:layers]), tuple(dims[layers : layers + inputs]), tuple(dims[layers + inputs :])
