"""What holds of every objective that compares two sides, at any log-probabilities."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_jax import objectives
from lpo_jax.config import ConfigError
from lpo_jax.objectives import OBJECTIVES
from lpo_jax.objectives.cpo import Cpo
from lpo_jax.objectives.dpo import Dpo
from lpo_jax.objectives.lpo import Lpo
from lpo_jax.objectives.orpo import Orpo
from lpo_jax.objectives.safecoder import SafeCoder
from lpo_jax.objectives.simpo import Simpo
from lpo_jax.objectives.target_dpo import TargetDpo
from tests.helpers.preferences import Pair, Side, batch_of, draw, evaluate, terms_of

LOCALISED = {
    "changed": Dpo(beta=0.5, tokens="changed"),
    "changed, a token": Dpo(beta=0.5, tokens="changed", length_normalised=True),
    "changed, ipo": Dpo(beta=0.5, tokens="changed", loss="ipo"),
    "safecoder": SafeCoder(),
}
SYMMETRIC = {
    "dpo": Dpo(beta=0.5),
    "ipo": Dpo(beta=0.5, loss="ipo"),
    "hinge": Dpo(beta=0.5, loss="hinge"),
    "simpo": Simpo(beta=2.0, gamma=0.3),
    "cpo": Cpo(beta=0.5),
    "orpo": Orpo(beta=0.5),
    "lpo": Lpo(beta=2.0, gamma=0.3, alpha=0.5),
} | {name: options for name, options in LOCALISED.items() if name != "safecoder"}
ALL = SYMMETRIC | LOCALISED | {"target_dpo": TargetDpo(beta=0.5), "cpo, hinge": Cpo(beta=0.5, loss="hinge")}

seeds, trunks = st.integers(0, 2**32 - 1), st.integers(0, 3)
few = settings(max_examples=10)


@few
@given(seeds, trunks, st.sampled_from(sorted(SYMMETRIC)))
def test_swapping_the_sides_negates_the_margin(seed, trunk, name):
    pairs = draw(seed, trunk)
    there, back = (evaluate(SYMMETRIC[name], each, trunk) for each in (pairs, [pair.swapped for pair in pairs]))
    assert back["rewards/margins"] == pytest.approx(-there["rewards/margins"], rel=1e-9, abs=1e-9)
    assert back["rewards/accuracies"] == pytest.approx(1 - there["rewards/accuracies"])
    assert (back["logps/chosen"], back["logps/rejected"]) == pytest.approx((there["logps/rejected"], there["logps/chosen"]))


@few
@given(seeds, trunks, st.sampled_from(["answer", "changed"]), st.floats(0.05, 3), st.booleans())
def test_at_the_reference_the_loss_is_known(seed, trunk, tokens, beta, length_normalised):
    at_it = [
        Pair(*(dataclasses.replace(side, logps=side.reference) for side in (pair.chosen, pair.rejected))) for pair in draw(seed, trunk)
    ]
    for loss, value in (("sigmoid", np.log(2)), ("ipo", 1 / (4 * beta**2)), ("hinge", 1.0)):
        options = Dpo(beta=beta, loss=loss, tokens=tokens, length_normalised=length_normalised)
        assert evaluate(options, at_it, trunk)["loss"] == pytest.approx(value, rel=1e-12)


@few
@given(seeds, trunks, st.integers(1, 4), st.sampled_from(sorted(LOCALISED)))
def test_what_did_not_change_is_nothing_to_a_localised_objective(seed, trunk, more, name):
    rng, pairs = np.random.default_rng(seed), draw(seed, trunk)
    longer = [Pair(*(side.and_then(*-rng.exponential(1.0, (2, more))) for side in (pair.chosen, pair.rejected))) for pair in pairs]
    before, after = (evaluate(LOCALISED[name], each, trunk) for each in (pairs, longer))
    assert after == pytest.approx(before, rel=1e-12)


@few
@given(seeds, trunks)
def test_target_dpo_is_blind_behind_the_last_error_alone(seed, trunk):
    pairs, options = draw(seed, trunk), TargetDpo(beta=0.5)
    tail = [-1.5, -0.5], [-0.5, -0.25]
    before = evaluate(options, pairs, trunk)
    assert evaluate(options, [Pair(pair.chosen, pair.rejected.and_then(*tail)) for pair in pairs], trunk) == pytest.approx(
        before, rel=1e-12
    )
    assert evaluate(options, [Pair(pair.chosen.and_then(*tail), pair.rejected) for pair in pairs], trunk)["loss"] != pytest.approx(
        before["loss"]
    )


@few
@given(seeds, st.floats(0, 0.45))
def test_smoothing_mixes_in_the_swapped_pair(seed, share):
    pairs = draw(seed)
    for options in (Dpo(beta=0.5), Cpo(beta=0.5), Simpo(beta=0.5, gamma=0.0)):
        there, back = (evaluate(options, each)["preference"] for each in (pairs, [pair.swapped for pair in pairs]))
        smooth = evaluate(dataclasses.replace(options, label_smoothing=share), pairs)["preference"]
        assert smooth == pytest.approx((1 - share) * there + share * back, rel=1e-10)


def test_a_trunks_token_cancels_in_dpo_and_not_in_target_dpo():
    batch, logps, reference = batch_of(draw(2, 3), 3)
    trunk = (np.asarray(batch.side) == 0) & (np.asarray(batch.pair) >= 0)
    for options, moves in ((Dpo(beta=0.5), False), (TargetDpo(beta=0.5, alpha=0.0), True), (Dpo(beta=0.5, length_normalised=True), True)):
        gradient = jax.grad(lambda x, o=options: terms_of(o, x, batch, reference)["loss"][0])(logps)
        assert set((np.asarray(gradient)[trunk] != 0).tolist()) == {moves}


@pytest.mark.parametrize("name", sorted(ALL))
def test_extreme_numbers_stay_finite_in_float32(name):
    """Sides that are certain, impossible, or one of each; beside padding."""
    for chosen, rejected in ((0.0, 0.0), (-1e4, -1e4), (0.0, -1e4), (-1e4, 0.0)):
        for reference in (0.0, -1e4):
            sides = [Side(np.full(4, x), np.full(4, reference), np.arange(4) > 1) for x in (chosen, rejected)]
            batch, logps, fixed = batch_of([Pair(*sides)])
            assert logps.dtype == jnp.float32
            terms = terms_of(ALL[name], logps, batch, fixed)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(terms)), (chosen, rejected, reference)
            gradient = jax.grad(lambda x, b=batch, f=fixed: terms_of(ALL[name], x, b, f)["loss"][0])(logps)
            assert np.isfinite(gradient).all()
            assert not gradient[np.asarray(batch.pair) < 0].any()


def test_every_objective_that_compares_sides_by_log_probabilities_is_here():
    assert {options.name for options in ALL.values()} == {
        name for name, record in OBJECTIVES.items() if record.compares_sides and record.frozen != "base"
    }


def test_shards_that_serve():
    """Trimmed ones serve what scores changed rejected tokens alone."""
    trimmed = types.SimpleNamespace(trimmed=True, scores_prompt=False, plain=0)
    for options in (*LOCALISED.values(), TargetDpo(beta=0.5)):
        objectives.of(options).check_data(options, trimmed)
    for options in (Dpo(beta=0.5), Cpo(beta=0.5), Orpo(beta=0.5), Simpo(beta=0.5, gamma=0.0)):
        with pytest.raises(ConfigError, match=f"objective {options.name} scores whole rejected answers.*--untrimmed"):
            objectives.of(options).check_data(options, trimmed)
    with pytest.raises(ConfigError, match="or set tokens: changed"):
        OBJECTIVES["dpo"].check_data(Dpo(beta=0.5), trimmed)
    untrimmed = types.SimpleNamespace(trimmed=False, scores_prompt=False, plain=0)
    with pytest.raises(ConfigError, match="score_prompt needs shards with scored prompts"):
        OBJECTIVES["orpo"].check_data(Orpo(beta=0.5, score_prompt=True), untrimmed)
