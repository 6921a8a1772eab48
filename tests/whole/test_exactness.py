"""A packed batch of trees equals the plain two-sequence computation: loss and every gradient; and nobody can peek."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.feed import Feed
from data_pipeline.trees import plant
from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.losses.logps import token_logps
from lpo_jax.model.decoder import Model
from lpo_jax.objectives import OBJECTIVES
from lpo_jax.objectives.cpo import Cpo
from lpo_jax.objectives.dpo import Dpo
from lpo_jax.objectives.lpo import Lpo
from lpo_jax.objectives.orpo import Orpo
from lpo_jax.objectives.safecoder import SafeCoder
from lpo_jax.objectives.simpo import Simpo
from lpo_jax.objectives.target_dpo import TargetDpo
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.placement import to_devices
from lpo_jax.train.step import Reference, make_train_step, objective_terms
from tests.helpers import oracle
from tests.helpers.training import MODEL, OPTIM, assert_same_training

CONFIG = ModelConfig("llama", 50, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_mlp=48, max_positions=128)
GEMMA = dataclasses.replace(
    CONFIG, n_layers=3, layers=("window", "full", "window"), window=6, window_rope_theta=50.0, norm="rms_plus_one", post_norms=True, qk_norm=True,
    score_scale=0.2, embed_scale=32**0.5, tied_head=True,
)  # fmt: skip
OTHER_SHAPES = {
    "local and global layers": GEMMA,
    "layers without rope, scales": dataclasses.replace(
        CONFIG, layers=("full", "no_rope"), residual_scale=0.6, score_scale=0.2, logit_divisor=3.5
    ),
    "sliding window": dataclasses.replace(CONFIG, window=6),
    "learned positions, layer norm": dataclasses.replace(CONFIG, positions="learned", norm="layer", gated_mlp=False, n_kv_heads=1),
    "parallel block": dataclasses.replace(CONFIG, parallel=True, rope_dim=4, rope_interleaved=True, head_bias=True),
}
OBJECTIVE = {
    "clean": Lpo(beta=3.0, gamma=0.7, alpha=0.9),
    "clean, skip": Lpo(beta=3.0, gamma=0.7, alpha=0.9, empty_side="skip"),
    "paper": Lpo(mode="paper", beta=20.0, gamma=0.7, alpha=0.05),
    "paper, mean, answer": Lpo(mode="paper", beta=20.0, gamma=0.7, alpha=0.5, norm_len="answer", imitation="mean"),
    "reference": Lpo(mode="reference", beta=3.0, gamma=0.7, alpha=1.0),
    "simpo": Simpo(beta=3.0, gamma=0.7),
    "cpo": Cpo(beta=0.3, alpha=0.9),
    "cpo, hinge": Cpo(beta=0.3, loss="hinge"),
    "orpo": Orpo(beta=0.7),
    "orpo, prompt": Orpo(beta=0.7, score_prompt=True),
    "dpo": Dpo(beta=0.3, label_smoothing=0.1),
    "dpo, hinge": Dpo(beta=0.3, loss="hinge"),
    "dpo, ipo": Dpo(beta=0.3, loss="ipo"),
    "dpo, a token": Dpo(beta=3.0, length_normalised=True),
    "dpo, changed": Dpo(beta=0.3, tokens="changed"),
    "dpo, changed, ipo": Dpo(beta=0.3, tokens="changed", loss="ipo"),
    "dpo, changed, a token": Dpo(beta=3.0, tokens="changed", length_normalised=True, label_smoothing=0.1),
    "target_dpo": TargetDpo(beta=0.3, alpha=0.9),
    "safecoder": SafeCoder(),
    "safecoder, mean": SafeCoder(reduction="mean"),
}
SLOW = {
    "clean, skip",
    "paper, mean, answer",
    "cpo",
    "cpo, hinge",
    "orpo",
    "orpo, prompt",
    "dpo, hinge",
    "dpo, ipo",
    "dpo, a token",
    "dpo, changed",
    "dpo, changed, ipo",
    "dpo",
    "safecoder",
    "safecoder, mean",
}  # more of the same
LENGTH = 32
ROW = 96


def loud(params):
    """Bigger weights, so that attention isn't uniform and a wrong mask shows."""
    return jax.tree.map(lambda x: x * 8 if x.ndim > 2 else x, params)


def tree_loss(model, params, batch, config, frozen=None):
    total, weight = objective_terms(model, config, params, frozen or {}, batch)["loss"]
    return total / weight


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [pytest.param(name, "float64", 1e-10, marks=[pytest.mark.slow] if name in SLOW else []) for name in OBJECTIVE]
    + [pytest.param(name, "float32", 1e-5, marks=pytest.mark.slow) for name in ("clean", "paper", "reference", "simpo")],
)
def test_tree_equals_two_sequences(name, dtype, tolerance):
    config, pairs = OBJECTIVE[name], oracle.random_pairs()
    record = OBJECTIVES[config.name]
    with jax.enable_x64(dtype == "float64"):
        model = Model(CONFIG, dtype, dtype)
        params = loud(model.init(jax.random.key(0)))
        other = loud(model.init(jax.random.key(1))) if record.frozen else None
        frozen = {"reference": other} if record.frozen else {}
        expected, expected_grads = jax.jit(jax.value_and_grad(lambda p: oracle.loss(model, p, pairs, config, LENGTH, other)))(params)
        for trim in (False,) if record.whole_rejected(config) else (True, False):
            batch = oracle.batch_of([plant(pair, trim, getattr(config, "score_prompt", False)) for pair in pairs], ROW)
            assert len(batch.tokens) > 1 and batch.pair.max() > 0, "the test wants several rows of several pairs"
            found, grads = jax.jit(jax.value_and_grad(lambda p, b=batch: tree_loss(model, p, b, config, frozen)))(params)
            assert abs(found - expected) <= tolerance * abs(expected)
            for path, (a, b) in jax.tree.leaves_with_path(
                jax.tree.map(lambda a, b: (np.asarray(a), np.asarray(b)), grads, expected_grads), is_leaf=lambda x: isinstance(x, tuple)
            ):
                assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), path


def run_steps(shards, config, mesh_config, accumulate=1, steps=3, rows=8, shape=MODEL):
    """Losses and trained parameters of a few steps on one batch; a reference has other weights than the model begins with."""
    mesh = make_mesh(mesh_config, jax.devices()[: mesh_config.data * mesh_config.fsdp * mesh_config.tensor])
    model = Model(shape)
    tx = optimizer(OPTIM, steps, model)
    with jax.set_mesh(mesh):
        init = jax.jit(model.init, out_shardings=state.param_shardings(model, mesh))
        trained, reference = state.new_state(init(jax.random.key(0)), tx), OBJECTIVES[config.name].frozen is not None
        frozen = {"reference": init(jax.random.key(1))} if reference else {}
        step = make_train_step(model, config, tx, mesh, beside=Reference("frozen") if reference else None)
        (batch,) = Feed(shards).batches(rows, 0, 1)
        losses = []
        for _ in range(steps):
            trained, terms = step(trained, frozen, to_devices(batch, mesh, rows, accumulate))
            losses.append(float(terms["loss"][0] / terms["loss"][1]))
    return losses, jax.device_get(trained.params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shards", "shape"),
    [
        ("dpo, changed", "trimmed", MODEL),
        ("orpo", "untrimmed", MODEL),
        ("clean", "trimmed", dataclasses.replace(GEMMA, vocab_size=MODEL.vocab_size, max_positions=MODEL.max_positions)),
    ],
    ids=["dpo", "orpo", "local and global layers"],
)
def test_one_device_equals_eight_and_parts_the_whole(name, shards, shape, seed_shards):
    alone = run_steps(seed_shards[shards], OBJECTIVE[name], MeshConfig(1, 1, 1), shape=shape)
    assert alone[0][-1] < alone[0][0]
    for mesh, accumulate in ((MeshConfig(2, 2, 2), 2), (MeshConfig(8, 1, 1), 1), (MeshConfig(1, 4, 2), 2)):
        assert_same_training(run_steps(seed_shards[shards], OBJECTIVE[name], mesh, accumulate, shape=shape), alone)


@pytest.mark.parametrize("name", ["clean", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["tpu", "gpu"])
def test_tree_equals_two_sequences_through_the_kernels(backend, name, monkeypatch):
    """The kernels are interpreted here; the CPU's back end is what every other test runs."""
    monkeypatch.setattr("lpo_jax.model.attention.mask.platform", lambda: backend)
    test_tree_equals_two_sequences(name, "float32", 1e-5)


@pytest.mark.parametrize("name", OTHER_SHAPES)
def test_trees_are_exact_for_other_decoders(name):
    config, model, pairs = OBJECTIVE["clean"], Model(OTHER_SHAPES[name], "float64", "float64"), oracle.random_pairs(3)
    with jax.enable_x64(True):
        params = loud(model.init(jax.random.key(0)))
        batch = oracle.batch_of([plant(pair) for pair in pairs], ROW)
        expected = jax.jit(lambda p: oracle.loss(model, p, pairs, config, LENGTH))(params)
        found = jax.jit(lambda p: tree_loss(model, p, batch, config))(params)
        assert abs(found - expected) <= 1e-10 * abs(expected)


def test_trees_are_exact_through_experts():
    """The loss and every gradient, the router's too. What stands beside a token, padding or another branch, doesn't change its experts."""
    shape = dataclasses.replace(CONFIG, experts=6, experts_per_token=2, d_expert=24, normalized_experts=True)
    config, model, pairs = OBJECTIVE["clean"], Model(shape, "float64", "float64"), oracle.random_pairs(3)
    with jax.enable_x64(True):
        params = loud(model.init(jax.random.key(0)))
        batch = oracle.batch_of([plant(pair) for pair in pairs], ROW)
        expected = jax.jit(jax.value_and_grad(lambda p: oracle.loss(model, p, pairs, config, LENGTH)))(params)
        found = jax.jit(jax.value_and_grad(lambda p: tree_loss(model, p, batch, config)))(params)
        assert np.abs(found[1]["blocks"]["router"]).max() > 0
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert np.abs(a - b).max() <= 1e-10 * np.abs(b).max()


def test_no_scored_token_can_peek():
    """A scored token's logp has a gradient at the embeddings of its own path, and at no other token's."""
    model = Model(CONFIG)
    params = loud(model.init(jax.random.key(1)))
    pairs = oracle.random_pairs(1)[:6]
    batch = oracle.batch_of([plant(pair, trim=False) for pair in pairs], 64)
    rows, scored = batch.source.shape

    # Give every row position a token of its own, so that an embedding row is a row position.
    positions = jnp.arange(batch.tokens.size, dtype=jnp.int32).reshape(batch.tokens.shape)
    embed = params["embed"][batch.tokens.reshape(-1)]
    single = batch.replace(tokens=positions)

    def logps(embed):
        hidden = model.hidden(params | {"embed": embed}, single.tokens, single.positions, single.subtree_end)
        return token_logps(hidden, model.head(params)[0], single)

    pull = jax.vjp(logps, embed)[1]
    one_hot = jnp.eye(rows * scored).reshape(-1, rows, scored)
    jacobian = jax.jit(lambda: jax.lax.map(lambda cotangent: pull(cotangent)[0], one_hot))()  # [rows * scored, all positions, D]
    touches = np.abs(np.asarray(jacobian)).sum(-1).reshape(rows, scored, rows, -1) > 0
    for r in range(rows):
        for n in np.flatnonzero(batch.pair[r] >= 0):
            k, source = np.arange(batch.tokens.shape[1]), batch.source[r, n]
            path = (k <= source) & (source < batch.subtree_end[r])
            assert touches[r, n, r, path].all(), "a token must see its whole path, or the test proves nothing"
            assert not touches[r, n, r, ~path].any()
            assert not np.delete(touches[r, n], r, axis=0).any()


@pytest.mark.slow
def test_remat_changes_nothing():
    pairs = oracle.random_pairs(2)
    batch = oracle.batch_of([plant(pair) for pair in pairs], ROW)
    params = Model(CONFIG).init(jax.random.key(0))
    grads = [
        jax.jit(jax.grad(lambda p, m=Model(CONFIG, remat=remat): tree_loss(m, p, batch, OBJECTIVE["clean"])))(params)
        for remat in ("none", "dots", "attention", "block")
    ]
    for other in grads[1:]:
        for a, b in zip(jax.tree.leaves(grads[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
