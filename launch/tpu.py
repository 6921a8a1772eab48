"""Run a command on a Cloud TPU, all of it from here:
  1. check job and environment, once for all that is wrong        2. ask `lpo plan` whether a training or server fits; stop where it doesn't
  3. create a TPU VM, or wait for a queued resource (--spot, --queued)
  4. copy git's files, changes included, and the job's inputs     5. install on every worker, with the bucket mounted
  6. run the same command on every worker                         7. stream worker 0's log; serve: hold a tunnel to its server
  8. after a preemption create the TPU again and go on, a training from the checkpoint in the bucket
  9. delete the TPU when told to (--delete)

A job's working directory is the bucket: run_dir=runs/x is gs://BUCKET/runs/x, and -o evals/x is gs://BUCKET/evals/x. Shards, a model's directory,
prompts and a benchmark's file that lie here are uploaded. The job doesn't need this terminal: Ctrl-C stops and deletes nothing, whatever --delete
says, and the same command follows it again. Steps 3, 8, 9 and the tunnel do need it. The TPU's name follows what the job writes (--name: another, e.g.
one that is there); a job with other settings is never taken for this one. On a TPU host itself this is just the command.

environment:
  LPO_PROJECT  Google Cloud project       LPO_ZONE  zone with TPU quota, e.g. us-west4-a
  LPO_BUCKET   bucket (no gs://) with a hierarchical namespace, in the zone's region
  HF_TOKEN     optional, for gated models; copied as a file that only you can read, never printed
  LPO_API_KEY  serve: the key that clients show; it travels like HF_TOKEN
"""

import argparse
import hashlib
import os
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path

from foundation.commands import whole
from launch import arguments, common, preflight, slices
from launch.common import PREEMPTED, Checks, LaunchError, Shell, say
from launch.job import COMMANDS, Job
from launch.tpu_vm import READY, Node, PreemptedError, Tpu
from lpo_jax.sharding import topology_size

EXAMPLES = """\
examples:
  make train-tpu CONFIG=configs/pods/qwen2_5_coder_7b_v5e_4x4.yaml ARGS="data.path=data/disco run_dir=runs/qwen"
  make train-tpu CONFIG=configs/codellama_7b.yaml TPU=v5litepod-8 SPOT=1 DELETE=1         (Google Cloud's name of v5e:2x4)
  make train-tpu CONFIG=configs/pods/codellama_34b_v5p_2x2x4.yaml DRY_RUN=1               (check the run, show every command, run none)
  make train-tpu-down CONFIG=configs/codellama_7b.yaml                                    (with the run's ARGS, or JOB=...)
  make eval-tpu TPU=v5e:2x4 ARGS="--benchmark securityeval --data dataset.jsonl --completions runs/qwen -n 5 -o evals/qwen"
  make serve-tpu TPU=v5e:2x4 PORT=8001 ARGS="--model runs/qwen --max-len-tokens 8192"     (then http://127.0.0.1:8001/v1)
  make generate-tpu TPU=v5e:2x4 JOB=mine ARGS="tasks.jsonl -o out.jsonl --model runs/qwen"
"""
SECRETS = {"HF_TOKEN": ".lpo-hf-token", "LPO_API_KEY": ".lpo-api-key"}  # files in the worker's home directory
NEEDS_TERMINAL = "waiting for a TPU, restarts after a preemption, a server's tunnel and DELETE need it, or the same command again"
WORKER = "bash lpo-jax/launch/worker.sh"
STATE = f"{WORKER} state || echo worker.sh: none"
SILENT = (
    "If your network is fine, it may have been taken without a word: {down} deletes it. "
    "Else the job goes on. Either way the same command goes on with it; nothing was stopped or deleted"
)


def down_command(args: argparse.Namespace) -> str:
    return f"make {args.command or 'train'}-tpu-down JOB={args.name}"


class Run:
    """One job on all workers of a TPU, through preemptions."""

    def __init__(self, tpu: Tpu, bucket: str, job: Job):
        self.tpu, self.shell, self.args, self.bucket, self.job = tpu, tpu.shell, tpu.args, bucket, job
        self.silent = SILENT.format(down=down_command(self.args))

    def to_the_end(self) -> int:
        """Run, or follow what runs, and after each preemption run again, a training from its checkpoint. Returns the command's exit code.

        Raises:
          LaunchError: what runs is another run; or it was preempted too often, or the TPU can't be had or set up.
        """
        prepared = False
        for attempt in range(self.args.restarts + 1):
            try:
                node = self.tpu.describe()
                if not self._under_way(node):
                    if not prepared:
                        self._prepare()
                        prepared = True
                    node = self.tpu.ensure(node)
                    if self.tpu.made or not self._under_way(node):
                        self._install(node)
                        # Another terminal may have begun it meanwhile: who starts what runs stops it first, and the other would do so in turn.
                        if not self._under_way(node):
                            self._start(node)
                code = self._follow()
                self.tpu.may_train = False
                if code in (0, 2) or (code != PREEMPTED and self._still_there()):
                    return code
                stopped = "it was told to stop" if self.job.command == "serve" else "it has saved its state and stopped"
                reason = stopped if code == PREEMPTED else f"the job ended with {code} on a TPU that is gone"
            except PreemptedError as error:
                self.tpu.may_train = False
                reason = str(error)
            if attempt < self.args.restarts:
                pause = common.backoff(self.args.pause_s, attempt)
                say(f"preempted: {reason}. Restart {attempt + 1} of at most {self.args.restarts} in {pause:.0f} s")
                self.shell.sleep(pause)
        raise LaunchError(f"preempted {self.args.restarts + 1} times, RESTARTS={self.args.restarts}; the same command goes on")

    def _prepare(self) -> None:
        """What comes before a TPU: the plan, the tree that travels, the job's inputs."""
        if not self.args.skip_plan:
            assert self.tpu.wanted is not None
            preflight.plan(self.shell, self.job, self.tpu.wanted.name, self.bucket)
        self._snapshot = common.snapshot(self.shell)
        common.upload(self.shell, self.job.inputs().values(), self.bucket, self.job.folders())

    def _under_way(self, node: Node) -> bool:
        """Whether this very job is running there.

        Raises:
          LaunchError: another one is, or nobody answers.
        """
        if not self.tpu.alive(node):
            return False
        self.tpu.touched = self.tpu.may_train = True
        for attempt in range(self.args.tries):
            shown = self.tpu.ssh("0", STATE, pretend="worker.sh: none", quiet=True)
            if "worker.sh: running" in shown:
                told = re.search(r"worker\.sh: job (.*)", shown)
                self.job.check_same(self.tpu.name, told and told[1])
                say(f"{self.tpu.name} is at work: following it")
                return True
            if "worker.sh:" in shown:
                self.tpu.may_train = False
                return False
            self._gone_or("worker 0 doesn't answer", attempt)
        raise LaunchError(f"{self.tpu.name} is {READY}, but worker 0 doesn't answer. {self.silent}")

    def _install(self, node: Node) -> None:
        commit, tree = self._snapshot
        packed, home = (
            f"lpo-jax-{tree}.tar.gz",
            f"lpo-jax-{tree}",
        )  # by content: a copy that failed can't go unnoticed, and what runs keeps its own
        unpack = f"new=$(mktemp -d -p .) && tar -xzf {packed} -C $new && {{ mv -T $new {home} || rm -rf $new; }}"
        named = f"ln -sfn {home} lpo-jax.new && mv -fT lpo-jax.new lpo-jax"
        setup = [f"{home}/launch/worker.sh", "setup", self.bucket, *["judges"] * (self.job.command == "eval")]
        with tempfile.TemporaryDirectory() as folder:
            path, told = Path(folder) / packed, Path(folder) / self._told
            common.archive(self.shell, commit, path)
            told.write_text(self.job.text() + "\n")
            secrets = {
                Path(folder) / name.lower().replace("_", "-"): (os.environ[name], target)
                for name, target in SECRETS.items()
                if self._needs(name)
            }
            for file, (value, _) in secrets.items():
                file.touch(mode=0o600)
                file.write_text(value)
            for attempt in range(self.args.tries):
                self.tpu.copy(path, packed)
                self.tpu.copy(told, self._told)
                for file, (_, target) in secrets.items():
                    self.tpu.copy(file, target)
                ready = f"{{ [ -d {home} ] || {{ {unpack}; }}; }} && {named} && bash {shlex.join(setup)}"
                if self._all("ready", ready, node):
                    return
                self._gone_or(f"setting up the workers failed, try {attempt + 1} of {self.args.tries}", attempt)
        raise LaunchError(f"not every worker could be set up, see above; ssh: gcloud compute tpus tpu-vm ssh {self.tpu.name}")

    def _needs(self, secret: str) -> bool:
        return bool(os.environ.get(secret)) and (secret == "HF_TOKEN" or self.job.command == "serve")

    @property
    def _told(self) -> str:
        """The file, in a worker's home directory, that says what the job is."""
        return f"lpo-job-{hashlib.sha256(self.job.text().encode()).hexdigest()[:12]}.json"

    def _start(self, node: Node) -> None:
        command = shlex.join(["bash", f"lpo-jax-{self._snapshot[1]}/launch/worker.sh", "start", self._told, *self.job.argv("@tree")])
        self.tpu.may_train = True
        shown = self.tpu.ssh("all", command, pretend="worker.sh: started\n" * node.workers)
        if "worker.sh: busy" in shown:
            raise LaunchError(f"{self.tpu.name} began another job meanwhile; the same command says which. Nothing was stopped or deleted")
        if shown.count("worker.sh: started") != node.workers:
            self._gone_or("the job didn't start everywhere", 0)
            raise LaunchError("the job didn't start on every worker, see above")

    def _follow(self) -> int:
        lost, lines = 0, "+1"
        tunnel = self.job.tunnel(self.args.port)
        if tunnel:
            say(
                f"while this command runs, http://127.0.0.1:{tunnel[0]}/v1 is the server's, once its log says ready; clients show LPO_API_KEY"
            )
        while True:
            since = time.monotonic()
            shown = self.tpu.ssh("0", f"{WORKER} follow {lines}", pretend="worker.sh: over 0", tunnel=tunnel)
            if ended := re.findall(r"worker\.sh: over (\d+)", shown):
                return int(ended[-1])
            if "worker.sh: none" in shown:
                raise PreemptedError("worker 0 no longer knows of the job; it may have restarted")
            if time.monotonic() - since > 300:  # it had been following for a while
                lost = 0
            if lost == self.args.tries:
                raise LaunchError(f"the connection to {self.tpu.name} was lost {lost + 1} times. {self.silent}")
            self._gone_or("lost the connection, following again", lost)
            lost, lines = lost + 1, "20"

    def _all(self, word: str, command: str, node: Node) -> bool:
        """Run on all workers; whether each of them said `word`."""
        shown = self.tpu.ssh("all", command, pretend=f"worker.sh: {word}\n" * node.workers)
        return shown.count(f"worker.sh: {word}") == node.workers

    def _gone_or(self, what: str, attempt: int) -> None:
        """Wait a little; a TPU that is gone by then was preempted."""
        say(what)
        self.shell.sleep(common.backoff(self.args.pause_s, attempt))
        if not self.tpu.alive(self.tpu.describe()):
            raise PreemptedError(f"{self.tpu.name} is gone ({what})")

    def _still_there(self) -> bool:
        self.shell.sleep(self.args.pause_s)  # the others' processes die before Google Cloud says that the slice is being taken
        return self.tpu.alive(self.tpu.describe())


def check_ssh_agent(shell: Shell, checks: Checks) -> None:
    """gcloud refuses several workers when the ssh agent holds keys but not its own, and would say so only when the TPU is there."""
    key = Path.home() / ".ssh/google_compute_engine"
    known = shell.ask(["ssh-add", "-l"])
    if known.returncode or shell.dry_run:  # an empty agent, or none, is fine
        return
    mine = shell.ask(["ssh-keygen", "-lf", str(key)])
    if mine.returncode:
        checks.missing.append(f"gcloud's ssh key, which your ssh agent must hold: ssh-keygen -t rsa -f {key} && ssh-add {key}")
    elif mine.stdout.split()[1] not in known.stdout:
        checks.missing.append(f"gcloud's ssh key in your ssh agent: ssh-add {key}")


def up(args: argparse.Namespace) -> int:
    shell = Shell(args.dry_run)
    if slices.on_tpu():
        say("this is a TPU host: running here")
        shell.become([*COMMANDS[args.command].program, *args.words])
        return 0
    checks = Checks(args.dry_run)
    project = checks.variable("LPO_PROJECT", "your Google Cloud project")
    zone = checks.variable("LPO_ZONE", "a zone where the project has TPU quota, e.g. us-west4-a")
    bucket = checks.variable("LPO_BUCKET", "a Cloud Storage bucket for data and checkpoints, without gs://")
    checks.program("gcloud", "https://cloud.google.com/sdk/docs/install")
    if args.command == "serve":
        preflight.check_key(checks)
    found = checks.collect(lambda: slices.of_job(args.tpu, args.command, args.words))
    ask = args.dry_run or not checks.missing
    if found:
        wanted, job = found
        if ask:
            preflight.check_cloud(shell, checks, bucket, project, job.config, zone)
        ask = args.dry_run or not checks.missing
        if job.config:
            preflight.check_tracked(shell, checks, job.given.config)
        preflight.check_job(shell, checks, job, topology_size(wanted.name), bucket, ask)
        if ask and (wrong := Tpu(shell, args, project, zone, wanted).check_zone()):
            checks.missing.append(wrong)
        if ask and os.environ.get("SSH_AUTH_SOCK") and wanted.hosts > 1:
            check_ssh_agent(shell, checks)
    checks.finish()
    say(f"{args.name} goes on without this terminal; {NEEDS_TERMINAL}")

    tpu = Tpu(shell, args, project, zone, wanted)
    try:
        code = Run(tpu, bucket, job).to_the_end()
    except KeyboardInterrupt:
        _interrupted(tpu)
        raise
    except BaseException:
        _leave(tpu, failed=True)
        raise
    _leave(tpu, failed=code != 0)
    if code:
        say(f"the job ended with exit code {code}; its log is above")
    else:
        say(f"done. {job.follow_up(bucket) or ''}")
    return code


def _leave(tpu: Tpu, failed: bool) -> None:
    """Delete the TPU if that was asked for and nothing trains there, else say that it is still there."""
    if not tpu.touched:
        return
    told = f"{tpu.name} may still exist and cost money. Delete it: {down_command(tpu.args)}"
    if not tpu.may_train and (tpu.args.delete == "always" or (tpu.args.delete == "success" and not failed)):
        try:
            tpu.delete()
        except BaseException:
            say(told)
            raise
    elif not tpu.shell.dry_run:
        say(told)


def _interrupted(tpu: Tpu) -> None:
    """Ctrl-C: nothing is stopped, nothing deleted; say how to."""
    if not tpu.touched:
        return
    stop = shlex.join(tpu.ssh_command("all", f"{WORKER} stop"))
    serves = tpu.args.command == "serve"
    say(
        f"Ctrl-C {'closed the tunnel and ' * serves}stopped nothing: {tpu.name}, or its request, stays and may cost money{', DELETE or not' * (tpu.args.delete != 'never')}.\n"
        f"  follow it     the same command again{', which opens the tunnel too' * serves}\n"
        f"  stop the job  {stop}   ({'the TPU stays, and is paid for' if serves else 'it saves first'})\n"
        f"  delete it     {down_command(tpu.args)}"
    )


def down(args: argparse.Namespace) -> int:
    shell, checks = Shell(args.dry_run), Checks(args.dry_run)
    project = checks.variable("LPO_PROJECT", "your Google Cloud project")
    zone = checks.variable("LPO_ZONE", "the TPU's zone")
    checks.program("gcloud", "https://cloud.google.com/sdk/docs/install")
    checks.finish()
    tpu = Tpu(shell, args, project, zone, None)
    tpu.touched = True
    tpu.delete()
    common.say_deleted(shell, tpu.name)
    return 0


def main() -> int:
    parser = arguments.followed(arguments.cloud_parser("tpu", __doc__, EXAMPLES))
    parser.add_argument("--queued", action="store_true", help="wait in the queue for capacity")
    parser.add_argument("--wait-min", type=whole(0), default=360, help="minutes to wait in the queue (default: 360)")
    parser.add_argument("--tries", type=whole(1), default=5, help="tries for what may fail by chance: capacity, ssh (default: 5)")
    return arguments.run(parser, "tpu", lambda args: down(args) if args.down else up(args))


if __name__ == "__main__":
    sys.exit(main())
