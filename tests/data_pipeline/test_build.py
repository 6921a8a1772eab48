"""Held-out pairs that come in a file of their own."""

import dataclasses

import pytest

from data_pipeline import cli, pairs
from data_pipeline.feed import Feed
from data_pipeline.shards import Manifest
from tests.helpers.seed_pairs import PAIRS

WORDS = ("--train-tokenizer", "512", "--row-tokens", "1024")


@pytest.fixture
def files(tmp_path):
    """Ten pairs, three others, and one of the ten told again under another name among the three."""
    copy = dataclasses.replace(PAIRS[4], id="told-again", group="")
    pairs.write(PAIRS[:10], tmp_path / "train.jsonl")
    pairs.write([*PAIRS[40:43], copy], tmp_path / "heldout.jsonl")
    return tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"


def ids(directory):
    feed = Feed(directory)
    return {split: {i for row in range(feed.rows(split)) for i in feed.pair_ids(split, row)} for split in ("train", "heldout")}


def test_a_files_pairs_are_held_out_and_what_is_alike_is_dropped(files, tmp_path, capsys):
    train, heldout = files
    words = ["build", str(train), "--heldout-file", str(heldout), *WORDS, "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    theirs = {pair.id for pair in (*PAIRS[40:43], dataclasses.replace(PAIRS[4], id="told-again"))}
    found, manifest = ids(tmp_path / "out"), Manifest.load(tmp_path / "out")
    assert found["heldout"] == theirs and found["train"] == {pair.id for pair in PAIRS[:10]} - {PAIRS[4].id}
    assert manifest.drops == {"alike a pair of --heldout-file": 1} and len(manifest.inputs) == 2
    assert cli.main([*words, "--near", "2", "--force"]) == 0
    assert ids(tmp_path / "out")["train"] == {pair.id for pair in PAIRS[:10]}
    assert cli.main([*words[:2], *words[4:]]) == 2 and "other inputs or options" in capsys.readouterr().err


def test_without_one_a_build_is_the_same_as_ever(files, tmp_path):
    """Sets that were built before are up to date: their key says nothing of such a file."""
    train, _ = files
    assert cli.main(["build", str(train), "--heldout", "0.3", *WORDS, "--out", str(tmp_path / "out")]) == 0
    found = ids(tmp_path / "out")
    assert found["heldout"] and found["train"] and not found["heldout"] & found["train"]
