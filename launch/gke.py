"""Run a command on a TPU slice of a GKE cluster, all of it from here:
  1. check the environment, once for all that is missing      2. ask `lpo plan` whether a training or server fits; stop where it doesn't
  3. build and push an image of git's files                   4. upload the job's inputs to the bucket
  5. apply a JobSet, launch/jobset.yaml.j2 (--xpk: let XPK make it)
  6. stream worker 0's log until the set is done; Kubernetes restarts it after a preemption, up to --restarts times; serve: forward a port to it
  7. delete it when told to (--delete)

The cluster must have a TPU node pool of that slice, the JobSet controller and the Cloud Storage FUSE driver; the bucket is the job's working
directory, as on TPU VMs. Ctrl-C stops and deletes nothing, whatever --delete says, and the same command follows the set again; only --delete and a
server's port need this terminal. The set's name follows what the job writes; one with other settings is never taken for this job.

environment:
  LPO_PROJECT  Google Cloud project          LPO_ZONE    zone or region of the cluster       LPO_CLUSTER  its name
  LPO_BUCKET   bucket (no gs://) with a hierarchical namespace
  LPO_IMAGE    where to push to, e.g. us-docker.pkg.dev/PROJECT/REPO/lpo-jax; with a :tag it is taken as it is and nothing is built
  LPO_SERVICE_ACCOUNT  optional, Kubernetes account that may write the bucket (default: default)
  LPO_QUEUE    optional, Kueue queue, e.g. multislice-queue on a cluster that XPK made
  HF_TOKEN     optional, for gated models; becomes a Secret, never printed
  LPO_API_KEY  serve: the key that clients show; becomes a Secret, never printed
"""

import argparse
import base64
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from foundation.files import Json
from foundation.pages import environment
from launch import arguments, common, preflight, slices
from launch.common import Checks, LaunchError, Shell, say
from launch.job import Job
from launch.slices import Slice
from lpo_jax.sharding import topology_size

EXAMPLES = """\
examples:
  make train-gke CONFIG=configs/pods/qwen2_5_coder_7b_v5e_4x4.yaml ARGS="data.path=data/disco run_dir=runs/qwen"
  make train-gke CONFIG=configs/pods/qwen2_5_coder_32b_v6e_4x8.yaml XPK=1 DRY_RUN=1
  make train-gke CONFIG=configs/pods/qwen2_5_coder_7b_v5e_4x4.yaml DETACH=1     (start it, and don't follow)
  make train-gke-down CONFIG=configs/pods/qwen2_5_coder_32b_v6e_4x8.yaml        (with the run's ARGS, or JOB=...)
  make eval-gke TPU=v5e:2x4 ARGS="--benchmark securityeval --data dataset.jsonl --completions runs/qwen -n 5 -o evals/qwen"
  make serve-gke TPU=v5e:2x4 ARGS="--model runs/qwen"                           (then http://127.0.0.1:8000/v1)
"""
ANNOTATION, XPK_JOB = "lpo-jax/job", "LPO_JOB"  # where a set says what it runs: an annotation, or with XPK a variable of its command


def manifest(
    wanted: Slice, image: str, command: list[str], bucket: str, args: argparse.Namespace, secrets: Sequence[str], told: str
) -> str:
    """The JobSet as YAML; every value passes through JSON, so that none can be read as anything else."""
    env = environment(Path(__file__).parent)
    env.filters["tojson"] = lambda value: Markup(json.dumps(value))
    account, queue = os.environ.get("LPO_SERVICE_ACCOUNT", "default"), os.environ.get("LPO_QUEUE")
    given = {
        "slice": wanted,
        "image": image,
        "command": [literal(word) for word in command],
        "bucket": bucket,
        "secrets": secrets,
        "job": told,
    }
    return env.get_template("jobset.yaml.j2").render(vars(args) | given, service_account=account, queue=queue)


def literal(text: str) -> str:
    """As Kubernetes must read a word of a command, in which it would replace $(NAME), and $$ by $, before any shell or program sees it."""
    return text.replace("$", "$$")


class JobSet:
    """A set of pods by name: one job on one slice."""

    def __init__(self, shell: Shell, args: argparse.Namespace, checks: Checks):
        self.shell, self.args, self.name = shell, args, args.name
        self.project = checks.variable("LPO_PROJECT", "your Google Cloud project")
        self.zone = zone = checks.variable("LPO_ZONE", "the cluster's zone or region")
        cluster = checks.variable("LPO_CLUSTER", "the GKE cluster's name")
        checks.program("gcloud", "https://cloud.google.com/sdk/docs/install")
        checks.program("kubectl", "gcloud components install kubectl gke-gcloud-auth-plugin")
        if args.xpk:
            checks.program("xpk", "pip install xpk")
        self._cluster = [cluster, f"--location={zone}", f"--project={self.project}"]
        self._kubectl = ["kubectl", f"--context=gke_{self.project}_{zone}_{cluster}"]
        self._xpk = [f"--workload={self.name}", f"--cluster={cluster}", f"--project={self.project}", f"--zone={zone}"]

    def connect(self) -> None:
        self.shell.run(["gcloud", "container", "clusters", "get-credentials", *self._cluster])

    def create(self, wanted: Slice, image: str, bucket: str, job: Job) -> None:
        told, command = job.text(), job.argv("/lpo-jax")
        if self.args.xpk:
            # XPK mounts what `xpk storage attach` gave it, and restarts by itself on the exit codes of a killed process.
            marked = (
                f"cd /bucket && LPO_MODELS=gs://{bucket}/models {XPK_JOB}={base64.b64encode(told.encode()).decode()} {shlex.join(command)}"
            )
            mine = [f"--docker-image={image}", f"--command={literal(marked)}", f"--max-restarts={self.args.restarts}"]
            flags = [f"--tpu-type={wanted.accelerator_type}", "--num-slices=1", f"--restart-on-exit-codes=1,{common.PREEMPTED}"]
            token = ["--env-file=launch/xpk.env"] if os.environ.get("HF_TOKEN") else []  # which names HF_TOKEN; xpk reads its value
            self.shell.run(["xpk", "workload", "create", *self._xpk, *flags, *mine, *token, *(["--spot"] if self.args.spot else [])])
            return
        text = manifest(wanted, image, command, bucket, self.args, self._secrets(job), told)
        if self.shell.dry_run:
            print(text)
        self.shell.run([*self._kubectl, "apply", "--filename=-"], stdin=text)

    def delete(self) -> None:
        if self.args.xpk:
            self.shell.run(["xpk", "workload", "delete", *self._xpk, "--force"])
        else:
            names = [f"jobset/{self.name}", f"secret/{self.name}-keys"]
            self.shell.run([*self._kubectl, "delete", *names, "--ignore-not-found"])

    def follow(self, tunnel: tuple[int, int] | None) -> int:
        """Stream worker 0's log, through restarts, until the set is over. Returns 0 if it completed.

        Args:
          tunnel: a port here that meanwhile is a port there.
        """
        worker = f"--selector=jobset.sigs.k8s.io/jobset-name={self.name},batch.kubernetes.io/job-completion-index=0"
        seen = ""
        since: list[str] = []
        while True:
            state = self.state()
            if not state:
                raise LaunchError(f"{self.name} is gone: it was deleted elsewhere; the same command starts it again, from its checkpoint")
            phase = self._ask("get", "pods", worker, "--output=jsonpath={.items[*].status.phase}", pretend="Running")
            if phase != seen:
                say(f"worker 0 of {self.name}: {phase or 'no pod'}")
                seen = phase
            if phase and "Pending" not in phase:
                with self._forwarded(worker, tunnel) if tunnel else nullcontext():
                    self.shell.stream([*self._kubectl, "logs", worker, "--follow", "--tail=-1", *since])
                # What is shown isn't shown again; a restarted pod's log is newer.
                since = [f"--since-time={datetime.now(UTC).isoformat(timespec='seconds').replace('+00:00', 'Z')}"]
            if state != "Running":
                return 0 if state == "Completed" else 1
            self.shell.sleep(self.args.pause_s)

    def _forwarded(self, worker: str, tunnel: tuple[int, int]) -> AbstractContextManager[None]:
        """kubectl ends when nobody listens there yet, and so it is begun again."""
        pod = self._ask("get", "pods", worker, "--output=jsonpath={.items[-1:].metadata.name}", pretend=f"{self.name}-slice-0-0")
        say(f"while this command runs, http://127.0.0.1:{tunnel[0]}/v1 is the server's, once its log says ready; clients show LPO_API_KEY")
        return self.shell.beside([*self._kubectl, "port-forward", f"pod/{pod}", "--address=127.0.0.1", "{}:{}".format(*tunnel)])

    def check_same(self, job: Job) -> None:
        """Refuse to follow a set that runs something else.

        Raises:
          LaunchError: with the settings that differ.
        """
        found = self._found()
        told = found.get("metadata", {}).get("annotations", {}).get(ANNOTATION)
        if marked := re.search(rf"{XPK_JOB}=([\w+/=]+)", json.dumps(found.get("spec", {}))):
            told = base64.b64decode(marked[1]).decode()
        job.check_same(self.name, told)

    def state(self) -> str:
        """ "" if there is no such set, else Running, Completed or Failed."""
        if not (found := self._found()):
            return ""
        conditions = found.get("status", {}).get("conditions", [])
        ended = (c["type"] for c in conditions if c["type"] in {"Completed", "Failed"} and c["status"] == "True")
        return next(ended, "Running")

    def _found(self) -> Json:
        """The set as Kubernetes describes it; {}: there is none."""
        done = '{"status": {"conditions": [{"type": "Completed", "status": "True"}]}}'
        return json.loads(self._ask("get", "jobset", self.name, "--ignore-not-found", "--output=json", pretend=done) or "{}")

    def _secrets(self, job: Job) -> list[str]:
        """Store what the job needs of HF_TOKEN and LPO_API_KEY, without showing it. Returns the names of those there are."""
        names = [name for name in ("HF_TOKEN", *["LPO_API_KEY"] * (job.command == "serve")) if os.environ.get(name)]
        if names:
            values = {name: os.environ[name] for name in names}
            text = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{self.name}-keys"}, "stringData": values}
            self.shell.run([*self._kubectl, "apply", "--filename=-"], stdin=json.dumps(text))
        return names

    def _ask(self, *words: str, pretend: str) -> str:
        return self.shell.ask_patiently([*self._kubectl, *words], pretend=pretend, tries=5, pause_s=self.args.pause_s)


def build(shell: Shell, snapshot: tuple[str, str], repository: str) -> str:
    """Build and push the image of a snapshot; its tag is the content's id. Returns its full name."""
    image = f"{repository}:{snapshot[1]}"
    with tempfile.TemporaryDirectory() as folder:
        packed, context = Path(folder) / "tree.tar.gz", Path(folder) / "tree"
        context.mkdir()
        common.archive(shell, snapshot[0], packed)
        shell.run(["tar", "-xzf", str(packed), "-C", str(context)])
        shell.run(["docker", "build", "--platform=linux/amd64", f"--file={context}/launch/Dockerfile", f"--tag={image}", str(context)])
    shell.run(["docker", "push", image])
    return image


def up(args: argparse.Namespace) -> int:
    shell, checks = Shell(args.dry_run), Checks(args.dry_run)
    jobs = JobSet(shell, args, checks)
    bucket = checks.variable("LPO_BUCKET", "a Cloud Storage bucket for data and checkpoints, without gs://")
    image = checks.variable("LPO_IMAGE", "where the image goes, e.g. us-docker.pkg.dev/PROJECT/REPO/lpo-jax")
    built = ":" not in image.rpartition("/")[2]
    if built:
        checks.program("docker", "https://docs.docker.com/get-docker")
    if args.command == "serve":
        preflight.check_key(checks)
        if args.xpk:
            checks.wrong.append("XPK=1: the server's key would stand in the set, for all to read: serve without XPK")
    found = checks.collect(lambda: slices.of_job(args.tpu, args.command, args.words))
    ask = args.dry_run or not checks.missing
    if found:
        wanted, job = found
        if ask:
            preflight.check_cloud(shell, checks, bucket, jobs.project, job.config, jobs.zone)
        if job.config:
            preflight.check_tracked(shell, checks, job.given.config)
        preflight.check_job(shell, checks, job, topology_size(wanted.name), bucket, args.dry_run or not checks.missing)
    checks.finish()
    down = f"make {args.command}-gke-down JOB={args.name}"
    jobs.connect()
    if jobs.state() == "Running" and not args.dry_run:
        jobs.check_same(job)
        say(f"{args.name} is under way: following it")
    else:
        if not args.skip_plan:
            preflight.plan(shell, job, wanted.name, bucket)
        image = build(shell, common.snapshot(shell), image) if built else image
        common.upload(shell, job.inputs().values(), bucket, job.folders())
        if jobs.state() and not args.dry_run:  # a set that is over; its name is taken
            jobs.delete()
        try:
            jobs.create(wanted, image, bucket, job)
        except LaunchError:
            jobs.delete()  # what there is of it
            raise
    if args.detach:
        say(f"{args.name} is on its way. Follow it: the same command without DETACH. Delete it: {down}")
        return 0
    try:
        code = jobs.follow(job.tunnel(args.port))
    except KeyboardInterrupt:
        say(f"Ctrl-C stopped nothing: {args.name} goes on. Follow it: the same command. Delete it: {down}")
        raise
    if args.delete == "always" or (args.delete == "success" and not code):
        jobs.delete()
    if code:
        say(f"{args.name} failed; its log is above. Delete it: {down}")
    else:
        say(f"done. {job.follow_up(bucket) or ''}")
    return code


def down(args: argparse.Namespace) -> int:
    checks = Checks(args.dry_run)
    jobs = JobSet(Shell(args.dry_run), args, checks)
    checks.finish()
    jobs.connect()
    jobs.delete()
    common.say_deleted(jobs.shell, args.name)
    return 0


def main() -> int:
    parser = arguments.followed(arguments.cloud_parser("gke", __doc__, EXAMPLES))
    parser.add_argument("--xpk", action="store_true", help="let XPK make the JobSet; the bucket must be attached at /bucket (xpk storage attach)")  # fmt: skip
    parser.add_argument("--detach", action="store_true", help="start it, and don't follow")
    return arguments.run(parser, "gke", lambda args: down(args) if args.down else up(args))


if __name__ == "__main__":
    sys.exit(main())
