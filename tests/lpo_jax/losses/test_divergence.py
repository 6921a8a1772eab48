"""CoSec+'s two training phases: the specification's vectors and invariants 17-20, values and gradients against torch, and every mesh."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from data_pipeline.feed import Feed
from data_pipeline.trees import plant
from lpo_jax.config import ConfigError, LoraConfig, MeshConfig, ModelConfig, StageConfig, from_dict
from lpo_jax.losses import divergence as module
from lpo_jax.losses.divergence import Output, divergence, top
from lpo_jax.model import adapters as low_rank
from lpo_jax.model.decoder import Model
from lpo_jax.objectives import OBJECTIVES, KlConfig, kd, security
from lpo_jax.objectives.base import answer_side
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.placement import to_devices
from lpo_jax.train.step import Teacher, make_train_step, objective_terms
from tests.helpers import oracle
from tests.helpers.oracle import P, Q, flat
from tests.helpers.training import MODEL, OPTIM, assert_same_training

DIRECTIONS = ("reverse", "forward")


def objective(name, direction="reverse", weight=0.5, **more):
    teacher = "somewhere" if name == "kd" else None
    return OBJECTIVES[name].options(kl=KlConfig(direction, weight, teacher), **more)


def one_token(probabilities):
    """A model that holds these probabilities in the place of the only token."""
    return Output(jnp.log(jnp.array(probabilities))[None, None], jnp.eye(len(probabilities)), None)


def single(target=1):
    batch, _ = flat([([0.0], "0", [], "", [target], [])])
    return batch


# --- 17: the vectors.


@pytest.mark.parametrize(
    ("direction", "kl", "total", "gradient"),
    [
        ("reverse", 0.659055, 1.134246, [-0.226849, -0.212904, 0.436344, 0.003409]),
        ("forward", 0.683757, 1.717657 - 1.142120 / 2, [-0.4, -0.1, 0.45, 0.05]),  # published: larger by half the teacher's entropy
    ],
)
def test_vectors(direction, kl, total, gradient):
    batch, config = single(), objective("kd", direction)

    def found(student):
        return divergence(student, one_token(P), batch, direction)

    logp, value = found(one_token(Q))
    assert float(value[0, 0]) == pytest.approx(kl, abs=1e-6)
    assert -float(logp[0, 0]) == pytest.approx(1.609438, abs=1e-6)
    terms = kd.terms(logp, batch, config, value)
    assert float(terms["loss"][0] / terms["loss"][1]) == pytest.approx(total, abs=1e-6)
    grad = jax.grad(lambda hidden: found(one_token(Q)._replace(hidden=hidden))[1].sum())(one_token(Q).hidden)
    np.testing.assert_allclose(grad[0, 0], gradient, atol=1e-6)
    entropy = -(P * np.log(P)).sum()
    assert entropy == pytest.approx(1.142120, abs=1e-6)
    if direction == "forward":
        assert value[0, 0] + entropy == pytest.approx(1.825877, abs=1e-6)
    same, grads = jax.value_and_grad(lambda h: divergence(one_token(P)._replace(hidden=h), one_token(P), batch, direction)[1].sum())(
        one_token(P).hidden
    )
    assert float(same) == pytest.approx(0, abs=1e-7) and np.abs(grads).max() < 1e-7


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_top_keeps_the_rest_as_one_event(direction):
    batch = single()
    kept = top(one_token(P), batch, 2)
    np.testing.assert_array_equal(kept.ids[0, 0], [0, 1])
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
    over, under = (q, p) if direction == "reverse" else (p, q)
    value = divergence(one_token(Q), kept, batch, direction)[1]
    assert float(value[0, 0]) == pytest.approx((over * np.log(over / under)).sum(), abs=1e-6)
    whole = divergence(one_token(Q), one_token(P), batch, direction)[1]
    assert float(value[0, 0]) < float(whole[0, 0])  # events that are put together can't tell more


# --- 17, 18: torch, float64, with vocabularies of different sizes.

T, D, E, V, W, CUT = 96, 6, 5, 52, 56, 50


def outputs(dtype, rows, seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.array(rng.normal(size=shape), dtype)  # noqa: E731
    return Output(draw(rows, T, D), draw(D, V), None), Output(draw(rows, T, E), draw(E, W), draw(W))


def pairs_batch(rows=None):
    return oracle.batch_of([plant(pair, trim=False) for pair in oracle.random_pairs()], T, rows)


def in_torch(student, teacher, batch, config, cut):
    """The loss and its gradients by the student's hidden states and head, one token and one pair at a time."""
    hidden, head = (torch.tensor(np.asarray(x), requires_grad=True) for x in student[:2])
    frozen = [torch.tensor(np.asarray(x)) for x in teacher[:3]]
    lm, kl = {}, {}
    for row, n in zip(*np.nonzero(np.asarray(answer_side(batch, config.score_prompt))), strict=True):
        at = batch.source[row, n]
        log_q = functional.log_softmax((hidden[row, at] @ head)[:cut], -1)
        log_p = functional.log_softmax((frozen[0][row, at] @ frozen[1] + frozen[2])[:cut], -1)
        one, other = (log_p, log_q) if config.kl.direction == "reverse" else (log_q, log_p)
        kl[row, n] = functional.kl_div(one, other, reduction="sum", log_target=True)
        lm[row, n] = functional.nll_loss(log_q[None], torch.tensor([int(batch.target[row, n])]))
    if config.name == "kd":
        loss = (1 - config.kl.weight) * torch.stack(list(lm.values())).mean() + config.kl.weight * torch.stack(list(kl.values())).mean()
    else:
        losses = []
        for row, pair in zip(*np.nonzero(batch.chosen_len), strict=True):
            mine = [at for at in lm if at[0] == row and batch.pair[at] == pair]
            changed, rest = [lm[at] for at in mine if batch.changed[at]], [kl[at] for at in mine if not batch.changed[at]]
            losses.append(
                sum(changed) / max(len(changed), 1) + config.kl.weight * sum(rest) / max(len(rest), 1)  # an empty sum is 0
            )
        loss = sum(losses) / len(losses)
    loss.backward()
    return loss.item(), hidden.grad.numpy(), head.grad.numpy()


@pytest.mark.parametrize("name", ["kd", "security"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_torch_agrees_in_float64(name, direction, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 40)  # several chunks, the last not full
    config, formula = objective(name, direction, 0.3), OBJECTIVES[name].terms
    batch = pairs_batch()
    with jax.enable_x64(True):
        student, teacher = outputs(jnp.float64, len(batch.tokens))

        def loss(hidden, head, frozen):
            logps, found = divergence(Output(hidden, head, None), frozen, batch, direction, CUT)
            terms = formula(logps, batch, config, found)
            return terms["loss"][0] / terms["loss"][1]

        expected = in_torch(student, teacher, batch, config, CUT)
        for frozen in (teacher, top(teacher, batch, CUT, CUT)):  # all of the vocabulary kept is the teacher itself
            value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(student.hidden, student.head, frozen)
            np.testing.assert_allclose(value, expected[0], rtol=1e-12)
            np.testing.assert_allclose(grads[0], expected[1], atol=1e-12)
            np.testing.assert_allclose(grads[1], expected[2], atol=1e-12)
            assert not grads[1][:, CUT:].any()


def test_every_mesh_agrees(monkeypatch):
    """Rows cut, the vocabulary cut (51 columns, in 8 ways), both."""
    monkeypatch.setattr(module, "CHUNK", 24)
    batch = pairs_batch(rows=8)
    with jax.enable_x64(True):
        student, teacher = outputs(jnp.float64, 8)

        def both(hidden, head):
            """By the teacher, and by the top of its distributions."""
            found = [divergence(Output(hidden, head, None), t, batch, "reverse", 51) for t in (teacher, top(teacher, batch, 7, 51))]
            return sum((x * jnp.cos(jnp.arange(x.size)).reshape(x.shape)).sum() for pair in found for x in pair), found

        step = lambda: jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True))(student.hidden, student.head)  # noqa: E731
        alone = step()
        for mesh in ((1, 1, 8), (1, 8, 1), (2, 2, 2)):
            with jax.set_mesh(make_mesh(MeshConfig(*mesh))):
                jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), step(), alone)


def test_bfloat16_heads_are_computed_in_float32():
    batch = pairs_batch()
    student, teacher = outputs(jnp.bfloat16, len(batch.tokens))
    wide = [jax.tree.map(lambda x: x.astype(jnp.float32), model) for model in (student, teacher)]
    for found, expected in zip(*(divergence(*models, batch, "reverse", CUT) for models in ((student, teacher), wide)), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


# --- 18, 19: what counts.


def test_kd_counts_answer_tokens_alike():
    """A token mean: two answers of one and three tokens weigh one to three; prompts, padding and rejected sides weigh nothing."""
    batch, _ = flat([([0.0], "0", [0.0, 0.0], "01", [7], [8, 8]), ([0.0] * 3, "010", [0.0], "1", [7] * 3, [8])])
    batch = dataclasses.replace(batch, answer=np.array([[1, 1, 1, 1, 1, 1, 1]], bool))
    logps, kl = jnp.full((1, 7), -2.0), jnp.full((1, 7), 3.0)
    terms = kd.terms(logps, batch, objective("kd", weight=0.25), kl)
    assert {name: (float(a), float(b)) for name, (a, b) in terms.items()} == {"loss": (9.0, 4.0), "lm": (8.0, 4.0), "kl": (12.0, 4.0)}
    sides = np.asarray(batch.side[0]) >= 0
    for argument, weight in ((0, -0.75), (1, 0.25)):
        grad = jax.grad(lambda lp, d: kd.terms(lp, batch, objective("kd", weight=0.25), d)["loss"][0], argument)(logps, kl)
        np.testing.assert_allclose(grad[0], np.where(sides, weight, 0))
    prompt = dataclasses.replace(batch, answer=np.zeros((1, 7), bool))
    assert float(kd.terms(logps, prompt, objective("kd"), kl)["loss"][1]) == 0
    assert float(kd.terms(logps, prompt, objective("kd", score_prompt=True), kl)["loss"][1]) == 4
    padding = dataclasses.replace(batch, pair=np.full((1, 7), -1))
    assert float(kd.terms(logps, padding, objective("kd", score_prompt=True), kl)["loss"][1]) == 0


def test_security_separates_changed_from_unchanged_and_knows_empty_sets():
    everything, nothing = ([0.0] * 2, "11", [0.0], "1", [7] * 2, [8]), ([0.0] * 3, "000", [0.0], "1", [7] * 3, [8])
    batch, _ = flat([everything, nothing, ([0.0] * 4, "0110", [0.0], "1", [7] * 4, [8])])
    logps, kl = -jnp.arange(1.0, 13)[None], jnp.arange(13.0, 25)[None]
    terms = security.terms(logps, batch, objective("security", weight=2.0), kl)
    by_pair = [((1 + 2) / 2, 0), (0, (13 + 14 + 15 + 3 * 3) / 3), ((9 + 10) / 2, (20 + 23) / 2)]
    assert [float(x) for x in terms["ce"]] == [sum(ce for ce, _ in by_pair), 3]
    assert [float(x) for x in terms["kl"]] == [sum(kl for _, kl in by_pair), 3]
    assert [float(x) for x in terms["loss"]] == [sum(ce + 2 * kl for ce, kl in by_pair), 3]
    for argument in (0, 1):
        grad = jax.grad(lambda lp, d: security.terms(lp, batch, objective("security"), d)["loss"][0], argument)(logps, kl)[0]
        counted = np.asarray(batch.side[0] >= 0) & (np.asarray(batch.changed[0]) == (argument == 0))
        np.testing.assert_array_equal(grad != 0, counted)
        assert np.isfinite(grad).all()


@pytest.mark.slow
def test_fresh_adapters_are_the_base():
    """With B = 0 the divergence is 0 in both directions, and so is its gradient: only the changed tokens pull."""
    model = Model(ModelConfig("llama", 50, 16, 2, 2, 2, 8, 24, 64), lora=LoraConfig(2, 4.0))
    batch = pairs_batch()

    @partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})  # without them, equal terms round differently
    def run(key):
        base = jax.tree.map(lambda x: x * 8 if x.ndim > 2 else x, model.init(key))

        def terms(adapters):
            found = [objective_terms(model, objective("security", direction), adapters, base, batch) for direction in DIRECTIONS]
            return found[0]["ce"][0], sum(terms["kl"][0] for terms in found)

        values, pull = jax.vjp(terms, low_rank.init(key, model, model.lora))
        return values, pull((1.0, 0.0))[0], pull((0.0, 1.0))[0]

    (ce, kl), of_ce, of_kl = run(jax.random.key(0))
    assert float(kl) == 0 and float(ce) > 0
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(of_ce)) > 0.1
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(of_kl)) < 1e-5


# --- The jitted step.

TEACHER = Model(dataclasses.replace(MODEL, d_model=48, d_mlp=80, vocab_size=520))


def run_steps(feed, mesh_config, name, direction, accumulate=1, steps=3, rows=8):
    """Losses and trained parameters of a few steps on one batch."""
    mesh = make_mesh(mesh_config, jax.devices()[: mesh_config.data * mesh_config.fsdp * mesh_config.tensor])
    model = Model(MODEL, lora=LoraConfig(4, 8.0, targets="blocks.(q|v|down)|head") if name == "security" else None)
    teacher = Teacher(512, 0, TEACHER) if name == "kd" else None
    tx = optimizer(OPTIM, steps, model)
    place = lambda init, shardings: jax.jit(init, out_shardings=shardings)  # noqa: E731
    with jax.set_mesh(mesh):
        base = place(model.init, state.param_shardings(model, mesh))(jax.random.key(0))
        params, frozen = base, {}
        if model.lora:
            adapters = partial(low_rank.init, model=model, config=model.lora)
            params, frozen = place(adapters, state.trainable_shardings(model, mesh))(jax.random.key(1)), base
        if teacher:
            frozen = {"teacher": place(TEACHER.init, state.param_shardings(TEACHER, mesh))(jax.random.key(2))}
        cut = [x for x in jax.tree.leaves(frozen) if x.sharding.shard_shape(x.shape) != x.shape]
        assert len(cut) > 5 or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1, "what is frozen is cut as parameters are"
        s = state.new_state(params, tx)
        step = make_train_step(model, objective(name, direction), tx, mesh, beside=teacher)
        losses = []
        (batch,) = feed.batches(rows, 0, 1)
        for _ in range(steps):
            s, terms = step(s, frozen, to_devices(batch, mesh, rows, accumulate))
            losses.append(float(terms["loss"][0] / terms["loss"][1]))
    return losses, jax.device_get(s.params)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "direction"), [("kd", "reverse"), ("security", "forward")])
def test_one_device_equals_eight_and_parts_the_whole(seed_shards, name, direction):
    feed = Feed(seed_shards["trimmed"])
    alone = run_steps(feed, MeshConfig(1, 1, 1), name, direction)
    assert alone[0][-1] < alone[0][0]
    assert_same_training(run_steps(feed, MeshConfig(2, 2, 2), name, direction, accumulate=2), alone)


def test_security_needs_adapters_and_kd_a_teacher():
    def read(**options):
        return from_dict(StageConfig, {"objective": options, "optim": {"lr": 1.0}, "batch_rows": 1, "steps": 1})

    with pytest.raises(ConfigError, match="objective kd: set kl"):
        read(name="kd")
    with pytest.raises(ConfigError, match="set kl.teacher"):
        read(name="kd", kl={"direction": "reverse", "weight": 0.5})
    with pytest.raises(ConfigError, match=r"in \[0, 1\], not 2"):
        read(name="kd", kl={"direction": "reverse", "weight": 2.0, "teacher": "x"})
    with pytest.raises(ConfigError, match="objective security: set kl"):
        read(name="security")
