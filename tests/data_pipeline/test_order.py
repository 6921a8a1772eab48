"""Which rows a step reads: exact shares, every row once an epoch, and nothing but (seed, step) decides."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import CYCLE, mixed_rows, shares, stream_rows

weights = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5)


def places(seed, sizes, weights, count):
    """The first rows of a mixture as (set, row of that set)."""
    starts = np.cumsum([0, *sizes])
    rows = mixed_rows(seed, sizes, weights, count, 0)
    owner = np.searchsorted(starts, rows, side="right") - 1
    return owner, rows - starts[owner]


@given(weights)
def test_shares_are_whole_and_next_to_exact(given):
    found, exact = shares(given), CYCLE * np.array(given) / sum(given)
    assert sum(found) == CYCLE
    assert (np.abs(np.array(found) - exact) < 1 + 1e-9).all()


def test_the_largest_remainders_are_rounded_up():
    assert shares([1, 3]) == [250, 750]
    assert shares([1, 1, 1]) == [334, 333, 333]
    assert shares([1, 2, 4]) == [143, 286, 571]  # 142.86, 285.71, 571.43
    assert shares([1e308, 1e308]) == [500, 500]
    assert shares([1, 5000]) == [0, 1000]


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 5)), min_size=2, max_size=4), st.integers(0, 2**63 - 1))
def test_each_cycle_has_its_shares_and_each_set_its_epochs(sets, seed):
    sizes, weights = zip(*sets, strict=True)
    owner, row = places((seed, 1), sizes, weights, 3 * CYCLE)
    for cycle in range(3):
        assert np.bincount(owner[cycle * CYCLE : (cycle + 1) * CYCLE], minlength=len(sizes)).tolist() == shares(weights)
    for index, size in enumerate(sizes):
        mine = row[owner == index]
        for start in range(0, len(mine) - size + 1, size):
            assert sorted(mine[start : start + size]) == list(range(size))


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(0, 40), st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_a_step_is_the_same_however_one_comes_to_it(batch_rows, step, seed, stream):
    """Steps of any size, one after another or reached at once, are pieces of one sequence."""
    sizes, weights = (7, 300, 40), (1, 2.5, 0.3)
    whole = mixed_rows((seed, stream), sizes, weights, batch_rows * (step + 1), 0)
    assert mixed_rows((seed, stream), sizes, weights, batch_rows, step).tolist() == whole[-batch_rows:].tolist()


def test_sets_seeds_streams_and_cycles_have_orders_of_their_own():
    sizes, weights = (50, 50), (1, 1)
    owner, row = places((0, 0), sizes, weights, 2 * CYCLE)
    assert row[owner == 0][:50].tolist() != row[owner == 1][:50].tolist()
    assert owner[:CYCLE].tolist() != owner[CYCLE:].tolist()
    for other in ((1, 0), (0, 1)):
        assert mixed_rows(other, sizes, weights, 50, 0).tolist() != mixed_rows((0, 0), sizes, weights, 50, 0).tolist()


def test_sets_are_interleaved_not_put_one_after_another():
    """Of sets of equal share no twenty places in a row are one set's: the chance of that is below 1e-3 a cycle."""
    owner, _ = places((0, 0), (50, 50), (1, 1), CYCLE)
    assert max(len(run) for run in "".join(map(str, owner)).replace("01", "0 1").replace("10", "1 0").split()) < 20


@pytest.mark.parametrize(
    ("seed", "n_rows", "batch_rows", "step", "rows"),
    [((42, 1), 7, 5, 1, [3, 5, 3, 0, 6]), ((3, 0), 10, 4, 2, [3, 8, 3, 8])],
)
def test_the_order_of_one_set_never_changes(seed, n_rows, batch_rows, step, rows):
    """Recorded before there were mixtures: a run that goes on must read what it would have read then."""
    assert stream_rows(seed, n_rows, batch_rows, step).tolist() == rows


def test_an_epoch_reads_every_row_once():
    seen = np.concatenate([stream_rows((3,), 10, 4, step) for step in range(5)])
    assert Counter(seen[:10].tolist()) == Counter(seen[10:].tolist()) == Counter(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
