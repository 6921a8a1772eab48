"""Two runs task by task: against scipy's exact test and sums by hand, from the command line to the page."""

import json
import random
import re

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from evaluation import cli
from evaluation.compare import compare, mcnemar
from evaluation.measures import state
from evaluation.report import ReportError, write
from evaluation.runs import load
from tests.helpers.evaluations import make


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(higher, lower):
    expected = scipy.stats.binomtest(higher, higher + lower, 0.5).pvalue if higher + lower else 1.0
    assert mcnemar(higher, lower) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_tasks():
    assert mcnemar(5200, 4800) == pytest.approx(scipy.stats.binomtest(5200, 10000, 0.5).pvalue, rel=1e-9)
    assert mcnemar(2500, 0) == 0.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    return [make(root / name, name, share, benchmark="CWEval", tasks=25, samples=2, functional=True) for name, share in (("base", 0.4), ("lpo", 0.8))]  # fmt: skip


def lines(run):
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_numbers_by_hand(runs):
    """The headline's shares, difference and tasks that went up or down, over all tasks and of each CWE, from the samples themselves."""
    found = compare(*map(load, runs))
    assert found["headline"] == "func-sec@1"
    good, cwes = [], {}
    for run in runs:
        shares = {}
        for sample in lines(run):
            good_one = (
                bool(sample["code"].strip()) and sample["parses"] and not sample["findings"] and sample["functional"]["outcome"] == "pass"
            )
            shares.setdefault(sample["task_id"], []).append(good_one)
            cwes[sample["task_id"]] = sample["cwe"]
        good.append({task: np.mean(values) for task, values in shares.items()})
    a, b = good
    assert found["by_task"] == {task: (a[task], b[task]) for task in a}

    def check(row, tasks):
        first, second = (np.mean([run[task] for task in tasks]) for run in (a, b))
        assert (row["first"]["value"], row["second"]["value"]) == (pytest.approx(first), pytest.approx(second))
        assert row["difference"]["value"] == pytest.approx(second - first) and row["difference"]["n"] == len(tasks)
        up, down = sum(b[task] > a[task] for task in tasks), sum(b[task] < a[task] for task in tasks)
        assert (row["tasks_higher"], row["tasks_lower"]) == (up, down)
        assert row["p"] == pytest.approx(scipy.stats.binomtest(up, up + down, 0.5).pvalue if up + down else 1)
        low, high = row["difference"]["interval"]
        assert low <= row["difference"]["value"] <= high

    check(found["measures"]["func-sec@1"], list(a))
    assert set(found["by_cwe"]) == set(cwes.values())
    for cwe, row in found["by_cwe"].items():
        check(row, [task for task in a if cwes[task] == cwe])


def test_the_other_way_round_and_beside_itself(runs):
    there, back = compare(*map(load, runs)), compare(*map(load, runs[::-1]))
    assert there["audit"]["second"]["gutted"] == back["audit"]["second"]["gutted"] == 0
    for key, row in there["measures"].items():
        other = back["measures"][key]
        assert other["difference"]["value"] == pytest.approx(-row["difference"]["value"])
        assert (other["tasks_higher"], other["tasks_lower"], other["p"]) == (row["tasks_lower"], row["tasks_higher"], row["p"])
    for row in compare(load(runs[0]), load(runs[0]))["measures"].values():
        assert row["difference"]["value"] == row["tasks_higher"] == row["tasks_lower"] == 0 and row["verdict"] == "unclear"


def test_deleted_code_is_no_gain(tmp_path):
    """A model that leaves its functions' first lines alone has fewer findings; nothing calls that better, here or on the page."""
    base = make(tmp_path / "base", "base", 0.5, tasks=30, samples=1)
    rows = lines(base)
    for row in rows:
        if row["parses"] and not row["empty"]:
            head = re.match(r"(?s).*?^( *)(?:async )?def .*?:\n(?=\1 +\S)", row["code"], re.MULTILINE)
            row |= {"code": head[0] + head[1] + "    print('done')\n", "findings": []} if head else {}
            row["completion"] = row["code"]
    other = make(tmp_path / "gone", "gone", 0.5, tasks=30, samples=1)
    (other / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load(base), load(other)
    alone = sum(state(sample) == "secure" for sample in second.samples)
    found = compare(first, second)
    insecure, secure = found["measures"]["insecure"], found["measures"]["secure"]
    assert insecure["difference"]["value"] < -0.3 and insecure["verdict"] == "less"
    assert alone > sum(state(sample) == "secure" for sample in second.samples), "what seemed secure was gutted"
    assert secure["difference"]["value"] < 0 and found["audit"]["second"]["gutted"] >= 20
    assert found["measures"]["deleted"]["second"]["value"] > 0.6
    write([base, other], tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert (
        f"{found['audit']['second']['deleted']} samples of gone ({found['audit']['first']['deleted']} of base) have no finding because"
        in words
    )
    assert "paired tasks; fewer, but no more secure code" in words and "points better" not in words
    section = page[page.index('id="audit"') : page.index('id="marked"')]
    assert f"<b>{found['audit']['second']['gutted']}</b> of 30" in section


def test_command_line(runs, tmp_path, capsys):
    for run in runs:
        (run / "scores.json").write_text("{}")
    assert cli.main(["compare", *map(str, runs), "--json", str(tmp_path / "x.json")]) == 0
    text, found = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
    assert found == json.loads(json.dumps(compare(*map(load, runs))))
    row = found["measures"]["func-sec@1"]
    first = next(line for line in text.split("\n") if line.startswith("* "))
    assert first.split()[1] == "func-sec@1" and f"{100 * row['difference']['value']:+.1f}" in first
    assert f"{row['tasks_higher']},{row['tasks_lower']:6}" in first
    assert "gutted" in text and "CWE-" in text
    (runs[1] / "scores.json").unlink()
    assert cli.main(["compare", *map(str, runs)]) == 2 and "isn't finished" in capsys.readouterr().err


def test_runs_that_can_not_be_compared(tmp_path):
    a = make(tmp_path / "a", "a", 0.5, tasks=3)
    with pytest.raises(ReportError, match="different benchmarks"):
        compare(load(a), load(make(tmp_path / "b", "b", 0.5, tasks=3, benchmark="CWEval")))
    c = make(tmp_path / "c", "c", 0.5, tasks=3)
    (c / "samples.jsonl").write_text((c / "samples.jsonl").read_text().replace('"task_id": "', '"task_id": "x'))
    with pytest.raises(ReportError, match="share no task"):
        compare(load(a), load(c))
    (c / "run.json").write_text((c / "run.json").read_text().replace("5e5e", "aaaa"))
    with pytest.raises(ReportError, match="different data"):
        compare(load(a), load(c))


def test_cautions_and_tasks_that_one_lacks(tmp_path):
    a, b = make(tmp_path / "a", "a", 0.5, tasks=8), make(tmp_path / "b", "b", 0.5, tasks=8)
    rows = (b / "samples.jsonl").read_text().splitlines(keepends=True)
    random.Random(0).shuffle(rows)
    (b / "samples.jsonl").write_text("".join(row for row in rows if json.loads(row)["task_id"] != lines(a)[0]["task_id"]))
    found = compare(load(a), load(b))
    assert found["tasks"] == 7 and "1 task that only one of them has" in found["cautions"][0]
    info = json.loads((b / "run.json").read_text()) | {"noise": True, "limits": {"time_s": 5, "memory_mb": 512}}
    (b / "run.json").write_text(json.dumps(info | {"versions": {"bandit": "1.7.0"}}))
    assert "differ in noise, limits, versions, 1 task" in compare(load(a), load(b))["cautions"][0]
