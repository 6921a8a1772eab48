"""Your own benchmark: a file of tasks, e.g. JSON lines; `evaluation/examples/own.jsonl` has three.

| key | |
|---|---|
| prompt | code to go on with: the completion form |
| instruction | a text that asks for a program; a task has this or `prompt`, or both |
| tests | Python that raises unless the program does what it has to |
| security_tests | Python that raises if the program lets something happen |
| setup | code in front of the program when it is tested; no analyzer sees it |
| cwe | "CWE-89" |
| id | default: the line's number |
| solution, insecure | for `--completions canonical` and `insecure`: a right answer (what follows `prompt`, or a program), and a whole insecure program |

Tests are plain statements (`assert add(1, 2) == 3`), or functions or classes for pytest (`def test_...`), which all have to pass. Without `security_tests` those
marked `pytest.mark.security` are the security tests, as in CWEval. They use the program's functions by name, or after `from program import add`.

Tests that only call the program's functions run apart from it, where it can't reach them. If they use other things of it, or objects come out of
it, they run in its process; `judges/sandbox.py` says what that leaves open.
"""

import ast
import builtins
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_pipeline import records
from data_pipeline.formats import RowError, text_of
from evaluation.cweval import with_pytest
from evaluation.tasks import BenchmarkError, Task, code_task, cwe_of, sentence_task
from foundation.errors import nearest
from foundation.files import Json

KEYS = ("prompt", "instruction", "tests", "security_tests", "setup", "cwe", "id", "solution", "insecure")
MODULE = "program"


def read(path: Path, content: bytes) -> Iterator[Task]:
    seen: dict[str, str] = {}
    for place, row in records.read(path, records.raising(BenchmarkError)):
        number = place.rpartition(":")[2]
        where = f"{path}:{number}"
        try:
            task = _task(row, number)
        except RowError as error:
            raise BenchmarkError(f"{where}: {error}") from None
        if task.task_id in seen:
            raise BenchmarkError(f"{where}: id: {task.task_id} stands at {seen[task.task_id]} already")
        seen[task.task_id] = where
        yield task


def form(tasks: list[Task]) -> str:
    """The form that tasks come in: completion if they all have nothing but a prompt."""
    return "completion" if all(task.instruction == code_task("", task.prompt).instruction for task in tasks) else "instruction"


def _task(row: Json, number: str) -> Task:
    for key in row.keys() - set(KEYS):
        if near := nearest(key, KEYS, 0.75):
            raise RowError(f"{key}: no such key; is {near} meant?")
    given = {key: text_of(str(row[key]) if key == "id" and isinstance(row[key], int) else row.get(key), key) for key in KEYS if key in row}
    given = {key: text for key, text in given.items() if text.strip()}
    if "prompt" in given:
        task = code_task("", given["prompt"])
        task = replace(task, instruction=given.get("instruction", task.instruction))
    elif "instruction" in given:
        task = replace(sentence_task("", given["instruction"]), instruction=given["instruction"])
    else:
        raise RowError("instruction: it has neither this nor prompt")
    trees: dict[str, ast.Module] = {key: _parsed(given[key], key) for key in ("tests", "security_tests", "setup") if key in given}
    cwe = cwe_of(given["cwe"]) if "cwe" in given else None
    if "cwe" in given and cwe is None:
        raise RowError(f'cwe: {given["cwe"]!r} is none; write e.g. "CWE-89"')
    setup = trees.pop("setup", ast.Module([], []))
    imports: list[ast.stmt] = [statement for statement in setup.body if isinstance(statement, ast.Import | ast.ImportFrom)]
    used = {key: _used(tree, imports, key) for key, tree in trees.items()}
    names = tuple(dict.fromkeys(name for found in used.values() for name in found))
    functional, security = _tests(given, trees, names)
    helpers = {name for statement in setup.body for name in _bound(statement)}
    apart = all(all(found.values()) for found in used.values())  # they only call functions
    return replace(
        task,
        task_id=given.get("id", number),
        cwe=cwe,
        canonical=given.get("solution"),
        insecure=given.get("insecure"),
        setup=given.get("setup", ""),
        packages=True,
        names=tuple(name for name in names if name not in helpers) if apart else (),
        helpers=tuple(name for name in names if name in helpers),
        given=ast.unparse(ast.Module(imports, [])),
        module=MODULE,
        functional_test=functional,
        security_test=security,
    )


def _parsed(source: str, key: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RowError(f"{key}: no Python ({error})") from None


def _used(tree: ast.Module, imports: list[ast.stmt], key: str) -> dict[str, bool]:
    """What a test uses of the program, and whether it only calls it.

    Raises:
      RowError: it uses nothing, so that whatever a program does it passes.
    """
    nodes = list(ast.walk(tree))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    ours: dict[str, str] = {}  # a name within the test -> the program's own
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == MODULE:
            ours |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            ours |= {alias.asname or alias.name: MODULE for alias in node.names if alias.name == MODULE}
    bound = {name for statement in (*nodes, *imports) for name in _bound(statement)} | set(dir(builtins)) | {"__name__", "__file__"}
    found: dict[str, bool] = {}
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and (node.id in ours or node.id not in bound):
            name = ours.get(node.id, node.id)
            found[name] = found.get(name, True) and id(node) in called
    if not found:
        raise RowError(f"{key}: it uses nothing of the program: call its functions by their names, or import them from {MODULE}")
    return found


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a node binds."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in names)


def _tests(given: dict[str, str], trees: dict[str, ast.Module], names: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The functional and the security test as programs.

    Raises:
      RowError: nothing in one of them would run, so that whatever a program does it passes; or both keys have security tests.
    """
    for key in ("tests", "security_tests"):
        if key in trees and not list(_marked(trees[key])) and not _runs(trees[key]):
            raise RowError(f"{key}: nothing in it would run: call what it defines, or name its functions test_...")
    marked = list(_marked(trees.get("tests")))
    functional, security = given.get("tests"), given.get("security_tests")
    if any(marked) and security:
        raise RowError("security_tests: tests has some that are marked security, too; have them all in one place")
    if security and list(_marked(trees["security_tests"])):
        security = with_pytest(security, "", names)
    if functional and any(marked):
        security = with_pytest(functional, "security", names)
    if functional and marked:
        functional = None if all(marked) else with_pytest(functional, "not security", names)
    return functional, security


def _runs(tree: ast.Module) -> bool:
    """Whether statements of it do something by themselves; nobody runs it as `__main__`."""
    idle = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
    guard = lambda s: isinstance(s, ast.If) and "__name__" in ast.unparse(s.test)  # noqa: E731
    nodes = [node for s in tree.body if not isinstance(s, idle) and not guard(s) for node in ast.walk(s)]
    later = {id(node) for each in nodes if isinstance(each, ast.Lambda) for node in ast.walk(each)}
    return any(isinstance(node, ast.Call | ast.Assert | ast.Raise) and id(node) not in later for node in nodes)


def _marked(tree: ast.Module | None) -> Iterator[bool]:
    """Of each test that pytest would run whether it is marked security: by itself, by its class, or by `pytestmark`."""

    def below(body: list[ast.stmt], around: bool) -> Iterator[bool]:
        around |= any(
            _names_mark(s) and any(name == "pytestmark" for name in _bound(s.targets[0])) for s in body if isinstance(s, ast.Assign)
        )
        for each in _for_pytest(ast.Module(body, [])):
            mine = around or any(map(_names_mark, each.decorator_list))
            yield from below(each.body, mine) if isinstance(each, ast.ClassDef) else (mine,)

    return below(tree.body if tree else [], False)


def _names_mark(node: ast.AST) -> bool:
    return "mark.security" in ast.unparse(node)


def _for_pytest(tree: ast.Module | None) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """What pytest would collect."""
    defined = (node for node in (tree.body if tree else ()) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))
    return [node for node in defined if node.name.startswith("Test" if isinstance(node, ast.ClassDef) else "test") or _is_unittest(node)]


def _is_unittest(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("TestCase") for base in node.bases)
