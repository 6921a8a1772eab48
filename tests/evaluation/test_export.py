"""Exported programs judged as the other harnesses judge them, by their own few lines: the same verdicts."""

import json

import pytest

from evaluation import cli
from evaluation.benchmarks import load
from evaluation.completions import Answer, Completions
from evaluation.export import export
from evaluation.report import ReportError
from evaluation.run import Options, run
from evaluation.runs import load as load_run
from judges.sandbox import Case, backends
from judges.sandbox import run as run_program


@pytest.fixture
def judged(shared_data, tmp_path):
    """The first HumanEval tasks with a right sample, a wrong one and one that was cut."""
    if not backends():
        pytest.skip("no sandbox works on this machine")
    found = load("humaneval", shared_data / "humaneval/HumanEval.jsonl.gz")
    found = type(found)(found.name, found.form, found.data_sha256, found.tasks[:4])
    rows = []
    for task in found.tasks:
        rows += [Answer(task.task_id, 0, task.canonical), Answer(task.task_id, 1, "    return 7\n")]
        rows += [Answer(task.task_id, 2, f"```python\n{task.prompt}{task.canonical}\n\nprint(", "length")]
    run(found, Completions("m", 3, lambda _: iter(rows)), Options("completion", tools=(), workers=2), tmp_path / "run")
    return found, tmp_path / "run"


def test_both_harnesses_come_to_the_same_verdicts(judged, tmp_path):
    benchmark, out = judged
    ours = [s["functional"]["outcome"] == "pass" for s in map(json.loads, (out / "samples.jsonl").read_text().splitlines())]
    assert ours == [True, False, True] * 4
    start = export(load_run(out), "evalplus", tmp_path / "x.jsonl")
    assert start.startswith(f"evalplus.evaluate --dataset humaneval --samples {tmp_path}/x.jsonl\nmind: ") and "164" in start
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert all(row.keys() == {"task_id", "solution"} for row in rows)
    tests = {task.task_id: task.functional_test for task in benchmark.tasks}
    assert [run_program(Case(f"{row['solution']}\n{tests[row['task_id']]}")).outcome == "pass" for row in rows] == ours
    start = export(load_run(out), "bigcode", tmp_path / "x.json")
    assert "--n_samples 3" in start and start.endswith("--limit 4")
    generations = json.loads((tmp_path / "x.json").read_text())
    assert generations == [[r["solution"] for r in rows[i : i + 3]] for i in range(0, 12, 3)]
    assert all(task.prompt.strip() in text for task, samples in zip(benchmark.tasks, generations, strict=True) for text in samples)


def test_command_line_and_what_can_not_be_exported(judged, tmp_path, capsys):
    _, out = judged
    assert cli.main(["export", str(out), "--to", "bigcode", "-o", str(tmp_path / "x.json")]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path}/x.json\nmain.py --tasks humaneval ")
    lines = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    (out / "samples.jsonl").write_text("".join(lines[3:]))
    with pytest.raises(ReportError, match="aren't humaneval's first ones"):
        export(load_run(out), "bigcode", tmp_path / "y.json")
    (out / "samples.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(ReportError, match="2 to 3 samples"):
        export(load_run(out), "evalplus", tmp_path / "y.jsonl")
    info = (out / "run.json").read_text()
    (out / "run.json").write_text(info.replace('"humaneval"', '"mbxp"'))
    (out / "samples.jsonl").write_text("".join(lines))
    assert "has no mbxp" in export(load_run(out), "evalplus", tmp_path / "y.jsonl") and (tmp_path / "y.jsonl").is_file()
