"""`make train-gke` against stand-ins for kubectl, docker and XPK."""

import base64
import json
import re
import time

import pytest
import yaml

from launch import job
from tests.helpers.launch import CONFIG, ELSEWHERE, FITS, TOPOLOGY
from tests.helpers.paths import REPO

STEPS = ["get-credentials", "lpo plan", "docker build", "docker push", "storage", "apply", "workload create", "logs", "delete"]


def jobset(condition=None, **more):
    return json.dumps({"status": {"conditions": [{"type": condition, "status": "True"}] if condition else []}} | more)


def settings(*overrides):
    return job.read("train", [str(REPO / CONFIG), FITS, *overrides, TOPOLOGY]).text()


@pytest.fixture
def cluster(fakes):
    """No such set at first, then one that runs, then one that has completed."""
    fakes.answer("get jobset", "", times=2)
    fakes.answer("get jobset", jobset(), times=1)
    fakes.answer("get jobset", jobset("Completed"))
    fakes.answer("get pods", "Pending", times=1)
    fakes.answer("get pods", "Succeeded")
    fakes.answer("logs", "step 1 loss 3\n")
    return fakes


def up(fakes, *words, **options):
    return fakes.run("gke", "--tpu=v5e:4x4", CONFIG, FITS, *words, **options)


def applied(fakes):
    """The manifest that was applied last."""
    return yaml.safe_load([call["stdin"] for call in fakes.calls if "apply" in call["argv"]][-1])


def test_all_of_it_in_order(cluster):
    done = up(cluster, ELSEWHERE)
    assert done.returncode == 0, done.stderr
    assert cluster.order(STEPS) == ["storage"] * 3 + ["get-credentials", "lpo plan", "docker build", "docker push", "apply", "logs"]
    assert cluster.lines("docker push") == ["docker push reg.dev/proj/repo/lpo:0123456789ab"]
    assert all("--context=gke_proj_us-west4-a_clu" in line for line in cluster.lines("^kubectl"))
    assert "step 1 loss 3" in done.stdout
    assert "Pending" in done.stdout


def expanded(command, env=("HOME", "LPO_MODELS")):
    """A container's command as it is run, by what Kubernetes documents: $(NAME) is a variable's value if there is one, else it stays, and $$ is $."""

    def read(found):
        return "$" if found[0] == "$$" else f"<{found[1]}>" if found[1] in env else found[0]

    return [re.sub(r"\$\$|\$\(([^)]*)\)", read, word) for word in command]


@pytest.mark.parametrize("wild", ["$(HOME)", "$$", "$$(HOME)", "$$$(HOME)$$$", "a$b $ $(none)", "$(", "^def .*$"])
def test_what_kubernetes_expands_in_a_command_arrives_as_it_was_given(cluster, wild):
    given = ["--stop", wild, "--system", f"x{wild}y"]
    cluster.answer("storage ls gs://bkt/", "", first=True)
    words = ["generate", "none.jsonl", "-o", "runs/out.jsonl", "--model", "runs/none", *given]
    assert cluster.run("gke", "--tpu=v5e:2x4", *words).returncode == 0
    (container,) = applied(cluster)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert expanded(container["command"]) == ["lpo", *words]
    if "$$" in wild or "(HOME)" in wild:
        assert expanded(words) != words  # it would not, as it stands


def test_the_manifest(cluster):
    wild = ["stages.sft.objective={name: sft}", 'run_dir=runs/it\'s "$HOME" <&> \u00e9']
    assert up(cluster, *wild, "--spot", "--restarts=7", env={"LPO_QUEUE": "multislice-queue"}).returncode == 0
    made = applied(cluster)
    assert made["kind"] == "JobSet"
    assert made["metadata"]["name"] == "lpo-eve-it-s-home-d4d308"
    assert made["metadata"]["annotations"]["lpo-jax/job"] == settings(*wild)
    assert made["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "multislice-queue"}
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 7
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (4, 4, 0)
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]  # and not 75
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert expanded(container["command"]) == ["lpo", "train", f"/lpo-jax/{CONFIG}", FITS, *wild, TOPOLOGY]
    assert container["image"] == "reg.dev/proj/repo/lpo:0123456789ab"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"]
    assert container["env"] == [{"name": "LPO_MODELS", "value": "gs://bkt/models"}]
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "bkt"


def test_the_token_is_a_secret_and_never_shown(cluster):
    done = up(cluster, "--delete=success", env={"HF_TOKEN": "hf_sesame"})
    assert done.returncode == 0
    assert "hf_sesame" not in done.stdout + done.stderr + "".join(cluster.lines())
    secret = yaml.safe_load(next(call["stdin"] for call in cluster.calls if "apply" in call["argv"]))
    assert (secret["kind"], secret["stringData"]) == ("Secret", {"HF_TOKEN": "hf_sesame"})
    (container,) = applied(cluster)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["env"][1]["valueFrom"]["secretKeyRef"] == {"name": secret["metadata"]["name"], "key": "HF_TOKEN"}
    assert f"secret/{secret['metadata']['name']}" in cluster.lines("delete")[-1]


def test_all_that_is_missing_is_said_at_once(fakes):
    for name in ("kubectl", "docker"):
        (fakes.bin / name).unlink()
    done = fakes.run("gke", "configs/none.yaml", env={"LPO_CLUSTER": None, "LPO_IMAGE": None})
    assert done.returncode == 2
    for word in ("LPO_CLUSTER", "LPO_IMAGE", "kubectl", "docker", "no such config"):
        assert word in done.stderr
    assert fakes.calls == []


def test_a_plan_that_does_not_fit_stops_it(cluster):
    cluster.answer("lpo plan", "needs 53 GiB", code=1, first=True)
    assert up(cluster).returncode == 2
    assert cluster.lines("docker|apply") == []


def test_an_image_with_a_tag_is_taken_as_it_is(cluster):
    (cluster.bin / "docker").unlink()
    assert up(cluster, env={"LPO_IMAGE": "reg.dev:5000/lpo:v1"}).returncode == 0
    (container,) = applied(cluster)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "reg.dev:5000/lpo:v1"


@pytest.mark.parametrize(("delete", "deleted"), [("never", 0), ("success", 0), ("always", 1)])
def test_a_set_that_failed(cluster, delete, deleted):
    cluster.answer("get jobset", "", times=2, first=True)
    cluster.answers.insert(1, {"pattern": "get jobset", "out": jobset("Failed"), "code": 0, "times": -1})
    done = up(cluster, f"--delete={delete}")
    assert done.returncode == 1
    assert "failed; its log is above" in done.stdout
    assert len(cluster.lines("delete")) == deleted


def test_what_could_not_be_applied_is_cleaned_up(cluster):
    cluster.answer("apply", "the server doesn't have a resource type jobset", code=1, first=True)
    assert up(cluster).returncode == 2
    assert cluster.order(STEPS)[-2:] == ["apply", "delete"]


def under_way(cluster, **what):
    cluster.answers = [a for a in cluster.answers if a["out"]]  # none in which there is no such set
    cluster.answer("get jobset", jobset(**what), times=2, first=True)


@pytest.mark.parametrize("xpk", [False, True])
def test_the_very_set_that_is_under_way_is_only_followed(cluster, xpk):
    command = f"cd /bucket && LPO_JOB={base64.b64encode(settings().encode()).decode()} lpo train"
    under_way(cluster, **({"spec": {"args": ["-c", command]}} if xpk else {"metadata": {"annotations": {"lpo-jax/job": settings()}}}))
    done = up(cluster, *["--xpk"] * xpk)
    assert done.returncode == 0, done.stderr
    assert cluster.lines("docker|apply|lpo plan|workload") == []
    assert cluster.lines("logs")


def test_another_set_is_neither_followed_nor_touched(cluster):
    under_way(cluster, metadata={"annotations": {"lpo-jax/job": settings("stages.lpo.objective.beta=5")}})
    done = up(cluster, "--delete=always")
    assert done.returncode == 2 and "  - stages.lpo.objective.beta: 5.0 there, 2.0 here\n" in done.stderr
    assert cluster.lines("docker|apply|delete|logs") == []


def test_a_set_that_somebody_deleted(cluster):
    cluster.answer("get jobset", "", first=True)
    done = up(cluster)
    assert done.returncode == 2
    assert "lpo-eve-tiny-cpu-5d8060 is gone" in done.stderr


def test_a_log_that_is_taken_up_again_is_not_repeated(cluster):
    cluster.answer("get pods", "Running", first=True)
    assert up(cluster).returncode == 0
    first, second = cluster.lines("logs")
    assert "--since-time" not in first
    assert "--since-time" in second


def test_xpk(cluster):
    done = up(cluster, "--xpk", "--delete=success", "run_dir=runs/a $(b)", env={"HF_TOKEN": "hf_sesame"})
    assert done.returncode == 0, done.stderr
    (create,) = [call["argv"] for call in cluster.calls if call["argv"][:3] == ["xpk", "workload", "create"]]
    assert {"--cluster=clu", "--project=proj", "--zone=us-west4-a", "--tpu-type=v5litepod-16", "--max-restarts=20"} <= set(create)
    assert "--docker-image=reg.dev/proj/repo/lpo:0123456789ab" in create
    mark = base64.b64encode(settings("run_dir=runs/a $(b)").encode()).decode()
    assert (
        f"--command=cd /bucket && LPO_MODELS=gs://bkt/models LPO_JOB={mark} lpo train /lpo-jax/{CONFIG} {FITS} 'run_dir=runs/a $$(b)' {TOPOLOGY}"
        in create
    )
    assert any(word.startswith("--restart-on-exit-codes=") and word.endswith("75") for word in create)
    assert "hf_sesame" not in " ".join(create)
    assert cluster.lines("xpk workload delete")
    assert cluster.lines("kubectl.*apply") == []


def test_a_dry_run_shows_everything_and_runs_nothing(cluster):
    done = up(cluster, "--dry-run", "--delete=always", env={"LPO_CLUSTER": None, "HF_TOKEN": "hf_sesame"})
    assert done.returncode == 0, done.stderr
    assert {call["argv"][0] for call in cluster.calls} == {"git"}  # whether the config is tracked
    for words in ("get-credentials", "lpo plan", "docker build", "docker push", "kind: JobSet", "apply", "logs", "delete jobset/"):
        assert words in done.stdout
    assert "hf_sesame" not in done.stdout


def test_down(fakes):
    shown = fakes.run("gke", "--down", "--name=mine", "--dry-run")
    assert "what there is of mine would be deleted" in shown.stdout and not fakes.calls
    done = fakes.run("gke", "--down", "--name=mine")
    assert done.returncode == 0 and "nothing is left of mine" in done.stdout
    assert fakes.order(["get-credentials", "delete jobset/mine"]) == ["get-credentials", "delete jobset/mine"]


def test_a_server_and_its_port(cluster):
    cluster.answer("logs", "hang", first=True)
    cluster.answer("get pods .*metadata.name", "lpo-eve-serve-runs-none-6a9e9d-slice-0-0-abcde", first=True)
    cluster.answer("get pods", "Running", first=True)
    cluster.answers.insert(0, cluster.answers.pop(1))
    cluster.answer("storage ls gs://bkt/runs/none", "", first=True)
    run = cluster.start("gke", "--tpu=v5e:2x4", "--port=8001", "serve", "--model", "runs/none", env={"LPO_API_KEY": "sesame"})
    run.until("port-forward")
    end = time.monotonic() + 60
    while len(cluster.lines("port-forward")) < 2 and time.monotonic() < end:  # kubectl ends when nobody listens yet, and is begun again
        time.sleep(0.05)
    run.interrupt()
    done = run.end()
    assert (
        done.returncode == 130
        and "lpo-eve-serve-runs-none-6a9e9d goes on" in done.stdout
        and "make serve-gke-down JOB=lpo-eve-serve-runs-none-6a9e9d" in done.stdout
    )
    for line in cluster.lines("port-forward"):
        assert line.endswith(" port-forward pod/lpo-eve-serve-runs-none-6a9e9d-slice-0-0-abcde --address=127.0.0.1 8001:8000")
    secret = yaml.safe_load(next(call["stdin"] for call in cluster.calls if "apply" in call["argv"]))
    assert secret["stringData"] == {"LPO_API_KEY": "sesame"}
    (container,) = applied(cluster)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["lpo", "serve", "--model", "runs/none"]
    assert container["env"][1:] == [
        {"name": "LPO_API_KEY", "valueFrom": {"secretKeyRef": {"name": "lpo-eve-serve-runs-none-6a9e9d-keys", "key": "LPO_API_KEY"}}}
    ]
    assert "sesame" not in done.stdout + done.stderr + "".join(cluster.lines())
    calls = len(cluster.lines("port-forward"))
    time.sleep(1.5)
    assert len(cluster.lines("port-forward")) == calls  # none is left behind


@pytest.mark.parametrize("words", [["--xpk"], []], ids=["xpk", "no key"])
def test_a_server_needs_a_key_that_nobody_else_reads(cluster, words):
    env = {"LPO_API_KEY": "sesame"} if words else {}
    done = cluster.run("gke", "--tpu=v5e:2x4", *words, "serve", "--model", "runs/none", env=env)
    assert done.returncode == 2 and ("serve without XPK" if words else "LPO_API_KEY: the key") in done.stderr


@pytest.mark.parametrize("delete", ["never", "success", "always"])
def test_ctrl_c_deletes_no_set(cluster, delete):
    cluster.answer("get pods", "Running", first=True)
    cluster.answer("logs", "hang", first=True)
    run = cluster.start("gke", "--tpu=v5e:4x4", f"--delete={delete}", CONFIG, FITS)
    run.until(" logs ")
    run.interrupt()
    done = run.end()
    assert done.returncode == 130 and "Ctrl-C stopped nothing: lpo-eve-tiny-cpu-5d8060 goes on" in done.stdout
    assert "Delete it: make train-gke-down JOB=lpo-eve-tiny-cpu-5d8060" in done.stdout and cluster.lines("delete") == []


def test_a_set_that_is_started_and_left(cluster):
    done = up(cluster, "--detach", "--delete=always")
    assert done.returncode == 0, done.stderr
    assert "is on its way" in done.stdout and cluster.lines("apply") and cluster.lines("logs|delete") == []
