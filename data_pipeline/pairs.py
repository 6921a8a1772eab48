"""The `Pair` record, and how rows become pairs: read, converted and checked by one schema; nothing is lost without being counted."""

import ast
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pydantic

from data_pipeline import formats, records
from data_pipeline.formats import RowError, messages_of, text_of
from foundation.errors import DataError, nearest
from foundation.files import Json, write_lines
from judges.prepare import parse

log = logging.getLogger(__name__)

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
    history: tuple[tuple[str, str], ...] = ()  # (role, text) of what was said before the instruction
    code: bool = True  # the sides are code, which a template puts into a fence; else whole answers, which stand as they are
    setup: str = ""  # code in front of either side when it is tested
    tests: str = ""  # source of `functional(m)` and `exploit(m)`, of a module made of a side: see `data_pipeline.check`

    @property
    def plain(self) -> bool:
        """An instruction with its response and nothing to compare that with: both sides are the same text."""
        return self.chosen == self.rejected


@dataclass
class Drops:
    """Rows that were not used, by reason; and what is to be known of the others."""

    rows: list[tuple[str, str]] = field(default_factory=list)  # (row, reason)
    notes: Counter[str] = field(default_factory=Counter)  # remark -> pairs
    unused: dict[str, Counter[str]] = field(default_factory=dict)  # file -> column that nothing reads -> rows

    def add(self, row: str, reason: str) -> None:
        self.rows.append((row, reason))

    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(kind(reason) for _, reason in self.rows).items()))


def kind(reason: str) -> str:
    """A reason without what is this row's own, which stands in brackets."""
    return re.sub(r" \(.*\)$", "", reason, flags=re.DOTALL)


def read(path: str | Path, drops: Drops) -> Iterator[Pair]:
    """Pairs of a file, a directory or a hub id, in any format of `data_pipeline.formats` and `data_pipeline.records`.

    Columns that nothing reads are warned of, with the nearest name that something does.

    Raises:
      DataError: it can't be read, or its columns fit no known format.
    """
    return (pair for _, pair in read_rows(path, drops))


def read_rows(path: str | Path, drops: Drops) -> Iterator[tuple[Json, Pair]]:
    """As `read`, each pair with the row that it came from."""
    known, unused = False, drops.unused.setdefault(records.shown(path), Counter())
    for where, row in records.read(path, drops.add):
        form = formats.of(row)
        if form is None:
            if not known:
                raise DataError(f"{path} row {where.rpartition(':')[2]}: {_no_format(row)}")
            drops.add(where, "columns of no known format")
            continue
        known = True
        unused.update(name for name in row.keys() - form.columns - form.more if row[name] not in (None, "", [], {}) and _counts(name))
        try:
            fields = form.fields(row)
            if fields.pop(formats.NOTE, False):
                drops.notes[formats.NOTE] += 1
            pair = Pair(**{"id": where, **_Fields.model_validate(fields).given()})
        except (RowError, pydantic.ValidationError) as error:
            drops.add(where, _reason(error))
            continue
        if not (pair.chosen.strip() and pair.rejected.strip()):
            drops.add(where, "empty code")
        elif pair.chosen.strip() == pair.rejected.strip() and not (form.plain or (form.name == "our own" and pair.plain and not pair.code)):
            drops.add(where, "both sides are equal")
        else:
            yield row, pair
    if unused:
        hints = (
            f"{name} ({count} rows{f'; is {near} meant?' if (near := _nearest(name)) else ''})" for name, count in sorted(unused.items())
        )
        log.warning("%s: nothing reads the columns %s", path, ", ".join(hints))


def cosmetic(pair: Pair) -> bool:
    """The sides differ in blanks and comments only."""
    if pair.plain:
        return False
    if "".join(pair.chosen.split()) == "".join(pair.rejected.split()) and not pair.language.startswith("py"):
        return True
    return pair.language.startswith("py") and (tree := _dump(pair.chosen)) is not None and tree == _dump(pair.rejected)


def as_row(pair: Pair) -> Json:
    """A pair as a row of our own format, without fields at their defaults."""
    row = {k: v for k, v in vars(pair).items() if v != Pair.__dataclass_fields__[k].default}
    if "history" in row:  # as messages: LLaMA-Factory's are pairs too, of question and answer
        row["history"] = [{"role": role, "content": text} for role, text in row["history"]]
    return row


def write(pairs: list[Pair], path: str | Path) -> None:
    """Write pairs as our own JSONL, leaving out fields at their defaults."""
    write_lines(Path(path), [as_row(pair) for pair in pairs])


# --- The schema.


def _name(value: Any, info: pydantic.ValidationInfo) -> str:
    """A text on one line; a number is one too."""
    number = isinstance(value, int) and not isinstance(value, bool)
    return " ".join(text_of(str(value) if number else value, str(info.field_name)).split())


def _cwe(value: Any, info: pydantic.ValidationInfo) -> str:
    """CWE-89, also from 89, "cwe-089" and "CWE-89: SQL Injection"."""
    text = _name(value, info)
    found = re.match(r"(?:cwe[-_ ]?)?0*(\d+)\b", text, re.IGNORECASE)
    return f"CWE-{found[1]}" if found else text


def _text(value: Any, info: pydantic.ValidationInfo) -> str:
    return text_of(value, str(info.field_name))


def _history(value: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages_of(value, "history")]


_Name = Annotated[str, pydantic.BeforeValidator(_name)]
_Text = Annotated[str, pydantic.BeforeValidator(_text)]
_Spans = tuple[tuple[int, int], ...] | None


class _Fields(pydantic.BaseModel):
    """What a row says of a pair, converted."""

    model_config = pydantic.ConfigDict(extra="forbid")

    chosen: _Text
    rejected: _Text
    instruction: _Text = ""
    reasoning: _Text = ""
    id: _Name = ""
    cwe: Annotated[str, pydantic.BeforeValidator(_cwe)] = ""
    language: _Text = "python"
    group: _Name = ""
    history: Annotated[tuple[tuple[str, str], ...], pydantic.BeforeValidator(_history)] = ()
    code: bool = True
    setup: _Text = ""
    tests: _Text = ""
    chosen_spans: _Spans = None
    rejected_spans: _Spans = None

    @pydantic.model_validator(mode="after")
    def _one_kind_of_line(self) -> "_Fields":
        for side in ("chosen", "rejected"):
            text, spans = getattr(self, side), getattr(self, f"{side}_spans")
            if spans is not None and not all(0 <= start <= stop <= len(text) for start, stop in spans):
                raise RowError(f"{side}_spans: a span beyond the code's {len(text)} characters")
            if spans is not None and "\r\n" in text:
                moved = tuple((start - text.count("\r\n", 0, start), stop - text.count("\r\n", 0, stop)) for start, stop in spans)
                setattr(self, f"{side}_spans", moved)
        for name in ("chosen", "rejected", "instruction", "reasoning", "setup", "tests"):
            setattr(self, name, getattr(self, name).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
        return self

    def given(self) -> Json:
        return {name: getattr(self, name) for name in self.model_fields_set if name != "id" or self.id}


def _reason(error: RowError | pydantic.ValidationError) -> str:
    """Why a row can't be a pair, by its first fault."""
    if isinstance(error, RowError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    said = str(first.get("ctx", {}).get("error", first["msg"]))
    column = ".".join(map(str, first["loc"][:1]))
    return (
        f"{column}: missing" if first["type"] == "missing" else said if not column or said.startswith(f"{column}:") else f"{column}: {said}"
    )


def _counts(column: str) -> bool:
    """Not the number of a row, which pandas writes without a name."""
    return bool(column) and not column.startswith("Unnamed:")


def _no_format(row: Json) -> str:
    shown = [str(name)[:40] for name in row][:20]
    near = {name: found for name in shown if (found := _nearest(name))}
    hint = "; ".join(f"is {found!r} meant by {name!r}?" for name, found in near.items())
    known = "; ".join(dict.fromkeys(", ".join(sorted(form.columns)) for form in formats.FORMATS))
    return f"columns {', '.join(shown)} fit no known format ({known}){'; ' + hint if hint else ''}"


@cache
def _nearest(column: str) -> str | None:
    """The name of a column that something reads, if this looks like a slip of it."""
    names = frozenset[str]().union(*(form.columns | form.more for form in formats.FORMATS))
    return nearest(column, names, 0.75) if column not in names else None


def _dump(code: str) -> str | None:
    tree = parse(code)
    return None if tree is None else ast.dump(tree)
