"""`make train-tpu` against a stand-in for gcloud: order, arguments, retries, preemption, clean-up."""

import dataclasses
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import slices
from launch.common import LaunchError
from launch.slices import Slice
from lpo_jax.config import MeshConfig
from tests.conftest import REPO

NOT_FOUND = "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found\n"
CONFIG = "configs/tiny_cpu.yaml"
TOPOLOGY = "mesh.topology=v5e:4x4"
STEPS = [
    "plan",
    "storage",
    "tpu-vm create",
    "resources create",
    "tpu-vm delete",
    "resources delete",
    "scp",
    "setup",
    "worker.sh start",
    "follow",
]


def node(state="READY", workers=4, topology="4x4"):
    return json.dumps({"state": state, "networkEndpoints": [{}] * workers, "acceleratorConfig": {"topology": topology}})


def queued(state, message=""):
    return json.dumps({"state": {"state": state, "failedData": {"error": {"message": message}}}})


@pytest.fixture
def cloud(fakes):
    """No TPU at first; then one of four workers on which everything goes well."""
    fakes.answer("tpu-vm describe", NOT_FOUND, code=1, times=1)
    fakes.answer("tpu-vm describe", node())
    fakes.answer("resources describe", NOT_FOUND, code=1)
    fakes.answer("worker.sh setup", "worker.sh: ready\n" * 4)
    fakes.answer("worker.sh start", "worker.sh: started\n" * 4)
    fakes.answer("worker.sh state", "worker.sh: none\n")
    fakes.answer("worker.sh follow", "step 1 loss 3\nworker.sh: over 0\n")
    return fakes


def up(fakes, *words, **options):
    return fakes.run("tpu", "--tpu=v5e:4x4", CONFIG, *words, **options)


def test_all_of_it_in_order(cloud):
    done = up(cloud, "run_dir=runs/x")
    assert done.returncode == 0, done.stderr
    assert cloud.order(STEPS) == ["storage", "plan", "storage", "tpu-vm create", "scp", "setup", "worker.sh start", "follow"]
    assert cloud.lines("lpo plan") == [f"lpo plan {CONFIG} {TOPOLOGY} run_dir=runs/x"]
    where = "--project=proj --zone=us-west4-a --quiet"
    create = f"gcloud compute tpus tpu-vm create lpo-eve-tiny-cpu {where} --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite"
    assert cloud.lines("tpu-vm create") == [create]
    assert all("--worker=all" in line for line in cloud.lines("scp|setup|worker.sh start"))
    assert all("--worker=0" in line for line in cloud.lines("follow"))
    assert "step 1 loss 3" in done.stdout
    assert "make train-tpu-down JOB=lpo-eve-tiny-cpu" in done.stdout  # it is still there and costs money
    assert "gs://bkt/runs/x/report.html" in done.stdout


def test_arguments_arrive_as_they_were_given(cloud):
    wild = ["stages.sft.objective={name: sft}", "run_dir=runs/it's $HOME; `x`", "data.path=runs/a b"]
    assert up(cloud, *wild).returncode == 0
    (line,) = cloud.lines("worker.sh start")
    (command,) = [word.partition("=")[2] for word in shlex.split(line) if word.startswith("--command=")]
    assert shlex.split(command) == ["bash", "lpo-jax/launch/worker.sh", "start", CONFIG, TOPOLOGY, *wild]


def test_all_that_is_missing_is_said_at_once(cloud):
    (cloud.bin / "gcloud").unlink()
    done = cloud.run("tpu", "configs/none.yaml", env={"LPO_PROJECT": None, "LPO_BUCKET": None})
    assert done.returncode == 2
    for word in ("LPO_PROJECT", "LPO_BUCKET", "gcloud", "TPU=v5e:4x4", "configs/none.yaml: no such config"):
        assert word in done.stderr
    assert "LPO_ZONE" not in done.stderr
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("pattern", "out", "code", "said"),
    [
        ("auth list", "", 0, "gcloud auth login"),
        ("buckets describe", "", 0, "no hierarchical namespace"),
        ("buckets describe", "gs://bkt not found: 404.", 1, "gs://bkt not found"),
        ("storage ls", "no such object", 1, "data.path=runs/none is neither here nor in gs://bkt"),
        ("lpo plan", "needs 53 GiB", 1, "SKIP_PLAN=1"),
        ("ls-files", "not tracked", 1, f"git add {CONFIG}"),
    ],
)
def test_nothing_is_created_when_a_check_fails(cloud, pattern, out, code, said):
    cloud.answer(pattern, out, code, first=True)
    done = up(cloud, "data.path=runs/none")
    assert done.returncode == 2
    assert said in done.stderr
    assert cloud.lines("create ") == []


@pytest.mark.parametrize(
    ("agent", "key", "said"),
    [
        ((0, "256 SHA256:other you (RSA)\n"), (0, "256 SHA256:mine you (RSA)\n"), "ssh-add"),
        ((0, "256 SHA256:other you (RSA)\n"), (255, "no such file\n"), "ssh-keygen -t rsa"),
        ((0, "256 SHA256:mine you (RSA)\n"), (0, "256 SHA256:mine you (RSA)\n"), None),
        ((1, "The agent has no identities.\n"), (0, "256 SHA256:mine you (RSA)\n"), None),
    ],
)
def test_gclouds_key_must_be_in_an_agent_that_holds_keys(cloud, agent, key, said):
    cloud.answer("ssh-add -l", agent[1], agent[0])
    cloud.answer("ssh-keygen", key[1], key[0])
    done = up(cloud, env={"SSH_AUTH_SOCK": "/run/agent"})
    assert done.returncode == (2 if said else 0), done.stderr
    assert said is None or said in done.stderr
    assert bool(cloud.lines("create ")) is (said is None)


@pytest.mark.parametrize("path", ["run_dir=/data/disco", "data.path=gs://bkt/data", "run_dir=../data"])
def test_paths_must_be_the_buckets(cloud, path):
    done = up(cloud, path)
    assert done.returncode == 2
    assert f"{path}: give a path relative to this checkout" in done.stderr


def test_a_run_may_write_to_a_flat_bucket_unmounted(cloud):
    cloud.answer("buckets describe", "", first=True)
    done = up(cloud, "run_dir=gs://bkt/runs/x")
    assert done.returncode == 0, done.stderr
    assert " gs://bkt/runs/x/report.html " in done.stdout


@pytest.mark.skipif("topology" not in {f.name for f in dataclasses.fields(MeshConfig)}, reason="configs don't name their slice yet")
def test_the_config_may_name_the_slice(cloud):
    done = cloud.run("tpu", CONFIG, "mesh.topology=v5e:4x4")
    assert done.returncode == 0, done.stderr
    assert cloud.lines("lpo plan") == [f"lpo plan {CONFIG} mesh.topology=v5e:4x4"]
    assert "--accelerator-type=v5litepod-16" in cloud.lines("tpu-vm create")[0]


def test_skipping_the_plan(cloud):
    assert up(cloud, "--skip-plan").returncode == 0
    assert cloud.lines("lpo plan") == []


def test_inputs_that_lie_here_are_uploaded(cloud):
    assert up(cloud, "data.path=tests", "data.tokenizer=README.md").returncode == 0
    assert cloud.lines("rsync| cp ") == [
        "gcloud storage rsync --recursive tests gs://bkt/tests",
        "gcloud storage cp README.md gs://bkt/README.md",
    ]


def test_spot_waits_in_the_queue(cloud):
    cloud.answer("resources describe", NOT_FOUND, code=1, times=2, first=True)  # when looking for what is there, and before asking
    for state in ("ACTIVE", "PROVISIONING", "WAITING_FOR_RESOURCES"):
        cloud.answers.insert(1, {"pattern": "resources describe", "out": queued(state), "code": 0, "times": 1})
    done = up(cloud, "--spot")
    assert done.returncode == 0, done.stderr
    (create,) = cloud.lines("create ")
    assert "queued-resources create lpo-eve-tiny-cpu" in create
    assert {"--spot", "--node-id=lpo-eve-tiny-cpu", "--runtime-version=v2-alpha-tpuv5-lite", "--valid-until-duration=360m"} <= set(
        create.split()
    )
    shown = [line.split()[2] for line in done.stdout.splitlines() if line.endswith(" min")]
    assert shown == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def test_a_queue_that_takes_too_long_is_left(cloud):
    cloud.answer("tpu-vm describe", NOT_FOUND, code=1, first=True)
    cloud.answer("resources describe", NOT_FOUND, code=1, times=2, first=True)
    cloud.answers.insert(1, {"pattern": "resources describe", "out": queued("WAITING_FOR_RESOURCES"), "code": 0, "times": -1})
    done = up(cloud, "--queued", "--wait-min=0")
    assert done.returncode == 2
    assert "still WAITING_FOR_RESOURCES after 0 min" in done.stderr
    assert cloud.order(["resources create", "resources delete", "ssh"]) == ["resources create", "resources delete"]
    assert "--force" in cloud.lines("resources delete")[0]


def test_an_earlier_starts_request_is_waited_for(cloud):
    for state in ("ACTIVE", "PROVISIONING", "PROVISIONING", "PROVISIONING"):
        cloud.answer("resources describe", queued(state), times=1, first=True)
    assert up(cloud, "--spot").returncode == 0
    assert cloud.lines("create ") == []


def test_no_capacity_is_tried_again_and_half_a_tpu_deleted(cloud):
    cloud.answer("tpu-vm create", 'ERROR: "code": 8, "There is no more capacity in the zone"', code=1, times=2, first=True)
    done = up(cloud)
    assert done.returncode == 0, done.stderr
    assert cloud.order(["tpu-vm create", "tpu-vm delete"]) == ["tpu-vm create", "tpu-vm delete"] * 2 + ["tpu-vm create"]


def test_no_capacity_ends_after_some_tries(cloud):
    cloud.answer("tpu-vm describe", NOT_FOUND, code=1, first=True)
    cloud.answer("tpu-vm create", "There is no more capacity in the zone", code=1, first=True)
    done = up(cloud, "--tries=3")
    assert done.returncode == 2
    assert "Tried 3 times" in done.stderr
    assert len(cloud.lines("tpu-vm create")) == 3


def test_what_trying_again_will_not_mend_is_said_at_once(cloud):
    cloud.answer("tpu-vm create", "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been exceeded. Limit: 0", code=1, first=True)
    done = up(cloud)
    assert done.returncode == 2
    assert "Quota limit" in done.stderr
    assert len(cloud.lines("tpu-vm create")) == len(cloud.lines("tpu-vm delete")) == 1


def test_after_a_preemption_it_goes_on(cloud):
    cloud.answer("worker.sh follow", "step 7\nworker.sh: over 75\n", times=1, first=True)
    cloud.answer("worker.sh follow", "Connection closed\n", times=1, first=True)
    # READY at first, then taken away while the log is followed, again when it is looked for, and then there is none.
    cloud.answers = [a for a in cloud.answers if a["pattern"] != "tpu-vm describe"]
    for out, code, times in ((NOT_FOUND, 1, 1), (node(), 0, 1), (node("PREEMPTED"), 0, 3), (node(), 0, -1)):
        cloud.answer("tpu-vm describe", out, code, times)
    done = up(cloud)
    assert done.returncode == 0, done.stderr
    once = ["tpu-vm create", "scp", "setup", "worker.sh start", "follow"]
    assert cloud.order(STEPS)[3:] == [*once, "tpu-vm delete", *once, "scp", "setup", "worker.sh start", "follow"]
    assert len(set(cloud.lines("worker.sh start"))) == 1  # the same command again
    assert "gone (lost the connection" in done.stdout
    assert "has saved its state" in done.stdout


def test_a_crash_on_a_tpu_that_is_being_taken_is_a_preemption(cloud):
    cloud.answer("worker.sh follow", "peer died\nworker.sh: over 1\n", times=1, first=True)
    cloud.answers = [a for a in cloud.answers if a["pattern"] != "tpu-vm describe"]
    for out, code, times in ((NOT_FOUND, 1, 1), (node(), 0, 1), (node("PREEMPTED"), 0, 3), (node(), 0, -1)):
        cloud.answer("tpu-vm describe", out, code, times)
    assert up(cloud).returncode == 0
    assert len(cloud.lines("tpu-vm create")) == 2


def test_restarts_are_bounded(cloud):
    cloud.answer("worker.sh follow", "worker.sh: over 75\n", first=True)
    done = up(cloud, "--restarts=2")
    assert done.returncode == 2
    assert "preempted 3 times" in done.stderr
    assert len(cloud.lines("worker.sh start")) == 3


def test_a_lost_connection_is_taken_up_again(cloud):
    cloud.answer("worker.sh follow", "Connection reset by peer\n", times=2, first=True)
    assert up(cloud).returncode == 0
    assert [line.rpartition(" ")[2].strip("'") for line in cloud.lines("follow")] == ["+1", "20", "20"]
    assert len(cloud.lines("worker.sh start")) == 1


def test_a_hiccup_of_gcloud_does_not_end_the_run(cloud):
    cloud.answer("tpu-vm describe", "ERROR: connection reset", code=1, times=3, first=True)
    assert up(cloud).returncode == 0


@pytest.mark.parametrize(("delete", "deleted"), [("never", False), ("success", False), ("always", True)])
def test_lpos_own_error_is_final(cloud, delete, deleted):
    cloud.answer("worker.sh follow", "lpo: error: bad key\nworker.sh: over 2\n", first=True)
    done = up(cloud, f"--delete={delete}")
    assert done.returncode == 2
    assert "bad key" in done.stdout
    assert len(cloud.lines("worker.sh start")) == 1
    assert bool(cloud.lines("tpu-vm delete")) is deleted
    assert ("make train-tpu-down" in done.stdout) is not deleted


def test_lpos_own_error_is_final_even_if_the_tpu_is_gone_by_then(cloud):
    cloud.answer("worker.sh follow", "worker.sh: over 2\n", first=True)
    cloud.answers = [a for a in cloud.answers if a["pattern"] != "tpu-vm describe"]
    for out, code, times in ((NOT_FOUND, 1, 1), (node(), 0, 1), (node("PREEMPTED"), 0, -1)):
        cloud.answer("tpu-vm describe", out, code, times)
    assert up(cloud).returncode == 2
    assert len(cloud.lines("tpu-vm create")) == 1


def test_a_crash_on_a_tpu_that_is_there_ends_with_its_exit_code(cloud):
    cloud.answer("worker.sh follow", "worker.sh: over 134\n", first=True)
    assert up(cloud).returncode == 134
    assert len(cloud.lines("worker.sh start")) == 1


@pytest.mark.parametrize(("delete", "deleted"), [("success", False), ("always", True)])
def test_ctrl_c_leaves_the_run_running(cloud, delete, deleted):
    cloud.answer("worker.sh follow", "hang", first=True)
    options = cloud.options()
    options.pop("timeout"), options.pop("capture_output")
    command = [sys.executable, "-m", "launch.tpu", "--pause-s=0", "--tpu=v5e:4x4", CONFIG, f"--delete={delete}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **options) as process:
        for _ in range(400):
            if cloud.lines("follow"):
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        shown, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert bool(cloud.lines("delete")) is deleted
    assert ("make train-tpu-down" in shown) is not deleted


def test_delete_after_success(cloud):
    assert up(cloud, "--delete=success").returncode == 0
    assert cloud.order(STEPS)[-2:] == ["follow", "tpu-vm delete"]


def test_every_worker_must_be_set_up(cloud):
    cloud.answer("worker.sh setup", "worker.sh: ready\n" * 3, times=1, first=True)
    assert up(cloud).returncode == 0
    assert len(cloud.lines("worker.sh setup")) == 2

    cloud.answer("worker.sh setup", "worker.sh: ready\n" * 3, first=True)
    done = up(cloud, "--tries=2", "--delete=always")
    assert done.returncode == 2
    assert "not every worker could be set up" in done.stderr
    assert cloud.lines()[-1].startswith("gcloud compute tpus tpu-vm delete")


def test_a_run_under_way_is_only_followed(cloud):
    cloud.answer("tpu-vm describe", node(), first=True)
    cloud.answer("worker.sh state", "worker.sh: running\n", first=True)
    assert up(cloud).returncode == 0
    assert cloud.order(STEPS)[3:] == ["follow"]


def test_a_node_of_another_size_is_not_used(cloud):
    cloud.answer("tpu-vm describe", node(topology="2x4"), first=True)
    done = up(cloud)
    assert done.returncode == 2
    assert "exists with topology 2x4" in done.stderr


def test_the_token_is_copied_and_never_shown(cloud):
    done = up(cloud, env={"HF_TOKEN": "hf_sesame"})
    assert done.returncode == 0
    copied = cloud.home / "copied-hf-token"
    assert copied.read_text() == "hf_sesame"
    assert stat.S_IMODE(copied.stat().st_mode) == 0o600
    assert "hf_sesame" not in done.stdout + done.stderr + "".join(cloud.lines())
    (line,) = cloud.lines("hf-token")
    assert line.split()[6].startswith("lpo-eve-tiny-cpu:.lpo-hf-token")
    assert not Path(shlex.split(line)[5]).exists()


@pytest.mark.parametrize("missing", [False, True])
def test_a_dry_run_shows_everything_and_runs_nothing(cloud, missing):
    env = {"HF_TOKEN": "hf_sesame"} | ({name: None for name in ("LPO_PROJECT", "LPO_ZONE", "LPO_BUCKET")} if missing else {})
    done = up(cloud, "--dry-run", "--spot", "--delete=success", "run_dir=runs/a b", env=env)
    assert done.returncode == 0, done.stderr
    assert cloud.calls == []
    shown = [line.removeprefix("+ ") for line in done.stdout.splitlines() if line.startswith("+ ")]
    for words in (
        "lpo plan",
        "queued-resources create",
        "git archive",
        "scp",
        "worker.sh setup",
        "worker.sh start",
        "follow",
        "resources delete",
    ):
        assert any(words in line for line in shown), words
    assert ("LPO_ZONE: a zone" in done.stdout) is missing
    assert "hf_sesame" not in done.stdout


def test_down_deletes_the_request_and_the_node(fakes):
    fakes.answer("resources describe", queued("SUSPENDED"))
    fakes.answer("tpu-vm describe", node("PREEMPTED"))
    assert fakes.run("tpu", "--down", CONFIG).returncode == 0
    assert fakes.order(["resources delete", "tpu-vm delete"]) == ["resources delete", "tpu-vm delete"]
    assert all(" lpo-eve-tiny-cpu " in line for line in fakes.lines("delete"))


def test_on_a_tpu_host_it_just_trains(fakes):
    fakes.answer("lpo train", "training\n", code=75)
    done = fakes.run("tpu", CONFIG, "a=b c", env={"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "t1k-0,t1k-1", "LPO_ZONE": None})
    assert done.returncode == 75
    assert [call["argv"] for call in fakes.calls] == [["lpo", "train", CONFIG, "a=b c"]]


def test_a_tpu_host_is_known_by_its_chips(tmp_path, monkeypatch):
    monkeypatch.delenv("TPU_WORKER_ID", raising=False)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")  # as for ahead-of-time compilation anywhere
    device = tmp_path / "sys/bus/pci/devices/0000:00:05.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x8086\n")
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/7").touch()
    assert not slices.on_tpu(tmp_path)  # another vendor's card passed through
    (device / "vendor").write_text("0x1ae0\n")
    assert slices.on_tpu(tmp_path)


@pytest.mark.parametrize(
    ("jax", "gcloud", "chips", "hosts", "flags"),
    [
        ("v5e:4x4", "v5litepod-16", 16, 4, ["--accelerator-type=v5litepod-16"]),
        ("v5e:2x4", "v5litepod-8", 8, 1, ["--accelerator-type=v5litepod-8"]),
        ("v5e:16x16", "v5litepod-256", 256, 64, ["--accelerator-type=v5litepod-256"]),
        ("v6e:4x8", "v6e-32", 32, 8, ["--accelerator-type=v6e-32"]),
        ("v5p:2x2x1", "v5p-8", 4, 1, ["--accelerator-type=v5p-8"]),
        ("v5p:2x2x2", "v5p-16", 8, 2, ["--accelerator-type=v5p-16"]),
        ("v5p:2x2x4", "v5p-32", 16, 4, ["--accelerator-type=v5p-32"]),
        ("v5p:2x4x4", "v5p-64", 32, 8, ["--accelerator-type=v5p-64"]),
        ("v5p:4x4x4", "v5p-128", 64, 16, ["--accelerator-type=v5p-128"]),
        ("v4:2x2x2", "v4-16", 8, 2, ["--accelerator-type=v4-16"]),
        ("v5p:2x2x8", None, 32, 8, ["--type=v5p", "--topology=2x2x8"]),
    ],
)
def test_names_of_a_slice(jax, gcloud, chips, hosts, flags):
    found = slices.parse(jax)
    assert (found.name, found.chips, found.hosts, found.gcloud_flags()) == (jax, chips, hosts, flags)
    if gcloud:
        assert found.accelerator_type == gcloud
        assert slices.parse(gcloud) == found


@pytest.mark.parametrize(
    ("text", "said"), [("v5e:3x3", "2x4, 4x4"), ("v5litepod-12", "v5litepod-16"), ("h100", "v5e:4x4"), ("v5p:4x4", "2x2x1")]
)
def test_a_slice_that_there_is_not_names_those_there_are(text, said):
    with pytest.raises(LaunchError, match=said):
        slices.parse(text)


def test_tpu7x_has_no_vms(fakes):
    done = fakes.run("tpu", "--tpu=tpu7x:2x2x1", CONFIG, "--dry-run")
    assert done.returncode == 2
    assert "make train-gke" in done.stderr
    assert Slice("tpu7x", "2x2x1").facts.gke == "tpu7x"


def test_help_teaches():
    for module in ("tpu", "gke", "slurm", "local"):
        shown = subprocess.run(
            [sys.executable, "-m", f"launch.{module}", "--help"], cwd=REPO, capture_output=True, text=True, check=True
        ).stdout
        assert "examples:" in shown
        assert "CONFIG" in shown
