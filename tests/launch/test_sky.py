"""`make train-sky`: the task file, held against SkyPilot's own loader where SkyPilot is installed, and its run section, run here."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch import job
from tests.helpers.launch import CONFIG, FITS, TOPOLOGY
from tests.helpers.paths import REPO

NAME = "lpo-eve-test-sky-873d4d"
RUN = "run_dir=runs/test_sky"
LOADER = """\
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(found,) = task.resources
print(json.dumps({"name": task.name, "nodes": task.num_nodes, "accelerators": found.accelerators, "runtime": found.accelerator_args["runtime_version"],
  "spot": found.use_spot, "recovery": found.job_recovery, "cloud": str(found.cloud), "region": found.region, "run": task.run, "setup": task.setup}))
"""


@pytest.fixture
def place():
    """Where the task file goes."""
    yield REPO / "runs/sky" / NAME
    shutil.rmtree(REPO / "runs/sky" / NAME, ignore_errors=True)


def launch(fakes, *words, **options):
    fakes.answer("jobs queue", "[]")
    return fakes.run("sky", "--tpu=v5e:4x4", CONFIG, FITS, RUN, *words, **options)


def written(place):
    return yaml.safe_load((place / "task.yaml").read_text())


def test_all_of_it_in_order(fakes, place):
    done = launch(fakes, "data.path=runs/none", "--spot", env={"HF_TOKEN": "hf_sesame"})
    assert done.returncode == 0, done.stderr
    assert fakes.order(["jobs queue", "lpo plan", "git archive", "jobs launch"]) == ["jobs queue", "lpo plan", "git archive", "jobs launch"]
    (command,) = fakes.lines("jobs launch")
    assert command == f"sky jobs launch --yes --detach-run --name {NAME} --secret HF_TOKEN runs/sky/{NAME}/task.yaml"
    assert "hf_sesame" not in done.stdout + (place / "task.yaml").read_text() + "".join(fakes.lines())
    assert f"sky jobs logs --name {NAME}" in done.stdout and "gs://bkt/runs/test_sky/report.html" in done.stdout


def test_the_task(fakes, place):
    wild = ["stages.sft.objective={name: sft}", "data.path=runs/it's $HOME"]
    assert launch(fakes, *wild, "--spot").returncode == 0
    assert written(place) == {
        "name": NAME,
        "workdir": f"runs/sky/{NAME}/tree",
        "resources": {
            "infra": "gcp/us-west4",
            "accelerators": "tpu-v5litepod-16",
            "accelerator_args": {"runtime_version": "v2-alpha-tpuv5-lite"},
            "use_spot": True,
            "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]},
        },
        "setup": "bash launch/worker.sh setup bkt",
        "run": f"""exec bash launch/worker.sh exec lpo train @tree/{CONFIG} {FITS} {RUN} '{wild[0]}' 'data.path=runs/it'"'"'s $HOME' {TOPOLOGY}""",
    }
    assert launch(fakes, "--tpu=v5p:2x2x2", "mesh.tensor=8", env={"LPO_ZONE": None}).returncode == 0
    resources = written(place)["resources"]
    assert (resources["infra"], resources["accelerators"], resources["use_spot"]) == ("gcp", "tpu-v5p-16", False)


def test_an_evaluation(fakes):
    words = ["--benchmark", "own", "--data", "evaluation/examples/own.jsonl", "--completions", "runs/none", "-o", "evals/test_sky"]
    fakes.answer("storage ls gs://bkt/runs/none", "", first=True)
    fakes.answer("jobs queue", "[]")
    try:
        done = fakes.run("sky", "--tpu=v5e:2x4", "eval", *words)
        assert done.returncode == 0, done.stderr
        task = yaml.safe_load((REPO / "runs/sky/lpo-eve-evals-test-sky-46e3bd/task.yaml").read_text())
    finally:
        shutil.rmtree(REPO / "runs/sky/lpo-eve-evals-test-sky-46e3bd", ignore_errors=True)
    assert task["run"] == "exec bash launch/worker.sh exec lpo-eval run " + " ".join(words)
    assert task["setup"] == "bash launch/worker.sh setup bkt judges"
    assert fakes.lines("storage cp") == ["gcloud storage cp evaluation/examples/own.jsonl gs://bkt/evaluation/examples/own.jsonl"]
    assert fakes.lines("lpo plan") == []


@pytest.mark.parametrize(("beta", "code"), [("2", 0), ("5", 2)])
def test_a_job_that_is_under_way_is_what_was_asked_for(fakes, place, beta, code):
    fakes.answer("jobs queue", f'Fetching...\n[{{"job_name": "{NAME}", "status": "RUNNING"}}]', first=True)
    place.mkdir(parents=True)
    (place / "job.json").write_text(job.read("train", [CONFIG, FITS, RUN, TOPOLOGY]).text())
    done = launch(fakes, f"stages.lpo.objective.beta={beta}")
    assert done.returncode == code, done.stderr
    assert ("is under way" in done.stdout) is (code == 0)
    assert ("stages.lpo.objective.beta: 2.0 there, 5.0 here" in done.stderr) is (code == 2)
    assert fakes.lines("jobs launch") == []


def test_a_server_is_refused_and_so_is_what_only_gke_has(fakes):
    done = fakes.run("sky", "--tpu=tpu7x:2x2x1", "serve", "--model", "runs/none", env={"LPO_API_KEY": "k"})
    assert done.returncode == 2 and "make serve-tpu" in done.stderr and "make serve-gke" in done.stderr


def test_a_dry_run_prints_the_task(fakes, place):
    done = launch(fakes, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout[done.stdout.index("name:") : done.stdout.index("\n+ sky jobs launch")])["name"] == NAME
    assert not place.exists()


def test_skypilot_itself_takes_the_file(fakes, place, tmp_path):
    """Its loader and its schema; `make .venv/installed-sky`, or its `sky` on the PATH."""
    sky = shutil.which("sky", path=os.pathsep.join([str(REPO / ".venv/sky/bin"), os.environ["PATH"]]))
    if sky is None:
        pytest.skip("no SkyPilot here")
    assert launch(fakes, "--spot").returncode == 0
    command = [Path(sky).resolve().parent / "python", "-c", LOADER, place / "task.yaml"]
    done = subprocess.run(command, cwd=REPO, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("recovery").items() >= {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}.items()
    asked = written(place)
    assert found == {
        "name": NAME,
        "nodes": 1,
        "accelerators": {"tpu-v5litepod-16": 1},
        "runtime": "v2-alpha-tpuv5-lite",
        "spot": True,
        "cloud": "GCP",
        "region": "us-west4",
        "run": asked["run"],
        "setup": asked["setup"],
    }
    (place / "task.yaml").write_text((place / "task.yaml").read_text().replace("use_spot", "use_spots"))
    assert subprocess.run(command, cwd=REPO, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True).returncode  # it does look


@pytest.mark.slow
def test_the_run_section_trains_is_killed_and_goes_on(fakes, place, seed_shards, tmp_path):
    """In a home directory as SkyPilot leaves one: the tree synced, the bucket there; the second machine has nothing but the bucket."""
    small = ["stages.sft.epochs=null", "stages.sft.steps=6", "stages.lpo.epochs=null", "stages.lpo.steps=2", "eval_every_steps=0"]
    small += ["checkpoint_every_steps=2", "log_every_steps=1"]
    assert launch(fakes, "--skip-plan", *small).returncode == 0
    bucket = tmp_path / "bucket"
    shutil.copytree(seed_shards["trimmed"], bucket / "runs/tiny_cpu_data")
    script = written(place)["run"].replace(FITS, "mesh.tensor=1").replace(TOPOLOGY, "mesh.topology=null")  # there are no TPUs here

    def machine(number):
        home = tmp_path / f"home{number}"
        tree = home / "sky_workdir"
        tree.mkdir(parents=True)
        for name in ("launch", "configs"):
            shutil.copytree(REPO / name, tree / name)
        (home / "lpo-bucket").symlink_to(bucket)
        (tree / ".venv/bin").mkdir(parents=True)
        (tree / ".venv/bin/lpo").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lpo_jax.cli "$@"\n')
        (tree / ".venv/bin/lpo").chmod(0o755)
        env = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu"}
        env |= {"SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_TASK_ID": "sky-managed-1"}
        log = (home / "log").open("w")
        return subprocess.Popen(["bash", "-c", script], cwd=tree, env=env, stdout=log, stderr=log, start_new_session=True)

    lines = bucket / "runs/test_sky/metrics.jsonl"
    first = machine(1)
    end = time.monotonic() + 240
    while not (lines.exists() and '"step": 5' in lines.read_text()):
        assert first.poll() is None and time.monotonic() < end, (tmp_path / "home1/log").read_text()
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = lines.read_text().splitlines()
    assert not (bucket / "runs/test_sky/report.html").exists()
    assert machine(2).wait(240) == 0, (tmp_path / "home2/log").read_text()
    assert (bucket / "runs/test_sky/report.html").exists()
    assert lines.read_text().splitlines()[:2] == before[:2]  # with their times: these steps weren't done again
