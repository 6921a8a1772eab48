"""What the launchers share: commands run or only shown, checks that come first, the tree that travels, the plan."""

import getpass
import hashlib
import os
import posixpath
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from foundation.errors import UserError

T = TypeVar("T")
REPO = Path(__file__).resolve().parent.parent
PREEMPTED = 75  # it was told to stop, and goes on when started again (EX_TEMPFAIL): lpo train, which has saved, and lpo serve
NEVER_SENT = [":(exclude,glob)**/.env*", ":(exclude,glob)**/*.pem", ":(exclude,glob)**/*.key", ":(exclude,glob)**/id_rsa*"]
LONGEST_NAME = 40  # of what is created: the cloud appends to it
MARKED = re.compile(r"-[0-9a-f]{6}$")  # a name that ends in a hash
TAIL = 2**18  # bytes of a stream's end that are kept
NEEDS_LOGIN = re.compile(r"refreshing your current auth|invalid_grant|Reauthentication|gcloud auth login")
REFUSED = re.compile(
    r"PERMISSION_DENIED|INVALID_ARGUMENT|is not found or access is unauthorized"
)  # a wrong zone or project: no use to ask again


class LaunchError(UserError):
    """What stands in the way, and what to do about it."""


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


@dataclass
class Shell:
    """Runs commands, each shown first; with `dry_run` it only shows them and takes the answer that is given as `pretend`."""

    dry_run: bool = False

    def run(self, command: Sequence[str], *, stdin: str | None = None) -> None:
        """Run to the end, output to the terminal.

        Raises:
          LaunchError: it failed.
        """
        self._show(command)
        if not self.dry_run:
            # No terminal for the command: a tool that asks a question fails at once and doesn't wait for an answer nobody gives.
            done = subprocess.run(command, **({"input": stdin, "text": True} if stdin is not None else {"stdin": subprocess.DEVNULL}))
            if done.returncode:
                raise LaunchError(f"{command[0]} failed with exit code {done.returncode}")

    def ask(
        self, command: Sequence[str], *, pretend: str = "", code: int = 0, quiet: bool = False, harmless: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run and return what it printed; a failure is the caller's to judge. A dry run takes `pretend` and `code` for it. `quiet` doesn't show the
        command (polling), `harmless` runs it in a dry run too: it only looks at what is here."""
        if not quiet or self.dry_run:
            self._show(command)
        if self.dry_run and not harmless:
            return subprocess.CompletedProcess(command, code, pretend, "")
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def ask_patiently(self, command: Sequence[str], *, pretend: str, tries: int, pause_s: float, none: str | None = None) -> str:
        """What it printed, asked again after a failure, because a hiccup must not end a run of days; "" after an error that matches `none`.

        Raises:
          LaunchError: it fails, and no hiccup it is.
        """
        for attempt in range(tries):
            found = self.ask(command, pretend=pretend, quiet=True)
            if not found.returncode:
                return found.stdout.strip()
            if NEEDS_LOGIN.search(found.stderr):
                raise LaunchError(f"{command[0]}'s sign-in has expired: gcloud auth login, then the same command")
            if REFUSED.search(found.stderr):
                break
            if none and re.search(none, found.stderr):
                return ""
            self.sleep(backoff(pause_s, attempt))
        raise LaunchError(f"{command[0]}: {last_line(found.stderr)}")

    def stream(self, command: Sequence[str], *, pretend: str = "") -> subprocess.CompletedProcess[str]:
        """Run, show its output (and errors) as it comes, and return the end of it; a failure is the caller's to judge."""
        self._show(command)
        if self.dry_run:
            return subprocess.CompletedProcess(command, 0, pretend)
        tail = b""
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            while chunk := os.read(process.stdout.fileno(), 65536):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                tail = (tail + chunk)[-TAIL:]
        return subprocess.CompletedProcess(command, process.returncode, tail.decode(errors="replace"))

    @contextmanager
    def beside(self, command: Sequence[str]) -> Iterator[None]:
        """Keep it running until the block ends: it is begun again whenever it ends."""
        self._show(command)
        if self.dry_run:
            yield
            return
        over, running = threading.Event(), list[subprocess.Popen]()

        def again() -> None:
            while not over.is_set():
                running[:] = [subprocess.Popen(command, stdin=subprocess.DEVNULL)]
                running[0].wait()
                over.wait(1)

        thread = threading.Thread(target=again, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            while thread.is_alive():  # it may just be beginning again
                for process in running:
                    process.terminate()
                thread.join(0.2)

    def become(self, command: Sequence[str]) -> None:
        """Run instead of this process: signals are the command's, and so is the exit code."""
        self._show(command)
        if not self.dry_run:
            os.execvp(command[0], list(command))

    def sleep(self, seconds: float) -> None:
        if not self.dry_run:
            time.sleep(seconds)

    def _show(self, command: Sequence[str]) -> None:
        print(f"+ {shlex.join(command)}", flush=True)


@dataclass
class Checks:
    """Collects all that stands in the way, so that it is said once.

    Attributes:
      missing: of the environment; a dry run goes on without.
      wrong: with the run itself; that would be refused, by a dry run too.
      notes: what may not be meant, or isn't known.
    """

    dry_run: bool
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def variable(self, name: str, what: str) -> str:
        """An environment variable's value; in a dry run a missing one is shown as itself."""
        value = os.environ.get(name, "")
        if not value:
            self.missing.append(f"{name}: {what}")
        return value or f"${name}"

    def program(self, name: str, source: str) -> None:
        if shutil.which(name) is None:
            self.missing.append(f"the program {name}: {source}")

    def collect(self, make: Callable[[], T]) -> T | None:
        """A value, or None where making it raises; the error is then one more thing that is wrong."""
        try:
            return make()
        except UserError as error:
            self.wrong.append(str(error))
            return None

    def finish(self) -> None:
        """Say the notes, and raise one error that lists all that stands in the way."""
        for note in self.notes:
            say(f"note: {note}")
        if self.missing or self.wrong:
            text = "before this can start, set or correct:\n" + "\n".join(f"  - {line}" for line in [*self.missing, *self.wrong])
            if self.wrong or not self.dry_run:
                raise LaunchError(text)
            say(text)


def say_deleted(shell: Shell, name: str) -> None:
    say(f"without DRY_RUN=1 what there is of {name} would be deleted" if shell.dry_run else f"nothing is left of {name}")


def name_of(place: str) -> str:
    """A name for the cloud's resources: lpo, the user, and what is written: runs/beta5 is lpo-eve-beta5. No two places share one, nor do two users: a name
    that doesn't say all of both ends in a hash of them."""
    bucket, path = re.fullmatch(r"(gs://)?(.*)", place, re.DOTALL).groups("")  # type: ignore[union-attr]
    user, whole = getpass.getuser(), bucket + posixpath.normpath(path)
    short = re.sub(r"^gs://[^/]*/", "", whole).removeprefix("runs/")
    name = re.sub(r"[^a-z0-9]+", "-", f"lpo-{user}-{short}".lower()).strip("-")
    if (
        name == f"lpo-{user}-{short}"
        and whole == f"runs/{short}"
        and "-" not in user
        and len(name) <= LONGEST_NAME
        and not MARKED.search(name)
    ):
        return name
    mark = hashlib.sha256(f"{user}\n{whole}".encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{name[: LONGEST_NAME - 7].strip('-')}-{mark}"


def upload(shell: Shell, paths: Iterable[str], bucket: str, folders: Iterable[str] = ()) -> None:
    """Bring the bucket what of a job's inputs lies here: shards, models, prompts. A hub id stays for `lpo fetch`. A run that is there already stays as it is.

    Args:
      folders: made there; in a bucket a folder is what something lies in.
    """
    for folder in folders:
        shell.run(["gcloud", "storage", "cp", "-", f"gs://{bucket}/{folder}/.lpo"], stdin="")
    for value in dict.fromkeys(paths):
        if Path(value).is_dir():
            mark = f"gs://{bucket}/{value}/config.json"
            if (Path(value) / "checkpoints").is_dir() and not shell.ask(["gcloud", "storage", "ls", mark], code=1).returncode:
                say(f"{value} is in gs://{bucket} already, and is taken from there")
                continue
            shell.run(["gcloud", "storage", "rsync", "--recursive", value, f"gs://{bucket}/{value}"])
        elif Path(value).is_file():
            shell.run(["gcloud", "storage", "cp", value, f"gs://{bucket}/{value}"])


def snapshot(shell: Shell) -> tuple[str, str]:
    """The tree that travels: HEAD with the changes to tracked files. Returns its commit and an id of its content."""
    # A stash entry that is never stored: a commit of the tracked files as they are. It needs a name for its author.
    made = shell.ask(["git", "-c", "user.name=lpo", "-c", "user.email=lpo@localhost", "stash", "create"])
    commit = made.stdout.strip() or "HEAD"
    tree = shell.ask(["git", "rev-parse", f"{commit}^{{tree}}"], pretend="TREE")
    if made.returncode or tree.returncode:
        raise LaunchError(f"git: {last_line(made.stderr + tree.stderr)}")
    return commit, tree.stdout.strip()[:12]


def archive(shell: Shell, commit: str, path: Path) -> None:
    """Write a snapshot as .tar.gz: no untracked file, and nothing that looks like a key."""
    shell.run(["git", "archive", "--format=tar.gz", f"--output={path}", commit, "--", ".", *NEVER_SENT])


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1].strip()


def backoff(base_s: float, attempt: int) -> float:
    """Seconds before the next try: doubled each time, at most ten minutes."""
    return min(base_s * 2**attempt, 600.0)
