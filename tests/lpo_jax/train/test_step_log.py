"""Too many steps that aren't finite end the run, and are listed."""

import json

import pytest

from data_pipeline.feed import Feed
from lpo_jax import cli
from tests.helpers.training import tiny_args


@pytest.mark.slow
def test_too_many_of_them_stop_the_run_and_are_listed(seed_shards, tmp_path, capsys):
    args = tiny_args(seed_shards["trimmed"], tmp_path, "stages.sft.optim.lr=1e30", "max_skipped_steps=3", "checkpoint_every_steps=1")
    assert cli.main(args) == 2
    assert not list((tmp_path / "checkpoints").glob("*tmp")), "nothing is written any more when the error is told"
    said = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("lpo: error: stage sft: loss or gradient of the last 3")
    ]
    listed = json.loads((tmp_path / "skipped_rows.json").read_text())
    assert len(said) == 1 and str(tmp_path / "skipped_rows.json") in said[0]
    feed = Feed(seed_shards["trimmed"])
    assert [entry["step"] for entry in listed["steps"]] == list(range(listed["steps"][-1]["step"] - 2, listed["steps"][-1]["step"] + 1))
    for entry in listed["steps"]:
        assert [row["row"] for row in entry["rows"]] == feed.step_rows(8, entry["step"] - 1, 0).tolist()
        assert all(row["pairs"] == feed.pair_ids("train", row["row"]) for row in entry["rows"])

    def no_constant(text):
        raise AssertionError(f"{text} is no JSON")

    lines = [json.loads(line, parse_constant=no_constant) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["group"] == "train"]
    assert [line["step"] for line in train] == list(range(1, listed["steps"][-1]["step"] + 1))
    assert train[-1]["skipped_steps"] >= 3 and not {"loss", "grad_norm"} <= train[-1].keys()
    # The counts are in the checkpoint: resumed before the last of the three steps, the run stops after it.
    assert cli.main(args) == 2
    assert said[0] in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text().count('"train"') == len(train)
