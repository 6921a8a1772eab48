"""What a stage changes, and how it lies on the mesh."""

from functools import partial
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpo_jax import sharding
from lpo_jax.model import adapters, quantized
from lpo_jax.model.decoder import Model, Params

X = TypeVar("X")


@flax.struct.dataclass
class TrainState:
    """What a stage changes."""

    step: Any  # [] int32: finished steps of the stage
    params: Params
    opt_state: Any
    skipped: Any  # [] int32: of the finished steps, those that changed nothing
    skipped_in_row: Any  # [] int32: how many of them were the last ones


def param_shardings(model: Model, mesh: Mesh) -> Params:
    """The sharding of every parameter, from the names of its dimensions."""
    return shardings(model.axes(), model.shapes(), mesh)


def abstract_params(model: Model, mesh: Mesh) -> Params:
    """Every parameter as a `jax.ShapeDtypeStruct`: shape, dtype and sharding."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), model.shapes(), param_shardings(model, mesh))


def trainable_shapes(model: Model) -> Params:
    """What the optimizer updates: the adapters of a LoRA model, else the parameters."""
    if model.lora is None:
        return model.shapes()
    return jax.eval_shape(partial(adapters.init, model=model, config=model.lora), jax.random.key(0))


def trainable_shardings(model: Model, mesh: Mesh) -> Params:
    """The sharding of `trainable_shapes`."""
    axes = model.axes() if model.lora is None else adapters.axes(model, model.lora)
    return shardings(axes, trainable_shapes(model), mesh)


def base_shardings(model: Model, mesh: Mesh) -> Params:
    """The sharding of what a LoRA model's adapters stand beside: its parameters, quantised if it says so."""
    return shardings(model.axes(), model.base_shapes(), mesh)


def shardings(axes: Params, shapes: Params, mesh: Mesh) -> Params:
    """The sharding of each leaf of `shapes`, from the names of its dimensions."""
    return jax.tree.map(lambda a, x: quantized.placed(mesh, a, x), axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def state_shardings(model: Model, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The sharding of the whole state.

    What an optimizer keeps of a parameter lies as the parameter does; a factor, which lacks one of its dims, as the others do. Everything else
    is replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    params, shapes = trainable_shardings(model, mesh), trainable_shapes(model)
    own = {path: (x.shape, place.spec) for (path, x), place in zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(params), strict=True)}

    def place(path: tuple[Any, ...], kept: jax.ShapeDtypeStruct) -> NamedSharding:
        shape, cut = next((own[path[start:]] for start in range(len(path)) if path[start:] in own), ((), ()))
        cut = (*cut, *(None,) * (len(shape) - len(cut)))
        if kept.shape == shape:
            return NamedSharding(mesh, PartitionSpec(*cut))
        rest = (dim for dim in range(len(shape)) if kept.shape == (*shape[:dim], *shape[dim + 1 :]))
        lacks = next(rest, None)
        return replicated if lacks is None else NamedSharding(mesh, PartitionSpec(*cut[:lacks], *cut[lacks + 1 :]))

    opt_state = jax.tree.map_with_path(place, jax.eval_shape(tx.init, shapes))
    return TrainState(step=replicated, params=params, opt_state=opt_state, skipped=replicated, skipped_in_row=replicated)


def new_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """A stage's first state."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def abstract_state(model: Model, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s: shapes, dtypes and shardings."""
    shapes = jax.eval_shape(partial(new_state, tx=tx), trainable_shapes(model))
    return abstract(shapes, state_shardings(model, tx, mesh))


def abstract(shapes: X, places: X) -> X:
    """`shapes` as `jax.ShapeDtypeStruct`s that lie at `places`, to read a checkpoint into."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)


@jax.jit
def fingerprint(state: TrainState | Params) -> jax.Array:
    """A uint32 hash of the arrays' bits and their places: a sum modulo 2^32, so it is the same on every mesh."""
    total = jnp.zeros((), jnp.uint32)
    for index, leaf in enumerate(jax.tree.leaves(state)):
        if leaf.dtype in (jnp.int4, jnp.uint4):
            leaf = leaf.astype(jnp.int8)  # a whole byte
        words = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)).astype(jnp.uint32)
        for axis in range(words.ndim):
            words = (words ^ jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)) * jnp.uint32(0x9E3779B1)
            words ^= words >> 15
        total += (2 * index + 1) * words.sum(dtype=jnp.uint32)
    return total


def batch_sharding(mesh: Mesh, accumulated: bool) -> NamedSharding:
    """Rows are cut over data, fsdp and expert; with accumulation a leading microbatch axis stands in front."""
    rows = PartitionSpec(sharding.RULES["batch"])
    return NamedSharding(mesh, PartitionSpec(None, *rows) if accumulated else rows)


def frozen_shapes(model: Model, teacher: Model | None = None, reference: bool = False) -> Params:
    """What a step reads and never changes: a LoRA model's base parameters; under "teacher" those of a teacher that runs in the step; with
    `reference`, under that name, what was trained when the stage began."""
    base = {} if model.lora is None else model.base_shapes()
    base |= {} if teacher is None else {"teacher": teacher.shapes()}
    return base | ({"reference": trainable_shapes(model)} if reference else {})


def frozen_shardings(model: Model, mesh: Mesh, teacher: Model | None = None, reference: bool = False) -> Params:
    """The sharding of `frozen_shapes`."""
    base = {} if model.lora is None else base_shardings(model, mesh)
    base |= {} if teacher is None else {"teacher": param_shardings(teacher, mesh)}
    return base | ({"reference": trainable_shardings(model, mesh)} if reference else {})
