"""How well the judges tell vulnerable code from secure code, beside Bandit alone.

On pairs (SVEN, SafeCoder, or our own JSONL): the share of vulnerable and of secure sides with a finding, and of pairs in the right order
(a finding on the vulnerable side only) and in the wrong one. `matched` counts findings of the CWE's family, `any` counts all. The pairs are
cut in two halves by commit: rules were written with the first in view; of the second, only the secure sides that were flagged have been read.
On SecurityEval's insecure code: the share with a finding. With --speed: what judging so many of these programs takes, by clock and by processor.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_pipeline.pairs import Drops, Pair, read
from foundation.commands import new_file
from foundation.files import Json, write_json
from judges import Verdict, available, judge
from judges.findings import Finding, normal, same_family

PANELS = {"bandit": ("bandit",), "semgrep": ("semgrep",), "both": ("bandit", "semgrep")}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.judges", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", help="files of pairs as `lpo-data build` reads them; those that aren't Python are left out")
    parser.add_argument("--insecure", metavar="FILE", help="SecurityEval's JSONL (ID, Insecure_code)")
    parser.add_argument("--speed", type=int, metavar="N", help="time N programs of these files, without a cache and with")
    parser.add_argument("--cache", type=Path, help="keep verdicts in this directory")
    parser.add_argument("--json", type=new_file, metavar="OUT", help="write the numbers here")
    args = parser.parse_args(argv)
    if args.speed:
        result: Json = {"speed": measure_speed(args.pairs, args.speed)}
        for name, row in result["speed"].items():
            print(f"{name:12}{row['programs']:6} programs{row['wall_s']:8.1f} s, of processors{row['cpu_s']:8.1f} s")
        if args.json:
            write_json(args.json, result)
        return 0
    result = {
        "pairs": measure_pairs(args.pairs, args.cache),
        "insecure": measure_insecure(args.insecure, args.cache) if args.insecure else {},
    }
    show(result)
    if args.json:
        write_json(args.json, result)
    return 0


def measure_pairs(files: Iterable[str | Path], cache: Path | None = None) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """Panel -> group of pairs ("all", "first half", "second half", "CWE-..") -> "matched" or "any" -> counts."""
    pairs = [p for file in files for p in read(file, Drops()) if p.language == "python" and p.cwe]
    sides = [code for pair in pairs for code in (pair.rejected, pair.chosen)]
    verdicts = judge(sides, PANELS["both"], cache=cache, progress=True)
    groups = {
        "all": [True] * len(pairs),
        "first half": [_first_half(p) for p in pairs],
        "second half": [not _first_half(p) for p in pairs],
        **{cwe: [p.cwe == cwe for p in pairs] for cwe, _ in Counter(p.cwe for p in pairs).most_common()},
    }
    tallied: Json = {}
    for panel, tools in PANELS.items():
        for group, members in groups.items():
            for kind, counts in (("matched", same_family), ("any", lambda a, b: True)):
                flags = [
                    tuple(_flagged(verdict, tools, pair.cwe, counts) for verdict in verdicts[2 * i : 2 * i + 2])
                    for i, pair in enumerate(pairs)
                    if members[i]
                ]
                tallied.setdefault(panel, {}).setdefault(group, {})[kind] = _tally(flags)
    return tallied


def measure_insecure(file: str | Path, cache: Path | None = None) -> dict[str, dict[str, int]]:
    """Panel -> counts over code that is known to be insecure."""
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    cwes = [normal(row["ID"].partition("_")[0]) for row in rows]
    verdicts = judge([row["Insecure_code"] for row in rows], PANELS["both"], cache=cache, progress=True)
    return {
        panel: {
            "items": len(rows),
            "any": sum(_flagged(v, tools, "", lambda a, b: True) for v in verdicts),
            "matched": sum(_flagged(v, tools, cwe, same_family) for v, cwe in zip(verdicts, cwes, strict=True)),
        }
        for panel, tools in PANELS.items()
    }


def measure_speed(files: Iterable[str | Path], count: int) -> dict[str, dict[str, float]]:
    """Tool, "together" or "again" (from the cache) -> programs and the seconds that they took, by clock and of all processors."""
    pairs = (p for file in files for p in read(file, Drops()) if p.language == "python")
    sources = list(itertools.islice(dict.fromkeys(code for pair in pairs for code in (pair.rejected, pair.chosen)), count))
    tools = [name for name in ("bandit", "semgrep", "codeshield") if name in available()]
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, chosen in [(tool, [tool]) for tool in tools] + [("together", tools), ("again", tools)]:
            before, begin = os.times(), time.perf_counter()
            judge(sources, chosen, cache=Path(cache) if name in ("together", "again") else None)
            cpu = sum(os.times()[:4]) - sum(before[:4])
            found[name] = {"programs": len(sources), "wall_s": time.perf_counter() - begin, "cpu_s": cpu}
    return found


def _first_half(pair: Pair) -> bool:
    return int(hashlib.sha256(pair.group.encode()).hexdigest(), 16) % 2 == 0


def _flagged(verdict: Verdict, tools: Sequence[str], cwe: str, counts: Callable[[str, str], bool]) -> bool:
    def relevant(f: Finding) -> bool:
        return f.judge in tools and counts(f.cwe, cwe)

    return any(map(relevant, verdict.findings))


def _tally(flags: Sequence[tuple[bool, ...]]) -> dict[str, int]:
    seen = Counter(flags)
    return {
        "pairs": len(flags),
        "vulnerable_flagged": seen[True, False] + seen[True, True],
        "secure_flagged": seen[False, True] + seen[True, True],
        "right_order": seen[True, False],
        "wrong_order": seen[False, True],
    }


def show(result: Json) -> None:
    """The numbers as tables."""
    print(f"{'judge':8} {'pairs':12} {'findings':9}{'n':>5}{'vulnerable':>16}{'secure':>14}{'right order':>15}{'wrong':>7}")
    for group in result["pairs"]["both"]:
        for kind in ("matched", "any"):
            for panel in PANELS:
                row = result["pairs"][panel][group][kind]
                n = row["pairs"]
                shares = [
                    f"{row[key]} ({row[key] / n:.0%})" if n else "-" for key in ("vulnerable_flagged", "secure_flagged", "right_order")
                ]
                print(f"{panel:8} {group:12} {kind:9}{n:5}{shares[0]:>16}{shares[1]:>14}{shares[2]:>15}{row['wrong_order']:7}")
    for panel, row in result["insecure"].items():
        print(f"{panel:8} insecure code: {row['any']} of {row['items']} flagged, {row['matched']} for its own kind of weakness")


if __name__ == "__main__":
    sys.exit(main())
