"""Data sets of the hub: all of one, a subset, a split, columns by our names; from a server that stands in for it."""

import json
import subprocess
import sys

import pytest

from data_pipeline import records
from data_pipeline.pairs import Drops, read
from foundation.errors import DataError
from tests.helpers.hub import OWNER, TOKEN, hub
from tests.helpers.paths import REPO

READ = """if True:
    import json, sys
    from data_pipeline import pairs, records
    from foundation.errors import UserError
    for source in sys.argv[1:]:
        try:
            found = [[p.id, p.instruction, p.chosen, p.rejected] for p in pairs.read(source, pairs.Drops())]
            print(json.dumps({"pairs": found, "facts": records.facts(source)}))
        except UserError as error:
            print(json.dumps(str(error)))
"""


def lines(*names):
    return "\n".join(json.dumps({"instruction": f"do {n}", "chosen": f"good {n}", "rejected": f"bad {n}"}) for n in names)


def test_subsets_splits_and_columns(tmp_path):
    theirs = "\n".join(json.dumps({"instruction": "not this", "task": f"do {n}", "good": f"good {n}", "bad": f"bad {n}"}) for n in "xy")
    card = "---\nconfigs:\n- config_name: main\n  default: true\n  data_files:\n  - split: train\n    path: train.jsonl\n  - split: test\n    path: test.jsonl\n"
    card += "- config_name: theirs\n  data_files: theirs.jsonl\n---\n"
    columns = "?instruction=task&chosen=good&rejected=bad"
    name = f"{OWNER}/pairs"
    with hub() as server:
        server.put("dataset", name, {"train.jsonl": lines("a", "b"), "test.jsonl": lines("c"), "theirs.jsonl": theirs, "README.md": card})
        server.repos["dataset", name].private = True  # the key is used
        sources = [
            name,
            f"{name}:test",
            f"hf://{name}:train",
            f"hf://{name}/theirs{columns}",
            f"hf://{name}/theirs?chosen=nothing",
            f"{name}:none",
        ]
        done = subprocess.run(
            [sys.executable, "-c", READ, *sources], env=server.environment(tmp_path), cwd=REPO, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    whole, test, train, other, nothing, none = map(json.loads, done.stdout.splitlines())
    assert [row[1:] for row in whole["pairs"]] == [[f"do {n}", f"good {n}", f"bad {n}"] for n in "abc"]
    assert [row[0] for row in whole["pairs"]] == ["pairs/train:1", "pairs/train:2", "pairs/test:1"]
    assert test["pairs"] == [["pairs:test/test:1", "do c", "good c", "bad c"]]
    assert [row[1] for row in train["pairs"]] == ["do a", "do b"]
    assert [row[1:] for row in other["pairs"]] == [[f"do {n}", f"good {n}", f"bad {n}"] for n in "xy"]
    assert "no column nothing, only instruction, task, good, bad" in nothing and "no split none, only train, test" in none
    assert len({found["facts"]["sha256"] for found in (whole, test, train, other)}) == 4
    assert train["facts"]["file"] == f"{name}:train"
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize("source", ["hf://pairs", "hf://a/b/c/d", "hf://a/b:", "hf://a/b?", "hf:/a/b"])
def test_how_it_is_written_is_said(source):
    with pytest.raises(DataError, match="write hf://OWNER/NAME" if source.startswith("hf://") else "no such file"):
        list(read(source, Drops()))


def test_with_a_prefix_a_directory_of_the_name_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "train.jsonl").write_text(lines("a"))
    assert [pair.chosen for pair in read("a/b", Drops())] == ["good a"]
    with pytest.raises(DataError, match="would read the directory a/b here"):
        list(read("hf://a/b", Drops()))
    assert records.shown("hf://a/b:train") == "a/b:train"
