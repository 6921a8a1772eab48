"""What can be refused before anything is paid for: one check for all launchers, dry runs included. It asks the cloud only what costs nothing."""

import os
import re
import tempfile
from pathlib import Path

from foundation.errors import UserError
from foundation.files import HUB_ID
from launch.common import NEEDS_LOGIN, Checks, Shell, inputs, last_line, run_url
from lpo_jax.config import RunConfig
from lpo_jax.train import preflight

MAY_BE_ON_THE_HUB = ("data.tokenizer", "model.path", "model.adapter", ".kl.teacher")
CREATE = "gcloud storage buckets create gs://NAME --location=REGION --uniform-bucket-level-access --enable-hierarchical-namespace"


def check_run(shell: Shell, checks: Checks, config: RunConfig, devices: int, bucket: str | None = None, ask: bool = True) -> None:
    """Whether a run's rows, mesh, data, tokenizer and weights go together, and whether they will be where it runs.

    Args:
      devices: of the run's mesh, as JAX counts them.
      bucket: where it will look for its inputs; None: in this very directory.
      ask: ask the bucket and the hub, too.
    """
    fetch = False  # the tokenizer
    with tempfile.TemporaryDirectory() as folder:
        elsewhere: dict[str, Path] = {}
        shards = config.shard_paths()
        for index, (key, value) in enumerate(inputs(config).items()):
            if Path(value).exists() or key.endswith(".reference") or key == "model.shape":  # made where it runs; looked at below
                continue
            if key in shards:
                remedy = f"build it with `lpo-data build ... --out {value}`"
                copy = Path(folder, str(index), "manifest.json")
                if not bucket:
                    checks.missing.append(f"{key}={value}: no such shard set; {remedy}")
                elif ask and _fetched(shell, f"gs://{bucket}/{value}/manifest.json", copy):
                    elsewhere[value] = copy.parent
                elif shell.dry_run:
                    checks.notes.append(
                        f"{key}={value} isn't here: it must be in gs://{bucket}, or {remedy}; how many steps it makes isn't known"
                    )
                elif ask:
                    checks.missing.append(f"{key}={value} is neither here nor in gs://{bucket}: {remedy}")
            elif bucket and ask and not shell.dry_run and not shell.ask(["gcloud", "storage", "ls", f"gs://{bucket}/{value}"]).returncode:
                continue
            elif not key.endswith(MAY_BE_ON_THE_HUB) or not HUB_ID.fullmatch(value):
                looked = " here or in the bucket" if bucket else ""
                checks.missing.append(f"{key}={value}: no such file or directory{looked}, and no hub id; correct it")
            elif ask:
                problem, note = _on_the_hub(key, value)
                checks.wrong += problem
                checks.notes += note
                fetch |= not problem and not note and key == ("data.tokenizer" if config.data.tokenizer else "model.path")
        if bucket and ask:
            _check_run_dir(shell, checks, config, bucket, Path(folder, "config.json"))
        found = preflight.look(config, devices, elsewhere, fetch)
    checks.wrong += found.errors
    checks.notes += found.warnings


def check_tracked(shell: Shell, checks: Checks, config: str) -> None:
    """What travels is git's."""
    if shell.ask(["git", "ls-files", "--error-unmatch", "--", config], harmless=True).returncode:
        checks.wrong.append(f"git doesn't track {config}, so it would not be sent: git add {config}")


def check_cloud(shell: Shell, checks: Checks, bucket: str, project: str, config: RunConfig | None) -> None:
    """Is there an account, and a bucket that checkpoints can live in?"""
    if not re.fullmatch(r"\$LPO_BUCKET|[a-z0-9][a-z0-9._-]+[a-z0-9]", bucket):
        checks.wrong.append(f"LPO_BUCKET={bucket}: give the bucket's name alone, without gs:// and folders")
        return
    account = shell.ask(["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"], pretend="you")
    if account.returncode or not account.stdout.strip():
        checks.missing.append("an account: gcloud auth login")
        return
    layout = ["--raw", "--format=value(hierarchicalNamespace.enabled)"]
    found = shell.ask(["gcloud", "storage", "buckets", "describe", f"gs://{bucket}", f"--project={project}", *layout], pretend="True")
    if found.returncode and NEEDS_LOGIN.search(found.stderr):
        checks.missing.append("an account whose sign-in hasn't expired: gcloud auth login")
    elif found.returncode:
        checks.missing.append(f"LPO_BUCKET={bucket}: {last_line(found.stderr)}. To make one in the TPU's region: {CREATE}")
    elif found.stdout.strip().lower() != "true" and not (config and config.run_dir.startswith("gs://")):
        # Without, gcsfuse can't rename a directory, and so not finish a checkpoint.
        checks.missing.append(
            f"LPO_BUCKET={bucket} has no hierarchical namespace, which checkpoints in a mounted bucket need; make one that has: {CREATE}, "
            f"or write to it unmounted: run_dir=gs://{bucket}/runs/NAME"
        )


def _check_run_dir(shell: Shell, checks: Checks, config: RunConfig, bucket: str, copy: Path) -> None:
    """A run's directory belongs to one config; `lpo train` would say so only when the TPU is there."""
    url = run_url(config, bucket)
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
