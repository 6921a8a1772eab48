"""The search alone, on exact probabilities; and the places in a pair's sides: whole tokens, whole characters, the ids of training."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import template, tokenizer
from data_pipeline.encode import MaskOptions, encode
from data_pipeline.pairs import Pair
from data_pipeline.pivots.places import SIDES, pivotal, tracks, wanted

P = st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=2, max_size=70)
THRESHOLD = st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0])


def look(p, threshold):
    """What the search knows at its end, and how often it looked."""
    known, looks = {}, 0
    while places := wanted(known, len(p) - 1, threshold):
        assert len(set(places)) == len(places) and not known.keys() & set(places)
        known |= {place: p[place] for place in places}
        looks += len(places)
    return known, looks


def subdivided(p, low, high, threshold):
    """Pivotal steps of a piece by the definition."""
    if round(abs(p[high] - p[low]), 6) < threshold:
        return []
    if high - low == 1:
        return [low]
    middle = (low + high) // 2
    return subdivided(p, low, middle, threshold) + subdivided(p, middle, high, threshold)


@given(P, THRESHOLD)
def test_every_step_that_halving_can_find_is_found_and_no_place_is_looked_at_twice(p, threshold):
    known, looks = look(p, threshold)
    assert pivotal(known, threshold) == subdivided(p, 0, len(p) - 1, threshold)
    assert looks == len(known) <= len(p)


@given(P.map(sorted), THRESHOLD)
def test_where_p_only_rises_nothing_is_missed(p, threshold):
    steps = [n for n, (a, b) in enumerate(itertools.pairwise(p)) if round(b - a, 6) >= threshold]
    known, looks = look(p, threshold)
    assert pivotal(known, threshold) == steps
    assert looks <= 2 + (1 / threshold + 1) * len(p).bit_length()


TOK = tokenizer.train(["x = 'häß'  # 🙂\nprint(x)\nreturn hash(x)):\n"] * 3, 270)
LINES = st.lists(st.sampled_from(["x = 'häß'", "print('🙂🙃')", "  return hash(x)):", "日本", "```", ""]), min_size=1, max_size=5).map(
    "\n".join
)


@pytest.mark.parametrize("name", ["alpaca", "plain"])
@given(st.tuples(LINES, LINES).filter(lambda sides: sides[0] != sides[1]), st.booleans())
def test_places_are_the_tokens_of_training(name, both, asked):
    pair = Pair("p", both[0], both[1], instruction="Do it." if asked else "")
    how, _ = template.load(name, TOK)
    if not asked and both[0][:1] != both[1][:1]:
        return  # no prompt
    encoded = encode(pair, TOK, how, MaskOptions())
    for track in tracks(pair, TOK, how, SIDES):
        assert track.ids == getattr(encoded, track.side).tolist()
        code = getattr(pair, track.side)
        for tokens, characters in track.cuts:
            written = TOK.backend.decode(track.ids[:tokens], skip_special_tokens=False)
            assert "�" not in written and written.endswith(track.text[:characters])
        spans = [track.span(place) for place in range(len(track.cuts) - 1)]
        assert all(a < b for a, b in spans) and spans[-1][1] == len(code)
        assert all(end == start for (_, end), (start, _) in itertools.pairwise(spans))
        fork = next(n for n, (a, b) in enumerate(zip(encoded.chosen, encoded.rejected, strict=False)) if a != b)
        assert track.side == "chosen" or all(tokens >= fork for tokens, _ in track.cuts)


DOC = 'def f():\n    """Say:\n\n    ```\n    f()\n    ```\n    """\n    return 1'


def test_a_continuation_becomes_a_program():
    how, _ = template.load("alpaca", TOK)
    pair = Pair("p", DOC, DOC.replace("1", "2"), instruction="Do it.")
    track = tracks(pair, TOK, how, ["chosen"])[0]
    for place in range(len(track.cuts)):
        rest = DOC[track.cuts[place][1] :]
        for said, whole in ((rest, True), (rest + "\n```", True), (rest + "\n```\n\nThat was `f`.\n```python\n2\n```\n", False)):
            assert track.program(place, said, whole).rstrip("\n") == DOC
        assert place < len(track.cuts) - 1 or track.program(place, "\n    return", False) != DOC
    middle = next(place for place, (_, characters) in enumerate(track.cuts) if characters > DOC.index("return"))
    assert track.program(middle, "urn", False) is None or track.program(middle, "urn", False) != DOC  # cut off
    bare = tracks(Pair("p", "a = 1\nb = 2", "a = 1\nb = 3"), TOK, how, ["chosen"])[0]
    assert bare.program(0, "c = 4<|endoftext|>more", True) == "a = 1\nc = 4" and bare.program(0, "c = 4", False) is None
