"""Odd programs held against a test, through every back end: what is right passes, however it is written; what isn't doesn't, however it ends."""

import pytest

from judges.sandbox import Case, Limits, Test, run, run_many

WORK = "/tmp/work"  # within the sandbox
TEST = "assert halved([4, 6]) == [2, 3]\nassert halved([]) == []\n"
RIGHT = "def halved(numbers):\n    return [n // 2 for n in numbers]\n"
WRONG = "def halved(numbers):\n    return numbers\n"

PASS = {
    "right": RIGHT,
    "says much": "print('y' * 9000)\n" + RIGHT,
    "says half a line": "import sys\nsys.stdout.write('half')\n" + RIGHT,
    "says what is no text": "import sys\nsys.stdout.buffer.write(b'\\xfe\\xff')\n" + RIGHT,
    "closes its output": "import sys\nsys.stdout.close()\n" + RIGHT,
    "leaves a thread behind": "import threading, time\nthreading.Thread(target=time.sleep, args=(50,), daemon=True).start()\n" + RIGHT,
    "declares another encoding than that of its text": "# coding: latin-1\nassert len('ü') == 1\n" + RIGHT,
    "declares an encoding that doesn't exist": "# coding: martian\n" + RIGHT,
    "begins with a byte order mark": "\ufeff" + RIGHT,
    "ends its lines as Windows does": RIGHT.replace("\n", "\r\n"),
    "has names of other alphabets": "δύο = 2\ndef halved(numbers):\n    return [n // δύο for n in numbers]\n",
    "has a separator within a string": "assert len('1\u20282') == 3\n" + RIGHT,
    "has a form feed": "\x0c\n" + RIGHT,
    "imports from the future": "'''Text.'''\nfrom __future__ import annotations\n" + RIGHT,
    "imports what makes processes": "import multiprocessing, concurrent.futures\n" + RIGHT,
    "pickles what it defines": "import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A\n" + RIGHT,
    "has a dataclass whose types are texts": "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int'\nA(1)\n" + RIGHT,
    "refers to its own types": "import typing\nclass A:\n    x: 'A'\nassert typing.get_type_hints(A) == {'x': A}\n" + RIGHT,
    "has other numbers": "from decimal import Decimal as D\nfrom fractions import Fraction as F\ndef halved(numbers):\n    return [(D, F)[n > 5](n) / 2 for n in numbers]\n",
    "changes its argument as well": "def halved(numbers):\n    numbers[:] = [n // 2 for n in numbers]\n    return numbers\n",
}
FAIL = {
    "wrong": (WRONG, "fail"),
    "ends": (WRONG + "raise SystemExit\n", "fail"),
    "ends at once": ("import os\nos._exit(0)\n", "fail"),
    "ends when it is called": ("import os\ndef halved(numbers):\n    os._exit(0)\n", "fail"),
    "ends well at exit": ("import atexit, os\natexit.register(os._exit, 0)\n" + WRONG, "fail"),
    "ends well on every error": ("import os, sys\nsys.excepthook = lambda *a: os._exit(0)\n" + WRONG, "fail"),
    "equals everything": ("class E:\n    __eq__ = lambda a, b: True\ndef halved(numbers):\n    return E()\n", "fail"),
    "a list that equals everything": ("class E(list):\n    __eq__ = lambda a, b: True\ndef halved(numbers):\n    return E()\n", "fail"),
    "prints what stands in its file": ("print(open('main.py').read(), 'passed')\n" + WRONG, "fail"),
    "goes through the frames": (
        "import sys\ndef halved(numbers):\n    f = sys._getframe()\n    while f:\n        print(f.f_locals, f.f_code.co_consts)\n        f = f.f_back\n",
        "fail",
    ),
    "another AssertionError": ("class AssertionError(Exception): pass\n" + WRONG, "fail"),
    "a check of its own": (WRONG + "def check(f): pass\n", "fail"),
    "half a surrogate": ("print('\\udc00')\n" + RIGHT, "fail"),
    "recursion": ("def r(n): r(n + 1)\nr(0)\n" + RIGHT, "fail"),
    "a loop": ("while True: pass\n" + RIGHT, "timeout"),
    "sleep": ("import time\ntime.sleep(50)\n" + RIGHT, "timeout"),
    "output": ("while True: print('y' * 900)\n" + RIGHT, "crash"),
    "forks": ("import os\nwhile True: os.fork()\n" + RIGHT, "crash"),
    "memory": ("y = bytearray(3 << 30)\n" + RIGHT, "crash"),
}


def outcomes(backend, programs):
    test = Test(TEST, ("halved",))
    cases = [Case(code, limits=Limits(time_s=4, memory_mb=256, pids=16), test=test) for code in programs]
    return [(result.outcome, result.detail) for result in run_many(cases, 2, backend=backend)]


def test_what_is_right_passes(backend):
    found = dict(zip(PASS, outcomes(backend, PASS.values()), strict=True))
    assert {name: said for name, said in found.items() if said[0] != "pass"} == {}


def test_what_is_wrong_fails(backend):
    found = dict(zip(FAIL, outcomes(backend, (code for code, _ in FAIL.values())), strict=True))
    assert {name: said for name, said in found.items() if said[0] != FAIL[name][1]} == {}


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("ValueError('x')", "ValueError"),
        ("json.JSONDecodeError('x', 'y', 0)", "ValueError"),
        ("Own('x')", "LookupError"),
        ("b'\\xff'.decode()", "UnicodeDecodeError"),
    ],
)
def test_exceptions_are_what_they_are_based_on(raised, expected):
    """As a test within the program would catch them."""
    code = f"import json\nclass Own(KeyError): pass\ndef f():\n    raise {raised}\n"
    test = f"try:\n    f()\nexcept {expected}:\n    pass\nelse:\n    raise SystemError\n"
    result = run(Case(code, test=Test(test, ("f",))))
    assert result.outcome == "pass", result


def test_an_exception_has_its_arguments():
    code = "def f(kind):\n    raise {'key': KeyError('a'), 'own': type('E', (ValueError,), {'__str__': lambda e: 'x'})(1)}[kind]\n"
    test = "for kind, args in (('key', ('a',)), ('own', ('x',))):\n    try:\n        f(kind)\n    except (KeyError, ValueError) as error:\n        assert error.args == args, error.args\n"
    result = run(Case(code, test=Test(test, ("f",))))
    assert result.outcome == "pass", result


def test_arguments_are_changed_wherever_they_stand():
    code = "def f(a, b, c):\n    a[0].append(1)\n    b[0] = 1\n    c.append(1)\n    raise ValueError\n"
    test = "a, b, c = ([],), bytearray(1), []\ntry:\n    f(a, b, c=c)\nexcept ValueError:\n    assert (a, b, c) == (([1],), b'\\1', [1]), (a, b, c)\n"
    result = run(Case(code, test=Test(test, ("f",))))
    assert result.outcome == "pass", result


def test_arguments_that_are_no_longer_plain_are_left_as_they_were():
    code = "def f(d):\n    eval('1', d)\n    return 1\n"  # which puts __builtins__ into it
    result = run(Case(code, test=Test("d = {}\nassert (f(d), d) == (1, {})", ("f",))))
    assert result.outcome == "pass", result


def test_a_test_reports_as_it_runs(backend):
    """Whatever the program writes, and however it ends."""
    code = "import os, sys\nos.write(1, b'mine\\npassed\\n')\nclass Own(ValueError): pass\ndef f(x):\n    while x == 3: pass\n    raise Own(x)\n"
    test = (
        "for x in range(4):\n    try:\n        f(x)\n    except ValueError as e:\n        report_(f'{type(e).__name__}\\n{e.raised} {e}')\n"
    )
    limits = Limits(time_s=4, memory_mb=256)
    result = run(Case(code, test=Test(test, ("f",)), limits=limits), backend=backend)
    assert (result.outcome, result.reports) == ("timeout", ("ValueError Own 0", "ValueError Own 1", "ValueError Own 2"))
    short = run(Case(code, test=Test(test.replace("4", "2"), ("f",)), limits=limits), backend=backend)
    assert (short.outcome, short.reports) == ("pass", ("ValueError Own 0", "ValueError Own 1"))
    assert run(Case(code, test=Test("report_('passed')\nraise SystemExit(0)", ("f",))), backend=backend).outcome == "fail"


def test_a_program_without_what_is_called_fails():
    result = run(Case("def g(): pass\n", test=Test("try:\n    f()\nexcept KeyError:\n    pass\n", ("f",))))
    assert (result.outcome, result.detail) == ("fail", "the program defines no f")


def test_numbers_and_ranges_come_out_as_what_they_are():
    code = "from decimal import Decimal\ndef f(x): return [x, range(3), Decimal('0.1')]\n"
    test = "from decimal import Decimal\nfrom fractions import Fraction\nassert f(Fraction(1, 3)) == [Fraction(1, 3), range(3), Decimal('0.1')]\n"
    assert run(Case(code, test=Test(test, ("f",)))).outcome == "pass"
    forged = "class Decimal(str):\n    __module__ = 'decimal'\n    __str__ = lambda x: '1'\ndef f(x): return Decimal()\n"
    assert run(Case(forged, test=Test("assert f(1) == 2", ("f",)))).outcome == "fail"


def test_iterators_and_views_come_out_with_what_they_hold():
    code = "def lazy(n):\n    yield from range(n)\ndef keys(d):\n    return d.keys()\ndef both(d):\n    return d.items(), d.values(), map(str, d)\n"
    test = (
        "assert list(lazy(3)) == [0, 1, 2] and lazy(3) != [0, 1, 2] and next(lazy(1)) == 0\n"
        "assert keys({'a': 1}) == {'a'}\nitems, values, texts = both({1: 2})\nassert list(items) == [(1, 2)] and list(values) == [2] and list(texts) == ['1']\n"
    )
    assert run(Case(code, test=Test(test, ("lazy", "keys", "both")))).outcome == "pass"
    endless = "def lazy(n):\n    while True:\n        yield n\n"
    assert run(Case(endless, test=Test("lazy(3)", ("lazy",)))).opaque


def test_threads_need_little_address_space(attack):
    code = "import threading\nb = threading.Barrier(9)\nfor _ in range(8): threading.Thread(target=b.wait).start()\nb.wait()"
    assert attack(code).outcome == "pass"


def test_leaving_with_the_testers_own_exit_code_says_nothing():
    assert not run(Case("import os\nos._exit(70)", test=Test(TEST, ("halved",)))).opaque
    assert run(Case("def halved(x): return object()", test=Test(TEST, ("halved",)))).opaque


def test_a_program_finds_its_own_file():
    code = "import os\nos.chdir('/')\nassert open(__file__).read().startswith('import os')\n"
    assert run(Case(code)).outcome == "pass"
    test = Test(f"assert f() == '{WORK}/main.py'", ("f",), before="import os\nos.chdir('/')")
    assert run(Case("import os\ndef f(): return os.path.abspath(__file__)", test=test)).outcome == "pass"


def test_large_answers_take_no_longer_than_their_size(backend):
    code = "def f(n):\n    return 'x' * n"
    result = run(Case(code, limits=Limits(time_s=20), test=Test("assert len(f(20 << 20)) == 20 << 20", ("f",))), backend=backend)
    assert result.outcome == "pass" and result.seconds < 20


def test_a_program_that_keeps_its_tester_from_reading_holds_nobody_up(backend):
    """The test is larger than what a pipe holds."""
    code = "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(60)"
    result = run(Case(code, limits=Limits(time_s=2), test=Test("#" * (4 << 20), ("f",))), backend=backend)
    assert result.outcome == "timeout"


def test_what_the_test_prints_is_no_verdict(backend):
    test = "print('y' * 20000, flush=True)\nassert f() == 1"
    assert run(Case("def f(): return 1", test=Test(test, ("f",))), backend=backend).outcome == "pass"
    assert run(Case("def f(): return 2", test=Test("print('passed', flush=True)\n" + test, ("f",))), backend=backend).outcome == "fail"
