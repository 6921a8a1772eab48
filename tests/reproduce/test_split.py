"""The split: what it promises, and what it refuses."""

import json
from dataclasses import replace

import pytest

from data_pipeline import pairs
from data_pipeline.build import grouped
from foundation.errors import DataError
from reproduce.campaign import PARTS, load
from reproduce.split import split
from tests.helpers.campaigns import ROWS
from tests.helpers.paths import REPO


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_groups_are_never_cut_and_every_row_is_in_one_part(tmp_path):
    wanted = load("smoke").split
    record = split(str(ROWS), wanted, tmp_path / "split.json", tmp_path / "data")
    parts = {part: record[part] for part in PARTS}
    every = [name for part in parts.values() for name in part]
    assert sorted(every) == sorted(row["id"] for row in rows(ROWS)) and len(set(every)) == len(every)
    where = {name: part for part, names in parts.items() for name in names}
    found = list(pairs.read(ROWS, pairs.Drops()))
    for group in set(grouped(found, wanted.near)):
        members = [pair.id for pair, own in zip(found, grouped(found, wanted.near), strict=True) if own == group]
        assert len({where[name] for name in members}) == 1
    again = split(str(ROWS), wanted, tmp_path / "other.json", tmp_path / "data")
    assert again == record and split(str(ROWS), wanted, tmp_path / "split.json", tmp_path / "data") == record


def test_the_record_holds_ids_and_the_files_hold_the_rows(tmp_path):
    record = split(str(ROWS), load("smoke").split, tmp_path / "split.json", tmp_path / "data")
    text = (tmp_path / "split.json").read_text()
    for row in rows(ROWS):
        assert row["prompt"][:40] not in text
    for part in PARTS:
        whole, plain = ({row["id"]: row for row in rows(tmp_path / "data" / f"{part}{form}.jsonl")} for form in ("", "_plain"))
        assert list(whole) == list(plain) == record[part]
        assert all(row["task"].pop("security_policy") and row == plain[name] for name, row in whole.items())
        assert not any(pair.reasoning for pair in pairs.read(tmp_path / "data" / f"{part}_plain.jsonl", pairs.Drops()))


def test_what_is_refused(tmp_path):
    wanted, record = load("smoke").split, tmp_path / "split.json"
    with pytest.raises(DataError, match=r"test would have 6 of 24 rows in 8 groups, fewer than 7"):
        split(str(ROWS), replace(wanted, least=7), record, tmp_path / "data")
    assert not record.exists()
    split(str(ROWS), wanted, record, tmp_path / "data")
    other = tmp_path / "other.jsonl"
    other.write_text("".join(ROWS.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"isn't the data that .*split.json has cut"):
        split(str(other), wanted, record, tmp_path / "data")
    untested = rows(ROWS)
    untested[3]["testcases"] = ""
    other.write_text("".join(json.dumps(row) + "\n" for row in untested))
    with pytest.raises(DataError, match=f"{untested[3]['id']}: no tests"):
        split(str(other), wanted, tmp_path / "new.json", tmp_path / "data")


def test_the_recorded_split_is_what_its_seed_makes(shared_data, tmp_path):
    """Of the real rows: enough in each part, and the record in the tree is the one that is made anew."""
    wanted, source = load("small").split, shared_data / "seccodeplt" / "train.jsonl"
    record = split(str(source), wanted, tmp_path / "split.json", tmp_path / "data")
    assert {part: len(record[part]) for part in PARTS} == {"train": 377, "dev": 137, "test": 141}
    assert (tmp_path / "split.json").read_bytes() == (REPO / "docs" / "results" / "split.json").read_bytes()
