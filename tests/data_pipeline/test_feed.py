"""The feed of several shard sets: rows numbered through and padded alike, batches of a mixture or of the sets joined."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.build import BuildOptions, build
from data_pipeline.feed import Feed
from data_pipeline.order import CYCLE, shares
from data_pipeline.row import COLUMNS, RowShape
from data_pipeline.shards import Manifest, joined
from foundation.errors import DataError


def same(a, b):
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(a, column.name), getattr(b, column.name), err_msg=column.name)


@pytest.fixture(scope="module")
def sets(seed_shards, plain_shards):
    return seed_shards["trimmed"], plain_shards


@pytest.fixture(scope="module")
def mixed(sets):
    return Feed(*sets, seed=7, weights=[1, 3])


def test_one_set_has_one_order_whatever_its_weight(seed_shards):
    directory = seed_shards["trimmed"]
    for step in (0, 30):
        rows = Feed(directory, seed=7).step_rows(4, step, stream=1)
        assert rows.tolist() == Feed(directory, seed=7, weights=[3.0]).step_rows(4, step, stream=1).tolist()
    assert Feed(directory).manifest == Manifest.load(directory)


def test_rows_are_numbered_through_and_padded_to_the_widest(sets, mixed):
    feeds = [Feed(directory) for directory in sets]
    shapes = [feed.manifest.row_shape for feed in feeds]
    widest = RowShape(*(max(widths) for widths in zip(*shapes, strict=True)))
    assert shapes[0].tokens != shapes[1].tokens and mixed.manifest.row_shape == widest
    for split in ("train", "heldout"):
        assert mixed.rows(split) == sum(feed.rows(split) for feed in feeds)
        own = [(feed, row) for feed in feeds for row in range(feed.rows(split))]
        assert [mixed.pair_ids(split, at) for at in range(len(own))] == [feed.pair_ids(split, row) for feed, row in own]
    first = feeds[0].rows("train")
    batch, alone = next(mixed.in_order("train", 4, start_row=first - 2)), next(feeds[1].in_order("train", 2))
    assert batch.tokens.shape == (4, widest.tokens) and batch.source.shape == (4, widest.scored)
    np.testing.assert_array_equal(batch.tokens[2:, : shapes[1].tokens], alone.tokens)
    assert not batch.tokens[2:, shapes[1].tokens :].any() and (batch.pair[2:, shapes[1].scored :] == -1).all()


def test_a_batch_holds_the_rows_that_step_rows_says(mixed):
    batch, rows = next(mixed.batches(6, 3, 4, stream=1)), mixed.step_rows(6, 3, stream=1)
    for place, row in enumerate(rows):
        alone = next(mixed.in_order("train", 1, start_row=int(row)))
        np.testing.assert_array_equal(batch.tokens[place], alone.tokens[0])
        np.testing.assert_array_equal(batch.pair[place], alone.pair[0])


def test_shares_hold(sets, mixed):
    plain = mixed.step_rows(CYCLE, 2) >= Feed(sets[0]).rows("train")
    assert [int((~plain).sum()), int(plain.sum())] == shares([1, 3]) == [250, 750]


def test_any_step_can_be_the_first(sets, mixed):
    straight = list(mixed.batches(5, 0, 24))
    for start in (1, 23):
        same(next(Feed(*sets, seed=7, weights=[1, 3]).batches(5, start, 24)), straight[start])


def test_processes_share_a_batch(mixed):
    whole = next(mixed.batches(4, 5, 6))
    parts = [next(mixed.batches(4, 5, 6, mine=mine)) for mine in ([0, 1], [2, 3])]
    for column in COLUMNS:
        found = np.concatenate([getattr(part, column.name) for part in parts])
        np.testing.assert_array_equal(found, getattr(whole, column.name), err_msg=column.name)


def test_without_weights_an_epoch_has_each_row_of_all_sets_once(sets):
    feed = Feed(*sets, seed=7)
    total = feed.rows("train")
    assert sorted(feed.step_rows(total, 0)) == sorted(feed.step_rows(total, 1)) == list(range(total))


def test_what_counts_is_counted_together(sets, mixed):
    one, other = (Manifest.load(directory) for directory in sets)
    both = mixed.manifest
    assert both.plain == other.plain > 0 and both.trimmed
    assert both.longest_path == max(one.longest_path, other.longest_path)
    assert both.splits["train"]["shards"] == one.splits["train"]["shards"] + other.splits["train"]["shards"]
    assert both.splits["heldout"]["pairs"] == one.splits["heldout"]["pairs"] + other.splits["heldout"]["pairs"]
    assert len({one.build_key, other.build_key, both.build_key, joined({"b": other, "a": one}).build_key}) == 4
    assert not joined({"a": dataclasses.replace(one, scores_prompt=True), "b": other}).scores_prompt


def test_sets_that_do_not_go_together_are_refused(sets, tmp_path):
    (tmp_path / "few.jsonl").write_text('{"instruction": "a", "output": "b"}')
    build([tmp_path / "few.jsonl"], tmp_path / "other", None, BuildOptions(row_tokens=256), vocab_size=300)
    with pytest.raises(DataError, match=rf"other was built with another tokenizer than {sets[0]}: rebuild it with"):
        Feed(sets[0], tmp_path / "other")
    build([tmp_path / "few.jsonl"], tmp_path / "empty", str(sets[0] / "tokenizer"), BuildOptions(row_tokens=256, heldout=1.0))
    with pytest.raises(DataError, match=f"{tmp_path / 'empty'}: the train split is empty; build the set with a smaller --heldout"):
        next(Feed(sets[0], tmp_path / "empty", weights=[1, 1]).batches(4, 0, 1))
