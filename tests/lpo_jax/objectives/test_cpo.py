"""CPO equals its paper's formula, one pair at a time."""

import numpy as np
import pytest

from lpo_jax.objectives.cpo import Cpo
from tests.helpers.preferences import draw, evaluate


@pytest.mark.parametrize("trunk", [0, 3])
@pytest.mark.parametrize("how", [{}, {"label_smoothing": 0.2}, {"loss": "hinge"}], ids=str)
def test_the_papers_formula(how, trunk):
    options, pairs = Cpo(beta=0.4, alpha=0.6, **how), draw(5, trunk)
    prefer, nll = [], []
    for pair in pairs:
        z = 0.4 * (pair.chosen.logps.sum() - pair.rejected.logps.sum())
        smooth = options.label_smoothing
        sigmoid = (1 - smooth) * np.log1p(np.exp(-z)) + smooth * np.log1p(np.exp(z))
        prefer.append(max(0.0, 1 - z) if options.loss == "hinge" else sigmoid)
        nll.append(-pair.chosen.logps.mean())
    found = evaluate(options, pairs, trunk)
    assert found["preference"] == pytest.approx(np.mean(prefer), rel=1e-10)
    assert found["imitation"] == pytest.approx(np.mean(nll), rel=1e-10)
    assert found["loss"] == pytest.approx(np.mean(prefer) + 0.6 * np.mean(nll), rel=1e-10)
    assert found["rewards/chosen"] == pytest.approx(0.4 * np.mean([pair.chosen.logps.sum() for pair in pairs]), rel=1e-10)
    assert found["logps/rejected"] == pytest.approx(np.mean([pair.rejected.logps.sum() for pair in pairs]), rel=1e-10)
