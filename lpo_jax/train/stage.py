"""A stage of a run: its length, its first state, its step and its batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import jax
import optax
from etils import epath
from jax.sharding import Mesh

from data_pipeline.row import PackedRows
from data_pipeline.shards import Manifest
from lpo_jax.batch import TreeBatch
from lpo_jax.config import RunConfig, StageConfig
from lpo_jax.model.decoder import Model, Params
from lpo_jax.train import reference as references
from lpo_jax.train import teacher as teachers
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.placement import my_rows, to_devices
from lpo_jax.train.state import TrainState, new_state, state_shardings
from lpo_jax.train.step import Reference, Teacher, TrainStep, make_train_step

if TYPE_CHECKING:
    from data_pipeline.feed import Feed


def length(config: StageConfig, rows: int) -> int:
    """A stage's optimizer steps, if so many rows are in its train split, of all sets together."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, math.ceil(config.epochs * rows / config.batch_rows))


@dataclass(frozen=True)
class Stage:
    """What one stage of a run consists of. Nothing is computed or read before it is asked for."""

    run: RunConfig
    name: str
    index: int  # of the run's stages; each has a stream of rows and of noise of its own
    before: int  # steps of the stages in front of it
    model: Model
    mesh: Mesh
    data: "Feed"  # what it is trained on, its own or the run's
    beside: Teacher | Reference | None

    @property
    def config(self) -> StageConfig:
        return self.run.stages[self.name]

    @property
    def length(self) -> int:
        """Optimizer steps."""
        return length(self.config, self.data.rows("train"))

    @cached_property
    def _tx(self) -> optax.GradientTransformation:
        return optimizer(self.config.optim, self.length, self.model)

    def first_state(self, params: Params) -> TrainState:
        """Fresh moments for these parameters, which are donated."""
        shardings = state_shardings(self.model, self._tx, self.mesh)
        return jax.jit(partial(new_state, tx=self._tx), out_shardings=shardings, donate_argnums=0)(params)

    def step(self) -> TrainStep:
        """The jitted train step."""
        return make_train_step(self.model, self.config.objective, self._tx, self.mesh, self.run.seed + self.index, self.beside)

    def load_beside(self, run_dir: epath.Path, params: Params | None, frozen: Params) -> Params:
        """What of `frozen` belongs to the model beside the trained one.

        Args:
          params: what the stage starts with; None: it has begun before.
        """
        if isinstance(self.beside, Reference):
            origin = references.Origin(self.run, self.name, self.model, self.mesh, self.data, run_dir)
            if params is None:
                return references.resume(origin, self.beside, frozen)
            return references.start(origin, self.beside, params, frozen)
        objective = teachers.taught(self.run, self.name)
        if objective is None or self.beside is None or self.beside.model is None:
            return {}
        return {"teacher": teachers.load(self.beside.model, objective, self.mesh)}

    def batches(self, start: int) -> Iterator[TreeBatch]:
        """The stage's batches from step `start` on, on the devices as the step wants them."""
        rows, cut = self.config.batch_rows, self.config.accumulate
        mine = my_rows(self.mesh, rows, cut)
        joined: Iterator[PackedRows] = self.data.batches(rows, start, self.length, self.index, mine)
        read = (self.data.step_rows(rows, step, self.index)[mine] for step in range(start, self.length))
        objective = teachers.taught(self.run, self.name)
        if objective is not None and isinstance(self.beside, Teacher) and self.beside.top_k:
            joined = teachers.join(joined, read, objective)
        elif self.beside == Reference("batch"):
            joined = references.join(joined, read, self.run, self.name)
        return (to_devices(batch, self.mesh, rows, cut) for batch in joined)


def open_beside(config: RunConfig, stage: str, manifest: Manifest | None) -> Teacher | Reference | None:
    """The model that stands beside a stage's own: a teacher, the reference, or None. No weights are read.

    Raises:
      ConfigError: it doesn't go with the shards (of None nothing is asked: they aren't built yet), or can't be found.
    """
    return teachers.open_teacher(config, stage, manifest) or references.open_reference(config, stage, manifest)
