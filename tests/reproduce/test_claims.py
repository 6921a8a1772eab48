"""Groups count once, and a claim is what its rule says."""

import pytest

from evaluation.measures import estimate
from reproduce.campaign import Claim
from reproduce.claims import by_group, decide, of_groups, values
from tests.helpers.campaigns import finish, smoke
from tests.helpers.marks import needs_sandbox

pytestmark = needs_sandbox


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Runs on the test part: `lpo` is secure and works, `simpo` works, nothing else is there; and each row's group."""
    campaign, here, pieces = smoke(tmp_path_factory.mktemp("known"))
    finish(here, pieces, {"dev-lpo.1": "insecure", "dev-lpo.2": "canonical", "test-simpo": "insecure", "test-base": "canonical"})
    runs = {("lpo", "test"): here.results.evaluation("test-base"), ("simpo", "test"): here.results.evaluation("test-simpo")}
    return lambda system, benchmark: runs.get((system, benchmark))


def test_a_measure_over_groups_is_the_same_value_and_a_wider_interval(known):
    run = known("lpo", "test")
    tasks = list(run.tasks)
    samples = [dict(sample) for sample in run.samples]
    for task, sample in zip(tasks, samples, strict=True):
        sample["functional"] = {"outcome": "pass" if task in tasks[: len(tasks) // 2] else "fail"}
    measure = run.measures["func-sec@1"]
    run = type(run)(run.path, run.info, samples)
    alone, alike = dict.fromkeys(tasks), {task: "first" if task in tasks[: len(tasks) // 2] else "second" for task in tasks}
    plain = estimate(measure, run.tasks)
    assert estimate(of_groups(measure), by_group(run, {task: task for task in alone})) == plain
    grouped = estimate(of_groups(measure), by_group(run, alike))
    assert grouped.value == plain.value == 0.5 and grouped.low < plain.low and grouped.high > plain.high


@pytest.mark.parametrize(
    ("fields", "verdict", "numbers"),
    [
        ({"systems": ("simpo", "lpo")}, "confirmed", "func-sec@1, lpo minus simpo on test: +100.0 [+100.0, +100.0]"),
        ({"systems": ("lpo", "simpo")}, "not confirmed", "-100.0"),
        ({"systems": ("lpo", "simpo"), "want": "below"}, "confirmed", "-100.0 [-100.0, -100.0]; 0.0 of 100.0, 100 % fewer"),
        ({"systems": ("simpo", "lpo"), "measure": "pass@1"}, "not confirmed", "+0.0 [+0.0, +0.0]"),
        ({"systems": ("simpo", "lpo"), "measure": "pass@1", "want": "at least", "bound": -0.02}, "confirmed", "asked -2.0"),
        ({"systems": ("lpo",), "want": "at least", "bound": 0.396}, "confirmed", "func-sec@1 on test: 100.0 [100.0, 100.0], asked 39.6"),
        ({"systems": ("simpo",), "want": "at least", "bound": 0.396}, "not confirmed", "0.0 [0.0, 0.0]"),
        ({"systems": ("dpo", "lpo")}, "open", "dpo on test: not run yet"),
        ({"systems": ("dpo", "lpo"), "benchmark": "humaneval"}, "open", "dpo and lpo on humaneval: not run yet"),
        ({"untestable": "no TPU"}, "not testable here", "no TPU"),
        ({"open": "later"}, "open", "later"),
    ],
)
def test_a_claim(fields, verdict, numbers, known):
    found, said = decide(Claim(text="x", source="y", **fields), known, {})
    assert found == verdict and numbers in said


def test_a_measure_that_a_run_has_not_is_none(known):
    assert values(known("lpo", "test"), ["codeql"], {}) == {"codeql": None}
