"""Meta's Insecure Code Detector, which judges CyberSecEval: the rules of the package `codeshield` (MIT licence), run on our terms.

The package calls Semgrep once for each text, and in a way that finds nothing, without a word, in any Semgrep that it can be installed with today.
So only its rules are taken from it: Semgrep runs those for Python on all texts at once, and regular expressions are searched for here. The package
is looked for beside Semgrep. As in Meta's own harness a text needn't be Python: it is read as it stands. What doesn't parse is read a second time, in
pieces that do, for Semgrep overlooks what stands near a line that it can't read, and code cut out of a file is full of those.
"""

import functools
import hashlib
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import yaml

from foundation.files import Json
from judges import semgrep
from judges.findings import Finding
from judges.prepare import parse, stumbles_at

ONE_CORE = False
ANY_TEXT = True
_PARTS = ("rules/semgrep/python", "rules/regex/python.yaml", "rules/regex/language_agnostic.yaml")
_MENDED = "mended"


def missing() -> str | None:
    """What to do about it where its rules or Semgrep aren't installed; None where they are."""
    if reason := semgrep.missing():
        return reason
    return None if _package() else "run `make .venv/installed-judges`, or install codeshield beside `semgrep` (pip install codeshield)"


@functools.cache
def version() -> str:
    """Names everything that a verdict depends on besides the source."""
    files = [Path(__file__)]
    for part in _parts():
        files += sorted(part.glob("*.yaml")) if part.is_dir() else [part]
    return f"codeshield rules {hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()} {semgrep.version()}"


def run(directory: Path, workers: int) -> tuple[list[tuple[str, Finding]], set[str]]:
    """(file name, finding) of every file *.py in `directory`, and the names of the files that Semgrep could not read at all.

    Raises:
      JudgeError: Semgrep itself failed.
    """
    found: set[tuple[str, Finding]] = set()
    texts = {file.name: file.read_text(encoding="utf-8") for file in directory.glob("*.py")}
    origin: dict[str, list[int]] = {}
    (directory / _MENDED).mkdir()
    for name, text in texts.items():
        found |= {(name, finding) for finding in _regex_findings(text)}
        if parse(text) is None:
            mended, origin[name] = pieces(text)
            (directory / _MENDED / name).write_text(mended, encoding="utf-8")
    results, unread = semgrep.scan(directory, _parts()[0], workers)
    for result in results:
        file = Path(result["path"])
        finding = semgrep.finding(result, "codeshield", result["extra"]["metadata"]["cwe_id"])
        if file.parent.name == _MENDED:
            places = origin[file.name]
            finding = replace(finding, line=places[finding.line - 1], end_line=places[finding.end_line - 1])
        found.add((file.name, finding))
    flagged = {name for name, _ in found}
    gave_up = {name for name in texts if {Path(name), Path(_MENDED, name)} & unread and name not in flagged}
    return sorted(found, key=lambda each: (each[0], each[1].line, each[1].rule)), gave_up


def pieces(text: str) -> tuple[str, list[int]]:
    """The pieces of a text that Python reads, one behind the other, and of each line of them the line of `text` (from 1) that it is.

    A piece begins with lines `if True:` for the blocks that it stands in. Lines that no piece holds are left out.
    """
    lines, out, origin, start = text.split("\n"), [], [], 0
    while start < len(lines):
        front, end = [], len(lines)
        while end > start:
            front = _blocks_around(lines[start:end])
            at = stumbles_at("\n".join(front + lines[start:end]))
            if at is None:
                break
            end = start + max(0, min(at - 1 - len(front), end - start - 1))
        if end > start:
            out += front + lines[start:end]
            origin += [start + 1] * len(front) + list(range(start + 1, end + 1))
        start = max(end, start + 1)
    return "\n".join(out) + "\n", origin


def _blocks_around(lines: list[str]) -> list[str]:
    """Lines `if True:` for the blocks whose ends stand in `lines`, but not their beginnings."""
    levels: list[int] = []
    for line in lines:
        level = len(line.expandtabs()) - len(line.expandtabs().lstrip())
        if line.strip() and not line.lstrip().startswith("#") and (not levels or level < levels[-1]):
            levels.append(level)
    tabs = any(line.startswith("\t") for line in lines)  # Python refuses the two in one block
    return [("\t" * (level // 8) if tabs else " " * level) + "if True:" for level in sorted({0, *levels})[:-1]]


def _regex_findings(text: str) -> list[Finding]:
    """What the package's regular expressions match outside of comment lines; of each expression on each line once."""
    found = {}
    for pattern in _patterns():
        for match in re.finditer(pattern["rule"], text):
            start = text.count("\n", 0, match.start()) + 1
            line = text.split("\n")[start - 1]
            if not line.lstrip().startswith(("#", "//", "/*")):
                found[pattern["pattern_id"], start] = Finding(
                    judge="codeshield",
                    rule=pattern["pattern_id"],
                    cwe=pattern["cwe_id"],
                    line=start,
                    end_line=text.count("\n", 0, match.end()) + 1,
                    severity="medium",
                    message=" ".join(pattern["description"].split()),
                )
    return list(found.values())


@functools.cache
def _patterns() -> list[Json]:
    return [pattern for part in _parts()[1:] for pattern in yaml.safe_load(part.read_text(encoding="utf-8"))]


def _parts() -> list[Path]:
    package = _package()
    assert package is not None
    return [package / part for part in _PARTS]


def _package() -> Path | None:
    """Where the detector lies; None where it isn't installed."""
    spec = importlib.util.find_spec("codeshield")  # in our own environment it can't be whole, but its rules can
    places = [Path(place) for place in (spec.submodule_search_locations or ()) if spec] if spec else []
    for program in semgrep.programs():
        places += sorted(Path(program).resolve().parent.parent.glob("lib/python*/site-packages/codeshield"))
    found = (place / "insecure_code_detector" for place in places)
    return next((place for place in found if all((place / part).exists() for part in _PARTS)), None)
