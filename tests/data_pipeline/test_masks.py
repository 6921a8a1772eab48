"""Masks against the specification's vectors, difflib itself, and invariants."""

import difflib
import random
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.masks import ndiff_masks
from data_pipeline import masks
from tests.helpers.mask_vectors import VECTORS, edited_pair, ids

PREFIX = [*range(10000, 10185), 20000, 7, 8, 20001, 7, 8, 20002, 7, 8]
DIFFLIB_IS_PINNED = sys.version_info < (3, 14)


def bits(mask):
    return "".join("01"[int(b)] for b in mask)


@pytest.mark.parametrize("mode", [masks.clean, masks.reference, masks.lcs])
@pytest.mark.parametrize("name", VECTORS)
def test_vectors(mode, name):
    rejected, chosen, minus, plus, *unfilled = VECTORS[name]
    assert tuple(map(bits, mode(ids(rejected), ids(chosen)))) == (minus, plus)
    assert tuple(map(bits, mode(ids(rejected), ids(chosen), hole=0))) == tuple(unfilled or (minus, plus))


@pytest.mark.parametrize(("prefix", "reference", "clean"), [(PREFIX, "1111", "1001"), (PREFIX[44:], "1001", "1001")])
def test_m16_autojunk(prefix, reference, clean):
    rejected, chosen = ([*prefix, *block, 30001, 30002] for block in ([5012, 7, 8, 4000], [4111, 7, 8, 5013]))
    for mode, expected in ((masks.reference, reference), (masks.clean, clean)):
        found = mode(rejected, chosen)
        assert [bits(m[-6:-2]) for m in found] == [expected, expected]
        assert not any(m[: len(prefix)].any() or m[-2:].any() for m in found)


def blocks_masks(rejected, chosen):
    """What difflib's plain matcher leaves unmatched."""
    found = np.ones(len(rejected), bool), np.ones(len(chosen), bool)
    for i, j, size in difflib.SequenceMatcher(None, rejected, chosen, autojunk=False).get_matching_blocks():
        found[0][i : i + size] = found[1][j : j + size] = False
    return found


def table_masks(rejected, chosen):
    """The rule of `masks.lcs`, on the table of all lengths."""
    found = np.ones(len(rejected), bool), np.ones(len(chosen), bool)
    start, shorter = 0, min(len(rejected), len(chosen))
    while start < shorter and rejected[start] == chosen[start]:
        found[0][start] = found[1][start] = False
        start += 1
    i, j = len(rejected), len(chosen)
    while min(i, j) > start and rejected[i - 1] == chosen[j - 1]:
        i, j = i - 1, j - 1
        found[0][i] = found[1][j] = False
    length = lcs_lengths(rejected[start:i], chosen[start:j])
    i, j = i - start, j - start
    while length[i, j]:
        while length[i - 1, j] == length[i, j]:
            i -= 1
        while length[i, j - 1] == length[i, j]:
            j -= 1
        i, j = i - 1, j - 1
        found[0][start + i] = found[1][start + j] = False
    return found


def lcs_lengths(a, b):
    length = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in range(len(a)):
        for j in range(len(b)):
            length[i + 1, j + 1] = length[i, j] + 1 if a[i] == b[j] else max(length[i, j + 1], length[i + 1, j])
    return length


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 30, 2000])
@pytest.mark.parametrize("length", [8, 60, 260])
def test_clean_is_difflib_and_reference_is_ndiff(length, vocabulary):
    rng = random.Random(length * vocabulary)
    for _ in range(12):
        rejected, chosen = edited_pair(rng, length, vocabulary, rng.randrange(1, 10))
        assert_equal(masks.clean(rejected, chosen, hole=0), blocks_masks(rejected, chosen))
        if DIFFLIB_IS_PINNED and (length < 200 or vocabulary >= 30):  # ndiff takes minutes where every id is frequent
            assert_equal(masks.reference(rejected, chosen), ndiff_masks(np.array(rejected, np.int32), np.array(chosen, np.int32)))


def test_real_pairs_get_the_masks_of_difflib_and_ndiff(real_ids):
    for rejected, chosen in real_ids:
        if max(len(rejected), len(chosen)) <= 1000:  # difflib itself takes seconds for the longest
            assert_equal(masks.clean(rejected, chosen, hole=0), blocks_masks(rejected, chosen))
        cut = np.array(rejected[:512], np.int32), np.array(chosen[:512], np.int32)
        if DIFFLIB_IS_PINNED:
            assert_equal(masks.reference(*cut), ndiff_masks(*cut))


@pytest.mark.skipif(not DIFFLIB_IS_PINNED, reason="this Python's ndiff is another algorithm; ours is pinned to CPython 3.10-3.13")
def test_reference_is_ndiff_on_alike_spellings():
    """Blocks where ids look alike *and* occur on both sides: ndiff's inner alignment decides."""
    rng = random.Random(0)
    for _ in range(200):
        common = list(range(300, 300 + 210))
        block = [[rng.choice([5012, 5013, 5021, 7, 8, 4000, 0, 77]) for _ in range(rng.randrange(1, 9))] for _ in range(2)]
        rejected, chosen = (np.array([7, 8] * 3 + common + side + [9001], np.int32) for side in block)
        assert_equal(masks.reference(rejected, chosen), ndiff_masks(rejected, chosen))


@pytest.mark.parametrize("vocabulary", [2, 7, 300])
@pytest.mark.parametrize("length", [10, 63, 64, 65, 140])
def test_lcs_is_the_shortest_diff_and_keeps_its_rule(length, vocabulary):
    rng = random.Random(length * vocabulary)
    for turn in range(6):
        rejected, chosen = edited_pair(rng, length, vocabulary, rng.randrange(1, 9))
        if turn < 2:
            rejected = [rng.randrange(vocabulary) for _ in range(length)]
        found = masks.lcs(rejected, chosen, hole=0)
        assert sum(m.sum() for m in found) == len(rejected) + len(chosen) - 2 * lcs_lengths(rejected, chosen)[-1, -1]
        assert_equal(found, table_masks(rejected, chosen))


sequences = st.lists(st.integers(0, 12), max_size=25)


@given(sequences, sequences)
def test_invariants(rejected, chosen):
    for mode in (masks.clean, masks.reference, masks.lcs):
        bare = mode(rejected, chosen, hole=0)
        filled = mode(rejected, chosen)
        assert [len(m) for m in filled] == [len(rejected), len(chosen)]  # I1
        assert [t for t, m in zip(rejected, bare[0], strict=True) if not m] == [
            t for t, m in zip(chosen, bare[1], strict=True) if not m
        ]  # I3
        assert all((f | ~b).all() for f, b in zip(filled, bare, strict=True))  # I4, token by token
        assert not any(m.any() for m in mode(chosen, chosen))  # I2
    assert_equal(masks.clean(rejected, chosen), masks.reference(rejected, chosen))  # I6: below 200 ids the two agree
    assert_equal(masks.clean(rejected, chosen, hole=0), blocks_masks(rejected, chosen))
    assert_equal(masks.lcs(rejected, chosen, hole=0), table_masks(rejected, chosen))


@given(sequences, sequences, st.permutations(range(13)))
def test_masks_do_not_depend_on_the_ids_spelling(rejected, chosen, renamed):  # I13
    for mode in (masks.clean, masks.lcs):
        assert_equal(mode(rejected, chosen), mode([renamed[t] for t in rejected], [renamed[t] for t in chosen]))


@pytest.mark.parametrize("mode", [masks.clean, masks.lcs, masks.reference])
def test_ids_may_be_as_large_as_int32(mode):
    largest = 2**31 - 1
    assert_equal(mode([largest, 1, largest - 1], [largest, largest - 1]), (np.array([False, True, False]), np.array([False, False])))


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 4))
def test_fill_holes(mask, hole):
    filled = masks.fill_holes(np.array(mask, bool), hole)
    text, expected = bits(mask), list(bits(mask))
    for start in range(len(text)):
        for size in range(1, hole + 1):
            if text[start : start + size + 2] == "1" + "0" * size + "1":
                expected[start : start + size + 2] = "1" * (size + 2)
    assert bits(filled) == "".join(expected)


def test_unique_common_prefix_stays_unmarked():  # I5
    rng = random.Random(1)
    for _ in range(50):
        rejected, chosen = edited_pair(rng, 40, 20, 4)
        prefix = list(range(1000, 1030))
        for mode in (masks.clean, masks.lcs):
            for m in mode(prefix + rejected, prefix + chosen):
                assert not m[:30].any()


def test_spans_mark_every_token_they_touch():
    offsets = np.array([[0, 3], [3, 4], [4, 8], [8, 9], [9, 12]])
    found = masks.spans((offsets, offsets), ([(2, 5)], [(4, 8), (9, 10)]))
    assert [bits(m) for m in found] == ["11100", "00101"]
    assert [bits(m) for m in masks.spans((offsets, offsets), ([], [(8, 9)]))] == ["00000", "00010"]
    assert [bits(m) for m in masks.spans((offsets[:0], offsets), ([(0, 3)], [(4, 8), (9, 10)]), hole=1)] == ["", "00111"]


def test_changed_spans_are_words():
    rejected, chosen = "yaml.load(f)", "yaml.safe_load(f)"
    assert masks.changed_spans(rejected, chosen) == ([(5, 9)], [(5, 14)])
    assert masks.changed_spans("é = f(x)\n", "é = f(x, ñ)\n") == ([], [(7, 10)])
    assert masks.changed_spans("same", "same") == ([], [])


def test_zero_length_spans_mark_nothing_and_neighbours_mark_once():
    offsets = np.array([[0, 3], [3, 8], [8, 9], [9, 12]])
    found = masks.spans((offsets, offsets), ([(0, 0), (5, 5), (8, 8), (12, 12)], [(4, 5), (5, 6), (6, 6), (7, 8)]))
    assert [bits(m) for m in found] == ["0000", "0100"]


@pytest.mark.parametrize("name", ["codellama", "qwen"])
def test_spans_of_a_real_row_mark_the_tokens_that_hold_them(shared_data, name):
    """CoSec's first CWE-89 row: tokens that overlap an added span, no others, and every added character is in one."""
    from data_pipeline import pairs, tokenizer

    pair = next(p for p in pairs.read(shared_data / "sven" / "train.python.jsonl", pairs.Drops()) if p.cwe == "CWE-89")
    assert pair.chosen_spans == ((371, 372), (373, 374), (378, 380))
    offsets = np.array(tokenizer.load(shared_data / "tokenizers" / name).backend.encode(pair.chosen, add_special_tokens=False).offsets)
    marked = masks.spans((offsets, offsets), ([], pair.chosen_spans))[1]
    added = {at for start, stop in pair.chosen_spans for at in range(start, stop)}
    assert [bool(added & set(range(*token))) for token in offsets.tolist()] == marked.tolist()
    assert added <= {at for token in offsets[marked].tolist() for at in range(*token)}
