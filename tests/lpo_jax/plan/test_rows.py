"""The rows that a plan is made for: a stage's own sets where they are built."""

import json

import pytest

from data_pipeline.feed import Feed
from lpo_jax import config
from lpo_jax.plan.rows import PlannedRows
from tests.helpers.paths import REPO


@pytest.fixture
def rows(seed_shards, tmp_path):
    """Plans stage sft on these sets, given as (path, weight)."""

    def plan(*sets, stage="sft", run=seed_shards["trimmed"]):
        own = json.dumps([{"path": str(path), "weight": weight} for path, weight in sets] or None)
        return PlannedRows.of(config.load(REPO / "configs" / "tiny_cpu.yaml", [f"data.path={run}", f"stages.sft.data={own}"]), stage)

    return plan


def per_row(shards):
    train = Feed(shards).manifest.splits["train"]
    return train["pairs"] / train["rows"]


def test_a_stages_rows_are_its_own(rows, seed_shards, plain_shards):
    pairs = seed_shards["trimmed"]
    manifest = Feed(plain_shards).manifest
    assert rows((plain_shards, None)) == PlannedRows(*manifest.row_shape, per_row(plain_shards))
    assert rows((plain_shards, None), stage="lpo") == rows() == PlannedRows(*Feed(pairs).manifest.row_shape, per_row(pairs))


def test_a_mixtures_rows_are_the_widest_and_as_full_as_its_weights_say(rows, seed_shards, plain_shards):
    pairs = seed_shards["trimmed"]
    both = Feed(pairs, plain_shards).manifest
    found = rows((pairs, 1), (plain_shards, 3))
    assert (found.tokens, found.scored, found.pairs) == both.row_shape
    assert found.mean_pairs == pytest.approx((per_row(pairs) + 3 * per_row(plain_shards)) / 4)
    train = both.splits["train"]
    assert rows((pairs, None), (plain_shards, None)).mean_pairs == pytest.approx(train["pairs"] / train["rows"])


def test_sets_that_are_not_built_yet_are_assumed(rows, seed_shards, tmp_path):
    assumed = PlannedRows.assumed(config.load(REPO / "configs" / "tiny_cpu.yaml").plan)
    assert rows((seed_shards["trimmed"], 1), (tmp_path / "none", 1)) == rows(run=tmp_path / "none") == assumed
