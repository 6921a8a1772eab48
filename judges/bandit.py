"""Bandit: run as a program on a directory, its CWEs corrected."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from judges.findings import Finding

CORRECTED_CWE = {
    "B102": 95,  # exec; Bandit says 78 (commands)
    "B105": 798,  # hard-coded passwords; Bandit says 259, a variant of it
    "B106": 798,
    "B107": 798,
    "B201": 489,  # Flask's debug mode; Bandit says 94
    "B307": 95,  # eval; Bandit says 78
    "B310": 918,  # urlopen with any scheme; Bandit says 22
    **dict.fromkeys(("B313", "B314", "B315", "B316", "B317", "B318", "B319", "B320"), 611),  # XML parsers; Bandit says 20
    "B506": 502,  # yaml.load; Bandit says 20
    "B701": 79,  # Jinja2 without autoescape; Bandit says 94
    "B702": 79,  # Mako; Bandit says 80, a variant of it
    "B609": 78,  # wildcards in a shell; Bandit says 155
    "B612": 502,  # logging.config.listen evaluates what it is sent; Bandit says 94
    "B703": 79,  # Django's mark_safe; Bandit says 80
}
"""Rule -> CWE, where Bandit's own is missing, general or of another kind of weakness."""

ONE_CORE = True  # run several side by side
TIMEOUT_S = 600


def missing() -> str | None:
    """None: it is a dependency."""
    return None


def version() -> str:
    """Names everything that a verdict depends on besides the source."""
    return f"bandit {metadata.version('bandit')} {sorted(CORRECTED_CWE.items())} constants"


def run(directory: Path, workers: int) -> tuple[list[tuple[str, Finding]], set[str]]:
    """(file name, finding) of every Python file in `directory`, and the names of the files that Bandit could not read.

    Raises:
      RuntimeError: Bandit itself failed.
    """
    command = [sys.executable, "-m", "bandit", "--quiet", "--ignore-nosec", "--exit-zero", "--format", "json", "--recursive", "."]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"bandit failed ({done.returncode}): {done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    real = [r for r in report["results"] if not (r["test_id"] == "B608" and _constant(directory / r["filename"], r["line_range"]))]
    return [(Path(r["filename"]).name, _finding(r)) for r in real], {Path(e["filename"]).name for e in report["errors"]}


def _constant(file: Path, lines: list[int]) -> bool:
    """Whether nothing is put into the texts on these lines: Bandit takes an f-string without a value for built SQL."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.expr) and node.lineno <= lines[-1] and (node.end_lineno or 0) >= lines[0]:
            match node:
                case (
                    ast.FormattedValue()
                    | ast.BinOp(op=ast.Mod() | ast.Add())
                    | ast.Call(func=ast.Attribute(attr="format" | "replace" | "join"))
                ):
                    return False
    return True


def _finding(result: dict) -> Finding:
    rule = result["test_id"]
    number = CORRECTED_CWE.get(rule) or result.get("issue_cwe", {}).get("id")
    lines = result["line_range"]
    return Finding(
        judge="bandit",
        rule=rule,
        cwe=f"CWE-{number}" if number else "",
        line=lines[0],
        end_line=lines[-1],
        severity=result["issue_severity"].lower(),
        message=result["issue_text"],
    )
