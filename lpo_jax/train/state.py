"""The training state, its sharding, and the jitted steps."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpo_jax import sharding
from lpo_jax.batch import TeacherTop, TreeBatch
from lpo_jax.config import ConfigError, ObjectiveConfig, OptimConfig, RunConfig
from lpo_jax.divergence import Output, divergence
from lpo_jax.logps import token_logps
from lpo_jax.model import lora
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives import OBJECTIVES, WITH_FROZEN, Terms, heldout_metrics, linear_weights


@dataclass(frozen=True)
class Teacher:
    """What a step of `kd` must know beforehand of its teacher."""

    vocab_size: int  # both models' vocabularies are cut to so many ids: the tokenizer's
    top_k: int  # tokens whose log-probabilities a batch brings in each place; 0: none, the model runs inside the step
    model: Model | None = None


@flax.struct.dataclass
class TrainState:
    """What a stage changes. `step` counts the stage's finished steps, of which `skipped` changed nothing; the last ones, `skipped_in_row`."""

    step: Any
    params: Params
    opt_state: Any
    skipped: Any
    skipped_in_row: Any


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
    return _shardings(model.axes(), model.shapes(), mesh)


def trainable_shapes(model: Model) -> Params:
    """What the optimizer updates: the adapters of a LoRA model, else the parameters."""
    if model.lora is None:
        return model.shapes()
    return jax.eval_shape(partial(lora.init, model=model, config=model.lora), jax.random.key(0))


def trainable_shardings(model: Model, mesh: Mesh) -> Params:
    """The sharding of `trainable_shapes`."""
    axes = model.axes() if model.lora is None else lora.axes(model, model.lora)
    return _shardings(axes, trainable_shapes(model), mesh)


def _shardings(axes: Params, shapes: Params, mesh: Mesh) -> Params:
    return jax.tree.map(lambda a, shape: sharding.named(mesh, a, shape.shape), axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def state_shardings(model: Model, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The sharding of the whole state: an optimizer moment lies as its parameter does, everything else is replicated."""
    replicated = NamedSharding(mesh, PartitionSpec())
    params = trainable_shardings(model, mesh)
    opt_state = optax.tree.map_params(
        tx, lambda _, s: s, jax.eval_shape(tx.init, trainable_shapes(model)), params, transform_non_params=lambda _: replicated
    )
    return TrainState(step=replicated, params=params, opt_state=opt_state, skipped=replicated, skipped_in_row=replicated)


def new_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """A stage's first state."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


@jax.jit
def fingerprint(state: TrainState) -> jax.Array:
    """A uint32 hash of the state's bits and their places: a sum modulo 2^32, so it is the same on every mesh."""
    total = jnp.zeros((), jnp.uint32)
    for index, leaf in enumerate(jax.tree.leaves(state)):
        words = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)).astype(jnp.uint32)
        for axis in range(words.ndim):
            words = (words ^ jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)) * jnp.uint32(0x9E3779B1)
            words ^= words >> 15
        total += (2 * index + 1) * words.sum(dtype=jnp.uint32)
    return total


def batch_sharding(mesh: Mesh, accumulated: bool) -> NamedSharding:
    """Rows are cut over data and fsdp; with accumulation a leading microbatch axis stands in front."""
    rows = PartitionSpec(("data", "fsdp"))
    return NamedSharding(mesh, PartitionSpec(None, *rows) if accumulated else rows)


def check_rows(config: RunConfig, mesh: Mesh) -> None:
    """Refuse batches that can't be cut evenly.

    Raises:
      ConfigError: naming the key and the number that it must be a multiple of.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = {f"stages.{name}.batch_rows / accumulate": s.batch_rows // s.accumulate for name, s in config.stages.items()}
    for key, size in (rows | {"eval_rows": config.eval_rows}).items():
        if size % ways:
            raise ConfigError(f"{key} is {size}: it must be a multiple of data * fsdp = {ways}")


def make_train_step(
    model: Model,
    objective: ObjectiveConfig,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    seed: int = 0,
    teacher: Teacher | None = None,
) -> Callable[[TrainState, Params, TreeBatch], tuple[TrainState, Terms]]:
    """The jitted step: (state, frozen, batch with leaves [microbatches, rows, ...]) -> (state, terms). The state is donated.

    `frozen` is a LoRA model's base parameters, else {}; with a teacher that runs in the step, its parameters are there too, under "teacher".
    Gradients of the loss *sum* are added up over the microbatches and divided
    once by the loss weight, so that accumulation equals one big batch. A step whose loss or gradient isn't finite changes neither
    parameters nor moments, bit for bit, and is counted. Besides the objective's terms there are ``grad_norm`` (before clipping),
    ``tokens`` (the batch's, without padding and each tree's first), ``skipped_steps`` (so far) and ``skipped_in_row``.
    """
    drops = model.lora is not None and model.lora.dropout > 0

    def loss_sum(params: Params, frozen: Params, batch: TreeBatch, key: jax.Array | None) -> tuple[jax.Array, Terms]:
        terms = objective_terms(model, objective, params, frozen, batch, key, teacher)
        return terms["loss"][0], terms

    def step(state: TrainState, frozen: Params, batches: TreeBatch) -> tuple[TrainState, Terms]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if drops else None

        def gradient(batch: TreeBatch, index: jax.Array) -> tuple[Params, Terms]:
            own = None if key is None else jax.random.fold_in(key, index)
            return jax.grad(loss_sum, has_aux=True)(state.params, frozen, batch, own)

        def accumulate(carry: tuple[Params, Terms], inputs: tuple[TreeBatch, jax.Array]) -> tuple[tuple[Params, Terms], None]:
            return jax.tree.map(jnp.add, carry, gradient(*inputs)), None

        indices = jnp.arange(batches.tokens.shape[0])
        shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], batches), indices[0])
        # Sums of gradients are float32 or wider, also those of bfloat16 weights.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
        (grads, terms), _ = jax.lax.scan(accumulate, zeros, (batches, indices))
        grads = jax.tree.map(lambda g, p: (g / terms["loss"][1]).astype(p.dtype), grads, state.params)
        # Else XLA brings the head's moments to where its gradient was computed, and takes them back.
        grads = jax.lax.with_sharding_constraint(grads, states.params)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        finite = jnp.isfinite(terms["loss"][0] / terms["loss"][1]) & jnp.isfinite(grad_norm)
        params, opt_state = jax.tree.map(
            partial(jnp.where, finite), (optax.apply_updates(state.params, updates), opt_state), (state.params, state.opt_state)
        )
        skipped, in_row = state.skipped + ~finite, jnp.where(finite, 0, state.skipped_in_row + 1)
        counts = {"tokens": (batches.positions > 0).sum(), "skipped_steps": skipped, "skipped_in_row": in_row}
        terms |= {name: (value, jnp.ones(())) for name, value in (counts | {"grad_norm": grad_norm}).items()}
        return TrainState(state.step + 1, params, opt_state, skipped, in_row), terms

    states, replicated = state_shardings(model, tx, mesh), NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(states, frozen_shardings(model, mesh, teacher), batch_sharding(mesh, accumulated=True)),
        out_shardings=(states, replicated),
        donate_argnums=0,
    )


def make_eval_step(model: Model, mesh: Mesh) -> Callable[[Params, Params, TreeBatch], tuple[Terms, jax.Array]]:
    """The jitted evaluation: (params, frozen, batch) -> (held-out terms, logps [B, N])."""

    def evaluate(params: Params, frozen: Params, batch: TreeBatch) -> tuple[Terms, jax.Array]:
        logps = forward(model, params, frozen, batch)
        return heldout_metrics(logps, batch), logps

    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = trainable_shardings(model, mesh), frozen_shardings(model, mesh), batch_sharding(mesh, accumulated=False)
    return jax.jit(evaluate, in_shardings=shardings, out_shardings=replicated)


def forward(
    model: Model,
    params: Params,
    frozen: Params,
    batch: TreeBatch,
    dropout_key: jax.Array | None = None,
    linear: jax.Array | None = None,
) -> jax.Array:
    """Log-probabilities of a batch's scored tokens, [B, N]; `linear` is `token_logps`'s."""
    hidden, head, bias = output(model, params, frozen, batch, dropout_key)
    return token_logps(hidden, head, batch, bias, linear)


def objective_terms(
    model: Model,
    objective: ObjectiveConfig,
    params: Params,
    frozen: Params,
    batch: TreeBatch,
    dropout_key: jax.Array | None = None,
    teacher: Teacher | None = None,
) -> Terms:
    """The objective of a batch; differentiate the sum of its ``"loss"``."""
    if objective.name not in WITH_FROZEN:
        logps = forward(model, params, frozen, batch, dropout_key, linear_weights(batch, objective))
        return OBJECTIVES[objective.name](logps, batch, objective)
    assert objective.kl is not None
    trained = output(model, params, frozen, batch, dropout_key)
    other: Output | TeacherTop
    if objective.name == "security":
        other, vocab = output(dataclasses.replace(model, lora=None), frozen, {}, batch), None
    else:
        assert teacher is not None
        vocab = teacher.vocab_size
        if teacher.model is None:
            assert batch.teacher is not None
            other = batch.teacher
        else:
            other = output(teacher.model, frozen["teacher"], {}, batch)
    logps, found = divergence(trained, other, batch, objective.kl.direction, vocab)
    return WITH_FROZEN[objective.name](logps, found, batch, objective)


def output(model: Model, params: Params, frozen: Params, batch: TreeBatch, dropout_key: jax.Array | None = None) -> Output:
    """A batch's hidden states, and the head that goes with them."""
    base, adapters = (params, None) if model.lora is None else (frozen, params)
    hidden = model.hidden(base, batch.tokens, batch.positions, batch.subtree_end, adapters, dropout_key)
    return Output(hidden, *model.head(base, adapters, dropout_key))


def frozen_shardings(model: Model, mesh: Mesh, teacher: Teacher | None = None) -> Params:
    """The sharding of `make_train_step`'s `frozen`."""
    base = {} if model.lora is None else param_shardings(model, mesh)
    return base if teacher is None or teacher.model is None else base | {"teacher": param_shardings(teacher.model, mesh)}
