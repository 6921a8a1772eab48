"""Programs that solve nothing and want to pass: none does where values are compared outside of its process; elsewhere each way that is left is here."""

import gzip
import json

import pytest

from evaluation.benchmarks import load
from evaluation.run import Options, _judge

WRONG = "def {name}(*a, **k):\n    return None\n"
SOLVED = "class Y:\n    def __eq__(s, o): return True\n    __hash__ = None\n"
FORGERIES = {
    "nothing": WRONG,
    "reads main.py and prints what stands there": "import os, re\nfor w in re.findall('[0-9a-f]{16}', open('main.py').read()): print(w)\n"
    + WRONG,
    "says that it has passed": "import os\nos.write(1, b'passed\\n')\n" + WRONG,
    "says so on every descriptor, and leaves": "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed\\n')\n    except OSError: pass\nos._exit(0)\n",
    "answers in the tester's language": (
        "import os, json\nfor message in (['loaded', []], ['done'], ['return', True, {'tuple': []}]):\n"
        "    content = json.dumps(message).encode()\n    for fd in range(3, 64):\n"
        "        try: os.write(fd, len(content).to_bytes(8, 'big') + content)\n        except OSError: pass\n" + WRONG
    ),
    "leaves": "import os\nos._exit(0)\n",
    "leaves through sys": "import sys\nsys.exit(0)\n",
    "leaves when called": "import os\ndef {name}(*a, **k):\n    os._exit(0)\n",
    "raises SystemExit when called": "def {name}(*a, **k):\n    raise SystemExit(0)\n",
    "traces, and jumps over the test": (
        "import sys\ndef t(f, e, a):\n    if f.f_code.co_name in ('check', '<module>') and e == 'line':\n        try: f.f_lineno = f.f_lineno + 1\n"
        "        except Exception: pass\n    return t\nsys.settrace(t)\nf = sys._getframe()\nwhile f:\n    f.f_trace = t\n    f = f.f_back\n"
        + WRONG
    ),
    "takes every exception": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\n" + WRONG,
    "ends well at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\n" + WRONG,
    "redefines AssertionError": "import builtins\nclass E(Exception): pass\nbuiltins.AssertionError = E\n" + WRONG,
    "disables compile and exec": "import builtins\nbuiltins.compile = lambda *a, **k: (lambda: 0).__code__\nbuiltins.exec = lambda *a, **k: None\n"
    + WRONG,
    "equals everything": SOLVED + "def {name}(*a, **k):\n    return Y()\n",
    "a str that equals everything": "class S(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\ndef {name}(*a, **k):\n    return S('x')\n",
    "a list that equals everything": "class L(list):\n    __eq__ = lambda s, o: True\ndef {name}(*a, **k):\n    return L()\n",
    "a float that equals everything": "class F(float):\n    __eq__ = lambda s, o: True\n    __sub__ = __rsub__ = lambda s, o: F(0)\n    __abs__ = lambda s: F(0)\ndef {name}(*a, **k):\n    return F(0)\n",
    "changes the expected values in place": "import gc\ndef {name}(*a, **k):\n    for x in gc.get_objects():\n        if type(x) is list and x and x is not a: x.clear()\n    return []\n",
    "writes modules that the tester might import": (
        "for m in ('math', 'json', 'traceback', 'typing', 'test', 'sitecustomize', 'numpy'):\n"
        "    open(m + '.py', 'w').write('import os; os.write(1, b\"passed\\\\n\"); os._exit(0)')\n" + WRONG
    ),
    "forks and goes on elsewhere": "import os\nif os.fork():\n    os._exit(0)\n" + WRONG,
    "signals its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\n" + WRONG,
    "opens its parent's memory": "import os\ntry: open(f'/proc/{os.getppid()}/mem', 'r+b')\nexcept OSError: pass\n" + WRONG,
    "patches the pipes": "import os\nw = os.write\nos.write = lambda fd, b: w(fd, b.replace(b'null', b'true'))\n" + WRONG,
}


class Bar:
    def set_postfix_str(self, *_):
        pass

    def update(self, *_):
        pass


def outcomes(task, forgery, name):
    program = forgery.replace("{name}", name)
    (record,) = _judge([(task, 0, f"```python\n{program}\n```")], Options("instruction", ()), Bar())
    return record


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """One task of each form: HumanEval's (the function is handed to the test), HumanEval-X's and MBXP's (the test calls it by name), CWEval's."""
    out = tmp_path_factory.mktemp("benchmarks")
    prompt = 'from typing import List\n\n\ndef tripled(x: List[int]) -> List[int]:\n    """Three times each."""\n'
    row = {"task_id": "T/0", "prompt": prompt, "canonical_solution": "    return [3 * i for i in x]\n"}
    given = row | {
        "entry_point": "tripled",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == [3, 6]\n    assert abs(candidate([5])[0] - 15) < 1e-6\n",
    }
    called = row | {"test": "def check(f):\n    assert f([1, 2]) == [3, 6]\n\ncheck(tripled)\n"}
    for name, content in (("humaneval.gz", given), ("humaneval-x.gz", called), ("mbxp.jsonl", given)):
        text = (json.dumps(content) + "\n").encode()
        (out / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    found = {
        name.partition(".")[0]: load(name.partition(".")[0], out / name, True).tasks[0]
        for name in ("humaneval.gz", "humaneval-x.gz", "mbxp.jsonl")
    }
    (out / "cw").mkdir()
    task = f"# BEGIN PROMPT\n{prompt}# BEGIN SOLUTION\n    return [3 * i for i in x]\n"
    (out / "cw" / "cwe_020_0_task.py").write_text(task)
    (out / "cw" / "cwe_020_0_test.py").write_text(
        "import pytest\nfrom cwe_020_0_task import tripled\n\n\n@pytest.mark.functionality\ndef test_f():\n    assert tripled([1]) == [3]\n\n\n"
        "@pytest.mark.security\ndef test_s():\n    assert tripled([2]) == [6]\n"
    )
    return found | {"cweval": load("cweval", out / "cw", True).tasks[0]}


@pytest.mark.parametrize("form", ["humaneval", "humaneval-x", "mbxp", "cweval"])
def test_what_is_right_passes(tasks, form):
    task = tasks[form]
    (record,) = _judge([(task, 0, task.canonical)], Options("completion", ()), Bar())
    assert record["functional"]["outcome"] == "pass" and ("inside" in record["functional"]) == (form == "cweval")
    assert form != "cweval" or record["security"]["outcome"] == "pass"


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("form", ["humaneval", "humaneval-x", "mbxp"])
def test_no_forgery_passes_where_values_are_compared_outside(tasks, form, forgery):
    found = outcomes(tasks[form], FORGERIES[forgery], "tripled")["functional"]
    assert found["outcome"] != "pass" and "inside" not in found, found


LEFT = {
    "answers in the tester's language",
    "equals everything",
    "a str that equals everything",
    "a list that equals everything",
    "a float that equals everything",
}
"""What passes where test and program share a process: see the audit of the report."""


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_is_left_within_one_process(tasks, forgery):
    """CWEval's tests import the program."""
    found = outcomes(tasks["cweval"], FORGERIES[forgery], "tripled")
    passed = {found[key]["outcome"] == "pass" for key in ("functional", "security")}
    assert passed == {forgery in LEFT}, found
    assert not passed & {True} or found["reaches"]
