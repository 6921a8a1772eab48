"""Programs that solve nothing and want to pass: none does where values are compared outside of its process; elsewhere each way that is left is here."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.benchmarks import load
from evaluation.completions import Answer
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
    "hands pytest its options": (
        "import os\nopen('pytest.ini', 'w').write('[pytest]\\naddopts = --collect-only\\n')\nos.environ['PYTEST_ADDOPTS'] = '--collect-only'\n"
        + WRONG
    ),
    "plants a package around the tests": "".join(
        f"open('{name}.py', 'w').write('import os; os.write(1, b\"passed\\\\n\"); os._exit(0)')\n"
        for name in ("__init__", "conftest", "os")
    )
    + WRONG,
    "writes tests of its own": (
        "import os, pathlib\nw = pathlib.Path.write_text\nt = 'import pytest\\n@pytest.mark.functionality\\n@pytest.mark.security\\ndef test(): pass\\n'\n"
        "pathlib.Path.write_text = lambda p, *a, **k: w(p, t)\nfor n in ('check_test.py', 'test_check.py'): w(pathlib.Path(n), t)\n" + WRONG
    ),
    "puts links where tests are written": "import os\nfor n in ('check_test.py', 'test.py'): os.symlink('/dev/null', n)\n" + WRONG,
    "skips": "def {name}(*a, **k):\n    import unittest\n    raise unittest.SkipTest('x')\n",
    "skips in pytest's words": "def {name}(*a, **k):\n    import pytest\n    pytest.skip('x')\n",
    "is expected to fail": "def {name}(*a, **k):\n    import pytest\n    pytest.xfail('x')\n",
    "ends pytest": "def {name}(*a, **k):\n    import pytest\n    pytest.exit('x', 0)\n",
    "changes what pytest.main is made of": "try:\n    import pytest\n    pytest.main.__code__ = (lambda *a, **k: 0).__code__\nexcept ImportError: pass\n"
    + WRONG,
    "changes how pytest runs a test": "try:\n    import _pytest.python\n    _pytest.python.Function.runtest = lambda s: None\nexcept ImportError: pass\n"
    + WRONG,
    "answers later, from a thread": (
        "import threading, os, json, time\ndef go():\n    time.sleep(0.05)\n    for m in (['done'], ['done', None], ['return', True, {'tuple': []}]):\n"
        "        c = json.dumps(m).encode()\n        for fd in range(3, 32):\n            try: os.write(fd, len(c).to_bytes(8, 'big') + c)\n"
        "            except OSError: pass\nthreading.Thread(target=go, daemon=True).start()\n" + WRONG
    ),
    "says that its value isn't plain": (
        "import os, json\ndef {name}(*a, **k):\n    c = json.dumps(['opaque', 'x']).encode()\n    for fd in range(3, 32):\n"
        "        try: os.write(fd, len(c).to_bytes(8, 'big') + c)\n        except OSError: pass\n"
    ),
    "answers with the word of the test, from its frames": (
        "import sys\ndef {name}(*a, **k):\n    f = sys._getframe()\n    while f and 'answers' not in f.f_locals: f = f.f_back\n"
        "    for m in (['done', f.f_locals['what'][-1]], ['done']): f.f_globals['send'](f.f_locals['answers'], m)\n    raise SystemExit(0)\n"
    ),
    "gives itself out for a list": "class Z:\n    __class__ = list\n    __iter__ = lambda s: iter(())\n    __eq__ = lambda s, o: True\ndef {name}(*a, **k):\n    return Z()\n",
    "is no number": "def {name}(*a, **k):\n    return [float('nan')] * 2\n",
    "returns what is made when it is copied": "class R:\n    def __reduce__(s): return (list, ([3, 6],))\ndef {name}(*a, **k):\n    return R()\n",
    "nests deeply": "def {name}(*a, **k):\n    x = []\n    for _ in range(10 ** 5): x = [x]\n    return x\n",
    "empties the argument and returns it": "def {name}(*a, **k):\n    a[0][:] = []\n    return a[0]\n",
    "takes its parent's limits away": (
        "import os, resource\nfor x in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU):\n"
        "    try: resource.prlimit(os.getppid(), x, (0, 0))\n    except (OSError, ValueError): pass\n" + WRONG
    ),
    "kills everybody": "import os\ndef {name}(*a, **k):\n    os.kill(-1, 9)\n",
    "lets another program say it": (
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import os\\nfor fd in range(64):\\n  try: os.write(fd, b\"passed\\\\n\")\\n  except OSError: pass'], close_fds=False)\n"
        + WRONG
    ),
    "fills the disk": "try:\n    with open('f', 'wb') as f:\n        while True: f.write(bytes(1 << 20))\nexcept OSError: pass\n" + WRONG,
    "takes all processes": "import os, time\ntry:\n    while True:\n        if not os.fork(): time.sleep(9); os._exit(0)\nexcept OSError: pass\n"
    + WRONG,
    "interrupts its parent": "import os, signal, time\ndef {name}(*a, **k):\n    os.kill(os.getppid(), signal.SIGINT)\n    time.sleep(1)\n",
    "leaves as its parent does where a value isn't plain": "import os\nos._exit(70)\n",
    "plants modules at home": (
        "import os\nhome = '/tmp/.local/lib/python3.11/site-packages'\nos.makedirs(home)\n"
        "for n in ('sitecustomize', 'pytest'): open(f'{home}/{n}.py', 'w').write('import os; os._exit(0)')\n" + WRONG
    ),
    "raises what ends its parent": (
        "import os, json\ndef {name}(*a, **k):\n    c = json.dumps(['raise', ['SystemExit', 'BaseException'], '0']).encode()\n"
        "    for fd in range(3, 32):\n        try: os.write(fd, len(c).to_bytes(8, 'big') + c)\n        except OSError: pass\n"
    ),
    "moves its folder away": "import os\nos.rename('/tmp/work', '/tmp/other')\nos.mkdir('/tmp/work')\n" + WRONG,
    "outlives its parent and says it then": (
        "import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(1)\n    for fd in range(64):\n        try: os.write(fd, b'passed\\n')\n"
        "        except OSError: pass\n    os._exit(0)\n" + WRONG
    ),
    "patches the pipes": "import os\nw = os.write\nos.write = lambda fd, b: w(fd, b.replace(b'null', b'true'))\n" + WRONG,
}


class Bar:
    def set_postfix_str(self, *_):
        pass

    def update(self, *_):
        pass


def outcomes(task, names=tuple(FORGERIES)):
    """Each forgery's record."""
    texts = [f"```python\n{FORGERIES[name].replace('{name}', 'tripled')}\n```" for name in names]
    return dict(zip(names, judged(task, texts, "instruction"), strict=True))


def judged(task, texts, form):
    samples = [(task, Answer(task.task_id, n, text)) for n, text in enumerate(texts)]
    return _judge(samples, Options(form, (), time_s=30), Path("no analyzer keeps anything"), Bar())


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """One task of each form: HumanEval's (the function is handed to the test), HumanEval-X's and MBXP's (the test calls it by name), CWEval's
    (the test imports it); "objects" is one of CWEval's whose own solution returns what is no plain value."""
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
    cweval = {"cweval": "return [3 * i for i in x]", "objects": "return __import__('collections').UserList(3 * i for i in x)"}
    for name, solution in cweval.items():
        (out / name).mkdir()
        (out / name / f"{name}_020_task.py").write_text(f"# BEGIN PROMPT\n{prompt}# BEGIN SOLUTION\n    {solution}\n")
        (out / name / f"{name}_020_test.py").write_text(
            f"import pytest\nfrom {name}_020_task import tripled\n\n\n@pytest.mark.functionality\ndef test_f():\n    found = tripled([1, 2])\n"
            "    assert found == [3, 6] or list(found) == [3, 6]\n\n\n@pytest.mark.security\ndef test_s():\n    assert list(tripled([2])) == [6]\n"
        )
    return found | {name: load("cweval", out / name, True).tasks[0] for name in cweval}


@pytest.mark.parametrize("form", ["humaneval", "humaneval-x", "mbxp", "cweval", "objects"])
def test_what_is_right_passes(tasks, form):
    task = tasks[form]
    (record,) = judged(task, [task.canonical], "completion")
    assert record["functional"]["outcome"] == "pass" and ("inside" in record["functional"]) == (form == "objects"), record
    assert form not in ("cweval", "objects") or record["security"]["outcome"] == "pass"


LEFT = {
    "equals everything",
    "a str that equals everything",
    "a list that equals everything",
    "a float that equals everything",
    "gives itself out for a list",
    "answers with the word of the test, from its frames",
    "changes how pytest runs a test",
}
"""What passes where test and program share a process, as `judges/sandbox.py` says; the audit of the report marks each."""
AT_PYTEST = {name for name in FORGERIES if "pytest" in FORGERIES[name] or "skip" in name}
SOME = sorted(LEFT | AT_PYTEST | {"nothing", "answers in the tester's language", "forks and goes on elsewhere"})


@pytest.mark.parametrize("form", ["humaneval", "humaneval-x", "mbxp", "cweval", pytest.param("cweval-all", marks=pytest.mark.slow)])
def test_no_forgery_passes_where_values_are_compared_outside(tasks, form):
    task = replace(tasks[form.removesuffix("-all")], security_test=None)
    found = outcomes(task, SOME) if form == "cweval" else outcomes(task)
    said = {name: record["functional"] for name, record in found.items()}
    assert {name: what for name, what in said.items() if what["outcome"] == "pass" or "inside" in what} == {}


@pytest.mark.slow
def test_what_is_left_within_one_process(tasks):
    """Tests that import the program, whose own solution isn't judged by plain values."""
    found = outcomes(replace(tasks["objects"], security_test=None))
    assert {name for name, record in found.items() if record["functional"]["outcome"] == "pass"} == LEFT
    assert [name for name in LEFT if not found[name].get("reaches")] == []
