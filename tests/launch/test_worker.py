"""launch/worker.sh for real, in a home directory of its own, with stand-ins for what it installs; the tree that is copied to it; shellcheck."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch import common, preflight
from launch.common import Checks, Shell
from tests.helpers.launch import make_targets
from tests.helpers.paths import REPO

LPO = """#!/usr/bin/env bash
trap 'echo saving; exit 75' TERM
echo "in $PWD: $(printf '<%s>' "$@")"
echo "token ${HF_TOKEN_PATH:-none}, models $LPO_MODELS"
if [[ -e $HOME/forever ]]; then while true; do sleep 0.05; done; fi
exit 3
"""


@pytest.fixture
def worker(fakes):
    """A function that runs worker.sh VERB WORDS and returns its output."""
    fakes.add("mountpoint", '#!/bin/sh\ntest -e "$HOME/mounted"\n')
    fakes.add("gcsfuse", '#!/bin/sh\necho "$@" >"$HOME/mounted"\n')
    fakes.add("uv", '#!/bin/sh\necho "$@" >>"$HOME/uv"\ncase $1 in venv) mkdir -p "$4/bin" && cp "$HOME/lpo" "$4/bin/lpo" && touch "$4/bin/python" && chmod +x "$4"/bin/*;; esac\n')  # fmt: skip
    (fakes.home / "lpo").write_text(LPO)
    (fakes.home / "lpo-job.json").write_text('{"job": 1}\n')
    script = fakes.home / "lpo-jax/launch/worker.sh"  # it installs beside itself
    script.parent.mkdir(parents=True)
    shutil.copy(REPO / "launch/worker.sh", script)
    env = {"HOME": str(fakes.home), "PATH": f"{fakes.bin}:{os.environ['PATH']}", "FAKES": str(fakes.home)}

    def call(*words):
        done = subprocess.run(["bash", script, *words], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield call
    pid = fakes.home / "lpo-state" / "pid"
    if pid.exists() and Path("/proc", pid.read_text().strip()).exists():
        os.killpg(int(pid.read_text()), signal.SIGKILL)


def test_set_up_run_and_follow(worker, fakes):
    assert worker("setup", "bkt").splitlines()[-1] == "worker.sh: ready"
    assert worker("setup", "bkt").splitlines()[-1] == "worker.sh: ready"  # again, and nothing is mounted or created twice
    assert (fakes.home / "mounted").read_text().endswith(f" bkt {fakes.home}/lpo-bucket\n")
    installed = (fakes.home / "uv").read_text().splitlines()
    assert [line.split()[0] for line in installed] == ["venv", "pip", "pip", "pip", "pip"]
    worker("setup", "bkt", "judges")
    assert "lpo-jax/requirements-semgrep.txt" in (fakes.home / "uv").read_text().splitlines()[-1]
    assert worker("state") == "worker.sh: none\n"
    (fakes.home / ".lpo-hf-token").write_text("hf_sesame")

    assert (
        worker("start", "lpo-job.json", "lpo", "train", "@tree/configs/x.yaml", "a={b: c}", "d=it's").splitlines()[-1]
        == "worker.sh: started"
    )
    shown = worker("follow").splitlines()
    assert shown[-3:] == [
        f"in {fakes.home}/lpo-bucket: <train><{fakes.home}/lpo-jax/configs/x.yaml><a={{b: c}}><d=it's>",
        f"token {fakes.home}/.lpo-hf-token, models gs://bkt/models",
        "worker.sh: over 3",
    ]
    assert worker("state") == 'worker.sh: job {"job": 1}\nworker.sh: over 3\n'


def test_a_start_ends_what_still_runs(worker, fakes):
    worker("setup", "bkt")
    (fakes.home / "forever").touch()
    worker("start", "lpo-job.json", "lpo", "train", "@tree/configs/x.yaml")
    first = (fakes.home / "lpo-state/pid").read_text()
    assert worker("state") == 'worker.sh: job {"job": 1}\nworker.sh: running\n'
    (fakes.home / "lpo-job.json").write_text('{"job": 2}\n')
    assert (
        worker("start", "lpo-job.json", "lpo", "train", "@tree/configs/x.yaml") == "worker.sh: busy\n"
    )  # another job: what runs isn't touched
    assert worker("state") == 'worker.sh: job {"job": 1}\nworker.sh: running\n'
    (fakes.home / "lpo-job.json").write_text('{"job": 1}\n')
    (fakes.home / "forever").unlink()
    worker("start", "lpo-job.json", "lpo", "train", "@tree/configs/x.yaml")
    assert (fakes.home / "lpo-state/pid").read_text() != first
    assert not Path("/proc", first.strip()).exists()
    assert "worker.sh: over 3" in worker("follow")


def test_of_two_starts_at_once_one_is_left(worker, fakes):
    """Both are the same job's; the second stops the first, and none goes on beside it."""
    worker("setup", "bkt")
    (fakes.home / "forever").touch()
    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(lambda _: worker("start", "lpo-job.json", "lpo", "train", str(fakes.home)), range(3)))
    assert all(text.endswith("worker.sh: started\n") for text in said)
    running = subprocess.run(["pgrep", "-f", f"lpo train {fakes.home}$"], capture_output=True, text=True).stdout.split()
    groups = {os.getpgid(int(pid)) for pid in running}
    kept = int((fakes.home / "lpo-state/pid").read_text())
    for group in groups - {kept}:
        os.killpg(group, signal.SIGKILL)
    assert groups == {kept}


def test_what_is_installed_later_leaves_a_running_tree_alone(worker, fakes):
    worker("setup", "bkt")
    (fakes.home / "forever").touch()
    worker("start", "lpo-job.json", "lpo", "train", "@tree/configs/x.yaml")
    other = fakes.home / "lpo-jax-other/launch/worker.sh"
    other.parent.mkdir(parents=True)
    shutil.copy(fakes.home / "lpo-jax/launch/worker.sh", other)
    before = len((fakes.home / "uv").read_text().splitlines())
    done = subprocess.run(
        ["bash", other, "setup", "bkt"], env={"HOME": str(fakes.home), "PATH": f"{fakes.bin}:{os.environ['PATH']}"}, check=True
    )
    assert done.returncode == 0
    later = (fakes.home / "uv").read_text().splitlines()[before:]
    assert later and all("lpo-jax-other/" in line for line in later)
    assert worker("state").endswith("worker.sh: running\n")


def test_the_servers_key_is_in_its_environment_alone(worker, fakes):
    (fakes.home / "lpo").write_text('#!/bin/sh\ntr "\\0" "|" </proc/$$/cmdline\necho "key $LPO_API_KEY"\n')
    worker("setup", "bkt")
    (fakes.home / ".lpo-api-key").write_text("sesame")
    worker("start", "lpo-job.json", "lpo", "serve", "--model", "runs/x")
    shown = worker("follow").splitlines()
    assert shown[-2].endswith("|key sesame") and shown[-2].count("sesame") == 1  # and not on its command line


def test_a_killed_run_is_told_from_a_finished_one(worker, fakes):
    worker("setup", "bkt")
    (fakes.home / "forever").touch()
    worker("start", "lpo-job.json", "lpo", "train", "@tree/configs/x.yaml")
    os.killpg(int((fakes.home / "lpo-state/pid").read_text()), signal.SIGKILL)
    for _ in range(100):
        if "worker.sh: running" not in (shown := worker("state")):
            break
        time.sleep(0.05)
    assert shown.endswith("worker.sh: none\n")


def test_stop_lets_it_save(worker, fakes):
    worker("stop")  # nothing runs
    worker("setup", "bkt")
    (fakes.home / "forever").touch()
    worker("start", "lpo-job.json", "lpo", "train", "@tree/configs/x.yaml")
    worker("stop")
    assert worker("state").endswith("worker.sh: over 75\n")
    assert "saving" in worker("follow")


def test_usage():
    done = subprocess.run(["bash", REPO / "launch/worker.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: worker.sh setup BUCKET" in done.stdout


def test_the_tree_that_travels(tmp_path, monkeypatch):
    repo = tmp_path / "repo"
    for path in ("configs/run.yaml", "keep.py", "launch/.env.local", "launch/server.pem", ".env"):
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_text("committed")
    git = ["git", "-C", str(repo), "-c", "user.name=x", "-c", "user.email=x"]
    for words in (["init", "-q"], ["add", "-f", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.chdir(repo)
    shell = Shell()
    clean = common.snapshot(shell)
    (repo / "keep.py").write_text("changed")
    (repo / "untracked.py").write_text("no")
    (repo / "runs").mkdir()
    (repo / "runs/checkpoint").write_text("no")
    commit, content = common.snapshot(shell)
    assert content != clean[1]
    assert common.snapshot(shell)[1] == content
    common.archive(shell, commit, tmp_path / "tree.tar.gz")
    with tarfile.open(tmp_path / "tree.tar.gz") as tree:
        assert sorted(m.name for m in tree.getmembers() if m.isfile()) == ["configs/run.yaml", "keep.py"]
        assert tree.extractfile("keep.py").read() == b"changed"
    assert subprocess.run([*git, "stash", "list"], capture_output=True).stdout == b""
    checks = Checks(dry_run=True)
    preflight.check_tracked(Shell(dry_run=True), checks, "configs/run.yaml")
    assert checks.wrong == []
    preflight.check_tracked(Shell(dry_run=True), checks, "configs/new.yaml")
    assert "git add configs/new.yaml" in checks.wrong[0]


def test_shellcheck():
    found = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip("no shellcheck here")
    scripts = [*REPO.glob("launch/*.sh"), *REPO.glob("launch/*.sbatch"), REPO / ".ci/run"]
    assert len(scripts) >= 3
    done = subprocess.run([found, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_make_passes_settings_on():
    words = ["TPU=v5p:2x2x4", "SPOT=1", "QUEUED=0", "DELETE=always", "JOB=mine", "ARGS='a={b: c}' d=e", "CONFIG=configs/lpo_hf.yaml"]
    env = {key: value for key, value in os.environ.items() if "MAKE" not in key and key != "MFLAGS"}  # `make test` runs this
    shown = subprocess.run(["make", "-n", "train-tpu", *words], cwd=REPO, env=env, capture_output=True, text=True, check=True).stdout
    command = shown.splitlines()[-1]
    assert ".venv/bin/python -m launch.tpu " in command
    assert shlex.split(command)[-4:] == ["train", "configs/lpo_hf.yaml", "a={b: c}", "d=e"]
    assert {"--tpu=v5p:2x2x4", "--spot", "--delete=always", "--name=mine"} <= set(shlex.split(command))
    assert "--queued" not in command
    for given, passed in (("never", "--delete=never"), ("1", "--delete=success"), ("False", None), ("maybe", "--delete=maybe")):
        shown = subprocess.run(["make", "-n", "eval-tpu", f"DELETE={given}"], cwd=REPO, env=env, capture_output=True, text=True).stdout
        assert [word for word in shlex.split(shown.splitlines()[-1]) if word.startswith("--delete")] == ([passed] if passed else [])


def test_the_documents_name_real_targets():
    targets = make_targets()
    for file in (REPO / "README.md", REPO / "launch/README.md", *REPO.glob("launch/*.py")):
        named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)+)", file.read_text()))
        assert named <= targets, file
    assert {f"{job}-{where}" for job in ("train", "eval", "serve") for where in ("tpu", "tpu-down", "gke", "gke-down", "slurm")} <= targets
