"""ORPO equals its paper's formula, one pair at a time, and is finite where a side is certain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.objectives.orpo import Orpo, log_odds
from tests.helpers.preferences import batch_of, draw, evaluate, terms_of


@pytest.mark.parametrize("trunk", [0, 3])
def test_the_papers_formula(trunk):
    pairs, penalty = draw(7, trunk), []
    for pair in pairs:
        p = [np.exp(side.logps.mean()) for side in (pair.chosen, pair.rejected)]
        ratio = (p[0] / (1 - p[0])) / (p[1] / (1 - p[1]))
        penalty.append(-np.log(1 / (1 + np.exp(-np.log(ratio)))))
    nll = -np.mean([pair.chosen.logps.mean() for pair in pairs])
    found = evaluate(Orpo(beta=0.3), pairs, trunk)
    assert found["imitation"] == pytest.approx(nll, rel=1e-10)
    assert found["preference"] == pytest.approx(0.3 * np.mean(penalty), rel=1e-10)
    assert found["loss"] == pytest.approx(nll + 0.3 * np.mean(penalty), rel=1e-10)
    assert found["rewards/margins"] == pytest.approx(
        0.3 * np.mean([pair.chosen.logps.mean() - pair.rejected.logps.mean() for pair in pairs])
    )


def test_the_prompt_is_imitated_but_has_no_odds():
    with jax.enable_x64(True):
        batch, logps, _ = batch_of(draw(1, 2), 2)
        batch = batch.replace(answer=np.asarray(batch.side) != 0)  # the trunk is all prompt
        without, with_prompt = (terms_of(Orpo(beta=0.3, score_prompt=prompt), logps, batch, None) for prompt in (False, True))
    assert float(without["preference"][0]) == float(with_prompt["preference"][0])
    chosen = np.asarray(batch.side[0] >= 0)
    by_pair = [-np.asarray(logps[0])[chosen & np.asarray(batch.pair[0] == p)].mean() for p in range(4)]
    assert float(with_prompt["imitation"][0]) == pytest.approx(sum(by_pair), rel=1e-12)
    assert float(without["imitation"][0]) != pytest.approx(sum(by_pair), rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_odds_are_finite_and_rise(dtype):
    with jax.enable_x64(dtype == "float64"):
        s = -jnp.array([1e4, 90.0, 1.0, 1e-3, 1e-6, 1e-12, 0.0], dtype)
        odds, slope = jax.vmap(jax.value_and_grad(log_odds))(s)
        assert np.isfinite(odds).all() and np.isfinite(slope).all()
        assert (np.diff(odds) >= 0).all()
        at = np.array([-90.0, -1.0, -1e-3], np.float64)
        np.testing.assert_allclose(odds[1:4], at - np.log(-np.expm1(at)), rtol=1e-6 if dtype == "float32" else 1e-12)
