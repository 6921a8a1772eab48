"""Your own benchmark: the shipped example, every way to write tests, and errors that name line and key."""

import json

import pytest

from evaluation import benchmarks
from evaluation.benchmarks import BenchmarkError
from evaluation.completions import Answer, Completions, from_benchmark
from evaluation.run import Options, run
from tests.helpers.marks import needs_sandbox
from tests.helpers.paths import REPO

EXAMPLE = REPO / "evaluation/examples/own.jsonl"
OPTIONS = Options("instruction", tools=(), workers=2, time_s=30)
ADD = "def add(a, b):\n    return a + b\n"
ASK = {"instruction": "Write a function that adds."}


def load(folder, *rows):
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmarks.load("own", folder / "mine.jsonl")


def judged(found, out, answer):
    """(functional, security) outcomes of one answer to every task."""
    source = Completions("given", 1, lambda _: (Answer(task.task_id, 0, answer) for task in found.tasks))
    run(found, source, OPTIONS, out)
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return [tuple(row[key] and row[key]["outcome"] for key in ("functional", "security")) for row in rows]


@needs_sandbox
def test_the_example(tmp_path):
    found = benchmarks.load("own", EXAMPLE)
    assert (found.form, [task.task_id for task in found.tasks]) == ("instruction", ["join", "total", "token"])
    assert [bool(task.security_test) for task in found.tasks] == [True, True, False]
    assert [(task.names, task.helpers) for task in found.tasks] == [(("read_note",), ("folder",)), (("total",), ()), (("token",), ())]
    assert all(task.names and task.cwe and task.prompt in task.instruction for task in found.tasks[1:2])
    for which, outcome in (("canonical", "pass"), ("insecure", "fail")):
        run(found, from_benchmark(which, found.tasks), OPTIONS, tmp_path / which)
        rows = [json.loads(line) for line in (tmp_path / which / "samples.jsonl").read_text().splitlines()]
        assert [row["functional"]["outcome"] for row in rows] == ["pass"] * 3
        assert [row["security"] and row["security"]["outcome"] for row in rows] == [outcome, outcome, None]


@needs_sandbox
def test_every_way_to_write_tests(tmp_path):
    setup = "import math\nSTATE = []\n\n\ndef seen():\n    return len(STATE)\n"
    marked = "import pytest\n@pytest.mark.security\ndef test_a():\n    assert add(1, 2) == 4\ndef test_b():\n    assert add(1, 2) == 3\n"
    apart = {
        "plain": {"tests": "assert add(1, 2) == 3"},
        "from the program": {"tests": "from program import add as plus\nassert plus(1, 2) == 3"},
        "pytest": {"tests": "def test_it():\n    assert add(1, 2) == 3"},
        "marked": {"tests": marked},
        "apart": {"tests": "assert math.floor(add(1.5, 1)) == 2", "security_tests": "assert seen() == 0", "setup": setup},
    }
    inside = {
        "a class": {"tests": "assert add(Box().one, 1) == 2", "setup": "class Box:\n    one = 1\n"},
        "a variable": {"tests": "STATE.append(add(1, 2))\nassert STATE == [3]", "setup": setup},
        "passed on": {"tests": "assert list(map(add, [1], [2])) == [3]"},
        "by the setup": {"tests": "check()", "setup": "def check():\n    assert add(1, 2) == 3\n"},
        "the module": {"tests": "import program\nassert program.add(1, 2) == 3"},
        "pytest": {"tests": "def test_it():\n    assert [*map(add, [1], [2])] == [3]"},
    }
    found = load(
        tmp_path,
        *(ASK | {"id": f"{kind} {name}"} | row for kind, rows in (("apart", apart), ("inside", inside)) for name, row in rows.items()),
    )
    assert [bool(task.names) for task in found.tasks] == [True] * len(apart) + [name == "a class" for name in inside]
    right = judged(found, tmp_path / "right", ADD)
    assert right == [("pass", None)] * 3 + [("pass", "fail"), ("pass", "pass")] + [("pass", None)] * 6
    wrong = judged(found, tmp_path / "wrong", ADD.replace("+", "-"))
    assert {outcome for outcome, _ in wrong} == {"fail"}
    rows = map(json.loads, (tmp_path / "right/samples.jsonl").read_text().splitlines())
    assert {row["task_id"] for row in rows if row["functional"].get("inside")} == {f"inside {name}" for name in inside}


@needs_sandbox
@pytest.mark.parametrize("mark", ["class TestIt:\n    {mark}\n", "{mark}\nclass TestIt:\n", "class TestIt:\n    pytestmark = pytest.mark.security\n", "pytestmark = [pytest.mark.security]\nclass TestIt:\n"])  # fmt: skip
def test_marks_of_security_wherever_they_stand(tmp_path, mark):
    tests = f"import pytest\n{mark.format(mark='@pytest.mark.security')}    def test_a(self):\n        assert add(1, 2) == 4\n"
    more = "def test_b():\n    assert add(1, 2) == 3\n"
    found = load(tmp_path, ASK | {"tests": tests}, ASK | {"tests": tests + more})
    every = mark.startswith("pytestmark")
    assert judged(found, tmp_path / "run", ADD) == [(None, "fail"), (None if every else "pass", "fail")]


@needs_sandbox
def test_tests_of_unittest_run_and_skipped_ones_are_no_pass(tmp_path):
    case = "import unittest\nclass Sums(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(add(1, 2), 3)\n"
    main = "if __name__ == '__main__':\n    unittest.main()\n"
    skipped = "import pytest\n@pytest.mark.skip\ndef test_a():\n    assert add(1, 2) == 3\n"
    other = "def test_b():\n    assert add(2, 2) == 4\n"
    found = load(tmp_path, ASK | {"tests": case + main}, ASK | {"tests": skipped}, ASK | {"tests": skipped + other})
    assert judged(found, tmp_path / "right", ADD) == [("pass", None), ("fail", None), ("pass", None)]
    assert judged(found, tmp_path / "wrong", ADD.replace("+", "-")) == [("fail", None)] * 3


@needs_sandbox
def test_a_wrong_answer_is_not_run_again_where_it_can_forge_a_pass(tmp_path):
    """A test that fails apart from the program goes into its process only if the task's own solution needs that, too."""
    forged = "```python\nimport sys\nsys.modules['program'] = None\nclass Any(int):\n    __eq__ = lambda *a: True\ndef add(a, b):\n    return Any(7)\n```"
    found = load(
        tmp_path,
        ASK | {"tests": "from program import add\nassert add(1, 2) == 3"},
        ASK | {"tests": "assert add(1, 2) == 3", "solution": ADD},
    )
    assert judged(found, tmp_path / "run", forged) == [("fail", None)] * 2


def test_forms(tmp_path):
    coded, asked = {"prompt": "def add(a, b):\n", "tests": "assert add(1, 2) == 3"}, ASK
    assert (load(tmp_path, coded).form, load(tmp_path, coded, asked).form, load(tmp_path, coded | asked).form) == (
        "completion",
        "instruction",
        "instruction",
    )
    first, second = load(tmp_path, coded | asked | {"cwe": "cwe-089", "id": 7}, asked).tasks
    assert (first.prompt, first.instruction, first.task_id, second.task_id) == (coded["prompt"], ASK["instruction"], "7", "2")
    assert second.instruction == ASK["instruction"] and second.prompt == f'"""\n{ASK["instruction"]}\n"""\n'
    assert first.cwe == "CWE-89"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tests": "assert add(1)"}, "2: instruction: it has neither this nor prompt"),
        (ASK | {"security_test": "x"}, "2: security_test: no such key; is security_tests meant"),
        (ASK | {"tests": "assert add(1"}, r"2: tests: no Python \('\(' was never closed .*line 1"),
        (ASK | {"setup": "import ("}, "2: setup: no Python"),
        (ASK | {"tests": "assert 1 == len('a')"}, "2: tests: it uses nothing of the program"),
        (ASK | {"security_tests": 5}, "2: security_tests: a number, not text"),
        (ASK | {"cwe": "injection"}, "2: cwe: 'injection' is none"),
        (ASK | {"id": "first"}, r"2: id: first stands at .*mine.jsonl:1 already"),
        (ASK | {"tests": "import pytest\n@pytest.mark.security\ndef test_a(): f()", "security_tests": "f()"}, "2: security_tests: tests has some that are marked"),
        (ASK | {"tests": "def check():\n    assert add(1, 2) == 3"}, "2: tests: nothing in it would run: call what it defines"),
        (ASK | {"security_tests": "check = lambda: add(1, 2)"}, "2: security_tests: nothing in it would run"),
        (ASK | {"tests": "def run():\n    add(1, 2)\nif __name__ == '__main__':\n    run()"}, "2: tests: nothing in it would run"),
        ([], "2: not a JSON object"),
    ],
)  # fmt: skip
def test_errors_name_line_and_key(tmp_path, row, message):
    with pytest.raises(BenchmarkError, match=f"mine.jsonl:{message}"):
        load(tmp_path, ASK | {"id": "first"}, row)
