"""Plan a run without its hardware: compile the very step that training runs, for a real TPU topology, on any CPU machine.

`libtpu` holds the whole TPU compiler. It needs no TPU to compile for one, and refuses a program that doesn't fit the chip's memory.
"""

import importlib.util
import math
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lpo_jax.batch import TreeBatch
from lpo_jax.config import ConfigError, StageConfig
from lpo_jax.model.decoder import Model
from lpo_jax.train import state as steps
from lpo_jax.train.state import TrainState

GIB = 2**30


@dataclass(frozen=True)
class RowShape:
    """The static shape of a packed row."""

    tokens: int  # T
    scored: int  # N
    pairs: int  # P, the most in any row


def topology_devices(name: str) -> list[Any]:
    """The devices of a TPU topology in JAX's names, e.g. ``v5e:4x4`` or ``v5p:2x2x2``: to compile for, not to run on.

    Raises:
      ConfigError: libtpu isn't installed, or it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("a plan needs the TPU compiler, which runs on any CPU machine: pip install 'lpo-jax[tpu]', or libtpu==0.0.52")
    # Without a TPU libtpu would ask a metadata server for one, and let one process a machine in.
    for key, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    # A v4 chip's two cores are one device, as a run on it sees them.
    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"mesh.topology {name!r}: {error}; names are like v5e:4x4, v6e:4x8, v5p:2x2x4, v4:2x2x2, tpu7x:2x2x1") from None


def abstract_batch(stage: StageConfig, row: RowShape, mesh: Mesh) -> TreeBatch:
    """A step's batch as `jax.ShapeDtypeStruct`s: [microbatches, rows, ...], laid out as the feed lays it out."""
    cut = steps.batch_sharding(mesh, accumulated=True)

    def leaf(width: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((stage.accumulate, stage.batch_rows // stage.accumulate, width), dtype, sharding=cut)

    T, N, P = row.tokens, row.scored, row.pairs
    read = {key: leaf(T) for key in ("tokens", "positions", "subtree_end")}
    scored = {key: leaf(N) for key in ("source", "target", "pair")}
    facts = {"side": leaf(N, jnp.int8), "answer": leaf(N, jnp.bool_), "changed": leaf(N, jnp.bool_)}
    return TreeBatch(**read, **scored, **facts, **{key: leaf(P) for key in ("chosen_len", "rejected_len", "reasoning_len")})


def abstract_arguments(model: Model, stage: StageConfig, row: RowShape, mesh: Mesh) -> tuple[TrainState, Any, TreeBatch]:
    """The train step's arguments (state, frozen, batch) as `jax.ShapeDtypeStruct`s with their shardings."""
    place = partial(jax.tree.map, lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s))
    tx = steps.optimizer(stage.optim, 1000)
    state = jax.eval_shape(partial(steps.new_state, tx=tx), steps.trainable_shapes(model))
    frozen = {} if model.lora is None else place(model.shapes(), steps.param_shardings(model, mesh))
    return place(state, steps.state_shardings(model, tx, mesh)), frozen, abstract_batch(stage, row, mesh)


def trace_step(model: Model, stage: StageConfig, row: RowShape, mesh: Mesh) -> jax.stages.Traced:
    """The train step of `lpo_jax.train.state` on abstract arguments; ``.jaxpr`` is what it computes, ``.lower().compile()`` compiles it."""
    # The schedule's length is a constant of the step and changes nothing else.
    step = steps.make_train_step(model, stage.objective, steps.optimizer(stage.optim, 1000), mesh)
    arguments = abstract_arguments(model, stage, row, mesh)
    with jax.set_mesh(mesh):
        return step.trace(*arguments)  # type: ignore[attr-defined]


def compile_step(model: Model, stage: StageConfig, row: RowShape, mesh: Mesh) -> jax.stages.Compiled:
    """Compile the train step for the mesh's devices, which may be a topology's.

    Raises:
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED with the compiler's own figures, where it doesn't fit.
    """
    traced = trace_step(model, stage, row, mesh)
    with jax.set_mesh(mesh):
        return traced.lower().compile()


def memory(compiled: jax.stages.Compiled, arguments: tuple[TrainState, Any, TreeBatch]) -> dict[str, int]:
    """Bytes on each device, by kind.

    ``parameters`` (trained and frozen), ``optimizer`` and ``batch`` are the arguments' own bytes; ``padding`` is what the device's tiling
    adds to them; ``temporaries`` are activations, gradients and gathered weights at the peak; ``outputs`` those that reuse no argument.
    """
    state, frozen, batch = arguments
    stats: Any = compiled.memory_analysis()
    kinds = {
        "parameters": _bytes(state.params) + _bytes(frozen),
        "optimizer": _bytes(state.opt_state) + _bytes(state.step),
        "batch": _bytes(batch),
    }
    padding = stats.argument_size_in_bytes - sum(kinds.values())
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    kinds |= {
        "padding": padding,
        "temporaries": stats.temp_size_in_bytes,
        "outputs": outputs,
        "program": stats.generated_code_size_in_bytes,
    }
    return kinds | {"total": sum(kinds.values())}


def _bytes(tree: Any) -> int:
    """What one device holds of a tree of `jax.ShapeDtypeStruct`s with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
