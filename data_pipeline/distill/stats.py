"""`lpo-data stats`: what a distilled data set, or any file of pairs, holds. The same tables as text and as a page."""

import ast
import bisect
import difflib
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import pairs
from data_pipeline.distill.finish import SPLITS
from data_pipeline.distill.knowledge import titles
from data_pipeline.distill.prompts import TEMPLATES
from data_pipeline.pairs import Drops
from foundation.errors import DataError
from foundation.files import Json, read_json
from foundation.pages import environment
from judges.findings import same_family
from judges.prepare import parse

TEXT_ROWS = 12  # of a table, in the terminal
TEXT_BAR = 24  # characters
CHANGED_LINES = {"1": 1, "2": 2, "3": 3, "4": 4, "5 to 6": 6, "7 to 10": 10, "11 to 20": 20, "over 20": math.inf}
"""The histogram's bins: name -> upper end."""

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """The first column names its row; `bar` is the column whose numbers are drawn, too."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    bar: int | None = None
    note: str = ""

    @property
    def most(self) -> float:
        """The value of the longest bar."""
        assert self.bar is not None
        return max((float(row[self.bar]) for row in self.rows), default=0.0)

    @property
    def numeric(self) -> list[bool]:
        """The columns of numbers, whose digits stand below each other."""
        return [all(isinstance(value, int | float) or re.fullmatch(r"[\d.,%–]+", value) for value in column) for column in zip(*self.rows)]  # noqa: B905


@dataclass(frozen=True)
class Stats:
    name: str
    facts: list[tuple[str, str]]  # (value, what it counts)
    tables: list[Table]


def stats(path: Path) -> Stats:
    """Statistics of a job's directory, the data in it, or one file of pairs.

    Raises:
      DataError: there are no pairs.
    """
    summary_file = path / "summary.json"
    summary = read_json(summary_file) if summary_file.is_file() else {}
    rows, drops = _load(path)
    if not rows and not summary:
        raise DataError(f"{path}: holds no pairs")
    cwes, libraries = (Counter(row[key] for row in rows if row.get(key)) for key in ("cwe", "library"))
    facts = [(f"{len(rows):,}", "pairs"), (f"{len(cwes):,}", "CWEs")]
    if libraries:
        facts.append((f"{len(libraries):,}", "libraries asked for"))
    if summary:
        facts.append((f"{len(rows) / max(1, summary['prompts']):.0%}", f"of {summary['prompts']:,} prompts ended as pairs"))
        if summary["cost"]["dollars"]:  # else no price was given
            facts.append((f"${summary['cost']['dollars']:,.2f}", "paid"))
    tables = [
        _splits(rows),
        Table("Weaknesses", ("CWE", "name", "pairs"), [(c, titles().get(c, ""), n) for c, n in cwes.most_common()], bar=2),
        Table("Libraries asked for", ("library", "pairs"), libraries.most_common(), bar=1),
        _imports(rows),
        _changed_lines(rows),
        _lengths(rows),
        *_findings(rows, judged=summary.get("judged", any("findings" in row for row in rows))),
        *_job(summary, len(rows)),
        Table("Rows of the file that are no pairs", ("reason", "rows"), list(drops.counts().items()), bar=1),
    ]
    return Stats(path.resolve().name, facts, [table for table in tables if table.rows])


def text(found: Stats) -> str:
    """The tables for a terminal, each cut after `TEXT_ROWS` rows."""
    parts = [f"{found.name}: " + ", ".join(f"{value} {what}" for value, what in found.facts)]
    for table in found.tables:
        shown = [[cell(value) for value in row] for row in table.rows[:TEXT_ROWS]]
        columns = list(zip(table.columns, *shown, strict=True))
        widths = [min(48, max(map(len, column))) for column in columns]
        lines = []
        for number, row in enumerate([table.columns, *shown]):
            line = "  ".join(_fit(value, width, r) for value, width, r in zip(row, widths, table.numeric, strict=True))
            if number and table.bar is not None:
                line += "  " + "█" * round(TEXT_BAR * float(table.rows[number - 1][table.bar]) / (table.most or 1))
            lines.append(line.rstrip())
        if len(table.rows) > TEXT_ROWS:
            lines.append(f"... and {len(table.rows) - TEXT_ROWS} more (--html shows all)")
        parts.append("\n".join([table.title.upper(), *lines, *filter(None, [table.note])]))
    return "\n\n".join(parts)


def page(found: Stats) -> str:
    """One HTML page that loads nothing; all that comes from the data is escaped."""
    env = environment(TEMPLATES)
    env.filters["cell"] = cell
    return env.get_template("stats.html.j2").render(stats=found)


def cell(value: Cell) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _fit(value: str, width: int, right: bool) -> str:
    # A data set doesn't write to the terminal's controls.
    value = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
    value = value if len(value) <= width else value[: width - 1] + "…"
    return value.rjust(width) if right else value.ljust(width)


def _load(path: Path) -> tuple[list[Json], Drops]:
    """Rows with `Pair`'s fields, all others that they came with, and the split that they are in."""
    if path.is_dir():
        data = path / "data" if (path / "data").is_dir() else path
        files = [(name, data / f"{name}.jsonl") for name in SPLITS if (data / f"{name}.jsonl").is_file()]
        if not files and not (path / "summary.json").is_file():
            wanted = ", ".join(f"{name}.jsonl" for name in SPLITS)
            if (path / "manifest.json").exists():
                raise DataError(f"{path}: a shard set: `lpo-data show` prints it; its inputs have statistics")
            if (path / "metrics.jsonl").exists() or (path / "data.json").exists():
                raise DataError(
                    f"{path}: a run of `lpo train`: its report.html has its numbers; name a job of `lpo-data distill` or a file of pairs"
                )
            raise DataError(f"{path}: no {wanted}; name a job of `lpo-data distill` or a file of pairs")
    else:
        files = [("", path)]
    drops = Drops()
    rows = [dict(row) | vars(pair) | {"split": split} for split, file in files for row, pair in pairs.read_rows(file, drops)]
    return rows, drops


def _splits(rows: list[Json]) -> Table:
    members = {name: own for name in SPLITS if (own := [row for row in rows if row["split"] == name])}

    def distinct(split: str, key: str) -> set[str]:
        return {row[key] for row in members.get(split, ()) if row.get(key)}

    shared = {name: str(len(distinct(name, "group") & distinct("train", "group"))) for name in members} | {"train": "–"}
    found = [(name, len(own), len(distinct(name, "cwe")), len(distinct(name, "library")), shared[name]) for name, own in members.items()]
    note = "A group is what the job split by: a rule, a CWE or a row."
    return Table("Splits", ("split", "pairs", "CWEs", "libraries", "groups also in train"), found, note=note)


def _imports(rows: list[Json]) -> Table:
    counts = Counter(module for row in rows if row["language"] == "python" for module in _modules(row["chosen"]))
    note = "Modules outside the standard library that the secure programs import."
    return Table("Libraries used", ("module", "pairs"), counts.most_common(), bar=1, note=note)


def _modules(code: str) -> set[str]:
    """Top-level names that a program imports, the standard library's apart; none if it doesn't parse."""
    nodes = list(ast.walk(parse(code) or ast.Module([], [])))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


def _changed(row: Json, split: Callable[[str], list[str]]) -> int:
    """Units of the vulnerable side that go, or of the secure side that come, whichever are more in each place."""
    codes = difflib.SequenceMatcher(None, split(row["rejected"]), split(row["chosen"]), autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in codes if tag != "equal")


def _changed_lines(rows: list[Json]) -> Table:
    ends = list(CHANGED_LINES.values())
    counts = Counter(bisect.bisect_left(ends, size) for row in rows if (size := _changed(row, str.splitlines)))
    found = [(name, counts[place]) for place, name in enumerate(CHANGED_LINES) if rows]
    return Table("Size of the fix", ("lines", "pairs"), found, bar=1, note="Lines that the fix changes, adds or removes.")


def _lengths(rows: list[Json]) -> Table:
    def tokens(code: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", code)

    measures: dict[str, Iterable[int]] = {
        "secure program, lines": (len(row["chosen"].splitlines()) for row in rows),
        "vulnerable program, lines": (len(row["rejected"].splitlines()) for row in rows),
        "fix, words and signs": (_changed(row, tokens) for row in rows),
        "instruction, words": (len(row["instruction"].split()) for row in rows if row["instruction"]),
        "reasoning, words": (len(row["reasoning"].split()) for row in rows if row["reasoning"]),
    }
    found: list[tuple[Cell, ...]] = []
    for name, values in measures.items():
        if ordered := sorted(values):
            low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.05, 0.95))
            found.append((name, ordered[0], low, round(statistics.median(ordered)), statistics.fmean(ordered), high, ordered[-1]))
    return Table("Lengths", ("length", "least", "5 %", "median", "mean", "95 %", "most"), found)


def _findings(rows: list[Json], judged: bool) -> list[Table]:
    """What the judges found: by side and time, and by rule."""
    rows = [row for row in rows if judged and "findings" in row]
    if not rows:
        return []

    def line(name: str, counts: Sequence[int]) -> tuple[Cell, ...]:
        return name, sum(map(bool, counts)), f"{sum(map(bool, counts)) / len(rows):.1%}", sum(counts)

    own = [sum(same_family(finding["cwe"] or "", row["cwe"]) for finding in row["vulnerable_findings"]) for row in rows]
    sides = [
        line("vulnerable", [len(row["vulnerable_findings"]) for row in rows]),
        line("vulnerable, the pair's own weakness", own),
        line("secure, as first written", [row["findings_before"] for row in rows]),
        line("secure, after refinement", [len(row["findings"]) for row in rows]),
    ]
    vulnerable, secure = (
        Counter((f"{f['judge']} {f['rule']}", f["cwe"] or "") for row in rows for f in row[key])
        for key in ("vulnerable_findings", "findings")
    )
    rules = [(*rule, vulnerable[rule], secure[rule]) for rule, _ in (vulnerable + secure).most_common()]
    gave_up = sum(bool(row.get("judges_failed") or row.get("vulnerable_judges_failed")) for row in rows)
    note = f"A judge gave up on {gave_up:,} pairs. " if gave_up else ""
    note += f"{sum(row['rounds'] > 0 for row in rows):,} pairs hold a repair of the teacher's. A pair is flagged in its own weakness if a finding's CWE is in the family of the pair's."  # fmt: skip
    return [
        Table("Findings", ("side", "pairs flagged", "share", "findings"), sides, note=note),
        Table("Findings by rule", ("rule", "CWE", "in vulnerable", "in secure"), rules, bar=2),
    ]


def _job(summary: Json, kept: int) -> list[Table]:
    """What became of the prompts, and what they cost."""
    if not summary:
        return []
    rejected, pending, repairs, retries = (list(summary[key].items()) for key in ("rejected", "pending", "repairs", "retries"))
    cost, share = summary["cost"], max(1, kept)
    names = {"answers": "answers", "tokens asked": "tokens_in", "tokens answered": "tokens_out"}
    rows: list[tuple[Cell, ...]] = [(name, cost[key], cost[key] / share) for name, key in names.items()]
    if cost["dollars"]:
        rows.append(("dollars", f"{cost['dollars']:,.2f}", f"{cost['dollars'] / share:.4f}"))
    again = "Asked again when the job's command is repeated."
    return [
        Table("Rejections", ("reason", "prompts"), rejected, bar=1),
        Table("Pending", ("reason", "prompts"), pending, bar=1, note=again),
        Table("Repairs", ("outcome", "times"), repairs, bar=1),
        Table("Retries in the last run", ("reason", "times"), retries, bar=1),
        Table("Cost", ("", "in all", "for a pair kept"), rows),
    ]
