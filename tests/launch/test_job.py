"""Any command as a job: what it reads and writes, what is refused of it, what it is called. `make train-tpu` with a stand-in for gcloud launches it."""

import json
import shutil

import pytest

from launch import job
from lpo_jax.config import load, to_dict
from tests.helpers.launch import CONFIG
from tests.helpers.paths import REPO


def test_a_run_that_the_bucket_has_is_taken_from_there(cloud, tmp_path):
    """An older copy of it may lie here."""
    words = ["--tpu=v5e:4x4", "generate", "data_pipeline/seed/pairs.jsonl", "-o", "new/out.jsonl", "--model", "runs/test_upload"]
    run = REPO / "runs/test_upload"
    (run / "checkpoints").mkdir(parents=True)
    config = load(REPO / CONFIG, ["run_dir=runs/test_upload", "data.path=tests"])
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    cloud.answer("storage ls gs://bkt/tests/tokenizer", "gs://...", first=True)
    try:
        assert cloud.run("tpu", *words).returncode == 0
        sent = [f"gcloud storage rsync --recursive {name} gs://bkt/{name}" for name in ("runs/test_upload",)]
        assert cloud.lines("rsync") == sent and cloud.lines("new/.lpo") == ["gcloud storage cp - gs://bkt/new/.lpo"]
        cloud.answer("storage ls gs://bkt/runs/test_upload/config.json", "gs://...", first=True)
        done = cloud.run("tpu", *words)
        assert done.returncode == 0 and len(cloud.lines("rsync")) == 1, done.stderr
        assert "runs/test_upload is in gs://bkt already" in done.stdout
    finally:
        shutil.rmtree(run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "--benchmark", "own", "--completions", "canonical"], "-o"),
        (["eval", "--benchmark", "humaneval", "--data", "README.md", "--completions", "canonical", "-o", "evals/x"], "README.md"),
        (
            ["generate", "none.jsonl", "-o", "runs/out.jsonl", "--model", "tests"],
            "prompts=none.jsonl: no such file or directory here or in the bucket",
        ),
        (
            ["generate", "data_pipeline/seed/pairs.jsonl", "-o", "/tmp/out.jsonl", "--model", "tests"],
            "-o=/tmp/out.jsonl: give a path relative to this checkout",
        ),
        (
            ["generate", "data_pipeline/seed/pairs.jsonl", "-o", "runs/out.jsonl", "--model", "tests", "--tensor", "3"],
            "doesn't fit 8 devices",
        ),
        (["serve", "--model", "tests", "--port", "0"], "the tunnel must know the port"),
        (["serve", "--model", "tests", "--host", "0.0.0.0"], "is reached through the tunnel"),
        (["serve", "--model", "tests", "--rowz", "3"], "--rowz"),
    ],
)
def test_what_a_command_would_refuse_is_refused_before_anything_is_paid(cloud, words, said):
    done = cloud.run("tpu", "--tpu=v5e:2x4", *words, env={"LPO_API_KEY": "sesame"})
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert cloud.lines("create ") == []


def test_what_a_job_is_told_by(monkeypatch):
    monkeypatch.setenv("LOGNAME", "eve")
    asked = [
        "tasks.jsonl",
        "-o",
        "runs/a/out.jsonl",
        "--model",
        "runs/none",
        "--adapter",
        "one=runs/x",
        "--adapter",
        "two=runs/y",
        "--template",
        "chat",
    ]
    found = job.read("generate", asked)
    assert found.argv() == found.argv("/tree") == ["lpo", "generate", *asked]
    assert found.inputs() == {"prompts": "tasks.jsonl", "--model": "runs/none", "--adapter": "runs/x", "--adapter 1": "runs/y"}
    assert (found.name, found.output) == ("lpo-eve-a-out-jsonl-c0d9f1", "runs/a/out.jsonl")
    assert found.follow_up("bkt") == "To bring it here: gcloud storage cp gs://bkt/runs/a/out.jsonl ."
    assert job.read("serve", ["--model", "runs/none"]).name == "lpo-eve-serve-runs-none-6a9e9d"
    assert job.read("serve", ["--model", "owner/x", "--port", "8001"]).tunnel(None) == (8001, 8001)
    facts = json.loads(found.text())
    found.check_same("x", found.text())
    with pytest.raises(job.LaunchError, match="samples: 7 there, 1 here"):
        found.check_same("x", json.dumps(facts | {"samples": 7}))


def test_an_export_to_the_hub_alone_writes_nothing_here(monkeypatch):
    monkeypatch.setenv("LOGNAME", "eve")
    found = job.read("export", ["runs/x", "--push", "me/x"])
    assert found.output is found.follow_up("bkt") is None
    assert found.name.startswith("lpo-eve-export-me-x-") and job.read("export", ["runs/x", "runs/y"]).name == "lpo-eve-y"


def test_a_config_is_the_trees_and_told_of_the_slice():
    asked = ["configs/cosec_plus/qwen2_5_coder_kd.yaml", "mesh.topology=v5e:2x4", "mesh.fsdp=16", "-o", "data/teacher"]
    found = job.read("teacher", asked).on("v5e:4x4")
    assert found.argv("@tree") == ["lpo", "teacher", f"@tree/{asked[0]}", "mesh.fsdp=16", "mesh.topology=v5e:4x4", "-o", "data/teacher"]
    assert found.config.mesh.topology == "v5e:4x4" and found.output == "data/teacher"
    assert found.on("v5e:4x4") is found
    behind = job.read("teacher", [asked[0], "-o", "data/teacher", "mesh.fsdp=16"]).on("v5e:4x4")
    assert behind.config == found.config and behind.argv()[-2:] == ["mesh.fsdp=16", "mesh.topology=v5e:4x4"]
    judged = job.read("eval", ["--benchmark", "own", "--completions", "https://x/v1", "--model", "gpt", "-o", "evals/x"])
    assert judged.inputs() == {}  # an endpoint, and the name that its model has there
