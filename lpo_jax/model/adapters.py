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
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lpo_jax.config import ConfigError, LoraConfig
from lpo_jax.model.decoder import Model, Params
from lpo_jax.model.families import FAMILIES
from lpo_jax.model.quantized import QArray, dequantize

X = TypeVar("X")


def init(key: jax.Array, model: Model, config: LoraConfig) -> Params:
    """Adapters that change nothing yet, float32: a [L?, *in, R] uniform in +-1 / sqrt(fan in) as in PEFT, b [L?, R, *out] zero.

    Of DoRA a third leaf, norm [L?, *out]: ones, until `with_norms` has seen the weights.

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
        adapters[path] |= {"norm": jnp.ones((*layers, *out), jnp.float32)} if config.dora else {}
    return unflatten_dict(adapters, sep=".")


def with_norms(adapters: Params, params: Params, model: Model) -> Params:
    """New adapters of DoRA with the norms of their matrices' columns, so that they change nothing."""
    flat, weights, inputs = flatten_dict(adapters, sep="."), flatten_dict(params, sep="."), model.inputs()
    for name in (name for name in flat if name.endswith(".norm")):
        path = name.removesuffix(".norm")
        layers = int(path.startswith("blocks."))
        w = weights[path]
        w = dequantize(w, jnp.float32) if isinstance(w, QArray) else w.astype(jnp.promote_types(w.dtype, jnp.float32))
        flat[name] = jnp.sqrt((w * w).sum(tuple(range(layers, layers + inputs[path])))).astype(jnp.float32)
    return unflatten_dict(flat, sep=".")


def axes(model: Model, config: LoraConfig) -> Params:
    """For each leaf of `init`, the names of its dimensions (see `lpo_jax.sharding.RULES`); the rank is never cut."""
    return unflatten_dict({path: _axes(model, path, config.dora) for path in _targets(model, config)}, sep=".")


def joined_axes(model: Model, adapters: Params) -> Params:
    """For each leaf of `joined`, the names of its dimensions."""
    paths = [name.removesuffix(".of") for name in flatten_dict(adapters, sep=".") if name.endswith(".of")]
    names = {path: _axes(model, path) for path in paths}
    return unflatten_dict({path: own | {"of": (*own["a"][: path.startswith("blocks.")], None)} for path, own in names.items()}, sep=".")


def _axes(model: Model, path: str, dora: bool = False) -> dict[str, tuple[str | None, ...]]:
    names = flatten_dict(model.axes(), sep=".")
    names |= {"head": names["embed"][::-1]} if model.config.tied_head else {}
    layers, into, out = split_dims(path, names[path], model.inputs()[path])
    return {"a": (*layers, *into, None), "b": (*layers, None, *out)} | ({"norm": (*layers, *out)} if dora else {})


def joined(adapters: Sequence[tuple[Params, LoraConfig]], dtype: str) -> Params:
    """Several adapters of one base as one, for `Model.decode` and its kin: {"a": [L?, *in, R], "b": [L?, R, *out], "of": [L?, R] int32}.

    R is the sum of their ranks. `of` says whose a column is: 1 the first's. Their scales are folded into b.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for number, (tree, config) in enumerate(adapters, 1):
        flat = flatten_dict(tree, sep=".")
        for path in (name.removesuffix(".a") for name in flat if name.endswith(".a")):
            a, b = np.asarray(flat[f"{path}.a"]), np.asarray(flat[f"{path}.b"]) * config.scale
            layers = a.shape[:1] if path.startswith("blocks.") else ()
            of = np.full((*layers, a.shape[-1]), number, np.int32)
            found.setdefault(path, []).append({"a": a.astype(jnp.dtype(dtype)), "b": b.astype(jnp.dtype(dtype)), "of": of})
    tree = {}
    for path, each in found.items():
        along = {"a": -1, "b": int(path.startswith("blocks.")), "of": -1}
        tree[path] = {name: np.concatenate([one[name] for one in each], axis) for name, axis in along.items()}
    return unflatten_dict(tree, sep=".")


def _targets(model: Model, config: LoraConfig) -> list[str]:
    """The paths of the matrices that `config.targets` matches."""
    pattern = re.compile(config.targets)
    targets = [path for path in model.inputs() if pattern.fullmatch(target(model, path))]
    experts = [path for path in targets if path.startswith("blocks.expert_")]
    if config.dropout and experts:
        raise ConfigError(
            f"model.lora.dropout {config.dropout}: adapters of experts have none, as in PEFT; set it to 0, or leave {experts[0]} out of model.lora.targets"
        )
    if config.dora and ("head" in targets or experts):
        raise ConfigError(
            f"model.lora.targets {config.targets!r} matches {'the head' if 'head' in targets else experts[0]}, for which dora isn't computed; write e.g. "
            r"model.lora.targets: blocks\.(q|k|v|o|gate|up|down)"
        )
    for tensor in FAMILIES[model.config.family].tensors if config.dora else ():
        if set(tensor.paths) & set(targets) and not set(tensor.paths) <= set(targets):
            raise ConfigError(
                f"model.lora.targets {config.targets!r}: {tensor.name} fuses {', '.join(tensor.paths)}: with dora PEFT adapts all of them or none"
            )
    if targets:
        return targets
    others = [path for path in flatten_dict(model.shapes(), sep=".") if pattern.fullmatch(path)]
    why = f"only {', '.join(others)}, and embeddings, norms and biases have no adapters" if others else "no parameter"
    raise ConfigError(
        f"model.lora.targets {config.targets!r} matches {why}; it must fully match one of: {', '.join(target(model, path) for path in model.inputs())}"
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


def narrower(model: Model, config: LoraConfig) -> dict[str, int]:
    """The smaller side of each adapted matrix where that is below the rank: more columns than it has can't change it more."""
    dims, inputs = matrix_dims(model), model.inputs()
    sides = {path: min(map(math.prod, split_dims(path, dims[path], inputs[path])[1:])) for path in _targets(model, config)}
    return {path: side for path, side in sides.items() if side < config.rank}


def untied(model: Model, adapters: Params) -> Model:
    """What `lpo_jax.model.lora.merge` makes of a model: where a tied head has an adapter, one whose head is a matrix of its own.

    PEFT's merge unties it too. Adding the head's change to the shared table would change the embeddings.
    """
    return replace(model, config=replace(model.config, tied_head=model.config.tied_head and "head" not in adapters))


def split_dims(path: str, dims: Sequence[X], inputs: int) -> tuple[tuple[X, ...], tuple[X, ...], tuple[X, ...]]:
    """A matrix's dims, or their names, in three parts: the layer axis, with the experts' if each has one, or nothing; inputs; outputs."""
    layers = path.startswith("blocks.") + path.startswith("blocks.expert_")
    return tuple(dims[:layers]), tuple(dims[layers : layers + inputs]), tuple(dims[layers + inputs :])
