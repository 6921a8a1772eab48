"""`lpo-data check`: proves of every pair what can be proved by machine."""

import ast
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from data_pipeline import pairs
from data_pipeline.distill import knowledge
from data_pipeline.pairs import Drops, Pair
from foundation.errors import DataError
from foundation.files import shipped, write_lines
from judges import judge
from judges.sandbox import Case, Limits, Result, Test, run_many

MIN_RATIO = 0.7  # characters that the two sides share
NEAR_DUPLICATE = 0.9  # Jaccard similarity of two pairs' five-token windows
GIVEAWAY = re.compile(r"\b(secur|vulnerab|attack|inject|malicious|exploit|sanitiz|CWE)", re.IGNORECASE)
LIMITS = Limits(time_s=10, cpu_s=3, memory_mb=1024)
BEFORE = """
import importlib, sys
sys.path.insert(0, ".")
importlib.import_module("check_")  # it may install stand-ins for libraries
"""
TEST = """
import sys
sys.modules["check_"].{which}(sys.modules["pair_"])
"""


def titles() -> dict[str, set[str]]:
    """The names of each CWE: its title, and a short name in ('...') within that."""
    short = re.compile(r" \('(.+?)'\)")
    return {cwe: {title, *short.findall(title), short.sub("", title)} for cwe, title in knowledge.titles().items()}


def text_faults(pair: Pair, names: Mapping[str, set[str]]) -> Iterator[str]:
    """What is wrong with one pair, as read."""
    for side, code in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
            yield f"{side} doesn't parse: {error}"
        if not 5 <= len(code.splitlines()) <= 50:
            yield f"{side} has {len(code.splitlines())} lines; 5 to 50 are wanted"
    ratio = difflib.SequenceMatcher(None, pair.rejected, pair.chosen, autojunk=False).ratio()
    if ratio < MIN_RATIO:
        yield f"the fix is large: the sides share {ratio:.0%}, at least {MIN_RATIO:.0%} is wanted"
    if not 10 <= len(pair.instruction.split()) <= 60:
        yield "the instruction should have 10 to 60 words"
    if found := GIVEAWAY.search(pair.instruction):
        yield f"the instruction gives the task away: {found[0]!r}"
    if pair.cwe not in names:
        yield f"no such CWE: {pair.cwe!r}"
    head = re.match(r"The code may have the vulnerability (CWE-\d+): '(.+?)'\. ", pair.reasoning)
    if not head or head[1] != pair.cwe:
        yield f"the reasoning should begin with: The code may have the vulnerability {pair.cwe}: 'Name'."
    elif pair.cwe in names and head[2] not in names[pair.cwe]:
        yield f"the reasoning calls {pair.cwe} {head[2]!r}, not {' or '.join(map(repr, sorted(names[pair.cwe])))}"


def duplicates(rows: list[Pair]) -> Iterator[tuple[Pair, str]]:
    """Pairs whose id, or nearly whose code, an earlier pair has."""
    seen: list[tuple[Pair, frozenset[tuple[str, ...]]]] = []
    for pair in rows:
        words = re.findall(r"\w+|[^\w\s]", pair.chosen)
        windows = frozenset(tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4)))
        for other, theirs in seen:
            if other.id == pair.id:
                yield pair, "an earlier pair has this id"
            elif len(windows & theirs) >= NEAR_DUPLICATE * len(windows | theirs):
                yield pair, f"nearly the code of {other.id}"
        seen.append((pair, windows))


def checks(rows: Sequence[Pair], folder: Path) -> list[tuple[Pair, dict[str, str]]]:
    """The pairs that have an executable check, each with the files that lie beside its code.

    A check is `folder/<id, - as _>.py`; `doubles.py` lies beside each.

    Raises:
      DataError: the folder is missing, or a check belongs to no pair.
    """
    folder = shipped(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such directory")
    helper = folder / "doubles.py"
    shared = {helper.name: helper.read_text(encoding="utf-8")} if helper.is_file() else {}
    by_file = {pair.id.replace("-", "_") + ".py": pair for pair in rows}
    files = sorted(path for path in folder.glob("*.py") if path != helper)
    if strangers := [path.name for path in files if path.name not in by_file]:
        raise DataError(f"{folder}: no pair for {', '.join(strangers)}; a check is named after its pair's id, with - as _")
    return [(by_file[path.name], shared | {"check_.py": path.read_text(encoding="utf-8")}) for path in files]


def case(code: str, files: Mapping[str, str], which: str) -> Case:
    """A run of a check's function `which` ("functional", "exploit") on a program."""
    return Case(code, files, LIMITS, packages=True, test=Test(TEST.format(which=which), before=BEFORE, modules=("pair_",)))


def executions(rows: list[Pair], folder: Path | None, workers: int = 2, progress: bool = False) -> Iterator[tuple[Pair, str]]:
    """Run each pair's check, of `folder` and of its own (`Pair.tests`), in the sandbox, both functions on both sides; yields (pair, fault or "").

    `functional(m)` has to pass on both sides, `exploit(m)` on the chosen one, and to fail by an AssertionError or a timeout on the rejected one.
    `m` is the module made of the pair's code.

    Raises:
      DataError: as `checks`.
    """
    found = checks(rows, folder) if folder else []
    found += [(pair, {"check_.py": f"{pair.setup}\n{pair.tests}"}) for pair in rows if pair.tests]
    plan = [(number, which, side) for number in range(len(found)) for which in ("functional", "exploit") for side in ("chosen", "rejected")]
    cases = []
    for number, which, side in plan:
        pair, files = found[number]
        cases.append(case(f"{pair.setup}\n{getattr(pair, side)}", files, which))
    results = tqdm(run_many(cases, workers), total=len(cases), desc="checks", unit="run", disable=not (progress and cases))
    faults = [""] * len(found)
    for (number, which, side), result in zip(plan, results, strict=True):
        if fault := _fault(result, which == "exploit" and side == "rejected"):
            faults[number] = faults[number] or f"{which} on {side}: {fault}"
    yield from ((pair, fault) for (pair, _), fault in zip(found, faults, strict=True))


def _fault(result: Result, should_fail: bool) -> str:
    said = (result.stderr.strip().splitlines() or [result.detail])[-1]
    if not should_fail:
        return "" if result.outcome == "pass" else f"{result.outcome} ({said})"
    asserted = any(line.startswith("AssertionError") for line in result.stderr.splitlines())
    if result.outcome == "timeout" or (asserted and result.outcome in ("fail", "blocked")):
        return ""
    return f"{result.outcome} instead of an AssertionError or a timeout ({said})"


def digest(pair: Pair) -> str:
    """Of both sides, so that a verdict can't outlive the code it is about."""
    return hashlib.sha256(json.dumps([pair.chosen, pair.rejected]).encode()).hexdigest()


def write_verdicts(rows: list[Pair], out: Path, workers: int = 2, progress: bool = True) -> None:
    """What Bandit and Semgrep find in each side, a JSON line a pair: [CWE, rule, line] each."""
    verdicts = judge([side for pair in rows for side in (pair.chosen, pair.rejected)], workers=workers, progress=progress)
    lines = []
    for pair, chosen, rejected in zip(rows, verdicts[::2], verdicts[1::2], strict=True):
        found = [[[f.cwe, f"{f.judge} {f.rule}", f.line] for f in verdict.findings] for verdict in (chosen, rejected)]
        lines.append({"id": pair.id, "cwe": pair.cwe, "sha256": digest(pair), "chosen": found[0], "rejected": found[1]})
    write_lines(out, lines)


def check(paths: Sequence[Path], tests: Path | None, *, workers: int = 2, progress: bool = True) -> tuple[list[tuple[str, str]], int, int]:
    """(pair id, fault) of everything that is wrong with the pairs of all files, the number of pairs and of those with an executable check."""
    drops = Drops()
    rows = [pair for path in paths for pair in pairs.read(path, drops)]
    if not rows and not drops.rows:
        raise DataError(f"{', '.join(map(str, paths))}: no row in it; give our own JSONL, a pair a line")
    faults = list(drops.rows)
    names = titles()
    for pair in tqdm(rows, desc="pairs", unit="pair", disable=not progress):
        faults += [(pair.id, fault) for fault in text_faults(pair, names)]
    faults += [(pair.id, fault) for pair, fault in duplicates(rows)]
    outcomes = list(executions(rows, tests, workers, progress))
    faults += [(pair.id, fault) for pair, fault in outcomes if fault]
    return faults, len(rows), len(outcomes)
