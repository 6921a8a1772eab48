"""The jitted steps: from a batch to an update, and from a batch to held-out numbers.

Dims: B rows, T tokens, N scored tokens in a row.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpo_jax import objectives
from lpo_jax.batch import TeacherTop, TreeBatch
from lpo_jax.losses.divergence import Output, divergence
from lpo_jax.losses.logps import token_logps
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives import Options, Terms
from lpo_jax.objectives.base import FrozenOptions
from lpo_jax.objectives.heldout import heldout_metrics
from lpo_jax.train.state import TrainState, batch_sharding, frozen_shardings, state_shardings, trainable_shardings


@dataclass(frozen=True)
class Teacher:
    """What a step of `kd` must know of its teacher when it is compiled."""

    vocab_size: int  # ids of the tokenizer; both models' vocabularies are cut to these
    top_k: int  # how many log-probabilities a batch brings for each scored token; 0: none, the teacher runs inside the step
    model: Model | None = None


@dataclass(frozen=True)
class Reference:
    """Where a step finds the model as it was at the stage's start."""

    where: Literal["base", "frozen", "batch"]
    """the base beneath the adapters, ``frozen["reference"]``, or (its log-probabilities) the batch"""


LOAD = "expert_load"
"""The term that counts how often each layer chose each expert, [L, E]. A step leaves `load_terms` in its place."""

TrainStep = Callable[[TrainState, Params, TreeBatch], tuple[TrainState, Terms]]


def make_train_step(
    model: Model,
    objective: Options,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    seed: int = 0,
    beside: Teacher | Reference | None = None,
) -> TrainStep:
    """The jitted step: (state, frozen, batch with leaves [microbatches, rows, ...]) -> (state, terms). The state is donated.

    `frozen` is what `lpo_jax.train.state.frozen_shapes` describes, for the model that stands `beside` the trained one. Gradients of the loss *sum* are added up over the microbatches and divided
    once by the loss weight, so that accumulation equals one big batch. A step whose loss or gradient isn't finite changes neither parameters
    nor moments, bit for bit, and is counted.

    Terms besides the objective's: ``grad_norm`` (before clipping), ``tokens`` (the batch's, without padding and each tree's first),
    ``skipped_steps`` (so far) and ``skipped_in_row``; of a mixture of experts `load_terms`.
    """
    teacher = beside if isinstance(beside, Teacher) else None
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
        # Gradients are summed in float32 or wider, also those of bfloat16 weights.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
        (grads, terms), _ = jax.lax.scan(accumulate, zeros, (batches, indices))
        grads = jax.tree.map(lambda g, p: (g / terms["loss"][1]).astype(p.dtype), grads, state.params)
        # Without this XLA moves the head's moments to where the head's gradient was computed, and back again.
        grads = jax.lax.with_sharding_constraint(grads, states.params)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        finite = jnp.isfinite(terms["loss"][0] / terms["loss"][1]) & jnp.isfinite(grad_norm)
        params, opt_state = jax.tree.map(
            partial(jnp.where, finite), (optax.apply_updates(state.params, updates), opt_state), (state.params, state.opt_state)
        )
        if LOAD in terms:
            terms |= load_terms(terms.pop(LOAD)[0])
        skipped, in_row = state.skipped + ~finite, jnp.where(finite, 0, state.skipped_in_row + 1)
        counts = {"tokens": (batches.positions > 0).sum(), "skipped_steps": skipped, "skipped_in_row": in_row}
        terms |= {name: (value, jnp.ones(())) for name, value in (counts | {"grad_norm": grad_norm}).items()}
        return TrainState(state.step + 1, params, opt_state, skipped, in_row), terms

    states, replicated = state_shardings(model, tx, mesh), NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(states, frozen_shardings(model, mesh, *in_frozen(beside)), batch_sharding(mesh, accumulated=True)),
        out_shardings=(states, replicated),
        donate_argnums=0,
    )


def in_frozen(beside: Teacher | Reference | None) -> tuple[Model | None, bool]:
    """What `frozen` holds besides the base model: a teacher, and whether a copy of what was trained when the stage began."""
    return beside.model if isinstance(beside, Teacher) else None, isinstance(beside, Reference) and beside.where == "frozen"


def make_eval_step(model: Model, mesh: Mesh) -> Callable[[Params, Params, TreeBatch], tuple[Terms, jax.Array]]:
    """The jitted evaluation: (params, frozen, batch) -> (held-out terms, logps [B, N])."""

    def evaluate(params: Params, frozen: Params, batch: TreeBatch) -> tuple[Terms, jax.Array]:
        logps = forward(model, params, frozen, batch)
        return heldout_metrics(logps, batch), logps

    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = trainable_shardings(model, mesh), frozen_shardings(model, mesh), batch_sharding(mesh, accumulated=False)
    return jax.jit(evaluate, in_shardings=shardings, out_shardings=replicated)


def forward(
    model: Model, params: Params, frozen: Params, batch: TreeBatch, dropout_key: jax.Array | None = None, linear: jax.Array | None = None
) -> jax.Array:
    """Log-probabilities of a batch's scored tokens, [B, N]; `linear` is `token_logps`'s."""
    return _logps(output(model, params, frozen, batch, dropout_key), batch, linear)


def _logps(made: Output, batch: TreeBatch, linear: jax.Array | None) -> jax.Array:
    return token_logps(made.hidden, made.head, batch, made.bias, linear, made.low_rank)


def objective_terms(
    model: Model,
    objective: Options,
    params: Params,
    frozen: Params,
    batch: TreeBatch,
    dropout_key: jax.Array | None = None,
    teacher: Teacher | None = None,
) -> Terms:
    """The objective of a batch; differentiate the sum of its ``"loss"``. Beside the objective's terms, a mixture has its `LOAD`."""
    record = objectives.of(objective)
    trained, load = output_and_load(model, params, frozen, batch, dropout_key)
    loads = {} if load is None else {LOAD: (load, jnp.ones(()))}
    if record.frozen in (None, "reference"):
        needed = record.reads(batch, objective)
        scored = batch if needed is None else dataclasses.replace(batch, pair=jnp.where(needed, batch.pair, -1))
        logps = _logps(trained, scored, record.linear(batch, objective))
        if record.frozen is None:
            return record.terms(logps, batch, objective) | loads
        reference = reference_logps(model, frozen, scored) if batch.reference is None else batch.reference
        return record.terms(logps, batch, objective, jax.lax.stop_gradient(reference)) | loads
    other: Output | TeacherTop | None
    if record.frozen == "base":
        other, vocab = output(dataclasses.replace(model, lora=None), frozen, {}, batch), None
    else:
        assert teacher is not None
        other = output(teacher.model, frozen["teacher"], {}, batch) if teacher.model else batch.teacher
        vocab = teacher.vocab_size  # to so many ids both vocabularies are cut
    assert other is not None and isinstance(objective, FrozenOptions)
    logps, found = divergence(trained, other, batch, objective.kl.direction, vocab)
    return record.terms(logps, batch, objective, found) | loads


def reference_logps(model: Model, frozen: Params, batch: TreeBatch) -> jax.Array:
    """What the reference says of a batch's scored tokens, [B, N]: ``frozen["reference"]``, else the base model beneath the adapters."""
    if "reference" in frozen:
        return forward(model, frozen["reference"], frozen, batch)
    assert model.lora is not None
    return forward(dataclasses.replace(model, lora=None), frozen, {}, batch)


def output(model: Model, params: Params, frozen: Params, batch: TreeBatch, dropout_key: jax.Array | None = None) -> Output:
    """A batch's hidden states, and the head that goes with them."""
    return output_and_load(model, params, frozen, batch, dropout_key)[0]


def output_and_load(
    model: Model, params: Params, frozen: Params, batch: TreeBatch, dropout_key: jax.Array | None = None
) -> tuple[Output, jax.Array | None]:
    """`output`, and the load of a mixture's experts, [L, E]."""
    base, adapters = (params, None) if model.lora is None else (frozen, params)
    hidden, load = model.hidden_and_load(base, batch.tokens, batch.positions, batch.subtree_end, adapters, dropout_key)
    return Output(hidden, *model.head(base), model.head_adapter(hidden, adapters, dropout_key)), load


def load_terms(load: jax.Array) -> Terms:
    """How evenly a step's tokens [L, E] fell on the experts: means over the layers, and each layer's busiest expert.

    ``experts/busiest``: the busiest expert's tokens, of what each would have if all had the same, 1 at best; ``experts/entropy``: of the
    distribution over experts, 1 where it is even; ``experts/idle``: the share of experts without a token.
    """
    E = load.shape[-1]
    share = load / jnp.maximum(load.sum(-1, keepdims=True), 1)
    busiest, entropy = E * share.max(-1), jax.scipy.special.entr(share).sum(-1) / jnp.log(E)
    found = {"experts/busiest": busiest.mean(), "experts/entropy": entropy.mean(), "experts/idle": (load == 0).mean()}
    found |= {f"experts/busiest/layer_{layer:02}": value for layer, value in enumerate(busiest)}
    return {name: (value, jnp.ones(())) for name, value in found.items()}
