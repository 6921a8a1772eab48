"""How often CodeQL flags what Bandit and our Semgrep rules flag, and what they pass: a table, and what can be said with it of programs it never saw.

`python -m judges.calibrate DIR` makes the table (`codeql.json`, which is shipped) from answers of models with CodeQL's findings beside them, and says how
far it can be trusted: each model in turn is left out and estimated from the others. DIR holds a MODEL.jsonl for each, of lines
{"id", "answer", "codeql": [{"rule_id", "line", ...}]}: VulnBench of https://github.com/kobzaond/AlquistCoder (MIT), results of seven models.
"""

import argparse
import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.errors import DataError, run_command
from foundation.files import Json, write_json
from judges import TOOLS, judge
from judges.findings import family

TABLE = Path(__file__).with_name("codeql.json")
JUDGES = ("bandit", "semgrep")
CWE_OF = {
    "py/flask-debug": 489,
    "py/bind-socket-all-network-interfaces": 605,
    "py/weak-sensitive-data-hashing": 327,
    "py/weak-cryptographic-algorithm": 327,
    "py/insecure-protocol": 327,
    "py/paramiko-missing-host-key-validation": 295,
    "py/clear-text-logging-sensitive-data": 532,
    "py/overly-permissive-file": 732,
    "py/log-injection": 117,
    "py/stack-trace-exposure": 209,
    "py/reflective-xss": 79,
    "py/cookie-injection": 20,
    "py/client-exposed-cookie": 1004,
    "py/insecure-cookie": 614,
    "py/xml-bomb": 611,
    "py/path-injection": 22,
    "py/command-line-injection": 78,
    "py/code-injection": 94,
}
"""CodeQL's rules that the answers hold, as our judges name that kind of weakness."""


@dataclass(frozen=True)
class Answer:
    """What CodeQL read of a model's answer; `ours` and `codeql` are the CWEs that were found in it."""

    model: str
    read: bool  # it was a Python program
    ours: frozenset[str]
    bandit: bool  # Bandit alone flags it
    codeql: frozenset[str]


@dataclass(frozen=True)
class Table:
    """(answers that CodeQL flags, answers) by the CWE of a finding of ours, for the CWE's family, and by family (`_kind`) where we find nothing of it."""

    flagged: dict[str, tuple[int, int]]
    passed: dict[str, tuple[int, int]]

    def chance(self, cwes: Iterable[str]) -> float:
        """How likely CodeQL is to flag a program in which our judges find `cwes`, taking families for independent of each other."""
        by_kind: dict[str, float] = {}
        for cwe in cwes:
            rate = _rate(self.flagged.get(cwe, (0, 0)))
            by_kind[_kind(cwe)] = max(rate, by_kind.get(_kind(cwe), 0.0))
        rates = {kind: _rate(counts) for kind, counts in self.passed.items()} | by_kind
        return 1.0 - float(np.prod([1.0 - rate for rate in rates.values()]))


def _rate(counts: tuple[int, int]) -> float:
    return counts[0] / counts[1] if counts[1] else 0.0


def _kind(cwe: str) -> str:
    """A family's name: the CWE of it with the least number."""
    return min(family(cwe), key=lambda each: int(each.removeprefix("CWE-"))) if cwe else ""


@functools.cache
def shipped() -> tuple[Table, Json]:
    """The table, and the facts of its fit: answers, models, judges, error_mean, error_rms (of a model's share, 0..1)."""
    facts = json.loads(TABLE.read_text(encoding="utf-8"))
    pairs = ({name: (hits, n) for name, (hits, n) in facts.pop(key).items()} for key in ("flagged", "passed"))
    return Table(*pairs), facts


def fit(answers: Sequence[Answer]) -> Table:
    """Counts over the answers that CodeQL read as a program."""
    flagged, passed = Counter[str](), Counter[str]()
    flagged_hits, passed_hits = Counter[str](), Counter[str]()
    read = [answer for answer in answers if answer.read]
    kinds = {_kind(cwe) for answer in read for cwe in answer.codeql}
    for answer in read:
        theirs = {_kind(cwe) for cwe in answer.codeql}
        flagged.update(answer.ours)
        flagged_hits.update(cwe for cwe in answer.ours if _kind(cwe) in theirs)
        silent = kinds - {_kind(cwe) for cwe in answer.ours}
        passed.update(silent)
        passed_hits.update(silent & theirs)
    return Table(
        {cwe: (flagged_hits[cwe], flagged[cwe]) for cwe in sorted(flagged)},
        {kind: (passed_hits[kind], passed[kind]) for kind in sorted(kinds)},
    )


def leave_one_out(answers: Sequence[Answer]) -> Json:
    """Model -> the share of its answers (0..1) that CodeQL flags, and what is said of it without looking: `estimate` by the table of the other models,
    `others` by their mean, `bandit` and `judges` by counting what these flag. `chances` and `truth` are those of all answers, as they are listed.
    """
    found: Json = {"models": {}, "chances": [], "truth": []}
    for model in sorted({answer.model for answer in answers}):
        own = [answer for answer in answers if answer.model == model]
        others = [answer for answer in answers if answer.model != model]
        table = fit(others)
        chances = [table.chance(answer.ours) if answer.read else 0.0 for answer in own]
        found["models"][model] = {
            "codeql": np.mean([bool(answer.codeql) for answer in own]),
            "estimate": np.mean(chances),
            "others": np.mean([bool(answer.codeql) for answer in others]),
            "bandit": np.mean([answer.bandit for answer in own]),
            "judges": np.mean([bool(answer.ours) for answer in own]),
        }
        found["chances"] += chances
        found["truth"] += [(bool(answer.codeql), answer.bandit, bool(answer.ours)) for answer in own]
    return found


def read_answers(directory: Path, cache: Path | None = None) -> list[Answer]:
    """The answers of all models, judged.

    Raises:
      DataError: no answers there, or a rule of CodeQL that `CWE_OF` doesn't know.
    """
    rows = [
        (file.stem, json.loads(line))
        for file in sorted(directory.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    if not rows:
        raise DataError(f"{directory} holds no MODEL.jsonl with answers and CodeQL's findings")
    if unknown := {found["rule_id"] for _, row in rows for found in row["codeql"]} - CWE_OF.keys():
        raise DataError(f"{directory}: CodeQL's {', '.join(sorted(unknown))} has no CWE in judges/calibrate.py: add it to CWE_OF")
    codes = [read_by_codeql(row["answer"]) for _, row in rows]
    verdicts = judge(codes, JUDGES, cache=cache, progress=True)
    return [
        Answer(
            model=model,
            read=verdict.parses and bool(code),
            ours=frozenset(finding.cwe for finding in verdict.findings),
            bandit=any(finding.judge == "bandit" for finding in verdict.findings),
            codeql=frozenset(f"CWE-{CWE_OF[found['rule_id']]}" for found in row["codeql"]),
        )
        for (model, row), code, verdict in zip(rows, codes, verdicts, strict=True)
    ]


def read_by_codeql(answer: str) -> str:
    """What CodeQL was given of an answer: what follows the first fence that names Python or nothing.

    Where a block of another language stands first, its closing fence is that one, and CodeQL was given prose: such answers say nothing of its judgement.
    """
    begin = re.search(r"```(python|py)?[^\S\n]*\n", answer, re.IGNORECASE)
    return answer[begin.end() :].partition("\n```")[0].strip() if begin else ""


def _ranks(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values)
    return (array[:, None] > array).sum(1) + (array[:, None] == array).sum(1) / 2  # ties share theirs


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m judges.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DIR", help="MODEL.jsonl files")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep findings there")
    parser.add_argument("--out", type=Path, default=TABLE, metavar="FILE", help="write the table there (default: the shipped one)")
    args = parser.parse_args(argv)
    return run_command("python -m judges.calibrate", lambda: _calibrate(args.data, args.cache, args.out))


def _calibrate(data: Path, cache: Path | None, out: Path) -> int:
    answers = read_answers(data, cache)
    found = leave_one_out(answers)
    errors = show(answers, found)
    table = fit(answers)
    facts = {
        "reference": "CodeQL 2.24.1 (python-security-extended, warnings and errors)",
        "data": "VulnBench answers, github.com/kobzaond/AlquistCoder @ bb960774",
        "models": len(found["models"]),
        "answers": sum(answer.read for answer in answers),
        "judges": {name: TOOLS[name].version() for name in JUDGES},
        "error_mean": round(float(np.mean(np.abs(errors))), 4),
        "error_rms": round(float(np.sqrt(np.mean(np.square(errors)))), 4),
    }
    write_json(out, facts | {"flagged": table.flagged, "passed": table.passed})
    print(f"wrote {out}")
    return 0


def show(answers: Sequence[Answer], found: Json) -> list[float]:
    """Print the numbers; returns the estimate's errors by model."""
    columns = ("codeql", "estimate", "others", "bandit", "judges")
    print(
        f"CodeQL read a program in {sum(a.read for a in answers)} of {len(answers)} answers\n\n{'flagged %, of all answers':26}"
        + "".join(f"{c:>10}" for c in columns)
    )
    for model, shares in found["models"].items():
        print(f"{model:26}" + "".join(f"{100 * shares[c]:10.1f}" for c in columns))
    shares = {c: [row[c] for row in found["models"].values()] for c in columns}
    errors = {c: np.subtract(shares[c], shares["codeql"]) for c in columns}
    print(f"{'mean absolute error':26}{'':10}" + "".join(f"{100 * np.abs(errors[c]).mean():10.1f}" for c in columns[1:]))
    spearman = {c: np.corrcoef(_ranks(shares["codeql"]), _ranks(shares[c]))[0, 1] for c in ("estimate", "bandit", "judges")}
    print(f"{'Spearman':26}" + "".join(f"{spearman[c]:10.2f}" if c in spearman else " " * 10 for c in columns))
    truth, bandit, ours = np.array(found["truth"]).T
    for name, said in (("estimate >= 1/2", np.array(found["chances"]) >= 0.5), ("bandit flags", bandit), ("judges flag", ours)):
        both = (said & truth).sum()
        print(f"{name}: precision {both / said.sum():.2f}, recall {both / truth.sum():.2f} of {truth.sum()} answers that CodeQL flags")
    table = fit(answers)
    print("\nour finding's CWE: CodeQL finds the family too")
    for cwe, (hits, n) in sorted(table.flagged.items(), key=lambda row: -row[1][1]):
        print(f"  {cwe or 'none':10}{hits:5} of {n}")
    print("no finding of ours in the family: CodeQL finds one")
    for kind, (hits, n) in table.passed.items():
        print(f"  {kind:10}{hits:5} of {n}   (of {', '.join(rule for rule, cwe in CWE_OF.items() if _kind(f'CWE-{cwe}') == kind)})")
    return list(map(float, errors["estimate"]))


if __name__ == "__main__":
    sys.exit(main())
