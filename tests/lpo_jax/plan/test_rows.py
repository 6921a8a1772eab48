"""The rows that a plan is made for: a stage's own sets where they are built."""

import json

import pytest

from data_pipeline.feed import Feed
from lpo_jax import config
from lpo_jax.plan.rows import Length, PlannedRows, missing
from lpo_jax.train.stage import Stage
from tests.helpers.paths import REPO


def on(run, *sets, more=()):
    """The tiny run on these shards, its stage sft on these sets, given as (path, weight)."""
    own = json.dumps([{"path": str(path), "weight": weight} for path, weight in sets] or None)
    return config.load(REPO / "configs" / "tiny_cpu.yaml", [f"data.path={run}", f"stages.sft.data={own}", *more])


@pytest.fixture
def rows(seed_shards):
    """The rows of a stage on these sets."""
    return lambda *sets, stage="sft", run=seed_shards["trimmed"]: PlannedRows.of(on(run, *sets), stage)


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


@pytest.mark.parametrize("long", ["steps=7", "epochs=3", "epochs=0.4", "epochs=0.001"])
@pytest.mark.parametrize("weights", [None, (1, 3)])
def test_steps_are_those_that_the_run_takes(seed_shards, plain_shards, long, weights):
    pairs = seed_shards["trimmed"]
    sets = [(pairs, weights and weights[0]), (plain_shards, weights and weights[1])]
    run = on(pairs, *sets, more=["stages.sft.epochs=null", f"stages.sft.{long}", "stages.sft.batch_rows=4"])
    feed = Feed(pairs, plain_shards, weights=weights)
    assert Length.of(run, "sft").steps == Stage(run, "sft", 0, 0, None, None, feed, None).length


def test_the_tokens_of_whole_epochs_are_exact(seed_shards, plain_shards):
    """As a run counts them: a pair's first token, which nothing predicts, isn't one of them."""
    pairs = seed_shards["trimmed"]
    trains = [Feed(path).manifest.splits["train"] for path in (pairs, plain_shards)]
    once = [train["tokens"] - train["pairs"] for train in trains]
    run = on(pairs, (pairs, None), (plain_shards, None), more=["stages.sft.epochs=3", "stages.lpo.epochs=2"])
    assert Length.of(run, "sft") == Length(3 * sum(train["rows"] for train in trains), 3 * sum(once))
    assert Length.of(run, "lpo") == Length(2 * trains[0]["rows"], 2 * once[0])
    # A mixture's are as many as its weights say, whatever the sets hold.
    mixed = Length.of(on(pairs, (pairs, 1), (plain_shards, 3), more=["stages.sft.epochs=3"]), "sft")
    each = sum(share * tokens / train["rows"] for share, tokens, train in zip((0.25, 0.75), once, trains, strict=True))
    assert mixed.tokens == round(mixed.steps * each)


def test_a_length_without_data_is_unknown_until_it_is_said(tmp_path):
    none = tmp_path / "none"
    assert Length.of(on(none), "sft") == Length(None, None) and missing(on(none), "sft") == {"data.path": str(none)}
    said = ["plan.row_tokens=1000", "plan.pair_tokens=100", "stages.sft.batch_rows=4", "stages.sft.epochs=2"]
    # 250 pairs fill 25 rows: two epochs of them are 12.5 steps of 4.
    assert Length.of(on(none, more=[*said, "plan.pairs=250"]), "sft") == Length(13, 13 * 4 * 10 * 99)
    steps = ["stages.sft.epochs=null", "stages.sft.steps=5"]
    assert Length.of(on(none, more=[*said, *steps]), "sft") == Length(5, 5 * 4 * 10 * 99)
