"""DPO and its losses equal the papers' formulas, one pair at a time."""

import numpy as np
import pytest

from lpo_jax.config import ConfigError, StageConfig, from_dict
from lpo_jax.objectives.dpo import Dpo
from tests.helpers.preferences import draw, evaluate


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def expected(options, pair):
    """Rafailov et al. 2023, Eq. 7; Azar et al. 2023, Eq. 17, a token; max(0, 1 - margin)."""
    scored = [side.changed if options.tokens == "changed" else np.ones(len(side.changed), bool) for side in (pair.chosen, pair.rejected)]
    ratios = [side.ratios[at] for side, at in zip((pair.chosen, pair.rejected), scored, strict=True)]
    sums = [x.sum() for x in ratios]
    h_chosen, h_rejected = (x.mean() if len(x) else 0.0 for x in ratios) if options.length_normalised or options.loss == "ipo" else sums
    margin = options.beta * (h_chosen - h_rejected)
    loss = {
        "sigmoid": -(1 - options.label_smoothing) * log_sigmoid(margin) - options.label_smoothing * log_sigmoid(-margin),
        "hinge": max(0.0, 1 - margin),
        "ipo": (h_chosen - h_rejected - 1 / (2 * options.beta)) ** 2,
    }[options.loss]
    logps = [side.logps[at].sum() for side, at in zip((pair.chosen, pair.rejected), scored, strict=True)]
    rewards = [options.beta * s for s in sums]
    found = {"loss": loss, "preference": loss, "imitation": 0.0, "empty_sides": float(not (scored[0].any() and scored[1].any()))}
    if not found["empty_sides"]:
        found |= {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": rewards[0] - rewards[1],
            "rewards/accuracies": float(rewards[0] > rewards[1]),
            "logps/chosen": logps[0],
            "logps/rejected": logps[1],
        }
    return found


@pytest.mark.parametrize("tokens", ["answer", "changed"])
@pytest.mark.parametrize("how", [{}, {"label_smoothing": 0.2}, {"loss": "ipo"}, {"loss": "hinge"}, {"length_normalised": True}], ids=str)
@pytest.mark.parametrize("trunk", [0, 3])
def test_the_papers_formulas(tokens, how, trunk):
    options = Dpo(beta=0.7, tokens=tokens, **how)
    for seed in range(3):
        pairs = draw(seed, trunk)
        one_by_one, found = [expected(options, pair) for pair in pairs], evaluate(options, pairs, trunk)
        assert set(found) == set(one_by_one[0])
        for name, value in found.items():
            assert value == pytest.approx(np.mean([pair[name] for pair in one_by_one if name in pair]), rel=1e-10, abs=1e-10), name


def test_label_smoothing_belongs_to_the_sigmoid():
    stage = {"optim": {"lr": 1.0}, "batch_rows": 1, "steps": 1}
    for name, loss in (("dpo", "ipo"), ("dpo", "hinge"), ("cpo", "hinge")):
        with pytest.raises(ConfigError, match=f"objective {name}: label_smoothing belongs to loss: sigmoid, not to {loss}"):
            from_dict(StageConfig, stage | {"objective": {"name": name, "beta": 0.1, "loss": loss, "label_smoothing": 0.1}})
