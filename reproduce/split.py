"""Which rows are for training, for choosing, and for the end: cut once, in front of everything, and recorded by the rows' ids alone."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from data_pipeline import pairs, records
from data_pipeline.build import grouped, heldout_groups
from foundation.errors import DataError
from foundation.files import Json, read_object, write_json, write_lines
from reproduce.campaign import FORMS, PARTS, Split


def split(source: str, wanted: Split, file: Path, out: Path) -> Json:
    """Cut the rows of `source`, or cut them as `file` says, and write them to `out`: PART.jsonl, and PART_plain.jsonl without their reasoning.

    Returns:
      the record: the data's hash, the parts' ids, and each row's group.

    Raises:
      DataError: the data isn't what was cut before, or too few rows are in a part.
    """
    drops = pairs.Drops()
    read = list(pairs.read_rows(source, drops))
    rows = {pair.id: row for row, pair in read}
    untested = [pair.id for _, pair in read if not pair.tests]
    if drops.rows or untested or len(rows) < len(read):
        bad = drops.rows[0] if drops.rows else (untested[0], "no tests") if untested else ("ids", "one stands there twice")
        raise DataError(
            f"{source}: {': '.join(bad)}; every row needs an id of its own and tests, as SecCodePLT's have (docs/evaluation.md)"
        )
    facts, record = records.facts(source)["sha256"], read_object(file)
    if record and record["sha256"] != facts:
        raise DataError(
            f"{source} isn't the data that {file} has cut (sha256 {facts[:12]}, there {record['sha256'][:12]}): give that, or other --results"
        )
    if not record:
        record = {"sha256": facts, "near": wanted.near, "seed": wanted.seed} | _cut([pair for _, pair in read], wanted, source)
        write_json(file, record)
    for part in PARTS:
        for form in FORMS:
            kept = [rows[name] for name in record[part]]
            write_lines(out / f"{part}{form}.jsonl", [_plain(row) for row in kept] if form else kept)
    return record


def _cut(found: list[pairs.Pair], wanted: Split, source: str) -> Json:
    """Groups by CWE and hash: the test part first, then the development part of what is left."""
    groups = grouped(found, wanted.near)
    left, parts = list(zip(found, groups, strict=True)), {}
    for part, share in (("test", wanted.test), ("dev", wanted.dev)):
        taken = heldout_groups([pair for pair, _ in left], [group for _, group in left], share, wanted.seed)
        parts[part] = [pair.id for pair, group in left if group in taken]
        left = [(pair, group) for pair, group in left if group not in taken]
    parts["train"] = [pair.id for pair, _ in left]
    if short := next((part for part in PARTS if len(parts[part]) < wanted.least), None):
        sizes = Counter(groups)
        raise DataError(
            f"{source}: {short} would have {len(parts[short])} of {len(found)} rows in {len(sizes)} groups, fewer than {wanted.least}: "
            "change the shares of `split` in configs/reproduce/"
        )
    return {part: parts[part] for part in PARTS} | {"groups": {pair.id: group for pair, group in zip(found, groups, strict=True)}}


def _plain(row: Json) -> Json:
    """A row of SecCodePLT's without its security policy, which is what it has for reasoning."""
    for name in ("task", "task_description"):
        if name in row:
            row = row | {name: {key: value for key, value in row[name].items() if key != "security_policy"}}
    return {key: value for key, value in row.items() if key != "reasoning"}


def identity(record: Json) -> str:
    """What tells a split from another."""
    facts = {key: record[key] for key in ("sha256", *PARTS)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
