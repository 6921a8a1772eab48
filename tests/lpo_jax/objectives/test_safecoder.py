"""SafeCoder's loss equals its paper's equations, one pair at a time, and lets the certain token go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.losses.logps import token_logps
from lpo_jax.objectives.safecoder import SafeCoder
from tests.helpers.preferences import batch_of, draw, evaluate, terms_of


@pytest.mark.parametrize("trunk", [0, 3])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_papers_equations(reduction, trunk):
    reduce = np.sum if reduction == "sum" else lambda x: np.mean(x) if len(x) else 0.0
    pairs = draw(13, trunk)
    secure = np.mean([reduce(-pair.chosen.logps[pair.chosen.changed]) for pair in pairs])
    vulnerable = np.mean([reduce(-np.log(1 - np.exp(pair.rejected.logps[pair.rejected.changed]))) for pair in pairs])
    found = evaluate(SafeCoder(reduction=reduction), pairs, trunk)
    assert found == pytest.approx({"loss": secure + vulnerable, "likelihood": secure, "unlikelihood": vulnerable}, rel=1e-10)


def test_the_pull_on_logits_is_bounded():
    """-log(1 - p) has no bound, but by the token's own logit its slope is p: a token that is almost certain is pushed with force 1."""
    pairs = draw(0)[:1]
    batch, _, _ = batch_of(pairs)

    @jax.jit
    def pull(logit):
        def loss(x):
            return terms_of(SafeCoder(), token_logps(x, jnp.eye(8), batch), batch, None)["unlikelihood"][0]

        return jax.grad(loss)(jnp.zeros((1, 1, 8)).at[0, 0, 7].set(logit))[0, 0, 7]

    for logit in (8.0, 14.0):  # 1 - p is 3e-3, and 6e-6
        assert float(pull(logit)) == pytest.approx(pairs[0].rejected.changed.sum(), rel=0.03)
