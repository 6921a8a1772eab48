"""The specification's loss vectors L1-L19 and invariants."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import masks
from data_pipeline.trees import Encoded, plant
from lpo_jax import objectives
from lpo_jax.config import ConfigError
from lpo_jax.losses.logps import token_logps
from lpo_jax.objectives import sft
from lpo_jax.objectives.heldout import heldout_metrics
from lpo_jax.objectives.lpo import Lpo, coefficients
from lpo_jax.objectives.sft import Sft
from lpo_jax.objectives.simpo import Simpo
from tests.helpers.oracle import batch_of, flat

C_LP, M_PLUS = [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6], "001100"
R_LP, M_MINUS = [-0.1, -0.2, -1.0, -0.5, -0.2], "00100"
CLEAN = Lpo(beta=10.0, gamma=5.4, alpha=1.0)
PAPER = Lpo(mode="paper", beta=10.0, gamma=5.4, alpha=0.05)


def preference(logps, batch, options):
    return objectives.of(options).terms(logps, batch, options)


def check_data(options, trimmed, scores_prompt):
    shards = types.SimpleNamespace(trimmed=trimmed, scores_prompt=scores_prompt, plain=0)
    objectives.of(options).check_data(options, shards)


def reference(v, **changes):
    return Lpo(mode="reference", beta=10.0, gamma=5.4, alpha=1.0, off_mask=round(1 - v, 9), **changes)


def pair(c=C_LP, mc=M_PLUS, r=R_LP, mr=M_MINUS, ids_c=None, ids_r=None):
    return c, mc, r, mr, ids_c or [7] * len(c), ids_r or [8] * len(r)


def evaluate(config, *pairs, trunk=0):
    batch, logps = flat(pairs, trunk)
    return {name: float(total / weight) for name, (total, weight) in preference(logps, batch, config).items() if weight > 0}


EMPTY = pair(mr="00000")
VECTORS = {
    "L1": (reference(1.0), [pair()], {"logps/chosen": -0.35, "logps/rejected": -1.0, "preference": 0.2873353, "imitation": 0.35, "loss": 0.6373353}),
    "L2": (reference(0.999999), [pair()], {"logps/rejected": -0.9999970, "preference": 0.2873428, "loss": 0.6373428}),
    "L3": (reference(0.9), [pair()], {"logps/rejected": -0.7692308, "preference": 1.4691995, "loss": 1.8191995}),
    "L4": (reference(0.99), [pair()], {"logps/rejected": -0.9708738, "preference": 0.3683999, "loss": 0.7183999}),
    "L5": (reference(0.999999), [EMPTY], {"logps/rejected": -0.4, "preference": 4.9074190, "loss": 5.2574190}),
    "L6": (reference(1.0), [EMPTY], {"loss": float("nan")}),
    "L7": (Simpo(beta=10.0, gamma=5.4), [pair()], {"loss": 4.9074190}),
    "L8": (PAPER, [pair()], {"rewards/margins": 0.8333333, "preference": 4.5770056, "imitation": 1.4, "loss": 4.6470056}),
    "L9": (dataclasses.replace(PAPER, imitation="mean"), [pair()], {"loss": 4.5945056}),
    "L10": (dataclasses.replace(PAPER, beta=2.0, gamma=1.0), [pair()], {"rewards/margins": 0.1666667, "preference": 1.1942182, "loss": 1.2642182}),
    "L11": (PAPER, [EMPTY], {"preference": 6.5680722, "loss": 6.6380722}),
    "L12": (reference(1.0), [pair(ids_c=[7, 7, 0, 7, 7, 7])], {"logps/chosen": -0.4, "preference": 0.4374880, "imitation": 0.35, "loss": 0.7874880}),
    "L13": (reference(1.0), [pair(ids_c=[7] * 5 + [0], ids_r=[8] * 4 + [0])], {"preference": 0.2873353, "imitation": 0.2666667, "loss": 0.5540020}),
    "L14": (reference(1.0, label_smoothing=0.1), [pair()], {"preference": 0.3973353}),
    "L15": (reference(0.999999), [pair(r=C_LP, mr="000000", mc="000000")], {"preference": 5.4045064, "imitation": 0.35, "loss": 5.7545064, "rewards/accuracies": 0.0}),
    "L16": (reference(1.0), [pair(), pair([-1.0, -1.0], "10", [-2.0, -2.0], "10")], {"loss": 0.8236685}),
}  # fmt: skip


@pytest.mark.parametrize("trunk", [0, 2])
@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name, trunk):
    config, pairs, expected = VECTORS[name]
    if name in ("L15", "L16") and trunk:
        pytest.skip("the vector's sides share no prefix")
    found = evaluate(config, *pairs, trunk=trunk)
    for term, value in expected.items():
        assert found[term] == pytest.approx(value, abs=2e-6, nan_ok=True), term


@pytest.mark.parametrize(
    ("config", "masked", "unmasked", "rejected"),
    [(reference(1.0), -1.2486995, -0.25, 2.4973989), (PAPER, -1.6495239, -0.05, 1.9794287)],
    ids=["L17", "L18"],
)
def test_gradient_vectors(config, masked, unmasked, rejected):
    batch, logps = flat([pair()])
    grad = jax.grad(lambda lp: preference(lp, batch, config)["loss"][0])(logps)[0]
    np.testing.assert_allclose(grad[:6], [unmasked, unmasked, masked, masked, unmasked, unmasked], atol=2e-6)
    np.testing.assert_allclose(grad[6:], [0, 0, rejected, 0, 0], atol=2e-6)  # I12


def l19_batch():
    chosen, rejected = np.array([1, 11, 12, 21, 22, 23, 2], np.int32), np.array([1, 11, 12, 21, 29, 23, 2], np.int32)
    minus, plus = masks.reference(rejected.tolist(), chosen.tolist())
    assert "".join(map(str, plus.astype(int))) == "0000100"
    return batch_of([plant(Encoded("L19", chosen, rejected, plus, minus, 3, 3, 3), trim=False)], 16)


def test_l19_shift_through_logits():
    batch = l19_batch()
    logps = token_logps(jnp.zeros((1, 16, 4)), jnp.zeros((4, 32)), batch)  # uniform logits over 32 ids
    terms = preference(logps, batch, reference(1.0))
    assert float(terms["rewards/margins"][0]) == pytest.approx(0.0, abs=1e-6)
    assert float(terms["loss"][0]) == pytest.approx(8.8702423, abs=1e-5)
    weights = coefficients(batch, reference(1.0))
    assert int((weights.imitate > 0).sum()) == 3
    assert int((weights.chosen > 0).sum()) == 1


def test_l19_positions_that_take_gradient():  # I7
    batch = l19_batch()

    def loss(logit_bias):  # [row position, vocabulary]: hidden states are one-hot positions, the head is the bias itself
        return preference(token_logps(jnp.eye(16)[None], logit_bias, batch), batch, reference(1.0))["loss"][0]

    touched = np.flatnonzero(np.abs(jax.grad(loss)(0.1 * jax.random.normal(jax.random.key(0), (16, 32)))).sum(axis=1))
    # Row: 1 11 12 21 | 22 23 | 29 23. The last prompt token (2) predicts 21, the trunk's last (3) both branches; the rejected
    # branch's unchanged tail (6, 7) carries no loss.
    assert touched.tolist() == [2, 3, 4, 5]


def test_clean_equals_reference_on_ordinary_pairs_and_never_nan():
    assert evaluate(CLEAN, pair())["loss"] == pytest.approx(evaluate(reference(1.0), pair())["loss"], abs=1e-6)
    for empty_side, preferred in (("detach", float(np.log1p(np.exp(5.4)))), ("skip", 0.0)):
        config = dataclasses.replace(CLEAN, empty_side=empty_side)
        for p in (EMPTY, pair(mc="000000")):
            batch, logps = flat([p])
            grad = jax.grad(lambda lp, b=batch, c=config: preference(lp, b, c)["loss"][0])(logps)
            assert np.isfinite(grad).all()
            assert evaluate(config, p)["preference"] == pytest.approx(preferred, abs=1e-5)
            assert evaluate(config, p)["empty_sides"] == 1.0
    both_empty = pair(mr="00000", mc="000000")
    assert evaluate(CLEAN, both_empty)["preference"] == 0.0


def test_detached_side_still_pushes_the_other():
    batch, logps = flat([EMPTY])
    grad = jax.grad(lambda lp: preference(lp, batch, CLEAN)["preference"][0])(logps)[0]
    assert grad[2] == grad[3] == pytest.approx(-10 / 2 * jax.nn.sigmoid(5.4))
    assert not grad[6:].any()


def test_clean_scores_id_0_like_any_token():
    zero = pair(ids_c=[7, 7, 0, 7, 7, 0])
    assert evaluate(CLEAN, zero) == evaluate(CLEAN, pair())


def test_half_weight_reference_is_simpo():  # I9
    simpo = Simpo(beta=10.0, gamma=5.4)
    assert evaluate(reference(0.5), pair())["preference"] == pytest.approx(evaluate(simpo, pair())["preference"], abs=1e-6)


def test_doubling_beta_and_gamma_doubles_z():  # I10
    for config in (CLEAN, PAPER, reference(0.9), Simpo(beta=10.0, gamma=5.4)):
        z = []
        for factor in (1, 2):
            scaled = dataclasses.replace(config, beta=factor * config.beta, gamma=factor * config.gamma)
            z.append(-np.log(np.expm1(evaluate(scaled, pair())["preference"])))
        assert z[1] == pytest.approx(2 * z[0], rel=1e-4)


def test_unmasked_tail_scales_paper_but_not_reference():  # I11
    n, k = 5, 3
    short = pair(C_LP[:n], M_PLUS[:n], R_LP, M_MINUS)
    longer = pair(C_LP[:n] + [-0.3] * k, M_PLUS[:n] + "0" * k, R_LP + [-0.3] * k, M_MINUS + "0" * k)
    a, b = (evaluate(PAPER, p)["rewards/margins"] for p in (short, longer))
    assert b == pytest.approx(a * n / (n + k))
    a, b = (evaluate(reference(1.0), p)["rewards/margins"] for p in (short, longer))
    assert b == pytest.approx(a)


def test_norm_len_counts_the_reasoning():
    batch, logps = flat([pair()])
    batch = batch.replace(reasoning_len=np.array([[4]]))
    config = dataclasses.replace(PAPER, norm_len="answer")
    expected = 10 * (-0.7 / (6 + 4) - -1.0 / (5 + 4))
    assert float(preference(logps, batch, config)["rewards/margins"][0]) == pytest.approx(expected)


def test_sft_is_the_mean_over_chosen_answer_tokens():
    batch, logps = flat([pair(), pair([-2.0, -2.0], "10", [-9.0], "1")], trunk=2)
    total, weight = sft.terms(logps, batch, Sft())["loss"]
    assert float(weight) == 8
    assert float(total) == pytest.approx(2.1 + 4.0)
    batch = batch.replace(answer=np.arange(batch.answer.size).reshape(batch.answer.shape) > 0)
    assert float(sft.terms(logps, batch, Sft())["loss"][1]) == 7
    assert float(sft.terms(logps, batch, Sft(score_prompt=True))["loss"][1]) == 8


def test_heldout_metrics():
    batch, logps = flat([pair(), EMPTY, pair([-3.0], "1", [-1.0], "1")])
    found = {k: (float(s), float(w)) for k, (s, w) in heldout_metrics(logps, batch).items()}
    assert found["pair_accuracy"] == (1.0, 2.0)  # the pair without changed rejected tokens isn't compared
    assert found["margin"] == (pytest.approx(0.65 - 2.0), 2.0)
    assert found["changed_nll"] == (pytest.approx(0.7 + 0.7 + 3.0), 5.0)
    assert found["unchanged_nll"] == (pytest.approx(2.8), 8.0)


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (Simpo(beta=2.0, gamma=1.0), "--untrimmed"),
        (reference(0.999999), "--masks reference --untrimmed"),
        (Sft(score_prompt=True), "--score-prompt"),
    ],
)
def test_objectives_that_the_shards_cannot_serve(config, remedy):
    with pytest.raises(ConfigError, match=remedy):
        check_data(config, trimmed=True, scores_prompt=False)
    check_data(config, trimmed=False, scores_prompt=True)
    check_data(CLEAN, trimmed=True, scores_prompt=False)
