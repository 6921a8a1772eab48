"""The training state, its sharding, and the jitted steps."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpo_jax import sharding
from lpo_jax.batch import TreeBatch
from lpo_jax.config import ObjectiveConfig, OptimConfig
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives import OBJECTIVES, Terms, heldout_metrics, token_logps


@flax.struct.dataclass
class TrainState:
    """What a stage changes. `step` counts the stage's finished steps."""

    step: Any
    params: Params
    opt_state: Any


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW; clipping by global norm in front, linear warm-up then cosine decay behind."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate(config, steps), config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=_decayed),
    )


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step."""
    warmup = round(config.warmup_ratio * steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=config.lr if warmup == 0 else 0.0,
        peak_value=config.lr,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.lr * config.final_lr_ratio,
    )


def _decayed(params: Params) -> Params:
    return jax.tree.map_with_path(lambda path, _: not path[-1].key.endswith(("norm", "bias")), params)


def param_shardings(model: Model, mesh: Mesh) -> Params:
    """The sharding of every parameter, from the names of its dimensions."""
    return jax.tree.map(
        lambda axes, shape: sharding.named(mesh, axes, shape.shape), model.axes(), model.shapes(), is_leaf=lambda x: isinstance(x, tuple)
    )


def state_shardings(model: Model, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The sharding of the whole state: an optimizer moment lies as its parameter does, everything else is replicated."""
    replicated = NamedSharding(mesh, PartitionSpec())
    params = param_shardings(model, mesh)
    opt_state = optax.tree.map_params(
        tx, lambda _, s: s, jax.eval_shape(tx.init, model.shapes()), params, transform_non_params=lambda _: replicated
    )
    return TrainState(step=replicated, params=params, opt_state=opt_state)


def batch_sharding(mesh: Mesh, accumulated: bool) -> NamedSharding:
    """Rows are cut over data and fsdp; with accumulation a leading microbatch axis stands in front."""
    rows = PartitionSpec(("data", "fsdp"))
    return NamedSharding(mesh, PartitionSpec(None, *rows) if accumulated else rows)


def make_train_step(
    model: Model, objective: ObjectiveConfig, tx: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, TreeBatch], tuple[TrainState, Terms]]:
    """The jitted step: (state, batch with leaves [microbatches, rows, ...]) -> (state, terms). The state is donated.

    Gradients of the loss *sum* are added up over the microbatches and divided once by the loss weight, so that
    accumulation equals one big batch. Besides the objective's terms there is ``grad_norm``, before clipping.
    """

    def loss_sum(params: Params, batch: TreeBatch) -> tuple[jax.Array, Terms]:
        terms = OBJECTIVES[objective.name](forward(model, params, batch), batch, objective)
        return terms["loss"][0], terms

    def step(state: TrainState, batches: TreeBatch) -> tuple[TrainState, Terms]:
        def accumulate(carry: tuple[Params, Terms], batch: TreeBatch) -> tuple[tuple[Params, Terms], None]:
            grads, terms = jax.grad(loss_sum, has_aux=True)(state.params, batch)
            return jax.tree.map(jnp.add, carry, (grads, terms)), None

        shapes = jax.eval_shape(jax.grad(loss_sum, has_aux=True), state.params, jax.tree.map(lambda x: x[0], batches))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, terms), _ = jax.lax.scan(accumulate, zeros, batches)
        grads = jax.tree.map(lambda g: (g / terms["loss"][1]).astype(g.dtype), grads)
        terms["grad_norm"] = optax.tree.norm(grads), jnp.ones(())
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), terms

    states, replicated = state_shardings(model, tx, mesh), NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step, in_shardings=(states, batch_sharding(mesh, accumulated=True)), out_shardings=(states, replicated), donate_argnums=0
    )


def make_eval_step(model: Model, mesh: Mesh) -> Callable[[Params, TreeBatch], tuple[Terms, jax.Array]]:
    """The jitted evaluation: (params, batch) -> (held-out terms, logps [B, N])."""

    def evaluate(params: Params, batch: TreeBatch) -> tuple[Terms, jax.Array]:
        logps = forward(model, params, batch)
        return heldout_metrics(logps, batch), logps

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(evaluate, in_shardings=(param_shardings(model, mesh), batch_sharding(mesh, accumulated=False)), out_shardings=replicated)


def forward(model: Model, params: Params, batch: TreeBatch) -> jax.Array:
    """Log-probabilities of a batch's scored tokens, [B, N]."""
    return token_logps(model.hidden(params, batch.tokens, batch.positions, batch.subtree_end), model.head(params), batch)
