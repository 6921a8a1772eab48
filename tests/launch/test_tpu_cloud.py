"""`make train-tpu` against a cloud that keeps state: whatever happens, it ends as documented, no TPU is left unnoticed, none is deleted that trains."""

import json
import socket
import sys
import time
import urllib.error
import urllib.request

import pytest

from lpo_jax.config import load, to_dict
from tests.helpers import gcloud
from tests.helpers.gcloud import Cloud
from tests.helpers.launch import CONFIG, MANIFEST, Fakes
from tests.helpers.paths import REPO

NAME = "lpo-eve-tiny-cpu-5d8060"
NOTICED = "may still exist and cost money. Delete it: make train-tpu-down JOB="
GIT = f"""#!/bin/sh
for word; do case $word in --output=*) PATH=/usr/bin:/bin exec tar -czf "${{word#--output=}}" -C {REPO} launch/worker.sh {CONFIG};; esac; done
case "$*" in *rev-parse*) echo 0123456789abcdef;; esac
"""


class Laptop(Fakes):
    """A laptop with gcloud, and the cloud behind it. Its `worker.sh` runs are ended with the test."""

    def __init__(self, home):
        super().__init__(home)
        self.cloud = Cloud(home / "cloud")
        self.add("gcloud", f"#!{sys.executable} -SE\nimport runpy\nrunpy.run_path({gcloud.__file__!r}, run_name='__main__')\n")
        self.add("git", GIT)

    def train(self, *words, **env):
        """`make train-tpu`, begun; a v5e:2x2 has one host."""
        words = words if any(word.startswith("--tpu") for word in words) else ("--tpu=v5e:2x2", *words)
        return self.start("tpu", CONFIG, "mesh.tensor=4", *words, env={"CLOUD": str(self.cloud.home), **env})

    def down(self, **env):
        return self.start("tpu", "--down", CONFIG, env={"CLOUD": str(self.cloud.home), **env}).end()

    def starts(self, run="tiny_cpu"):
        """Each start of lpo, from which step."""
        return [line.partition(":")[0] for line in (self.cloud.bucket / "runs" / run / "starts").read_text().splitlines()]

    def finished(self, run="tiny_cpu"):
        return (self.cloud.bucket / "runs" / run / "report.html").exists()

    def calls(self, words):
        return [line for line in (self.cloud.home / "calls").read_text().splitlines() if words in line]


@pytest.fixture
def laptop(tmp_path):
    found = Laptop(tmp_path)
    data = found.cloud.bucket / "runs/tiny_cpu_data"
    data.mkdir(parents=True)
    (data / "manifest.json").write_text(json.dumps(MANIFEST))
    yield found
    for name in found.cloud.nodes():
        found.cloud.wipe(name)


def test_from_nothing_to_the_report_on_four_hosts(laptop):
    laptop.cloud.change(quota=16)
    done = laptop.train("--tpu=v5e:4x4", "mesh.tensor=16", "--delete=success").end()
    assert done.returncode == 0, done.stderr
    assert "step 6\n" in done.stdout and laptop.finished() and laptop.starts() == ["from step 0"]
    assert laptop.cloud.nodes() == {}


def test_two_runs_at_once_have_a_tpu_each(laptop):
    hold = laptop.cloud.hold()
    first = laptop.train()
    first.until("follow")
    second = laptop.train("run_dir=runs/beta5", "stages.lpo.objective.beta=5")
    second.until("follow")
    assert laptop.cloud.nodes() == {NAME: "READY", "lpo-eve-beta5": "READY"}
    refused = laptop.train("stages.lpo.objective.beta=5", "--delete=always").end()  # the first one's run_dir
    assert refused.returncode == 2
    assert f"{NAME} is running with other settings:\n  - stages.lpo.objective.beta: 2.0 there, 5.0 here\n" in refused.stderr
    hold.unlink()
    assert first.end().returncode == second.end().returncode == 0
    for run, beta in (("tiny_cpu", False), ("beta5", True)):
        (start,) = (laptop.cloud.bucket / "runs" / run / "starts").read_text().splitlines()
        assert ("objective.beta=5" in start) is beta and laptop.finished(run)
    assert laptop.calls("delete") == []


def test_two_terminals_that_start_one_run_at_once(laptop):
    first = laptop.train()
    first.until("tpu-vm create")
    second = laptop.train()
    assert [run.end().returncode for run in (first, second)] == [0, 0]
    assert laptop.finished() and laptop.calls("delete") == [] and laptop.cloud.nodes() == {NAME: "READY"}


@pytest.mark.parametrize(
    ("says", "flags"), [("PREEMPTED", []), ("STOPPED", []), ("PREEMPTED", ["--spot"]), ("READY", ["--spot"])], ids=lambda x: "".join(x)
)
def test_a_preemption_within_a_checkpoint(laptop, says, flags):
    """The node keeps its name and its quota, all of which this one takes, until it is deleted; a spot node's own word isn't trusted."""
    laptop.cloud.change(quota=4)
    hold = laptop.cloud.hold("hold-in-checkpoint")
    run = laptop.train(*flags)
    run.until("step 3")
    laptop.cloud.take(NAME, says)
    hold.unlink()
    done = run.end()
    assert done.returncode == 0, done.stdout + done.stderr
    assert laptop.starts() == ["from step 0", "from step 2"] and laptop.finished()
    assert laptop.cloud.nodes() == {NAME: "READY"} and NOTICED + NAME in done.stdout


def test_a_node_that_never_says_that_it_was_preempted(laptop):
    hold = laptop.cloud.hold("hold-in-checkpoint")
    run = laptop.train("--delete=always")
    run.until("step 3")
    laptop.cloud.take(NAME, "READY")
    lost = run.end()
    assert lost.returncode == 2
    assert f"taken without a word: make train-tpu-down JOB={NAME} deletes it" in lost.stderr
    assert laptop.calls("delete") == [] and NOTICED + NAME in lost.stdout  # for all that is known it trains
    again = laptop.train().end()
    assert again.returncode == 2 and "worker 0 doesn't answer" in again.stderr and laptop.calls("delete") == []
    hold.unlink()
    assert laptop.down().returncode == 0 and laptop.cloud.nodes() == {}
    assert laptop.train().end().returncode == 0
    assert laptop.starts() == ["from step 0", "from step 2"] and laptop.finished()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def status(port, key):
    request = urllib.request.Request(f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def test_a_server_is_reached_through_the_tunnel_and_outlives_it(laptop):
    """Ctrl-C closes the tunnel alone; the same command opens it again; the key is on no command line and in no log."""
    here, there = free_port(), free_port()
    words = ["--tpu=v5e:2x2", f"--port={here}", "--delete=success", "serve", "--model", "runs/none", "--port", str(there)]
    (laptop.cloud.bucket / "runs/none").mkdir()
    env = {"CLOUD": str(laptop.cloud.home), "LPO_API_KEY": "sesame"}
    run = laptop.start("tpu", *words, env=env)
    run.until("serving\n")
    while status(here, "sesame") is None:
        time.sleep(0.05)
    assert status(here, "sesame") == 200 and status(here, "guessed") == 401
    run.interrupt()
    done = run.end()
    assert done.returncode == 130
    assert "Ctrl-C closed the tunnel and stopped nothing: lpo-eve-serve-runs-none-6a9e9d" in done.stdout and "is paid for" in done.stdout
    assert "make serve-tpu-down JOB=lpo-eve-serve-runs-none-6a9e9d" in done.stdout
    assert status(here, "sesame") is None and status(there, "sesame") == 200 and laptop.calls("delete") == []
    run = laptop.start("tpu", *words, env=env)
    run.until("is at work: following it")
    while status(here, "sesame") is None:
        time.sleep(0.05)
    assert status(here, "sesame") == 200
    assert "sesame" not in done.stdout + done.stderr + run.out + (laptop.cloud.home / "calls").read_text()
    laptop.cloud.wipe("lpo-eve-serve-runs-none-6a9e9d")  # its processes end
    with laptop.cloud.state() as state:
        state["nodes"].clear()
    run.until("preempted: ")  # and it is served again
    run.interrupt()
    assert run.end().returncode == 130


def test_an_evaluation_ends_in_the_bucket(laptop):
    (laptop.cloud.bucket / "runs/none").mkdir()
    words = ["--benchmark", "own", "--data", "evaluation/examples/own.jsonl", "--completions", "runs/none", "-o", "evals/mine"]
    done = laptop.start("tpu", "--tpu=v5e:2x2", "--delete=success", "eval", *words, env={"CLOUD": str(laptop.cloud.home)}).end()
    assert done.returncode == 0, done.stderr
    assert "judged\n" in done.stdout and "gcloud storage cp --recursive gs://bkt/evals/mine ." in done.stdout
    assert (laptop.cloud.bucket / "evals/mine/scores.json").exists()
    assert (laptop.cloud.bucket / "evaluation/examples/own.jsonl").exists() and laptop.cloud.nodes() == {}


def test_a_lost_laptop(laptop):
    hold = laptop.cloud.hold()
    run = laptop.train("--delete=success")
    run.until("follow")
    run.lose()
    assert laptop.cloud.nodes() == {NAME: "READY"}
    run = laptop.train("--delete=success")
    run.until("is at work: following it")
    hold.unlink()
    assert run.end().returncode == 0
    assert laptop.starts() == ["from step 0"] and laptop.finished() and laptop.cloud.nodes() == {}


@pytest.mark.parametrize("delete", ["never", "success", "always"])
def test_ctrl_c_stops_and_deletes_nothing(laptop, delete):
    hold = laptop.cloud.hold()
    laptop.cloud.change(capacity=False)
    run = laptop.train("--spot", f"--delete={delete}")
    run.until("WAITING_FOR_RESOURCES")
    run.interrupt()
    done = run.end()
    assert done.returncode == 130 and f"delete it     make train-tpu-down JOB={NAME}\n" in done.stdout
    laptop.cloud.change(capacity=True)
    run = laptop.train("--spot", f"--delete={delete}")
    run.until("follow")
    run.interrupt()
    done = run.end()
    assert done.returncode == 130
    assert "Ctrl-C stopped nothing" in done.stdout and (", DELETE or not" in done.stdout) is (delete != "never")
    assert "--worker=all '--command=bash lpo-jax/launch/worker.sh stop'" in done.stdout
    assert laptop.calls("delete") == [] and len(laptop.calls("resources create")) == 1
    hold.unlink()
    assert laptop.train("--spot").end().returncode == 0
    assert laptop.finished() and laptop.starts()[0] == "from step 0"


@pytest.mark.parametrize("delete", ["never", "success", "always"])
def test_ctrl_c_while_a_tpu_is_made(laptop, delete):
    run = laptop.train(f"--delete={delete}")
    run.until("tpu-vm create")
    end = time.monotonic() + 60
    while not laptop.cloud.nodes():
        assert time.monotonic() < end, run.out
        time.sleep(0.01)
    run.interrupt()
    done = run.end()
    assert done.returncode == 130 and f"delete it     make train-tpu-down JOB={NAME}\n" in done.stdout
    assert laptop.calls("delete") == [] and list(laptop.cloud.nodes()) == [NAME]
    assert laptop.down().returncode == 0 and laptop.cloud.nodes() == {}


def test_a_full_quota(laptop):
    laptop.cloud.change(quota=4)
    assert laptop.train("run_dir=runs/other").end().returncode == 0
    done = laptop.train("--delete=always").end()
    assert done.returncode == 2
    assert "has been exceeded" in done.stderr and "gcloud compute tpus tpu-vm list --project=proj --zone=us-west4-a" in done.stderr
    assert laptop.cloud.nodes() == {"lpo-eve-other": "READY"} and laptop.calls("delete") == []
    assert len(laptop.calls(f"tpu-vm create {NAME}")) == 1  # asking again wouldn't mend it


def test_a_wrong_zone(laptop):
    done = laptop.train(LPO_ZONE="us-west9-z").end()
    assert done.returncode == 2 and "LPO_ZONE: no v5litepod-4 there for this project" in done.stderr
    assert laptop.calls("create") == []
    down = laptop.down(LPO_ZONE="us-west9-z")
    assert down.returncode == 2 and "nothing is left" not in down.stdout


def test_a_sign_in_that_expires(laptop):
    laptop.cloud.change(signed_in=False)
    done = laptop.train().end()
    assert done.returncode == 2 and "hasn't expired: gcloud auth login" in done.stderr
    laptop.cloud.change(signed_in=True)
    hold = laptop.cloud.hold()
    run = laptop.train("--delete=always")
    run.until("follow")
    laptop.cloud.change(signed_in=False, connected=False)
    done = run.end()
    assert done.returncode == 2 and "sign-in has expired: gcloud auth login, then the same command" in done.stderr
    assert NOTICED + NAME in done.stdout and laptop.cloud.nodes() == {NAME: "READY"}  # it trains
    laptop.cloud.change(signed_in=True, connected=True)
    run = laptop.train("--delete=always")
    run.until("is at work: following it")
    hold.unlink()
    assert run.end().returncode == 0
    assert laptop.starts() == ["from step 0"] and laptop.finished() and laptop.cloud.nodes() == {}


def test_a_run_dir_of_another_run_is_refused_before_anything_is_paid(laptop):
    run_dir = laptop.cloud.bucket / "runs/tiny_cpu"
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps(to_dict(load(REPO / CONFIG, ["stages.lpo.objective.beta=5", "log_every_steps=7"]))))
    done = laptop.train().end()
    assert done.returncode == 2
    assert "gs://bkt/runs/tiny_cpu holds a run with other settings; choose a new run_dir, or delete it: " in done.stderr
    assert "stages.lpo.objective.beta: 5.0 there, 2.0 here\n" in done.stderr and "log_every" not in done.stderr
    assert laptop.calls("create") == []
