"""From a teacher's answers to a trained model, through the commands that a user types; Bandit judges."""

import asyncio
import json
import threading

import pytest

from data_pipeline import cli as data
from data_pipeline.pairs import Drops, read
from demos.standin import Standin, serve
from lpo_jax import cli
from tests.helpers.paths import SEED_PAIRS
from tests.helpers.training import tiny_args


@pytest.fixture
def endpoint(monkeypatch):
    """The address of a stand-in that serves from a thread."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(serve(Standin(list(read(SEED_PAIRS, Drops())), 0, 0, None)))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.close()


@pytest.mark.slow
def test_distill_build_train(endpoint, tmp_path, capsys):
    job, shards, run = tmp_path / "job", tmp_path / "shards", tmp_path / "run"
    distill = ["distill", "--out", str(job), "--model", "standin", "-n", "40", "--judges", "bandit", "--base-url", endpoint]
    assert data.main(distill) == 0
    summary = json.loads((job / "summary.json").read_text())
    assert summary["judged"] and summary["pairs"] + sum(summary["rejected"].values()) == 40
    rows = [json.loads(line) for line in (job / "data" / "train.jsonl").read_text().splitlines()]
    assert any(finding["judge"] == "bandit" for row in rows for finding in row["vulnerable_findings"])
    assert all(row["judges_failed"] == row["vulnerable_judges_failed"] == [] for row in rows)

    assert data.main(["stats", str(job), "--html", str(tmp_path / "stats.html")]) == 0
    assert f"{summary['pairs']} pairs" in capsys.readouterr().out
    build = ["--train-tokenizer", "512", "--row-tokens", "1024", "--heldout", "0.2", "--out", str(shards)]
    assert data.main(["build", str(job / "data" / "train.jsonl"), *build]) == 0

    steps = ["stages.sft.steps=2", "stages.lpo.steps=2", "plan.row_tokens=1024"]
    assert cli.main([*tiny_args(shards, run), *steps]) == 0
    trained = json.loads((run / "summary.json").read_text())
    assert trained["lpo"]["unchanged_nll"] < trained["init"]["unchanged_nll"]
