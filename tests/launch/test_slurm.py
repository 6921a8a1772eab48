"""`make train-slurm` and its batch script against stand-ins for SLURM."""

import subprocess

import pytest

from launch import job
from tests.helpers.launch import CONFIG
from tests.helpers.paths import REPO

DATA = "data.path=configs"  # any directory: it has no manifest to look into


@pytest.fixture
def slurm(fakes):
    fakes.answer("sbatch", "4711;clu\n")
    fakes.answer("squeue .*--name=", "")  # no such job yet
    for state in ("PENDING", "RUNNING", "PENDING", "RUNNING"):
        fakes.answer("squeue", f"{state}\n", times=1)
    fakes.answer("squeue", "slurm_load_jobs error: Invalid job id specified\n", code=1)
    fakes.answer("sacct", "COMPLETED\n")
    return fakes


def test_it_submits_and_follows_through_a_requeue(slurm):
    log = REPO / "runs/slurm/lpo-test-slurm-4711.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("step 1 loss 3\n")
    try:
        wild = "stages.sft.objective={name: sft}"
        done = slurm.run(
            "slurm",
            "--name=lpo-test-slurm",
            "--nodes=2",
            "--gpus=8",
            CONFIG,
            DATA,
            "mesh.tensor=16",  # of two nodes' sixteen devices, so that rows aren't cut
            wild,
            env={"LPO_PARTITION": "gpu", "LPO_TIME": "4:00:00"},
        )
    finally:
        log.unlink()
    assert done.returncode == 0, done.stderr
    (submitted,) = [call["argv"] for call in slurm.calls if call["argv"][0] == "sbatch"]
    assert submitted[-7:] == ["launch/slurm.sbatch", "lpo", "train", CONFIG, DATA, "mesh.tensor=16", wild]
    assert {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=gpu", "--time=4:00:00"} <= set(submitted)
    assert "--export=ALL,JAX_PLATFORMS=cuda,LPO_RESTARTS=20" in submitted
    assert done.stdout.count("step 1 loss 3") == 1
    states = [line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("==> job 4711: ")]
    assert states == ["PENDING", "RUNNING", "PENDING", "RUNNING", "COMPLETED"]


def test_cpu_nodes_have_one_task(slurm):
    assert slurm.run("slurm", "--nodes=2", CONFIG, DATA, "mesh.tensor=2").returncode == 0
    (submitted,) = slurm.lines("^sbatch")
    assert "--ntasks-per-node=1 " in submitted
    assert "JAX_PLATFORMS=cpu" in submitted
    assert "gpu" not in submitted


@pytest.fixture
def under_way(slurm):
    """The very job that is asked for, running as 4711; what it is lies beside its log."""
    slurm.answer("squeue .*--name=", "4711\n", first=True)
    told = REPO / "runs/slurm/lpo-test-slurm-4711.json"
    told.parent.mkdir(parents=True, exist_ok=True)
    told.write_text(job.read("train", [CONFIG, DATA]).text())
    yield slurm
    told.unlink(missing_ok=True)


def test_the_very_job_that_is_under_way_is_only_followed(under_way):
    done = under_way.run("slurm", "--name=lpo-test-slurm", CONFIG, DATA)
    assert done.returncode == 0, done.stderr
    assert "is under way as job 4711: following it" in done.stdout and under_way.lines("^sbatch") == []


def test_another_job_of_the_name_is_refused(under_way):
    done = under_way.run("slurm", "--name=lpo-test-slurm", CONFIG, DATA, "stages.lpo.objective.beta=5")
    assert done.returncode == 2 and "stages.lpo.objective.beta: 2.0 there, 5.0 here\n" in done.stderr
    (REPO / "runs/slurm/lpo-test-slurm-4711.json").unlink()
    done = under_way.run("slurm", "--name=lpo-test-slurm", CONFIG, DATA)
    assert done.returncode == 2 and "doesn't say with which settings" in done.stderr
    assert under_way.lines("^sbatch|scancel") == []


def test_what_was_submitted_is_known_the_next_time(slurm):
    try:
        assert slurm.run("slurm", "--name=lpo-test-slurm", "--detach", CONFIG, DATA).returncode == 0
        assert slurm.lines("^sbatch") and slurm.lines("--jobs=4711") == []
        slurm.answer("squeue .*--name=", "4711\n", first=True)
        done = slurm.run("slurm", "--name=lpo-test-slurm", CONFIG, DATA)
        assert done.returncode == 0 and len(slurm.lines("^sbatch")) == 1, done.stderr
    finally:
        (REPO / "runs/slurm/lpo-test-slurm-4711.json").unlink(missing_ok=True)


def test_a_server_and_its_tunnel(slurm):
    slurm.answer("squeue .*--format=%B", "node7\n", first=True)
    slurm.answer("^ssh", "hang")
    run = slurm.start("slurm", "--gpus=1", "--port=8001", "serve", "--model", "tests", env={"LPO_API_KEY": "sesame"})
    done = run.end()
    assert done.returncode == 0, done.stderr
    (submitted,) = [call["argv"] for call in slurm.calls if call["argv"][0] == "sbatch"]
    assert submitted[-5:] == ["launch/slurm.sbatch", "lpo", "serve", "--model", "tests"] and "sesame" not in " ".join(submitted)
    assert "+ ssh -N -o BatchMode=yes -o ExitOnForwardFailure=yes -L 127.0.0.1:8001:127.0.0.1:8000 node7\n" in done.stdout
    assert "ssh -N -L 8001:127.0.0.1:8001" in done.stdout and "sesame" not in done.stdout + done.stderr
    assert slurm.run("slurm", "serve", "--model", "tests").returncode == 2


def test_a_job_that_failed(slurm):
    slurm.answer("sacct", "FAILED\n", first=True)
    assert slurm.run("slurm", CONFIG, DATA).returncode == 1


def test_a_job_that_nobody_knows(slurm):
    slurm.answer("squeue", "", first=True)
    slurm.answer("sacct", "", first=True)
    done = slurm.run("slurm", CONFIG, DATA)
    assert done.returncode == 2
    assert "neither squeue nor sacct knows job 4711" in done.stderr


def test_all_that_is_missing_is_said_at_once(slurm):
    (slurm.bin / "sbatch").unlink()
    done = slurm.run("slurm", CONFIG, "data.path=runs/none", "stages.lpo.data=[{path: configs}, {path: runs/nor}]")
    assert done.returncode == 2
    assert "the program sbatch" in done.stderr
    assert "data.path=runs/none: no such shard set" in done.stderr
    assert "stages.lpo.data.1.path=runs/nor: no such shard set" in done.stderr and "path=configs" not in done.stderr
    assert slurm.calls == []


def test_sbatch_says_why(slurm):
    slurm.answer("sbatch", "sbatch: error: invalid partition specified: gpu\n", code=1, first=True)
    done = slurm.run("slurm", CONFIG, DATA)
    assert done.returncode == 2
    assert "invalid partition specified" in done.stderr


def test_a_dry_run_runs_nothing(slurm):
    done = slurm.run("slurm", "--dry-run", CONFIG, DATA)
    assert done.returncode == 0, done.stderr
    assert "+ sbatch --parsable" in done.stdout
    assert slurm.calls == []
    done = slurm.run("slurm", "--dry-run", CONFIG, "data.path=runs/none")
    assert done.returncode == 2 and "data.path=runs/none: no such shard set" in done.stderr and "sbatch" not in done.stdout


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(0, "0", False), (75, "0", True), (75, "2", True), (75, "3", False), (2, "0", False)]
)
def test_the_batch_script_queues_again_what_was_told_to_stop(fakes, code, restarts, requeued):
    fakes.answer("srun", "", code=code)
    options = fakes.options({"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": restarts, "LPO_RESTARTS": "3"})
    done = subprocess.run(["/bin/bash", REPO / "launch/slurm.sbatch", "lpo", "train", CONFIG, "a={b: c}"], **options)
    assert done.returncode == code
    (step,) = [call["argv"] for call in fakes.calls if call["argv"][0] == "srun"]
    assert step[-4:] == [".venv/bin/lpo", "train", CONFIG, "a={b: c}"]
    assert fakes.lines("scontrol") == (["scontrol requeue 4711"] if requeued else [])
    if code == 75 and not requeued:
        assert "restarted 3 times" in done.stderr
