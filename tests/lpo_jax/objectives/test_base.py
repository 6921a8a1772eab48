"""What an objective claims its loss to be linear in: true of every record, and of no effect on gradients."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.row import RowShape, pad
from data_pipeline.trees import Encoded, join, plant
from lpo_jax import objectives
from lpo_jax.batch import TreeBatch
from lpo_jax.config import ModelConfig
from lpo_jax.model.decoder import Model
from lpo_jax.objectives import OBJECTIVES
from lpo_jax.objectives.base import nothing_is_linear, reads_all
from lpo_jax.objectives.dpo import Dpo
from lpo_jax.objectives.lpo import Lpo
from lpo_jax.objectives.safecoder import SafeCoder
from lpo_jax.objectives.sft import Sft
from lpo_jax.objectives.simpo import Simpo
from lpo_jax.train.step import objective_terms
from tests.helpers.paths import REPO

LPO = Lpo(beta=5.0, gamma=1.0, alpha=0.7)
OPTIONS = {
    "sft": Sft(),
    "sft, prompt": Sft(score_prompt=True),
    "clean": LPO,
    "clean, skip": dataclasses.replace(LPO, empty_side="skip", label_smoothing=0.1),
    "paper": dataclasses.replace(LPO, mode="paper"),
    "paper, mean": dataclasses.replace(LPO, mode="paper", imitation="mean", norm_len="answer"),
    "reference": dataclasses.replace(LPO, mode="reference"),
    "simpo": Simpo(beta=5.0, gamma=1.0),
}


@pytest.fixture(scope="module")
def batch():
    """Pairs that differ in one to three tokens, one that differs in none and one whose fix only inserts, in one row with padding."""
    rng, planted = np.random.default_rng(0), []
    for changed in range(4):
        chosen = rng.integers(1, 60, 14).astype(np.int32)
        mask = np.isin(np.arange(14), 7 + 2 * np.arange(changed))
        planted.append(Encoded(str(changed), chosen, np.where(mask, 1 + chosen % 59, chosen).astype(np.int32), mask, mask, 4, 6, 6))
    planted.append(Encoded("insert", chosen, np.delete(chosen, 9), np.arange(14) == 9, np.zeros(13, bool), 4, 6, 6))
    columns = join([plant(pair, trim=False, score_prompt=True) for pair in planted])
    return TreeBatch.of(pad([columns], RowShape(len(columns["tokens"]) + 5, len(columns["source"]) + 3, 6)))


def test_the_page_knows_every_objective():
    """docs/objectives.md has a row for each, and no row for what isn't there."""
    rows = re.findall(r"^\| `(\w+)`", (REPO / "docs" / "objectives.md").read_text().partition("## What it puts")[0], re.MULTILINE)
    assert set(rows) == set(OBJECTIVES)


def test_every_objective_that_claims_anything_is_here():
    claiming = {name for name, record in OBJECTIVES.items() if record.linear is not nothing_is_linear}
    assert claiming <= {options.name for options in OPTIONS.values()}


@pytest.mark.parametrize("name", OPTIONS)
def test_claims_are_the_gradient(name, batch):
    options = OPTIONS[name]
    record = objectives.of(options)
    claim = record.linear(batch, options)
    if claim is None:
        return
    assert bool((claim != 0).any())
    for seed in (0, 1):  # linear: the same at any log-probabilities
        logps = -jnp.exp(jax.random.normal(jax.random.key(seed), batch.pair.shape))
        gradient = jax.grad(lambda x: record.terms(x, batch, options)["loss"][0])(logps)
        np.testing.assert_allclose(np.where(claim != 0, gradient, 0), claim, rtol=1e-6)


@pytest.mark.parametrize("options", [Dpo(beta=0.3, tokens="changed", loss="ipo"), SafeCoder(), SafeCoder(reduction="mean")])
def test_what_is_not_read_changes_nothing(options, batch):
    record, rng = objectives.of(options), np.random.default_rng(0)
    needed = record.reads(batch, options)
    assert 0 < needed.sum() < (batch.pair >= 0).sum()
    logps, reference = (-rng.exponential(size=batch.pair.shape) for _ in range(2))

    def terms(logps, reference):
        return record.terms(logps, batch, options, *([reference] if record.frozen else []))

    found = terms(jnp.where(needed, logps, 0), jnp.where(needed, reference, 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), terms(logps, reference), found)
    gradient = jax.grad(lambda x: terms(x, reference)["loss"][0])(jnp.array(logps))
    np.testing.assert_array_equal(gradient != 0, needed)


def test_every_objective_that_leaves_tokens_unread_is_here():
    assert {name for name, record in OBJECTIVES.items() if record.reads is not reads_all} == {"dpo", "safecoder"}


@pytest.mark.parametrize("name", ["sft", "clean"])
def test_an_objective_that_claims_nothing_has_the_same_gradient(name, batch, monkeypatch):
    options, model = OPTIONS[name], Model(ModelConfig("llama", 60, 16, 2, 2, 2, 8, 24, 64))
    params = model.init(jax.random.key(0))

    def gradient():
        return jax.jit(jax.grad(lambda params: objective_terms(model, options, params, {}, batch)["loss"][0]))(params)

    claimed = gradient()
    monkeypatch.setitem(OBJECTIVES, options.name, dataclasses.replace(OBJECTIVES[options.name], linear=nothing_is_linear))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), claimed, gradient())
