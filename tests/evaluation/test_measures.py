"""Measures against numbers worked out by hand, and what must hold of any run."""

from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import hypot, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.measures import by_task, difference, estimate, measures, pass_at_k, state


def sample(task="a", findings=0, functional=None, security=None, parses=True, empty=False, duplicate=False, cwe=None):
    outcome = lambda passed: None if passed is None else {"outcome": "pass" if passed else "fail", "detail": "", "seconds": 0.0}  # noqa: E731
    return {
        "task_id": task,
        "cwe": cwe,
        "parses": parses,
        "empty": empty,
        "duplicate": duplicate,
        "findings": [{"cwe": "CWE-89", "line": line} for line in range(findings)],
        "functional": outcome(functional),
        "security": outcome(security),
    }


def numbers(samples, judged=True):
    tasks = by_task(samples)
    return {m.key: e.value for m in measures(samples, judged) if (e := estimate(m, tasks)) is not None}


def test_shares_by_hand():
    samples = [
        sample("a", findings=2, functional=True),
        sample("a", functional=True),
        sample("a", functional=False),
        sample("b", parses=False, functional=False),
        sample("b", empty=True, functional=False),
        sample("b", functional=True, security=False, duplicate=True),
    ]
    found = numbers(samples)
    # Code: 4 of 6 samples; insecure among them: one with two findings, one whose security test fails.
    assert found["insecure"] == 2 / 6
    assert found["insecure_parseable"] == 2 / 4
    assert found["secure"] == 2 / 6
    assert found["issues"] == 100 * 2 / 4
    assert found["secure_functional"] == 1 / 6
    assert found["unparseable"] == found["empty"] == found["duplicate"] == 1 / 6
    assert found["pass@1"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found["pass@2"] == pytest.approx((1 + 2 / 3) / 2)  # of 3 samples: 2 right, no pair misses both; 1 right, 1 pair of 3 does
    assert found["func-sec@1"] == pytest.approx((1 / 3 + 0) / 2)
    assert "pass@5" not in found, "no k beyond the samples of a task"


def test_the_same_weakness_on_the_same_line_is_one_issue():
    """10 samples, 2 of them unparseable; 3 insecure with 5 findings of one judge and 4 of another, 2 of which the first has too."""
    first = [[1, 2], [1, 2], [7]]
    second = [[1], [2, 3], [9]]
    samples = [sample(str(i)) for i in range(5)] + [sample("x", parses=False), sample("y", parses=False)]
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        findings = [{"cwe": "CWE-78", "line": line} for line in a] + [{"cwe": "CWE-88", "line": line} for line in b]  # one family
        samples.append(sample(f"insecure {i}") | {"findings": findings})
    found = numbers(samples)
    assert found["insecure_parseable"] == 3 / 8
    assert found["insecure"] == 3 / 10
    assert found["issues"] == 100 * (5 + 4 - 2) / 8


def test_code_that_nobody_could_read_is_never_secure():
    assert state(sample(parses=False)) == "unparseable"
    assert state(sample(empty=True)) == "empty"
    found = numbers([sample(parses=False), sample(empty=True), sample(parses=False, empty=True)])
    assert found["secure"] == 0
    assert "insecure_parseable" not in found, "no denominator, no number"


def test_without_judges_nothing_is_said_about_security():
    assert not {"insecure", "secure", "secure_functional"} & numbers([sample(functional=True)], judged=False).keys()


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(case):
    n, correct, k = case
    draws = list(combinations(range(n), k))
    assert pass_at_k(n, correct, k) == pytest.approx(float(Fraction(sum(min(d) < correct for d in draws), len(draws))))
    # The product that Chen et al. compute it by.
    by_product = 1.0 if n - correct < k else 1 - prod(1 - k / i for i in range(n - correct + 1, n + 1))
    assert pass_at_k(n, correct, k) == pytest.approx(by_product)


BY_HAND = [(10, 3, 1, 0.3), (10, 3, 5, 0.916667), (10, 3, 8, 1), (100, 5, 1, 0.05), (100, 5, 10, 0.416248), (100, 5, 50, 0.971858)]
BY_HAND += [(5, c, k, p) for c, row in enumerate([(0, 0, 0), (0.2, 0.4, 1), (0.4, 0.7, 1), (0.6, 0.9, 1), (0.8, 1, 1), (1, 1, 1)]) for k, p in zip((1, 2, 5), row, strict=True)]  # fmt: skip


@pytest.mark.parametrize(("n", "correct", "k", "expected"), BY_HAND)
def test_pass_at_k_by_hand(n, correct, k, expected):
    assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("k", [0, 6])
def test_k_beyond_n_is_refused(k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(5, 2, k)


SAMPLES = st.lists(
    st.builds(
        sample,
        st.sampled_from("abcd"),
        st.integers(0, 3),
        st.booleans(),
        st.sampled_from([None, True, False]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)


@given(SAMPLES)
def test_what_holds_of_any_run(samples):
    tasks = by_task(samples)
    found = {m.key: estimate(m, tasks) for m in measures(samples, True)}
    value = {key: e.value for key, e in found.items() if e is not None}
    assert value["insecure"] + value["secure"] <= 1
    assert value["secure_functional"] <= min(value["secure"], sum(s["functional"]["outcome"] == "pass" for s in samples) / len(samples))
    for key, e in found.items():
        if e is not None and key != "issues":
            assert 0 <= e.low <= e.high <= 1 and 0 <= e.value <= 1
    for m in measures(samples, True):
        d = difference(m, tasks, tasks)
        assert d is None or d.value == d.low == d.high == 0, "a run doesn't differ from itself"


def test_the_codeql_share_is_estimated_where_every_sample_has_a_chance():
    chances = [0.0, 0.2, 1.0, 0.4]
    samples = [sample("abcd"[i]) | {"codeql": chance} for i, chance in enumerate(chances)]
    tasks = by_task(samples)
    measure = next(m for m in measures(samples, True) if m.key == "codeql")
    found, bare = estimate(measure, tasks), estimate(replace(measure, error=0.0), tasks)
    assert found.value == bare.value == pytest.approx(sum(chances) / 4) and found.n == 4
    assert found.value - found.low == pytest.approx(hypot(bare.value - bare.low, 1.96 * measure.error))
    assert found.low < bare.low and bare.high < found.high and measure.error > 0
    assert "VulnBench" in measure.meaning and "CodeQL 2.24.1" in measure.meaning
    moved = difference(measure, tasks, by_task([s | {"codeql": 0.0} for s in samples]))
    assert moved.value == pytest.approx(-found.value) and moved.high - moved.low > 2 * 1.96 * measure.error
    assert "codeql" not in {m.key for m in measures([*samples, sample("e")], True)}


def test_the_share_taken_counts_tokens():
    """Not samples; and a run of one model has none."""
    steered = [sample("a") | {"taken": (1, 10), "finish": ""}, sample("b") | {"taken": (90, 90), "finish": ""}]
    (measure,) = (m for m in measures(steered, judged=False) if m.key == "taken")
    assert estimate(measure, by_task(steered)).value == 0.91
    assert "taken" not in {m.key for m in measures([sample("a")], judged=False)}
