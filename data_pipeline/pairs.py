"""The `Pair` record, and readers for the formats it comes in."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from foundation.errors import DataError
from foundation.files import Json, write_lines

Span = tuple[int, int]
"""Half-open character range."""


@dataclass(frozen=True)
class Pair:
    """One task with a secure (chosen) and a vulnerable (rejected) solution."""

    id: str
    chosen: str  # secure code, y+
    rejected: str  # vulnerable code, y-
    instruction: str = ""  # x; empty for code that came without one: such a pair is a completion task
    reasoning: str = ""  # R, the security thought that both sides share
    cwe: str = ""  # "CWE-89"
    language: str = "python"
    group: str = ""  # pairs of one group (e.g. a commit) never straddle the held-out split
    chosen_spans: tuple[Span, ...] | None = None  # changed character ranges of `chosen`, half-open
    rejected_spans: tuple[Span, ...] | None = None

    @property
    def plain(self) -> bool:
        """An instruction with its response and nothing to compare that with: both sides are the same text."""
        return self.chosen == self.rejected


@dataclass
class Drops:
    """Rows that were not used, by reason."""

    rows: list[tuple[str, str]] = field(default_factory=list)  # (row, reason)

    def add(self, row: str, reason: str) -> None:
        self.rows.append((row, reason))

    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(reason for _, reason in self.rows).items()))


def read(path: str | Path, drops: Drops) -> Iterator[Pair]:
    """Pairs of one file; the format is told by its columns.

    Formats: our own JSONL (`chosen`, `rejected`, ...), the DiSCo CSV (`Instruction`, `Reasoning`, `Secure Code`,
    `Vulnerable Code`), SVEN / SafeCoder JSONL (`func_src_before`, `func_src_after`, optional `description`), and plain rows
    (`instruction` or `prompt`; `output` or `response`; Alpaca's optional `input`).

    Raises:
      DataError: the file is missing, not UTF-8, or has columns of no known format.
    """
    return (pair for _, pair in read_rows(path, drops))


def read_rows(path: str | Path, drops: Drops) -> Iterator[tuple[Json, Pair]]:
    """As `read`, each pair with the row that it came from."""
    path = Path(path)
    for number, row in _rows(path, drops):
        name = f"{path.name}:{number}"
        to_pair = next((f for columns, f in _FORMATS if columns <= row.keys()), None)
        if to_pair is None:
            known = "; ".join(", ".join(sorted(columns)) for columns, _ in _FORMATS)
            raise DataError(f"{path} row {number}: columns {', '.join(map(str, row))} fit no known format ({known})")
        try:
            pair = to_pair(row, name)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            drops.add(name, f"malformed row ({error})")
            continue
        if not (isinstance(pair.chosen, str) and isinstance(pair.rejected, str)):
            drops.add(name, "code is not text")
        elif not (pair.chosen.strip() and pair.rejected.strip()):
            drops.add(name, "empty code")
        elif to_pair is not _plain and pair.chosen.strip() == pair.rejected.strip():
            drops.add(name, "both sides are equal")
        else:
            yield row, pair


def write(pairs: list[Pair], path: str | Path) -> None:
    """Write pairs as our own JSONL, leaving out fields at their defaults."""
    write_lines(Path(path), [{k: v for k, v in vars(pair).items() if v != Pair.__dataclass_fields__[k].default} for pair in pairs])


def _rows(path: Path, drops: Drops) -> Iterator[tuple[int, Json]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    csv.field_size_limit(sys.maxsize)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                yield from enumerate(csv.DictReader(file), 1)
                return
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    drops.add(f"{path.name}:{number}", f"not valid JSON ({error.msg})")
                    continue
                if isinstance(row, dict):
                    yield number, row
                else:
                    drops.add(f"{path.name}:{number}", "not a JSON object")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); re-encode it first") from None


def _own(row: Json, name: str) -> Pair:
    values = {key: row[key] for key in Pair.__dataclass_fields__ if row.get(key) is not None}
    for key in ("chosen_spans", "rejected_spans"):
        if key in values:
            values[key] = tuple((int(start), int(stop)) for start, stop in values[key])
    return Pair(**({"id": name} | values))


def _disco(row: Json, name: str) -> Pair:
    return Pair(name, row["Secure Code"], row["Vulnerable Code"], row["Instruction"].strip(), row["Reasoning"].strip())


_LANGUAGES = {".py": "python", ".js": "javascript", ".jsx": "javascript", ".rb": "ruby", ".cc": "cpp"}


def _sven(row: Json, name: str) -> Pair:
    suffix = Path(row["file_name"]).suffix
    changes = row.get("char_changes") or {}
    sides = {"chosen_spans": "added", "rejected_spans": "deleted"} if changes else {}
    spans: Json = {key: tuple((c["char_start"], c["char_end"]) for c in changes[side]) for key, side in sides.items()}
    return Pair(
        id=name,
        instruction=(row.get("description") or "").strip(),
        chosen=row["func_src_after"],
        rejected=row["func_src_before"],
        cwe="CWE-" + row["vul_type"].lower().removeprefix("cwe-").lstrip("0"),
        language=_LANGUAGES.get(suffix, suffix.lstrip(".")),
        group=row.get("commit_link") or "",
        **spans,
    )


def _plain(row: Json, name: str) -> Pair:
    instruction = (row["prompt"] if "prompt" in row else row["instruction"]).strip()
    if not instruction:
        raise ValueError("no instruction")
    if (more := (row.get("input") or "").strip()) and "instruction" in row:
        instruction += f"\n\n### Input:\n{more}"
    response = row["output"] if "output" in row else row["response"]
    return Pair(id=name, instruction=instruction, chosen=response, rejected=response, language="")


_FORMATS = (
    ({"chosen", "rejected"}, _own),
    ({"Instruction", "Reasoning", "Secure Code", "Vulnerable Code"}, _disco),
    ({"func_src_before", "func_src_after", "file_name", "vul_type"}, _sven),
    ({"instruction", "output"}, _plain),
    ({"instruction", "response"}, _plain),
    ({"prompt", "response"}, _plain),
)
