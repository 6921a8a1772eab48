"""Benchmarks are read from the real files; a file that isn't the known one is refused; every form has the same content for every model."""

import ast
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation import benchmarks
from evaluation.run import Options, case_of
from judges.sandbox import run

FILES = {
    "securityeval": ("securityeval/dataset.first81.jsonl", 81),
    "asleep": ("asleep/scenarios.python.jsonl", 46),
    "llmseceval": ("llmseceval/prompts.first120.csv", 61),
    "sven-scenarios": ("eval_scenarios/scenarios.python.jsonl", 49),
    "cyberseceval-instruct": ("cyberseceval/instruct.python.first250.jsonl", 250),
    "cyberseceval-autocomplete": ("cyberseceval/autocomplete.python.first250.jsonl", 250),
    "humaneval": ("humaneval/HumanEval.jsonl.gz", 164),
    "humaneval-x": ("humaneval_x/humaneval_python.jsonl.gz", 164),
    "mbxp": ("mbxp/mbpp_release_v1.jsonl", 974),
}


@pytest.mark.parametrize("name", FILES)
def test_the_real_files(shared_data, name):
    file, count = FILES[name]
    found = benchmarks.load(name, shared_data / file)
    assert len(found.tasks) == count
    assert len({task.task_id for task in found.tasks}) == count, "an id for each task"
    functional = name in ("humaneval", "humaneval-x", "mbxp")
    for task in found.tasks:
        assert task.prompt.strip() and task.instruction.strip()
        assert (task.functional_test is not None) == functional
        assert (task.cwe is None) == functional
        if found.form == "completion":
            assert task.prompt.rstrip() in task.instruction, "both forms say the same"
        else:
            assert "<language>" not in task.instruction
            ast.parse(task.prompt)
    if name == "securityeval":
        assert all(task.insecure.startswith(task.prompt) for task in found.tasks)
    if name == "mbxp":
        assert {task.task_id for task in found.tasks} >= benchmarks.MBXP_BROKEN


def test_missing_and_unknown_files_name_the_remedy(tmp_path):
    with pytest.raises(benchmarks.BenchmarkError, match="securityeval"):
        benchmarks.load("nothing", None)
    with pytest.raises(benchmarks.BenchmarkError, match=r"github.com/openai/human-eval .*licence: MIT.*--data"):
        benchmarks.load("humaneval", None)
    with pytest.raises(benchmarks.BenchmarkError, match="doesn't exist"):
        benchmarks.load("humaneval", tmp_path / "none")
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"ID": "CWE-089_x.py", "Prompt": "import sqlite3\n", "Insecure_code": "import sqlite3\n"}) + "\n")
    with pytest.raises(benchmarks.BenchmarkError, match="--any-data"):
        benchmarks.load("securityeval", file)
    found = benchmarks.load("securityeval", file, any_hash=True)
    assert [task.cwe for task in found.tasks] == ["CWE-89"]
    with pytest.raises(benchmarks.BenchmarkError, match="lacks 'task_id'|lacks 'prompt'"):
        benchmarks.load("mbxp", file, any_hash=True)
    file.write_text("{not json\n")
    with pytest.raises(benchmarks.BenchmarkError, match="line 1 is no JSON"):
        benchmarks.load("mbxp", file, any_hash=True)


def test_disco_test_form(tmp_path):
    file = tmp_path / "DiSCo_test.csv"
    file.write_text('Prompt,Reasoning\n"Write ""a"" function that says \\n.",the vulnerability CWE-078: ...\nAgain.,\n')
    tasks = benchmarks.load("disco-test", file, any_hash=True).tasks
    assert [task.cwe for task in tasks] == ["CWE-78", None]
    assert ast.literal_eval(tasks[0].prompt).strip() == 'Write "a" function that says \\n.'


CWEVAL_TASK = '''
# BEGIN PROMPT
import os


# BEGIN ENTRYPOINT
def inside(base: str, name: str) -> str:
    """The path of name in base; ValueError if it would leave base."""
    # BEGIN SOLUTION
    path = os.path.normpath(os.path.join(base, name))
    if not path.startswith(base + os.sep):
        raise ValueError(name)
    return path
'''
CWEVAL_TEST = """
import pytest
from cwe_022_0_task import inside


@pytest.mark.functionality
def test_inside():
    assert inside("/a", "b/../c") == "/a/c"


@pytest.mark.security
def test_outside():
    with pytest.raises(ValueError):
        inside("/a", "../b")
"""


def test_cweval_form_runs_in_the_sandbox(tmp_path):
    (tmp_path / "cwe_022_0_task.py").write_text(CWEVAL_TASK)
    (tmp_path / "cwe_022_0_test.py").write_text(CWEVAL_TEST)
    (task,) = benchmarks.load("cweval", tmp_path, any_hash=True).tasks
    assert (task.task_id, task.cwe) == ("cwe_022_0", "CWE-22")
    insecure = task.prompt + "    return os.path.normpath(os.path.join(base, name))\n"
    outcomes = {
        (name, which): run(case_of(code, task, test, Options("completion"))).outcome
        for name, code in (("canonical", task.prompt + task.canonical), ("insecure", insecure))
        for which, test in (("functional", task.functional_test), ("security", task.security_test))
    }
    assert outcomes == {
        ("canonical", "functional"): "pass",
        ("canonical", "security"): "pass",
        ("insecure", "functional"): "pass",
        ("insecure", "security"): "fail",
    }


PYTEST_TEST = """import pathlib

import pytest
from cwe_400_task import copied as sut, parsed

pytestmark = pytest.mark.functionality


@pytest.fixture
def there(tmp_path):
    (tmp_path / "a").write_text("text")
    return tmp_path


class TestCopied:
    @pytest.mark.parametrize("name", ["b", "c"])
    def test_copied(self, there, name):
        assert sut(str(there / "a"), str(there / name)) == 4
        assert (there / name).read_text() == "text"


def test_errors():
    with pytest.raises(ValueError):
        parsed("{")


@pytest.mark.skip
def test_of_another_system():
    raise AssertionError


@pytest.mark.security
def test_patched(monkeypatch):
    monkeypatch.setattr("cwe_400_task.json.loads", lambda text: 7)
    assert parsed("1") == 7
"""
PYTEST_TASK = """# BEGIN PROMPT
import json

# BEGIN SOLUTION
def copied(a, b):
    with open(a) as source, open(b, "w") as target:
        return target.write(source.read())


def parsed(text):
    return json.loads(text)
"""


def test_what_cwevals_tests_may_do(tmp_path):
    """Fixtures, parameters, files that the program writes, exceptions of libraries; what patches the program runs beside it."""
    (tmp_path / "cwe_400_task.py").write_text(PYTEST_TASK)
    for name, content in (("apart", PYTEST_TEST.partition("@pytest.mark.security")[0]), ("within", PYTEST_TEST)):
        (tmp_path / "cwe_400_test.py").write_text(content)
        (task,) = benchmarks.load("cweval", tmp_path, any_hash=True).tasks
        assert task.names == ("copied", "parsed")
        case = case_of(task.prompt + task.canonical, task, task.functional_test, Options("completion", time_s=30))
        assert run(case).outcome == ("pass" if name == "apart" else "fail")
        assert run(replace(case, test=replace(case.test, names=()))).outcome == "pass"


def test_scenario_folders(tmp_path):
    folder = tmp_path / "cwe-089" / "0-py"
    folder.mkdir(parents=True)
    (folder / "info.json").write_text('{"language": "py"}')
    (folder / "file_context.py").write_text("import sqlite3\n\n")
    (folder / "func_context.py").write_text("def f(name):\n")
    (task,) = benchmarks.load("sven-scenarios", tmp_path, any_hash=True).tasks
    assert task.prompt == "import sqlite3\n\ndef f(name):\n" and task.cwe == "CWE-89"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"ID": 5, "Prompt": "x"}', "a row holds another kind of value"),
        ('{"ID": "a", "Prompt": 5, "Insecure_code": "x"}', "a row holds another kind of value"),
        ("[1]", "a row holds another kind of value"),
        ('{"ID": "a", "Prompt": "x", "Insecure_code": 5}', "task a: insecure: "),
        ('{"ID": "a", "Prompt": "\\ud800", "Insecure_code": "x"}', "task a: prompt: "),
        ("[" * 100_000, "line 1 is no JSON"),
    ],
)
def test_rows_of_other_kinds_are_named(tmp_path, row, said):
    (tmp_path / "mine.jsonl").write_text(row)
    with pytest.raises(benchmarks.BenchmarkError, match=rf"mine\.jsonl: {said}") as error:
        benchmarks.load("securityeval", tmp_path / "mine.jsonl", any_hash=True)
    assert "\n" not in str(error.value)


def test_files_that_break_off_or_have_no_end_are_named(tmp_path):
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"ID": "a"}\n' * 99)[:20] + b"\xff" * 60)
    for place, said in ((tmp_path / "torn.jsonl.gz", "torn"), (Path("/dev/zero"), "a device or a pipe")):
        with pytest.raises(benchmarks.BenchmarkError, match=said):
            benchmarks.load("securityeval", place, any_hash=True)
