"""How the repository is laid out: a test stands where its module stands, shares through tests/helpers/ alone, and no file grows long."""

import ast
from collections import defaultdict

from tests.helpers.paths import REPO

TESTS = REPO / "tests"
LONGEST = 450  # lines
DATA = ("data_pipeline/seed/", "data_pipeline/distill/knowledge/", "judges/rules/")
FOLDERS = (
    "foundation",
    "judges",
    "data_pipeline",
    "lpo_jax",
    "evaluation",
    "reproduce",
    "demos",
    "launch",
    "benchmarks",
    "website",
    "tests",
)
CODE = (".py", ".sh", ".sbatch", ".js", ".css", ".j2")


def test_a_test_is_named_after_its_module():
    """tests/a/b/test_name.py or test_name_aspect.py is of a/b/name.py, a/b/name.sh or the folder a/b/name; tests/whole/ is of no module."""
    strangers = []
    for file in TESTS.rglob("test_*.py"):
        folder = REPO / file.parent.relative_to(TESTS)
        words = file.stem.removeprefix("test_").split("_")
        names = ["_".join(words[:n]) for n in range(1, len(words) + 1)]
        if folder.name != "whole" and not any((folder / name).is_dir() or list(folder.glob(f"{name}.*")) for name in names):
            strangers.append(f"{file.relative_to(REPO)}: {folder.relative_to(REPO)}/ holds no {names[-1]}; name it after its module, or move it to tests/whole/")  # fmt: skip
    assert strangers == []


def test_tests_share_through_helpers_alone():
    wrong = []
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                found = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
            else:
                found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            strange = [name for name in found if name.startswith((".", "tests.", "conftest.")) and not name.startswith("tests.helpers.")]
            wrong += [f"{file.relative_to(REPO)} imports {name}: move what both need to tests/helpers/" for name in strange]
    assert wrong == []


def test_tests_define_a_thing_once():
    """Two equal constants, or functions of an equal body, belong into tests/helpers/."""
    places = defaultdict(list)
    for file in TESTS.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign):
                places[ast.unparse(node)].append(file)
            elif isinstance(node, ast.FunctionDef):
                places["\n".join(map(ast.unparse, node.body[ast.get_docstring(node) is not None :]))].append(file)
    twice = {text: sorted(str(file.relative_to(REPO)) for file in files) for text, files in places.items() if len(files) > 1}
    assert twice == {}


def test_no_file_is_long():
    files = [path for folder in FOLDERS for path in (REPO / folder).rglob("*") if path.suffix in CODE]
    names = {str(path.relative_to(REPO)): path.read_text(encoding="utf-8").count("\n") for path in files}
    long = {name: lines for name, lines in names.items() if lines > LONGEST and not name.startswith(DATA)}
    assert names and long == {}, f"over {LONGEST} lines: split by duty"
