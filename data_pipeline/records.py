"""Files of rows as people have them: JSON lines, JSON arrays, CSV, Parquet, all of them also gzipped; directories and the hub's through `datasets`.

What a file is, its content says; only a table must be called one, for any text could be. A row that can't be read is told to the caller, who decides whether that is an error.

The hub's are written [hf://]OWNER/NAME[/SUBSET][:SPLIT][?OURS=THEIRS&...]: all splits or one, and columns by the names that we read them by. Without
hf:// a directory here may have the name.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from foundation.errors import DataError
from foundation.files import Json, sha256, shipped
from foundation.stores import HUB_ID

Bad = Callable[[str, str], None]
"""Told where a row stands that can't be read, and why."""

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".gz")
_TABLES = {".csv", ".tsv", ".txt"}


def read(source: str | Path, bad: Bad) -> Iterator[tuple[str, Json]]:
    """The rows of a file, a directory or a hub id, each with its place: "pairs.jsonl:7", by line in JSON lines, else by row.

    Raises:
      DataError: there is no such thing, or its content is nothing of the kind; named.
    """
    path = shipped(source)
    if not path.is_file():
        yield from _data_set(str(source))
        return
    try:
        with path.open("rb") as file:
            content: Any = gzip.GzipFile(fileobj=file) if _magic(file, 2) == b"\x1f\x8b" else file
            yield from _parquet(path, content, bad) if _magic(content, 4) == b"PAR1" else _text(path, content, bad)
    except (gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: can't be read ({error}); copy or download it again") from None


def facts(source: str | Path) -> Json:
    """What tells one content from another."""
    path = shipped(source)
    if path.is_file():
        return {"file": shown(path), "sha256": sha256(path)}
    prints = "".join(part._fingerprint for _, part in _splits(str(source)))
    return {"file": shown(source), "sha256": hashlib.sha256(prints.encode()).hexdigest()}


def shown(source: str | Path) -> str:
    """A file's name as text on one line: names may hold bytes that are no characters, and line breaks. A data set of the hub keeps its owner."""
    name = str(source).removeprefix(_HUB) if str(source).startswith(_HUB) else Path(source).name
    return " ".join(os.fsencode(name).decode(errors="backslashreplace").split())


def raising(error: type[Exception] = DataError) -> Bad:
    """For callers to whom every row counts."""

    def refuse(where: str, reason: str) -> None:
        raise error(f"{where}: {reason}")

    return refuse


def _magic(file: BinaryIO, size: int) -> bytes:
    found = file.read(size)
    file.seek(0)
    return found


def _text(path: Path, content: BinaryIO, bad: Bad) -> Iterator[tuple[str, Json]]:
    start = _magic(content, 4096)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    first = start.decode(encoding, "ignore").lstrip()[:1]
    suffixes = {suffix.lower() for suffix in path.suffixes} - {".gz"}
    try:
        if first == "[":
            yield from _array(path, content.read().decode(encoding), bad)
        elif first == "{" or suffixes & {".json", ".jsonl"}:
            yield from _lines(path, io.TextIOWrapper(content, encoding), bad)
        elif suffixes and not suffixes & _TABLES:
            raise DataError(
                f"{path}: neither JSON nor Parquet, nor called a table; files of rows end in {', '.join(_SUFFIXES)}. Give another, or rename it"
            )
        else:
            yield from _csv(path, io.TextIOWrapper(content, encoding, newline=""), bad)
    except UnicodeError as error:
        raise DataError(f"{path}: neither UTF-8 nor UTF-16 text ({error}); save it as UTF-8") from None


def _lines(path: Path, lines: io.TextIOWrapper, bad: Bad) -> Iterator[tuple[str, Json]]:
    for number, line in enumerate(lines, 1):  # universal newlines: \n, \r\n and \r, nothing else
        if line.strip():
            yield from _object(f"{shown(path)}:{number}", line, bad)


def _object(where: str, text: str, bad: Bad) -> Iterator[tuple[str, Json]]:
    try:
        row = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        bad(where, f"not valid JSON ({error.msg})")
    except _TwiceError as error:
        bad(where, str(error))
    except (RecursionError, ValueError):
        bad(where, "not valid JSON (nested too deep, or a number too long)")
    else:
        if isinstance(row, dict):
            yield where, row
        else:
            bad(where, "not a JSON object")


def _array(path: Path, text: str, bad: Bad) -> Iterator[tuple[str, Json]]:
    try:
        rows = json.loads(text, object_pairs_hook=_once)
    except _TwiceError as error:
        raise DataError(f"{path}: a row {error}; remove one") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: begins as a JSON array, and isn't one ({error}); mend it, or write an object a line") from None
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield f"{shown(path)}:{number}", row
        else:
            bad(f"{shown(path)}:{number}", "not a JSON object")


class _TwiceError(ValueError):
    """An object has a key twice, of which `json` would take the last."""


def _once(members: list[tuple[str, Any]]) -> Json:
    found = dict(members)
    if len(found) < len(members):
        raise _TwiceError(f"has a key twice ({_twice([key for key, _ in members])})")
    return found


def _twice(names: Sequence[str]) -> str:
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))


def _csv(path: Path, text: io.TextIOWrapper, bad: Bad) -> Iterator[tuple[str, Json]]:
    csv.field_size_limit(sys.maxsize)
    head = text.readline()
    text.seek(0)
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(text, delimiter=delimiter, restkey=None)
    try:
        names = reader.fieldnames or []
        if twice := _twice(names):
            raise DataError(f"{path}: the header has the column {twice} twice; rename one")
        for number, row in enumerate(reader, 1):
            where, more, fewer = f"{shown(path)}:{number}", row.pop(None, ()), sum(cell is None for cell in row.values())  # type: ignore[call-overload]
            if more or fewer:
                bad(where, f"read as CSV, it has {'more' if more else 'fewer'} cells than the header")
            else:
                yield where, row
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: no CSV ({error}); mend that line") from None


def _parquet(path: Path, content: BinaryIO, bad: Bad) -> Iterator[tuple[str, Json]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(content)
        if twice := _twice(file.schema_arrow.names):
            raise DataError(f"{path}: the column {twice} is there twice; rename one")
        rows = (batch.slice(at, 1) for batch in file.iter_batches(batch_size=256) for at in range(len(batch)))
        for number, one in enumerate(rows, 1):
            try:
                (row,) = one.to_pylist()
            except (ValueError, OverflowError) as error:  # text that isn't UTF-8, a date beyond the year 9999
                bad(f"{shown(path)}:{number}", f"a value that Python can't hold ({error})")
            else:
                yield f"{shown(path)}:{number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: damaged Parquet ({error}); copy or download it again") from None


def _data_set(source: str) -> Iterator[tuple[str, Json]]:
    for split, part in _splits(source):
        for number, row in enumerate(part, 1):
            yield f"{shown(source)}/{split}:{number}", row


_HUB = "hf://"
_ON_THE_HUB = re.compile(
    rf"(?P<prefix>{_HUB})?(?P<name>{HUB_ID.pattern})(?:/(?P<subset>[\w.-]+))?(?::(?P<split>[\w.-]+))?(?:\?(?P<columns>[^?]+))?"
)


def _splits(source: str) -> list[tuple[str, Any]]:
    """(name, data set) of a directory or of the hub's."""
    path, there = Path(source), _ON_THE_HUB.fullmatch(source)
    if source.startswith(_HUB) and there is None:
        raise DataError(f"{source}: write hf://OWNER/NAME[/SUBSET][:SPLIT][?OURS=THEIRS&...]")
    here = path.is_dir() and not source.startswith(_HUB)
    if source.startswith(_HUB) and there is not None and Path(there["name"]).is_dir():
        raise DataError(f"{source}: `datasets` would read the directory {there['name']} here; run the command elsewhere")
    if not here and (there is None or (there["prefix"] is None and source.endswith(_SUFFIXES))):
        raise DataError(f"{source}: no such file")
    wanted = "" if here or there is None else there["split"] or ""
    import datasets

    try:
        if here:
            saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
            found = datasets.load_from_disk(source) if saved else _load(source)
        else:
            assert there is not None
            found = _load(there["name"], there["subset"])
    except Exception as error:  # whatever its many back ends raise
        said = str(error).strip().split("\n")[0][:300]
        raise DataError(f"{source}: `datasets` can't open it ({type(error).__name__}: {said}); give a file instead") from None
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if wanted and wanted not in splits:
        raise DataError(f"{source}: no split {wanted}, only {', '.join(splits)}")
    chosen = [(name, part) for name, part in splits.items() if wanted in ("", name)]
    return (
        chosen
        if here or there is None or not there["columns"]
        else [(name, _renamed(source, part, there["columns"])) for name, part in chosen]
    )


def _renamed(source: str, part: Any, columns: str) -> Any:
    """A data set with its columns by our names. What had one of these before goes: "instruction=prompt" stands for another column than "instruction"."""
    pairs = [pair.partition("=")[::2] for pair in columns.split("&")]
    if not all(ours and theirs for ours, theirs in pairs):
        raise DataError(f"{source}: write columns as ?OURS=THEIRS&OURS=THEIRS, e.g. ?instruction=question&chosen=good_code")
    if missing := [theirs for _, theirs in pairs if theirs not in part.column_names]:
        raise DataError(f"{source}: no column {', '.join(missing)}, only {', '.join(part.column_names)}")
    taken = {theirs for _, theirs in pairs}
    gone = [ours for ours, _ in pairs if ours in part.column_names and ours not in taken]
    return part.remove_columns(gone).rename_columns({theirs: ours for ours, theirs in pairs if ours != theirs})


def _load(name: str, subset: str | None = None) -> Any:
    """A data set of a directory or a hub id. In CSV the words None, NA and nan are text, which pandas would take for nothing."""
    import datasets

    is_csv = hasattr(datasets.load_dataset_builder(name, subset).config, "keep_default_na")
    return datasets.load_dataset(name, subset, **({"keep_default_na": False} if is_csv else {}))
