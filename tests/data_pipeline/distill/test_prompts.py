"""The plan of what to ask."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.distill import knowledge, prompts
from data_pipeline.pairs import DataError


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.data())
def test_the_plan_covers_evenly_and_never_repeats(C, L, seed, data):
    rules = [knowledge.Rule(f"r{i}", f"CWE-{i % C}", "t", "d", "cwe", "any") for i in range(2 * C)]
    count = data.draw(st.integers(0, C * L))
    tasks = prompts.plan(rules, [f"l{i}" for i in range(L)], count, seed)
    assert len({(t.rule.cwe, t.library) for t in tasks}) == len({t.id for t in tasks}) == count
    for counts, kinds in ((Counter(t.rule.cwe for t in tasks), C), (Counter(t.library for t in tasks), L)):
        assert max(counts.values(), default=0) - min(counts.values(), default=0) <= 1
        assert len(counts) == min(count, kinds)
    with pytest.raises(DataError, match="ask for fewer"):
        prompts.plan(rules, [f"l{i}" for i in range(L)], C * L + 1, seed)
