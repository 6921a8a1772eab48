"""What the report marks, and what it leaves alone."""

import pytest

from evaluation.audit import reaches


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("class A:\n    def __eq__(self, other): return True", ["__eq__"]),
        ("class A: __eq__ = lambda a, b: True", ["__eq__"]),
        ("type('A', (), {'__eq__': lambda a, b: True})", ["__eq__"]),
        ("class A: pass\nA.__eq__ = f", ["__eq__"]),
        ("class A: __class__ = list", ["__class__"]),
        ("import os\ngetattr(os, '_exit')(0)", ["_exit"]),
        ("from os import _exit, write", ["_exit", "write"]),
        ("import os\nos.write(1, b'')", ["write"]),
        ("import sys\nsys._getframe().f_back.f_locals", ["_getframe", "f_back", "f_locals"]),
        ("import sys\nsys.modules['__main__']", ["__main__", "modules"]),
        ("import _pytest.python, gc", ["_pytest", "gc"]),
        ("exec('a')", ["exec"]),
        ("__import__('ctypes')", ["__import__"]),
        ("from unittest import mock", ["unittest"]),
        ("open('main.py')", ["main.py"]),
        ("if __name__ == '__main__':\n    main()", []),
        (
            "import os, sys\nwith open('f', 'w') as f: f.write(type(f).__name__)\nprint(x.__class__, [1] == [1], 'kill', file=sys.stderr)",
            [],
        ),
        ("def f(:", []),
    ],
)
def test_reaches(code, found):
    assert reaches(code) == found
