"""What is alike is found, all of it."""

import random

import pytest

from data_pipeline import alike


@pytest.mark.parametrize("near", [0.3, 0.55, 0.85, 1.0])
def test_whatever_is_alike_is_among_the_candidates(near):
    """Against the slow computation, on sets that differ a little."""
    draw = random.Random(0)
    sets = [frozenset(f"{draw.random()}" for _ in range(draw.randrange(1, 60))) for _ in range(20)]
    for _ in range(280):
        old = sorted(draw.choice(sets))
        stay = draw.sample(old, max(1, len(old) - draw.randrange(9)))
        sets.append(frozenset([*stay, *(f"{draw.random()}" for _ in range(draw.randrange(9)))]))
    expected = [{sets[other] for other in range(i) if alike.alike(found, sets[other], near)} for i, found in enumerate(sets)]
    candidates = list(alike.candidates(sets, near))
    found = [{sets[other] for other in others if alike.alike(sets[i], sets[other], near)} for i, others in enumerate(candidates)]
    assert found == expected
    assert any(expected)
    assert sum(map(len, candidates)) < len(sets) ** 2 / 4
    assert list(alike.candidates(sets, 2.0)) == [[]] * len(sets)
