"""Target-DPO equals what its authors' code computes, one pair at a time."""

import numpy as np
import pytest

from lpo_jax.objectives.target_dpo import TargetDpo
from tests.helpers.preferences import draw, evaluate


@pytest.mark.parametrize("trunk", [0, 3])
def test_the_authors_formula(trunk):
    pairs = draw(11, trunk)
    margins = [0.7 * (pair.chosen.ratios.sum() - pair.rejected.ratios[pair.rejected.changed].sum()) for pair in pairs]
    loss = np.mean([np.log1p(np.exp(-m)) - 0.6 * pair.chosen.logps.mean() for m, pair in zip(margins, pairs, strict=True)])
    found = evaluate(TargetDpo(beta=0.7, alpha=0.6), pairs, trunk)
    assert found["loss"] == pytest.approx(loss, rel=1e-10)
    assert found["rewards/margins"] == pytest.approx(np.mean([margins[0], margins[3]]), rel=1e-10)  # pairs with an error to penalise
