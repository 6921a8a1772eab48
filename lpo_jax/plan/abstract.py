"""A run's train step without its weights and data: on abstract arguments, traced and compiled for devices that needn't be here."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data_pipeline.row import COLUMNS
from lpo_jax.batch import TeacherTop, TreeBatch
from lpo_jax.config import StageConfig
from lpo_jax.model.decoder import Model, Params
from lpo_jax.plan.rows import PlannedRows
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.state import TrainState, abstract_state, batch_sharding, frozen_shapes, frozen_shardings
from lpo_jax.train.step import Reference, Teacher, in_frozen, make_train_step

Arguments = tuple[TrainState, Params, TreeBatch]
"""The train step's arguments (state, frozen, batch) as `jax.ShapeDtypeStruct`s with their shardings."""


def batch(stage: StageConfig, row: PlannedRows, mesh: Mesh, beside: Teacher | Reference | None = None) -> TreeBatch:
    """A step's batch [microbatches, rows, ...], laid out as training lays it out."""
    cut = batch_sharding(mesh, accumulated=True)

    def leaf(*width: int, dtype: str = "int32") -> Any:
        return jax.ShapeDtypeStruct((stage.accumulate, stage.batch_rows // stage.accumulate, *width), jnp.dtype(dtype), sharding=cut)

    columns = {column.name: leaf(getattr(row, column.axis), dtype=column.dtype) for column in COLUMNS}
    N, K = row.scored, beside.top_k if isinstance(beside, Teacher) else 0
    taught = TeacherTop(leaf(N, K), leaf(N, K, dtype="float32"), leaf(N, dtype="float32")) if K else None
    return TreeBatch(**columns, teacher=taught, reference=leaf(N, dtype="float32") if beside == Reference("batch") else None)


def arguments(model: Model, stage: StageConfig, row: PlannedRows, mesh: Mesh, beside: Teacher | Reference | None = None) -> Arguments:
    """What a stage's train step is called with."""
    shapes, shardings = frozen_shapes(model, *in_frozen(beside)), frozen_shardings(model, mesh, *in_frozen(beside))
    frozen = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    tx = optimizer(stage.optim, 1000, model)
    return abstract_state(model, tx, mesh), frozen, batch(stage, row, mesh, beside)


def trace_step(
    model: Model, stage: StageConfig, row: PlannedRows, mesh: Mesh, beside: Teacher | Reference | None = None
) -> jax.stages.Traced:
    """The train step of `lpo_jax.train.step`; ``.jaxpr`` is what it computes."""
    # The schedule's length is a constant of the step and changes nothing else.
    step = make_train_step(model, stage.objective, optimizer(stage.optim, 1000, model), mesh, beside=beside)
    given = arguments(model, stage, row, mesh, beside)
    with jax.set_mesh(mesh):
        return step.trace(*given)  # type: ignore[attr-defined]


def compile_step(traced: jax.stages.Traced, mesh: Mesh, dump: str | None = None) -> jax.stages.Compiled:
    """Compile a traced function for the mesh's devices, which may be a topology's.

    Args:
      dump: a directory for the compiler's reports and the program's text, see `dumped`. `Compiled.as_text` can't read every program of a newer
        libtpu.

    Raises:
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED with the compiler's own figures, where it doesn't fit.
    """
    options = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True, "xla_dump_hlo_module_re": f"jit_{traced.fun_name}$"} if dump else None
    with jax.set_mesh(mesh):
        return traced.lower().compile(compiler_options=options)


def dumped(directory: str, function: str, name: str) -> str:
    """Of a function's compilation into `directory`: "after_optimizations", its text; "after_optimizations-buffer-assignment"."""
    (file,) = Path(directory).glob(f"*.jit_{function}.*.{name}.txt")
    return file.read_text()


def verdict(error: jax.errors.JaxRuntimeError) -> str:
    """What the compiler has against a program, in its own words."""
    return str(error).partition(" HLO module")[0].partition("\n")[0]
