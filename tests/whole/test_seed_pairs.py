"""The shipped pairs: enough of them, both sides parse, the fix is small, the task doesn't give it away."""

import ast
import difflib
import json
import re
import shutil
import sys

import pytest

from data_pipeline import check, pairs
from data_pipeline.pairs import Drops
from judges.sandbox import backends
from tests.helpers.paths import SEED_PAIRS

DROPS = Drops()
PAIRS = [pair for file in (SEED_PAIRS, SEED_PAIRS.with_name("broad.jsonl")) for pair in pairs.read(file, DROPS)]


def test_counts():
    assert DROPS.rows == []
    assert len(PAIRS) >= 300
    assert len({p.cwe for p in PAIRS}) >= 120
    assert len({p.id for p in PAIRS}) == len(PAIRS)
    assert len({code for p in PAIRS for code in (p.chosen, p.rejected)}) == 2 * len(PAIRS)


def test_every_pair():
    for p in PAIRS:
        assert re.fullmatch(r"CWE-[1-9]\d*", p.cwe), p.id
        assert p.reasoning.startswith(f"The code may have the vulnerability {p.cwe}: '"), p.id
        for code in (p.chosen, p.rejected):
            ast.parse(code)
            assert 5 <= len(code.splitlines()) <= 32, p.id
        assert difflib.SequenceMatcher(None, p.rejected, p.chosen, autojunk=False).ratio() >= 0.7, p.id
        assert 10 <= len(p.instruction.split()) <= 60, p.id
        assert not re.search(r"\b(secur|vulnerab|attack|inject|malicious|exploit|sanitiz|CWE)", p.instruction, re.IGNORECASE), p.id


def test_libraries():
    """At least 25 that don't come with Python, by their imports."""
    imports = {
        name.split(".")[0]
        for p in PAIRS
        for node in ast.walk(ast.parse(p.chosen))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert len(imports - sys.stdlib_module_names) >= 25


def test_the_analyzers_verdicts_are_of_this_code():
    rows = [json.loads(line) for line in (SEED_PAIRS.parent / "verdicts.jsonl").read_text().splitlines()]
    assert [(row["id"], row["sha256"]) for row in rows] == [(p.id, check.digest(p)) for p in PAIRS], (
        "run `lpo-data check data_pipeline/seed/{pairs,broad}.jsonl --verdicts data_pipeline/seed/verdicts.jsonl`"
    )


@pytest.mark.skipif(not backends(), reason="no sandbox works here")
@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_executable_checks(every, tmp_path):
    """Both sides do the job, only the secure one survives the attack: a sample by default, all of them slow."""
    folder = SEED_PAIRS.parent / "checks"
    files = sorted(path for path in folder.glob("*.py") if path.name != "doubles.py")
    assert len(files) >= 100
    for path in [*files[::every], folder / "doubles.py"]:
        shutil.copy(path, tmp_path)
    assert [(p.id, fault) for p, fault in check.executions(PAIRS, tmp_path) if fault] == []
