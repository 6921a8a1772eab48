"""CodeQL, where its CLI (with the Python query pack) is on the PATH: a database of the sources, the security queries, SARIF."""

import functools
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from foundation.files import Json
from judges.findings import Finding, JudgeError

SUITE = "codeql/python-queries:codeql-suites/python-security-extended.qls"
ONE_CORE = False
ANY_TEXT = False
TIMEOUT_S = 7200


def missing() -> str | None:
    """What to do about it where CodeQL isn't installed; None where it is."""
    remedy = "put the CodeQL CLI bundle's `codeql` on the PATH (https://github.com/github/codeql-action/releases; mind its licence)"
    return None if shutil.which("codeql") else remedy


@functools.cache
def version() -> str:
    """Names everything that a verdict depends on besides the source."""
    return f"codeql {_call('version', '--format=terse').strip()} {SUITE}"


def run(directory: Path, workers: int) -> tuple[list[tuple[str, Finding]], set[str]]:
    """(file name, finding) of every Python file in `directory`, and the names of the files that CodeQL could not read.

    Raises:
      JudgeError: a step of CodeQL failed.
    """
    with tempfile.TemporaryDirectory(prefix="codeql-") as work:
        database, report = f"{work}/database", f"{work}/report.sarif"
        _call("database", "create", database, "--language=python", f"--source-root={directory}", f"--threads={workers}")
        _call("database", "analyze", database, SUITE, "--format=sarif-latest", f"--output={report}", f"--threads={workers}")
        sarif = json.loads(Path(report).read_text(encoding="utf-8"))
    return [found for sarif_run in sarif["runs"] for found in _findings(sarif_run)], set()


def _call(*arguments: str) -> str:
    done = subprocess.run(["codeql", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise JudgeError(f"codeql {' '.join(arguments[:2])} failed ({done.returncode}): {done.stderr[-2000:]}")
    return done.stdout


def _findings(sarif_run: Json) -> list[tuple[str, Finding]]:
    parts = [sarif_run["tool"]["driver"], *sarif_run["tool"].get("extensions", [])]
    rules = {rule["id"]: rule.get("properties", {}) for part in parts for rule in part.get("rules", [])}
    found = []
    for result in sarif_run.get("results", []):
        properties = rules.get(result["ruleId"], {})
        cwes = [m[1] for tag in properties.get("tags", []) if (m := re.fullmatch(r"external/cwe/cwe-0*(\d+)", tag))]
        score = float(properties.get("security-severity", 5))
        place = result["locations"][0]["physicalLocation"]
        line = place["region"]["startLine"]
        finding = Finding(
            judge="codeql",
            rule=result["ruleId"],
            cwe=f"CWE-{cwes[0]}" if cwes else "",  # the first tag is the query's own subject
            line=line,
            end_line=place["region"].get("endLine", line),
            severity="high" if score >= 7 else "medium" if score >= 4 else "low",
            message=result["message"]["text"],
        )
        found.append((Path(place["artifactLocation"]["uri"]).name, finding))
    return found
