"""Faults and kills: every prompt ends once, and nothing is paid for again after its answer was journalled. The server counts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import REPO, SEED_PAIRS

KEY = "sk-not-a-real-key-0123456789"


def lines(path: Path) -> list[dict]:
    """Whole lines of a file that someone may be writing to."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@pytest.mark.parametrize(("prompts", "kills"), [(200, 1), pytest.param(10_000, 3, marks=pytest.mark.heavy)])
def test_every_prompt_ends_once_and_is_paid_for_once(tmp_path, prompts, kills):
    ledger, port_file, out = tmp_path / "ledger.jsonl", tmp_path / "port", tmp_path / "job"
    server = subprocess.Popen(
        [sys.executable, "-m", "demos.standin", SEED_PAIRS, "--port-file", port_file, "--ledger", ledger, "--faults", "0.2", "--hang", "60"],
        cwd=REPO,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not port_file.exists():
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.05)
        command = [
            sys.executable, "-m", "data_pipeline.cli", "distill", "--out", out, "--model", "standin", "-n", str(prompts), "--judges",
            "--base-url", f"http://127.0.0.1:{port_file.read_text()}/v1", "--timeout", "2", "--concurrency", "32", "--backoff", "0.05",
            "--tries", "20", "--near", "2",
        ]  # fmt: skip
        env = os.environ | {"OPENAI_API_KEY": KEY}
        paid_again = 0
        for kill in range(kills + 1):
            journalled = {row["key"] for row in lines(out / "journal.jsonl")}
            before = len(lines(ledger))
            job = subprocess.Popen(command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if kill < kills:
                goal = prompts * (kill + 1) // (kills + 1)
                while sum(1 for _ in open(out / "journal.jsonl")) < goal if (out / "journal.jsonl").exists() else True:
                    assert job.poll() is None, job.stdout.read()
                    time.sleep(0.05)
                os.kill(job.pid, signal.SIGKILL)
                job.wait()
            else:
                text, _ = job.communicate()
                assert job.returncode == 0, text
            paid_again += sum(row["key"] in journalled for row in lines(ledger)[before:])
    finally:
        server.kill()
        server.wait()
    assert paid_again == 0
    summary = json.loads((out / "summary.json").read_text())
    rejected = lines(out / "rejected.jsonl")
    pairs = [row for split in (out / "data").glob("*.jsonl") for row in lines(split)]
    ids = [row["id"] for row in (*pairs, *rejected)]
    assert len(ids) == len(set(ids)) == prompts == summary["prompts"]
    assert summary["pending"] == {}
    assert sum(summary["rejected"].values()) == len(rejected) and {"refused", "cut off at the token limit"} <= summary["rejected"].keys()
    assert len(lines(out / "journal.jsonl")) == len({row["key"] for row in lines(out / "journal.jsonl")}) == prompts
    for file in out.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()
    assert KEY not in text
    print(f"\n{prompts} prompts, {kills} kills: {len(pairs)} pairs, {summary['rejected']}; {len(lines(ledger))} completions delivered; last run's retries {summary['retries']}")  # fmt: skip
