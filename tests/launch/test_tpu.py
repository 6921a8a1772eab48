"""`make train-tpu` against a stand-in for gcloud: order, arguments, what it refuses, clean-up."""

import json
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launch import slices
from launch.common import LaunchError
from launch.slices import Slice
from lpo_jax.config import load
from tests.helpers.launch import CONFIG, ELSEWHERE, FITS, MANIFEST, NOT_FOUND, STEPS, TOPOLOGY, node, queued, told, up
from tests.helpers.paths import REPO


def test_all_of_it_in_order(cloud):
    done = up(cloud, ELSEWHERE, "run_dir=runs/x")
    assert done.returncode == 0, done.stderr
    assert cloud.order(STEPS) == ["storage"] * 3 + ["plan", "tpu-vm create", "scp", "scp", "setup", "worker.sh start", "follow"]
    assert cloud.lines("lpo plan") == [f"lpo plan {CONFIG} {FITS} {ELSEWHERE} run_dir=runs/x {TOPOLOGY}"]
    where = "--project=proj --zone=us-west4-a --quiet"
    create = f"gcloud compute tpus tpu-vm create lpo-eve-x {where} --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite"
    assert cloud.lines("tpu-vm create") == [create]
    assert all("--worker=all" in line for line in cloud.lines("scp|setup|worker.sh start"))
    assert all("--worker=0" in line for line in cloud.lines("follow"))
    assert "step 1 loss 3" in done.stdout
    assert "make train-tpu-down JOB=lpo-eve-x" in done.stdout  # it is still there and costs money
    assert "gs://bkt/runs/x/report.html" in done.stdout


def test_arguments_arrive_as_they_were_given(cloud):
    wild = ["stages.sft.objective={name: sft}", "run_dir=runs/it's $HOME; `x`", "data.path=runs/a b"]
    assert up(cloud, *wild).returncode == 0
    (line,) = cloud.lines("worker.sh start")
    (command,) = [word.partition("=")[2] for word in shlex.split(line) if word.startswith("--command=")]
    told = re.search(r"lpo-job-\w+\.json", command)[0]
    assert shlex.split(command) == [
        "bash", "lpo-jax-0123456789ab/launch/worker.sh", "start", told, "lpo", "train", f"@tree/{CONFIG}", FITS, *wild, TOPOLOGY
    ]  # fmt: skip
    assert load(REPO / CONFIG, [FITS, *wild, TOPOLOGY]).run_dir == json.loads((cloud.home / f"copied-{told}").read_text())["run_dir"]


def test_all_that_is_missing_is_said_at_once(cloud):
    (cloud.bin / "gcloud").unlink()
    done = cloud.run("tpu", "configs/none.yaml", env={"LPO_PROJECT": None, "LPO_BUCKET": None})
    assert done.returncode == 2
    for word in ("LPO_PROJECT", "LPO_BUCKET", "gcloud", "configs/none.yaml: no such config"):
        assert word in done.stderr
    assert "LPO_ZONE" not in done.stderr
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("pattern", "out", "code", "said"),
    [
        ("auth list", "", 0, "gcloud auth login"),
        ("buckets describe", "", 0, "no hierarchical namespace"),
        ("buckets describe", "gs://bkt not found: 404.", 1, "gs://bkt not found"),
        ("storage cat", "no such object", 1, "data.path=runs/none is neither here nor in gs://bkt"),
        ("storage cat .*manifest", "{", 0, "manifest.json:1: damaged JSON"),
        ("storage cat .*config.json", json.dumps({"run_dir": "x"}), 0, "gs://bkt/runs/tiny_cpu/config.json: missing key"),
        ("accelerator-types", "Location us-west4-a is not found or access is unauthorized.", 1, "LPO_ZONE: no v5litepod-16 there"),
        ("buckets describe", "There was a problem refreshing your current auth tokens: Reauthentication failed.", 1, "gcloud auth login"),
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


def test_the_config_may_name_the_slice(cloud):
    done = cloud.run("tpu", CONFIG, FITS, TOPOLOGY)
    assert done.returncode == 0, done.stderr
    assert cloud.lines("lpo plan") == [f"lpo plan {CONFIG} {FITS} {TOPOLOGY}"]
    assert "--accelerator-type=v5litepod-16" in cloud.lines("tpu-vm create")[0]


@pytest.mark.parametrize(
    ("place", "noted"), [("US-WEST4", False), ("US", False), ("EU", True), ("US-EAST1", True), ("NAM4", False), ("", False)]
)
def test_a_bucket_far_away_is_noted(cloud, place, noted):
    cloud.answer("buckets describe", f"True\t{place}\n", first=True)
    done = up(cloud, "--skip-plan")
    assert done.returncode == 0, done.stderr
    assert (f"note: LPO_BUCKET=bkt is in {place.lower()}, the machines in us-west4" in done.stdout) is noted


def test_skipping_the_plan(cloud):
    assert up(cloud, "--skip-plan").returncode == 0
    assert cloud.lines("lpo plan") == []


def test_inputs_that_lie_here_are_uploaded(cloud):
    assert (
        up(cloud, "data.path=tests", "stages.sft.objective={name: kd, kl: {direction: reverse, weight: 1, teacher: README.md}}").returncode
        == 0
    )
    assert cloud.lines("rsync| cp ") == [
        "gcloud storage rsync --recursive tests gs://bkt/tests",
        "gcloud storage cp README.md gs://bkt/README.md",
    ]


def test_the_stages_own_data_travel_too_each_directory_once(cloud):
    sets = "[{path: tests, weight: 1}, {path: docs, weight: 3}]"
    assert up(cloud, "data.path=tests", f"stages.sft.data={sets}", "stages.lpo.data=[{path: docs}]").returncode == 0
    assert cloud.lines("rsync| cp ") == [f"gcloud storage rsync --recursive {name} gs://bkt/{name}" for name in ("tests", "docs")]


def test_a_teacher_that_lies_here_travels_too(cloud):
    kd = "{name: kd, kl: {direction: reverse, weight: 0.5, teacher: docs}}"
    assert up(cloud, "data.path=tests", f"stages.sft.objective={kd}").returncode == 0
    assert cloud.lines("rsync| cp ") == [f"gcloud storage rsync --recursive {name} gs://bkt/{name}" for name in ("tests", "docs")]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "runs/none",
            "stages.sft.data.0.path=runs/none is neither here nor in gs://bkt: build it with `lpo-data build ... --out runs/none`",
        ),
        ("/data/disco", "stages.sft.data.0.path=/data/disco: give a path relative to this checkout"),
    ],
)
def test_a_stages_own_data_must_be_there(cloud, path, said):
    cloud.answer("storage cat", "no such object", 1, first=True)
    done = up(cloud, "data.path=tests", f"stages.sft.data=[{{path: {path}}}]")
    assert done.returncode == 2 and said in done.stderr
    assert cloud.lines("create ") == []


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


def test_the_very_run_that_is_under_way_is_only_followed(cloud):
    cloud.answer("tpu-vm describe", node(), first=True)
    cloud.answer("worker.sh state", told(ELSEWHERE), first=True)
    done = up(cloud, ELSEWHERE)
    assert done.returncode == 0, done.stderr
    assert cloud.order(STEPS)[3:] == ["follow"]
    assert "train" not in "".join(cloud.lines("lpo plan|worker.sh start"))


@pytest.mark.parametrize(
    ("running", "said"),
    [
        (told("stages.lpo.objective.beta=5"), "  - stages.lpo.objective.beta: 5.0 there, 2.0 here\n"),
        (told("run_dir=runs/other"), '  - run_dir: "runs/other" there, "runs/tiny_cpu" here\n'),
        ("worker.sh: running\n", "doesn't say with which settings"),
    ],
)
def test_another_run_is_neither_followed_nor_touched(cloud, running, said):
    cloud.answer("tpu-vm describe", node(), first=True)
    cloud.answer("worker.sh state", running, first=True)
    done = up(cloud, "--delete=always")
    assert done.returncode == 2
    assert said in done.stderr and "nothing was stopped or deleted" in done.stderr
    assert cloud.lines("follow|worker.sh start|worker.sh setup|delete|lpo plan") == []


def test_another_run_that_began_meanwhile_is_left_alone(cloud):
    cloud.answer("worker.sh start", "worker.sh: busy\n" + "worker.sh: started\n" * 3, first=True)
    done = up(cloud, "--delete=always")
    assert done.returncode == 2
    assert "began another job meanwhile" in done.stderr
    assert cloud.lines("tpu-vm delete|follow") == []


def test_down_finds_the_name_as_up_does(fakes):
    fakes.answer("describe", NOT_FOUND, code=1)
    assert fakes.run("tpu", "--down", CONFIG, "run_dir=runs/beta5").returncode == 0
    assert all(" lpo-eve-beta5 " in line for line in fakes.lines("describe")) and fakes.lines("describe")
    assert fakes.run("tpu", "--down", "configs/none.yaml").returncode == 2  # and no other name is guessed


def test_rows_that_the_slice_can_not_cut_are_refused_by_a_dry_run_too(cloud):
    for more in ([], ["--dry-run"]):
        done = cloud.run("tpu", "--tpu=v5e:4x4", CONFIG, *more)
        assert done.returncode == 2
        for key in ("stages.sft.batch_rows", "stages.lpo.batch_rows", "eval_rows"):
            assert re.search(rf"  - {key}.* must be a multiple of data \* fsdp \* expert = 16, e\.g\. {key}=16\n", done.stderr)
        assert cloud.lines("lpo plan|create") == []


def test_intervals_that_never_end_are_said_of_data_in_the_bucket(cloud):
    few = json.loads(json.dumps(MANIFEST))
    few["splits"]["train"]["rows"] = 17  # some 3,000 short pairs
    cloud.answer("storage cat .*runs/few/manifest.json", json.dumps(few), first=True)
    done = up(cloud, "data.path=runs/few", "stages.lpo.epochs=1", "stages.sft.epochs=1")
    assert done.returncode == 0, done.stderr
    both = r"stage sft \(17 steps\) and stage lpo \(17 steps\)"
    assert re.search(rf"note: eval_every_steps is 100: .* {both}; e\.g\. eval_every_steps=4, or 0", done.stdout)
    assert re.search(
        rf"note: checkpoint_every_steps is 200: nothing is saved before the end of {both}; e\.g\. checkpoint_every_steps=4", done.stdout
    )


def test_weights_that_are_gated_are_refused_before_anything_is_paid(cloud, hub):
    words = ["model.new=null", "model.path=meta/gated", "data.tokenizer=meta/gated"]
    refused = up(cloud, *words, env={"HF_ENDPOINT": hub})
    assert refused.returncode == 2
    for key in ("model.path", "data.tokenizer"):
        assert f"{key}=meta/gated is gated, and HF_TOKEN isn't set: accept its terms on the hub, and set HF_TOKEN" in refused.stderr
    refused = up(cloud, *words[:1], "model.path=meta/none", env={"HF_ENDPOINT": hub, "HF_TOKEN": "hf_sesame"})
    assert "model.path=meta/none: neither here, nor on the hub for this HF_TOKEN" in refused.stderr
    assert cloud.lines("create ") == []


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
    assert line.split()[6].startswith("lpo-eve-tiny-cpu-5d8060:.lpo-hf-token")
    assert not Path(shlex.split(line)[5]).exists()


@pytest.mark.parametrize("missing", [False, True])
def test_a_dry_run_shows_everything_and_runs_nothing(cloud, missing):
    env = {"HF_TOKEN": "hf_sesame"} | ({name: None for name in ("LPO_PROJECT", "LPO_ZONE", "LPO_BUCKET")} if missing else {})
    done = up(cloud, "--dry-run", "--spot", "--delete=success", "run_dir=runs/a b", env=env)
    assert done.returncode == 0, done.stderr
    assert {call["argv"][0] for call in cloud.calls} == {"git"}  # whether the config is tracked
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


@pytest.mark.parametrize(("words", "said"), [([], "nothing is left of mine"), (["--dry-run"], "what there is of mine would be deleted")])
def test_down_says_what_was_done_or_would_be(fakes, words, said):
    fakes.answer("describe", NOT_FOUND, code=1)
    done = fakes.run("tpu", "--down", "--name=mine", *words)
    assert done.returncode == 0 and said in done.stdout and ("a dry run" in done.stdout) == ("nothing is left" not in done.stdout)
    assert bool(fakes.calls) != bool(words)


def test_down_deletes_the_request_and_the_node(fakes):
    fakes.answer("resources describe", queued("SUSPENDED"))
    fakes.answer("tpu-vm describe", node("PREEMPTED"))
    assert fakes.run("tpu", "--down", CONFIG).returncode == 0
    assert fakes.order(["resources delete", "tpu-vm delete"]) == ["resources delete", "tpu-vm delete"]
    assert all(" lpo-eve-tiny-cpu-5d8060 " in line for line in fakes.lines("delete"))


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
    done = fakes.run("tpu", "--tpu=tpu7x:2x2x1", CONFIG, "mesh.tensor=8", "--dry-run")
    assert done.returncode == 2
    assert "make train-gke" in done.stderr
    assert Slice("tpu7x", "2x2x1").facts.gke == "tpu7x"


def test_help_teaches():
    for module in ("tpu", "gke", "slurm", "local"):
        shown = subprocess.run(
            [sys.executable, "-m", f"launch.{module}", "--help"], cwd=REPO, capture_output=True, text=True, check=True
        ).stdout
        assert "examples:" in shown
        assert "COMMAND" in shown and "eval: judge a model" in shown
