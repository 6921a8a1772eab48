"""Semgrep, with our own rules (`rules/`): run as a program, offline.

It lives in an environment of its own, since it pins other versions of what TensorFlow needs: `.venv/semgrep`, beside this Python's own
packages, or wherever `semgrep` is found on the PATH.
"""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from foundation.files import Json
from judges.findings import Finding, JudgeError

RULES = Path(__file__).parent / "rules"
ONE_CORE = False
ANY_TEXT = False
TIMEOUT_S = 1800
_SEVERITY = {"ERROR": "high", "WARNING": "medium", "INFO": "low"}


def missing() -> str | None:
    """What to do about it where Semgrep isn't installed; None where it is."""
    remedy = "run `make .venv/installed-judges`, or put `semgrep` (pip install semgrep, in its own environment) on the PATH"
    return None if programs() else remedy


@functools.cache
def version() -> str:
    """Names everything that a verdict depends on besides the source."""
    rules = b"".join(file.read_bytes() for file in sorted(RULES.glob("*.yaml")))
    asked = _call("--version --disable-version-check")
    asked.check_returncode()
    return f"semgrep {asked.stdout.strip()} rules {hashlib.sha256(rules).hexdigest()}"


def run(directory: Path, workers: int) -> tuple[list[tuple[str, Finding]], set[str]]:
    """(file name, finding) of every Python file in `directory`, and the names of the files that Semgrep gave up on.

    Raises:
      JudgeError: Semgrep itself failed.
    """
    results, gave_up = scan(directory, RULES, workers)
    return [(Path(r["path"]).name, finding(r, "semgrep", r["extra"]["metadata"]["cwe"])) for r in results], {file.name for file in gave_up}


def scan(directory: Path, rules: Path, workers: int) -> tuple[list[Json], set[Path]]:
    """Semgrep's own results on every Python file below `directory`, and the files, as paths from there, that it gave up on.

    Raises:
      JudgeError: Semgrep itself failed.
    """
    options = f"scan --metrics=off --disable-version-check --no-git-ignore --disable-nosem --json --quiet --timeout 30 --timeout-threshold 0 --max-target-bytes 0 --jobs {workers}"
    done = _call(options, "--config", str(rules), ".", cwd=directory)
    if done.returncode not in (0, 2):  # 2: some file could not be read, which the report names
        raise JudgeError(f"semgrep failed ({done.returncode}): {(done.stderr or done.stdout)[-2000:]}")
    report = json.loads(done.stdout)
    errors = [error for error in report["errors"] if error["level"] == "error"]
    if general := [error["message"] for error in errors if "path" not in error]:
        raise JudgeError(f"semgrep failed: {'; '.join(general)[:2000]}")
    scanned = {Path(name) for name in report["paths"]["scanned"]}
    given = {file.relative_to(directory) for file in directory.rglob("*.py")}
    return report["results"], {Path(error["path"]) for error in errors} | (given - scanned)


def programs() -> list[str]:
    """Paths of the Semgreps that can run here, the one to take first."""
    own = Path(sys.prefix) / "semgrep" / "bin" / "semgrep"
    return [str(own)] * own.is_file() + [found for found in [shutil.which("semgrep")] if found]


def _call(options: str, *more: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it without traces in the home directory, its own helper programs first on the PATH."""
    command = [programs()[0], *options.split(), *more]
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])
    with tempfile.TemporaryDirectory(prefix="semgrep-") as state:
        env = os.environ | {"PATH": path, "SEMGREP_SETTINGS_FILE": f"{state}/settings.yml", "SEMGREP_LOG_FILE": f"{state}/semgrep.log"}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)


def finding(result: Json, judge: str, cwe: str) -> Finding:
    """One of Semgrep's results as a finding of `judge`."""
    extra = result["extra"]
    return Finding(
        judge=judge,
        rule=result["check_id"].rpartition(".")[2],
        cwe=cwe,
        line=result["start"]["line"],
        end_line=result["end"]["line"],
        severity=_SEVERITY[extra["severity"]],
        message=extra["message"].strip(),
    )
