"""Trees and packing: literal layouts, and properties over random pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import masks
from data_pipeline.row import answer_tokens
from data_pipeline.trees import Encoded, join, pack, plant
from tests.helpers.oracle import batch_of


def encoded(prompt, chosen, rejected, reasoning=0, mask=masks.clean):
    c, r = np.array(prompt + chosen, np.int32), np.array(prompt + rejected, np.int32)
    m_minus, m_plus = np.zeros(len(r), bool), np.zeros(len(c), bool)
    start = len(prompt) + reasoning
    m_minus[start:], m_plus[start:] = mask(r[start:].tolist(), c[start:].tolist())
    return Encoded("p", c, r, m_plus, m_minus, len(prompt), start, start)


def columns(tree):
    return {
        name: getattr(tree, name).astype(int).tolist()
        for name in ("tokens", "positions", "subtree_end", "source", "target", "side", "changed")
    }


def test_trimmed_layout():
    # prompt 1 2; reasoning 3; code 4 [5 6] 7 EOS against 4 [8] 7 EOS
    tree = plant(encoded([1, 2], [3, 4, 5, 6, 7, 0], [3, 4, 8, 7, 0], reasoning=1))
    assert columns(tree) == {
        "tokens": [1, 2, 3, 4, 5, 6, 7],  # trunk 1 2 3 4, chosen 5 6 7; a rejected diff of one token needs no input
        "positions": [0, 1, 2, 3, 4, 5, 6],
        "subtree_end": [7] * 7,
        "source": [1, 2, 3, 4, 5, 6, 3],
        "target": [3, 4, 5, 6, 7, 0, 8],
        "side": [0, 0, 1, 1, 1, 1, -1],
        "changed": [0, 0, 1, 1, 0, 0, 1],
    }
    assert (tree.chosen_len, tree.rejected_len, tree.reasoning_len) == (5, 4, 1)


def test_untrimmed_layout():
    tree = plant(encoded([1, 2], [3, 4, 5, 6, 7, 0], [3, 4, 8, 7, 0], reasoning=1), trim=False)
    assert columns(tree) == {
        "tokens": [1, 2, 3, 4, 5, 6, 7, 8, 7],
        "positions": [0, 1, 2, 3, 4, 5, 6, 4, 5],
        "subtree_end": [9, 9, 9, 9, 7, 7, 7, 9, 9],
        "source": [1, 2, 3, 4, 5, 6, 3, 7, 8],
        "target": [3, 4, 5, 6, 7, 0, 8, 7, 0],
        "side": [0, 0, 1, 1, 1, 1, -1, -1, -1],
        "changed": [0, 0, 1, 1, 0, 0, 1, 0, 0],
    }


def test_pure_insertion_has_no_rejected_branch():
    tree = plant(encoded([1], [2, 9, 3, 0], [2, 3, 0]))
    assert tree.tokens.tolist() == [1, 2, 9, 3]
    assert (tree.side >= 0).all()


def test_scored_prompt():
    tree = plant(encoded([1, 2, 3], [4, 0], [5, 0]), score_prompt=True)
    assert tree.target.tolist() == [2, 3, 4, 0, 5]
    assert tree.answer.tolist() == [False, False, True, True, True]


def test_a_mark_in_the_common_prefix_ends_the_trunk():
    # the matcher may align a repeated prefix elsewhere; the marked token is then scored on each side by itself
    pair = encoded([1], [2, 2, 3, 0], [2, 3, 0])
    pair.m_plus[:] = [0, 1, 0, 0, 0]
    pair.m_minus[:] = False
    tree = plant(pair, trim=False)
    assert tree.side.tolist() == [1, 1, 1, 1, -1, -1, -1]
    assert tree.source[[0, 4]].tolist() == [0, 0]


def test_no_common_first_token_is_an_error():
    with pytest.raises(ValueError, match="share no first token"):
        plant(encoded([], [1, 0], [2, 0]))


tokens = st.lists(st.integers(1, 9), max_size=12)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), tokens, tokens, st.booleans())
@settings(max_examples=300)
def test_every_path_of_a_tree_is_its_sequence(prompt, chosen, rejected, trim):
    pair = encoded(prompt, [*chosen, 0], [*rejected, 0])
    tree = plant(pair, trim)
    rows = np.arange(len(tree.tokens))
    for n in range(len(tree.source)):
        source = tree.source[n]
        path = rows[(rows <= source) & (source < tree.subtree_end)]  # the ancestor rule
        assert tree.positions[path].tolist() == list(range(len(path)))
        full = pair.rejected if tree.side[n] < 0 else pair.chosen
        assert full[: len(path) + 1].tolist() == [*tree.tokens[path].tolist(), tree.target[n]]
    marked = {side: tree.target[tree.changed & (tree.side == side)].tolist() for side in (1, -1)}
    assert marked == {1: pair.chosen[pair.m_plus].tolist(), -1: pair.rejected[pair.m_minus].tolist()}
    assert (tree.side >= 0).sum() == len(pair.chosen) - len(prompt)
    assert not (tree.changed & (tree.side == 0)).any()


@given(st.lists(st.integers(1, 100), max_size=300))
def test_packing_uses_every_item_once_within_capacity(sizes):
    rows = pack(sizes, 100)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= 100 for row in rows)


def test_packing_is_best_fit_and_refuses_what_never_fits():
    assert pack([5, 4, 6, 5], 10) == [[2, 1], [0, 3]]
    with pytest.raises(ValueError, match="item 0 of size 11 exceeds the row capacity 10"):
        pack([11], 10)


def test_joined_rows_shift_indices():
    a, b = plant(encoded([1], [2, 0], [3, 0])), plant(encoded([4], [5, 6, 0], [5, 7, 0]))
    row = join([a, b])
    n = len(a.tokens)
    assert row["subtree_end"].tolist() == [*a.subtree_end, *(b.subtree_end + n)]
    assert row["source"].tolist() == [*a.source, *(b.source + n)]
    assert row["pair"].tolist() == [0] * len(a.source) + [1] * len(b.source)
    assert row["chosen_len"].tolist() == [2, 3]


def test_answer_tokens_restore_what_trimming_left_unscored():
    pair = encoded([1, 2], [3, 9, 4, 4, 5, 6, 7, 0], [3, 8, 4, 4, 5, 5, 6, 6, 0], reasoning=1)
    batch = batch_of([plant(encoded([1], [2, 0], [3, 0])), plant(pair)], 32)
    answer = answer_tokens(batch, 0, 1 if batch.chosen_len[0, 1] == 7 else 0)
    stop = np.flatnonzero(pair.m_minus)[-1] + 1
    assert [token for token, side, _ in answer if side >= 0] == pair.chosen[2:].tolist()
    assert [token for token, side, _ in answer if side < 0] == pair.rejected[3:stop].tolist()
    assert [n is not None and bool(batch.changed[0, n]) for _, side, n in answer if side < 0] == pair.m_minus[3:stop].tolist()


def test_equal_sides_are_a_trunk_and_nothing_else():
    """A plain row: every answer token is scored once, and the last is no input."""
    for trim in (True, False):
        tree = plant(encoded([1, 2], [3, 4, 0], [3, 4, 0]), trim)
        assert columns(tree) == {
            "tokens": [1, 2, 3, 4],
            "positions": [0, 1, 2, 3],
            "subtree_end": [4] * 4,
            "source": [1, 2, 3],
            "target": [3, 4, 0],
            "side": [0, 0, 0],
            "changed": [0, 0, 0],
        }
        assert tree.answer.all() and tree.chosen_len == 3
