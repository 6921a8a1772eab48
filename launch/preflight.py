"""What can be refused before anything is paid for: one check for all launchers, dry runs included. It asks the cloud only what costs nothing."""

import os
import posixpath
import re
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.shards import Manifest
from data_pipeline.template import ours
from foundation.errors import UserError
from foundation.stores import HUB_ID
from launch.common import NEEDS_LOGIN, Checks, LaunchError, Shell, last_line, say
from launch.job import NO_PATHS, Job, url_of
from lpo_jax.cli import export, generate, program, serve, teacher
from lpo_jax.cli.models import CROSEC
from lpo_jax.config import RunConfig
from lpo_jax.sharding import mesh_shape, row_cuts
from lpo_jax.train import preflight

if TYPE_CHECKING:
    from lpo_jax.decode.load import Models

MAY_BE_ON_THE_HUB = ("data.tokenizer", "model.path", "model.adapter", ".kl.teacher", "--completions", "--model", "--security", "tokenizer")
PLANNED = ("train", "serve")  # commands that `lpo plan` knows
MULTI_REGIONS = {"us": "us", "europe": "eu", "asia": "asia"}  # of buckets, by how a zone's name begins
CREATE = "gcloud storage buckets create gs://NAME --location=REGION --uniform-bucket-level-access --enable-hierarchical-namespace"


def check_job(
    shell: Shell, checks: Checks, job: Job, devices: int, bucket: str | None = None, ask: bool = True, built: str | None = None
) -> None:
    """Whether what a job reads will be where it runs, and whether its rows, mesh, data, tokenizer and weights go together.

    Args:
      devices: of its mesh, as JAX counts them.
      bucket: where it will look for its inputs; None: in this very directory.
      ask: ask the bucket and the hub, too.
      built: a shard set that will be here, which a dry run goes on without.
    """
    fetch = False  # the tokenizer
    with tempfile.TemporaryDirectory() as folder:
        elsewhere: dict[str, Path] = {}
        shards = {} if job.config is None else job.config.shard_paths()
        for index, (key, value) in enumerate(job.inputs().items()):
            if Path(value).exists() or key.endswith(".reference") or key == "model.shape":  # made where it runs; looked at below
                continue
            if key in shards:
                remedy = f"build it with `lpo-data build ... --out {value}`"
                copy = Path(folder, str(index), "manifest.json")
                if shell.dry_run and built is not None and Path(value) == Path(built):
                    checks.notes.append(f"{key}={value} isn't here: it is built first; how many steps it makes isn't known")
                elif not bucket:
                    checks.wrong.append(f"{key}={value}: no such shard set; {remedy}")
                elif ask and _fetched(shell, f"gs://{bucket}/{value}/manifest.json", copy):
                    elsewhere[value] = copy.parent
                elif shell.dry_run:
                    checks.notes.append(
                        f"{key}={value} isn't here: it must be in gs://{bucket}, or {remedy}; how many steps it makes isn't known"
                    )
                elif ask:
                    checks.wrong.append(f"{key}={value} is neither here nor in gs://{bucket}: {remedy}")
            elif value.startswith("gs://"):
                if ask and shell.ask(["gcloud", "storage", "ls", f"{value.rstrip('/')}/config.json"]).returncode:
                    checks.wrong.append(f"{key}={value}: no model there: lpo fetch HUB_ID {value}")
            elif bucket and ask and not shell.dry_run and not shell.ask(["gcloud", "storage", "ls", f"gs://{bucket}/{value}"]).returncode:
                continue
            elif bucket and shell.dry_run and (value.startswith("runs/") or not _on_a_hub(key, value)):
                checks.notes.append(f"{key}={value} isn't here: it must be in gs://{bucket}")
            elif not _on_a_hub(key, value):
                looked = " here or in the bucket" if bucket else ""
                checks.wrong.append(f"{key}={value}: no such file or directory{looked}, and no hub id; correct it")
            elif ask:
                problem, note = _on_the_hub(key, value)
                checks.wrong += problem
                checks.notes += note
                named = "data.tokenizer" if job.config and job.config.data.tokenizer else "model.path"
                fetch |= not problem and not note and key == named
        for check in (partial(_check_output, bucket=bucket), _check_flags, _check_server):
            checks.collect(partial(check, job))
        asked = bucket if ask else None
        if job.command == "export" and Path(place := _shape_here(shell, job.given.run_dir, asked, Path(folder))).is_dir():
            checks.collect(partial(_check_run, job.given.run_dir, place, job.given.merge))
        if job.command == "teacher":
            checks.collect(partial(_check_teacher, job, elsewhere))
        if (models := checks.collect(partial(models_of, job))) is not None:
            checks.collect(partial(_check_mesh, models, devices))
            checks.collect(partial(_check_reading, shell, job, models, asked, ask, Path(folder)))
        if job.config is None:
            return
        if bucket and ask and job.command == "train":
            _check_run_dir(shell, checks, job.config, bucket, Path(folder, "config.json"))
        found = preflight.look(job.config, devices, elsewhere, fetch)
    checks.wrong += found.errors
    checks.notes += found.warnings


def plan(shell: Shell, job: Job, topology: str, bucket: str) -> None:
    """Let the TPU compiler say, here and now, whether a training or a server fits its slice; other commands aren't planned.

    Raises:
      LaunchError: it doesn't.
    """
    if job.command not in PLANNED:
        return
    if job.command == "serve" and (job.given.quantize or job.given.preset in CROSEC):
        say("`lpo plan --serve` knows neither --quantize nor --preset crosec: whether this fits isn't known")
        return
    with tempfile.TemporaryDirectory() as folder:
        words = job.words if job.command == "train" else _serving(shell, job, topology, bucket, Path(folder))
        try:
            shell.run(["lpo", "plan", *words])
        except LaunchError:
            what = job.given.config if job.command == "train" else job.given.model
            raise LaunchError(f"`lpo plan` refuses {what}, see above. SKIP_PLAN=1 starts it all the same") from None


def _serving(shell: Shell, job: Job, topology: str, bucket: str, copies: Path) -> list[str]:
    """What `lpo plan` is asked of a server. `copies`: where config.json of a model in the bucket is brought, which says its shape."""
    flags = program().commands["plan"].get_default("of_decoding")
    asked = {name: getattr(job.given, name) for name, default in flags.items() if getattr(job.given, name) != default}
    asked |= {name: _shape_here(shell, asked[name], bucket, copies) for name in ("model", "security") if name in asked}
    return [f"--serve={topology}", *(f"--{name.replace('_', '-')}={value}" for name, value in asked.items())]


def _shape_here(shell: Shell, model: str, bucket: str | None, copies: Path) -> str:
    """The model's or run's name here, or if the bucket alone has it a directory with a copy of its config.json, which says its shape."""
    copy = copies / model.strip("/").replace("/", "-") / "config.json"
    if bucket and not (Path(model) / "config.json").is_file() and _fetched(shell, f"{url_of(model, bucket).rstrip('/')}/config.json", copy):
        return str(copy.parent)
    return model


def _on_a_hub(key: str, value: str) -> bool:
    """Whether it may be."""
    return key.endswith(MAY_BE_ON_THE_HUB) and HUB_ID.fullmatch(value) is not None


def _check_output(job: Job, bucket: str | None) -> None:
    """What is written takes the place of nothing that is read, and has a place of its own: in a bucket it is made, here it is there."""
    if job.output is None:
        return
    key = {"train": "run_dir", "export": "out"}.get(job.command, "-o")
    problem = preflight.place_problem(key, job.output) if job.command != "train" else ""  # that of a config is looked at with it
    for name, value in job.inputs().items():
        if posixpath.normpath(value) == posixpath.normpath(job.output) and not name.endswith(".reference"):
            problem = f"{key}={job.output} is what {name} names: give another {key}"
    if not bucket and (missing := [folder for folder in job.folders() if not Path(folder).is_dir()]):
        problem = f"{key}={job.output}: there is no directory {missing[0]}; make it, or name another"
    if problem:
        raise LaunchError(problem)


def _check_flags(job: Job) -> None:
    """What a command without decoding refuses before it looks for a model, by its own words; and what a template can't be."""
    template = getattr(job.given, "template", None)
    if template is not None and template not in NO_PATHS and not Path(template).suffix and not Path(template).exists():
        raise LaunchError(f"--template={template}: no such file, and none of ours ({', '.join(ours())})")
    if job.command == "export":
        export.check(job.given)


def _check_run(name: str, place: str, merge: bool) -> None:
    """What `lpo export` would refuse of a run. `place`: where its config.json is here."""
    from lpo_jax.export import run_of  # here: it takes its time

    try:
        run_of(place, merge)
    except UserError as error:
        raise LaunchError(str(error).replace(place, name)) from None


def _check_teacher(job: Job, elsewhere: Mapping[str, Path]) -> None:
    """Whether it is clear which teacher is meant, and, where the manifest of its stage's shards is known, whether it goes with these."""
    assert job.config is not None
    stage = teacher.stage_of(job.given, job.config)
    path = next(iter(job.config.shard_sets(stage).values())).path
    if not (elsewhere.get(path, Path(path)) / "manifest.json").is_file():
        return
    from lpo_jax.train import teacher as computing  # here: it takes its time

    manifest, objective = Manifest.load(elsewhere.get(path, Path(path))), computing.taught(job.config, stage)
    computing.check_top_k(job.given.top_k, manifest)
    if objective is not None and Path(computing.path_of(objective)).is_dir():
        computing.open_teacher(job.config, stage, manifest)


def models_of(job: Job) -> "Models | None":
    """What decodes, as the command reads it from its flags; None: nothing does.

    Raises:
      UserError: the command itself refuses its flags.
    """
    if job.command == "eval":
        from evaluation import cli  # here: it takes its time

        return cli.asked(job.given)
    if job.command == "serve":
        return serve.asked(job.given)[1]
    return generate.asked(job.given).models if job.command == "generate" else None


def _check_mesh(models: "Models", devices: int) -> None:
    mesh = mesh_shape(models.mesh, devices)
    if models.rows is not None:
        from lpo_jax.decode.request import check_rows  # here: it takes its time

        check_rows(models.rows, row_cuts(mesh))


def _check_reading(shell: Shell, job: Job, models: "Models", bucket: str | None, ask: bool, copies: Path) -> None:
    """Where all that is read lies here, tokenizers, prompts and their lengths; else lengths by the models' shapes, and the prompts' rows, if these are here."""
    from lpo_jax.decode import job as decoding  # here: it takes its time
    from lpo_jax.decode import load, prompts

    here = all(Path(path).exists() for path in job.inputs().values())
    if here and all((Path(path) / "config.json").is_file() for path in (models.model, models.security) if path is not None):
        if job.command == "generate" and Path(job.given.prompts).exists():
            decoding.check(generate.asked(job.given))
        else:
            load.find(models)
        return
    shapes = {}
    for name in load.readers(models) if models.max_len_tokens else ():
        place = _shape_here(shell, name, bucket, copies)
        if Path(place).exists() or (ask and not name.startswith("runs/") and HUB_ID.fullmatch(name)):
            with suppress(UserError):  # what can't be looked at from here isn't known, and said where it is looked for
                shapes[name] = load.shape_of(place)
    load.check_longest(models, shapes)
    if job.command == "generate" and Path(job.given.prompts).is_file():
        for _ in prompts.rows(job.given.prompts, models.adapters or ()):
            pass


def _check_server(job: Job) -> None:
    """It is reached by a tunnel alone, and by whoever knows its key."""
    if job.command != "serve":
        return
    if not job.given.port:
        raise LaunchError("--port 0: the tunnel must know the port; name one, or leave it out")
    if job.given.host != "127.0.0.1":
        raise LaunchError(f"--host {job.given.host}: elsewhere it listens on 127.0.0.1 and is reached through the tunnel; leave it out")


def check_key(checks: Checks) -> None:
    """Of a server, for whoever reaches its port."""
    if "LPO_API_KEY" in os.environ:
        checks.collect(serve.api_key)
    else:
        checks.variable("LPO_API_KEY", "the key that clients show: export LPO_API_KEY=$(openssl rand -hex 24)")


def check_tracked(shell: Shell, checks: Checks, config: str) -> None:
    """What travels is git's."""
    if shell.ask(["git", "ls-files", "--error-unmatch", "--", config], harmless=True).returncode:
        checks.wrong.append(f"git doesn't track {config}, so it would not be sent: git add {shlex.quote(config)}")


def check_cloud(shell: Shell, checks: Checks, bucket: str, project: str, config: RunConfig | None, zone: str) -> None:
    """Is there an account, and a bucket that checkpoints can live in, near the machines?"""
    if not re.fullmatch(r"\$LPO_BUCKET|[a-z0-9][a-z0-9._-]+[a-z0-9]", bucket):
        checks.wrong.append(f"LPO_BUCKET={bucket}: give the bucket's name alone, without gs:// and folders")
        return
    account = shell.ask(["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"], pretend="you")
    if account.returncode or not account.stdout.strip():
        checks.missing.append("an account: gcloud auth login")
        return
    layout = ["--raw", "--format=value(hierarchicalNamespace.enabled,location)"]
    found = shell.ask(["gcloud", "storage", "buckets", "describe", f"gs://{bucket}", f"--project={project}", *layout], pretend="True")
    nested, _, place = found.stdout.rstrip("\n").lower().partition("\t")
    if found.returncode and NEEDS_LOGIN.search(found.stderr):
        checks.missing.append("an account whose sign-in hasn't expired: gcloud auth login")
    elif found.returncode:
        checks.missing.append(f"LPO_BUCKET={bucket}: {last_line(found.stderr)}. To make one in the TPU's region: {CREATE}")
    elif nested != "true" and not (config and config.run_dir.startswith("gs://")):
        # Without, gcsfuse can't rename a directory, and so not finish a checkpoint.
        checks.missing.append(
            f"LPO_BUCKET={bucket} has no hierarchical namespace, which checkpoints in a mounted bucket need; make one that has: {CREATE}, "
            f"or write to it unmounted: run_dir=gs://{bucket}/runs/NAME"
        )
    here = re.match(r"[a-z]+-[a-z]+\d+", zone)
    if here and re.fullmatch(r"us|eu|asia|[a-z]+-[a-z]+\d+", place) and place not in (here[0], MULTI_REGIONS.get(zone.partition("-")[0])):
        checks.notes.append(
            f"LPO_BUCKET={bucket} is in {place}, the machines in {here[0]}: what they read is slow, and paid for by the GiB"
        )


def _check_run_dir(shell: Shell, checks: Checks, config: RunConfig, bucket: str, copy: Path) -> None:
    """A run's directory belongs to one config; `lpo train` would say so only when the TPU is there."""
    url = url_of(config.run_dir, bucket)
    if not _fetched(shell, f"{url}/config.json", copy):
        return
    from lpo_jax.train import run_dir  # here: it takes its time

    try:
        run_dir.check_owner(copy, config, url)
    except UserError as error:
        checks.wrong.append(str(error).replace(str(copy.parent), url))


def _fetched(shell: Shell, url: str, copy: Path) -> bool:
    """Whether there is such a file in a bucket, which is then copied."""
    found = shell.ask(["gcloud", "storage", "cat", url])
    if found.returncode or shell.dry_run:
        return False
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(found.stdout)
    return True


def _on_the_hub(key: str, name: str) -> tuple[list[str], list[str]]:
    """Whether the workers, with HF_TOKEN or without, may fetch what a hub id names: what is wrong, and what isn't known."""
    import huggingface_hub  # here: it takes its time
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    token = os.environ.get("HF_TOKEN")
    try:
        huggingface_hub.auth_check(name, token=token or False)
    except GatedRepoError:
        who = "HF_TOKEN's account has no access yet" if token else "and HF_TOKEN isn't set"
        return [f"{key}={name} is gated, {who}: accept its terms on the hub, and set HF_TOKEN"], []
    except RepositoryNotFoundError:
        return [f"{key}={name}: neither here, nor on the hub for {'this HF_TOKEN' if token else 'anyone without HF_TOKEN'}; correct it"], []
    except Exception as error:  # noqa: BLE001 (of the hub's own kinds, of its HTTP library's)
        return [], [f"{key}={name}: the hub couldn't be asked whether it can be fetched ({type(error).__name__})"]
    return [], []
