"""Our own train step, ready to be counted or timed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lpo_jax.batch import TreeBatch
from lpo_jax.config import AdamW
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives import Options
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.state import TrainState, new_state
from lpo_jax.train.step import Reference, TrainStep, make_train_step

OPTIM = AdamW(lr=1e-5)


def prepared(
    model: Model, params: Params, batch: TreeBatch, objective: Options, beside: Reference | None, mesh: Mesh
) -> tuple[TrainStep, tuple[TrainState, Params, TreeBatch]]:
    """The training loop's step, and what it is called with: fresh moments, a reference equal to the model, one microbatch."""
    tx = optimizer(OPTIM, 100, model)
    step = make_train_step(model, objective, tx, mesh, beside=beside)
    frozen = {"reference": params} if beside == Reference("frozen") else {}
    return step, (new_state(jax.tree.map(jnp.copy, params), tx), frozen, jax.tree.map(lambda x: jnp.asarray(x)[None], batch))


def timed(
    model: Model, params: Params, batch: TreeBatch, objective: Options, mesh: Mesh, beside: Reference | None = None
) -> Callable[[], object]:
    """Makes one step each time that it is called."""
    step, (state, frozen, rows) = prepared(model, params, batch, objective, beside, mesh)
    held = [state]

    def run() -> None:
        held[0], terms = step(held[0], frozen, rows)
        jax.block_until_ready((held[0], terms))

    return run
