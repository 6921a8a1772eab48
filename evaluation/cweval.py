"""CWEval's tasks, and how tests for pytest run against a program."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from evaluation.tasks import Task, code_task, cwe_of
from judges.prepare import parse


def read(path: Path, content: bytes) -> Iterator[Task]:
    """A directory of NAME_task.py, with lines "# BEGIN PROMPT" and "# BEGIN SOLUTION", and NAME_test.py for pytest, which imports the former.

    Tests are marked `functionality` or `security`.
    """
    if not path.is_dir():
        raise ValueError("CWEval comes as a directory of *_task.py and *_test.py")
    for file in sorted(path.rglob("*_task.py")):
        test = file.with_name(file.name.replace("_task.py", "_test.py"))
        parts = re.split(r"^[ \t]*# BEGIN (?:PROMPT|SOLUTION)[ \t]*\n", file.read_text(), flags=re.MULTILINE)
        if len(parts) != 3 or not test.is_file():
            raise ValueError(f"{file.name} needs a line # BEGIN PROMPT, a line # BEGIN SOLUTION, and {test.name} beside it")
        prompt = re.sub(r"^[ \t]*# BEGIN ENTRYPOINT[ \t]*\n", "", parts[1], flags=re.MULTILINE)
        source = test.read_text(encoding="utf-8")
        functional, security = (with_pytest(source, mark) for mark in ("functionality", "security"))
        tests = {"canonical": parts[2], "functional_test": functional, "security_test": security, "packages": True, "module": file.stem}
        yield code_task(file.stem.removesuffix("_task"), prompt, cwe=cwe_of(file.stem), names=_imported(source, file.stem), **tests)


def _imported(test: str, module: str) -> tuple[str, ...]:
    """What a test imports from a module."""
    tree = parse(test)
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module) if tree else ()
    return tuple(dict.fromkeys(alias.name for node in nodes for alias in node.names if alias.name != "*"))


def with_pytest(test: str, mark: str, names: tuple[str, ...] = ()) -> str:
    """A program that runs the tests of one mark against the code that they import, and raises unless every one ran to its end or is skipped, and not all are.

    Args:
      mark: what pytest's -m takes.
      names: what they use of that code without importing it.

    Nothing is read from the working directory, where the tested code may have put what it likes: the tests are handed over in memory, in place of a
    file of Python's own.
    """
    return f"""
import os as _os, sys as _sys
for _name in [_name for _name in _os.environ if _name.startswith("PYTEST")]:
    del _os.environ[_name]
import pytest as _pytest
_tests = type(_sys)("check_test")
_tests.__file__ = _os.path.abspath("check_test.py")
_tests.__dict__.update((_name, globals()[_name]) for _name in {names!r} if _name in globals())
exec(compile({test!r}, "check_test.py", "exec"), _tests.__dict__)

class _Plugin:
    left, passed = -1, 0

    def pytest_pycollect_makemodule(self, module_path, parent):
        class Module(_pytest.Module):
            def _getobj(self):
                return _tests
        return Module.from_parent(parent, path=module_path)

    def pytest_collection_finish(self, session):
        self.left = len(session.items) or -1

    def pytest_runtest_logreport(self, report):
        ran = report.passed and report.when == "call"
        self.passed += ran
        self.left -= ran or report.skipped and report.when == "setup"

_plugin = _Plugin()
_options = ["-q", "-x", "-p", "no:cacheprovider", "--assert=plain", "--noconftest", "-c", _os.devnull, "--rootdir", _os.path.dirname(_os.__file__), "-m", {mark!r}]
_main = kept_["pytest.main"] if "kept_" in globals() else _pytest.main
_code = _main([*_options, _os.__file__], plugins=[_plugin])
if _code or _plugin.left or not _plugin.passed:
    raise AssertionError(f"pytest ended with {{int(_code)}}, {{_plugin.passed}} tests passed, {{max(_plugin.left, 0)}} left")
"""
