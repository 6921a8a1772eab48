"""Files that are whole or not there, journals that survive a kill, and directories that belong to one job.

A path may lie in a bucket (``gs://...``, as `etils.epath.Path`); journals and locks are for disks.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from foundation.errors import DataError, UserError

log = logging.getLogger(__name__)

X = TypeVar("X")
Json = dict[str, Any]
"""A JSON object."""


SHIPPED = ("configs/", "data_pipeline/seed/", "evaluation/examples/")
"""What a command may name as in a clone, wherever it runs."""


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to; at the end it takes the place of `path` in one step. After an error `path` is as it was.

    A reader, or a crash, sees the old file or the new one. Several processes may write the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step."""
    with replaced(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as indented JSON, in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_lines(path: Path, rows: list[Json]) -> None:
    """Replace a file by a JSON line for each row, in one step."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_text(path: Path, remedy: str = "save it as UTF-8") -> str:
    """A file's text, without a byte order mark.

    Raises:
      DataError: it can't be read, or isn't UTF-8.
    """
    here = path if is_bucket(path) else Path(path)
    if here.exists() and not here.is_file():
        raise DataError(f"{path}: a directory, or no file with an end")  # a pipe would be waited for
    try:
        return here.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); {remedy}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def cache_directory() -> Path:
    """Where what takes long to make is kept, for all commands of this user: $XDG_CACHE_HOME/lpo-jax, or ~/.cache/lpo-jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpo-jax"


def read_json(path: Path, remedy: str = "copy or download it again") -> Any:
    """What a JSON file holds.

    Raises:
      DataError: it can't be read, or is damaged; with the line.
    """
    text = read_text(path, remedy)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: damaged JSON ({error.msg}); {remedy}") from None
    except (RecursionError, ValueError) as error:  # nested without end; a number of 5,000 digits
        raise DataError(f"{path}: damaged JSON ({error}); {remedy}") from None


def read_object(path: Path, remedy: str = "copy or download it again") -> Json:
    """What a JSON file holds, if it is an object; {}: there is no such file.

    Raises:
      DataError: it can't be read, is damaged, or holds something else.
    """
    if not (path.exists() if is_bucket(path) else os.path.lexists(path)):  # a dead link is damage
        return {}
    found = read_json(path, remedy)
    if not isinstance(found, dict):
        raise DataError(f"{path}: damaged JSON (no object); {remedy}")
    return found


def sha256(path: str | Path) -> str:
    """Of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sampled_sha256(paths: Iterable[Path], samples: int = 64, size: int = 4096) -> str:
    """Of the names, the sizes and evenly spaced parts of files: quick for any size."""
    found = hashlib.sha256()
    for path in paths:
        length = path.stat().st_size
        found.update(f"{path.name} {length}\n".encode())
        with open(path, "rb") as stream:
            for i in range(samples):
                stream.seek(max(0, length - size) * i // (samples - 1))
                found.update(stream.read(size))
    return found.hexdigest()


def read_journal(path: Path, fields: Mapping[str, type] | None = None) -> list[Json]:
    """The rows of a JSONL file that is only appended to. A last line that a kill has cut short is removed from the file.

    Args:
      fields: what each row has, and of which type.

    Raises:
      DataError: a line in its midst is damaged; named.
    """
    if not path.is_file():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    rows = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        if line:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not all(type(row.get(name)) is kind for name, kind in (fields or {}).items()):
                raise DataError(f"{path}: line {number} is damaged; remove it (what it holds will be done again)")
            rows.append(row)
    return rows


def differing(
    file: Path,
    facts: Mapping[str, Any],
    free: Collection[str] = (),
    upgrade: Callable[[Json], Mapping[str, Any]] = lambda facts: facts,
    remedy: str = "copy it again, or name another place",
) -> list[str]:
    """In which facts the job that a directory belongs to differs from this one, those of a mapping as "fact.key"; [] where it is the same, or the
    directory nobody's.

    Args:
      file: where the directory's job stands.
      facts: what this job is, as JSON holds it.
      free: facts that may differ.
      upgrade: brings facts that an earlier version wrote to today's form.
      remedy: what to do about a damaged file.
    """
    if not file.exists():
        return []
    theirs = read_object(file, remedy)
    mine, theirs = json.loads(json.dumps(facts)), json.loads(json.dumps(upgrade(theirs)))
    keys = [key for key in sorted(mine.keys() | theirs.keys()) if key not in free and mine.get(key) != theirs.get(key)]
    return [name for key in keys for name in _unlike(key, mine.get(key), theirs.get(key))]


def _unlike(key: str, mine: Any, theirs: Any) -> list[str]:
    """Where two unlike values of a key differ."""
    if not (isinstance(mine, dict) and isinstance(theirs, dict)):
        return [key]
    return [f"{key}.{name}" for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]


def differences(theirs: Any, ours: Any, there: str = "there", here: str = "here") -> list[str]:
    """Settings that differ, "key: VALUE there, VALUE here"."""
    a, b = flat(theirs), flat(ours)
    return [
        f"{key}: {a.get(key, 'unset')} {there}, {b.get(key, 'unset')} {here}"
        for key in {**a, **b}
        if a.get(key, "unset") != b.get(key, "unset")
    ]


def flat(value: Any, key: str = "") -> dict[str, str]:
    """Each setting by its dotted key, as JSON; items of lists by their index."""
    if isinstance(value, list | tuple):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return {key: json.dumps(value)}
    return {k: v for name, item in value.items() for k, v in flat(item, f"{key}.{name}" if key else str(name)).items()}


def claim(file: Path, facts: Mapping[str, Any], refuse: Callable[[list[str]], UserError], free: Collection[str] = ()) -> bool:
    """Make a directory this job's, by writing what the job is into `file`; returns whether it was this job's already.

    Raises:
      what `refuse` makes of the facts that differ: the directory is another job's.
    """
    if names := differing(file, facts, free):
        raise refuse(names)
    if file.exists():
        return True
    write_json(file, facts)
    return False


_LOCK = ".lock"
_PATIENCE_S = 120
"""How long a lock of another machine is waited for: a file server frees those of a machine that has died after some 90 s."""


@contextlib.contextmanager
def hold(path: Path, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Let no other process write to a directory, or to a file, while this one does.

    The lock is the operating system's. It goes with the process that holds it, so that nobody ever has to unlock anything. A disk that knows
    no locks holds nobody off.

    Raises:
      DataError: another process holds it, named; or the place can't be written.
    """
    file = path / _LOCK if path.is_dir() else path.with_name(path.name + _LOCK)
    here, start = _machine(), time.monotonic()
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = open(file, "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"{path} can't be written: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder, _, machine = lock.read().partition("\n")
            lock.close()
            if machine in ("", here) or time.monotonic() - start > patience_s:
                raise DataError(
                    f"{path}: another process is writing to it ({holder or 'just started'}); wait for it, or name another place"
                ) from None
            time.sleep(1)
            continue
        except OSError:  # no locks there
            lock.close()
            file.unlink(missing_ok=True)
            yield
            return
        if file.exists() and os.path.samestat(os.fstat(lock.fileno()), file.stat()):
            break
        lock.close()  # whoever held it before has just deleted it
    with lock:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n{here}")
        lock.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def hold_directory(path: Path) -> Iterator[None]:
    """`hold` a directory, which is made if it isn't there, and after an error taken away again, if nothing is in it.

    Raises:
      DataError: it can't be made, or as `hold`.
    """
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path} can't be made: {error.strerror}") from None
    try:
        with hold(path):
            yield
    except BaseException:
        if new and not foreign(path):
            shutil.rmtree(path, ignore_errors=True)
        raise


def _machine() -> str:
    """This machine, until it is started anew: containers may share a name, and have it again elsewhere."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else socket.gethostname()


def foreign(directory: Path, own: Collection[str] = ()) -> list[str]:
    """Names of what lies in a directory and isn't `own`, in their order; [] where there is no directory."""
    return sorted(file.name for file in directory.iterdir() if file.name not in {*own, _LOCK}) if directory.is_dir() else []


def kept(file: Path, read: Callable[[Path], X], make: Callable[[], X], write: Callable[[Path, X], None]) -> X:
    """What a cache's file holds, else what `make` makes, which is then kept there. A damaged file is made anew."""
    if file.is_file():
        try:
            return read(file)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with it)
            log.warning("%s is damaged (%s) and made anew", file, " ".join(str(error).split())[:200])
    made = make()
    try:
        write(file, made)
    except OSError as error:
        log.warning("%s can't be kept (%s); it is made again the next time", file, error.strerror)
    return made


def shipped(path: str | Path) -> Path:
    """`path`, or our copy of it where it is of the files that the project ships, and isn't here: so what the documents show works without a clone."""
    path, root = Path(path), Path(__file__).parents[1]
    homes = (root, root / "lpo_jax")  # in a clone; where the wheel has configs/
    if not path.is_absolute() and str(path).startswith(SHIPPED) and not path.exists():
        for found in (home / path for home in homes if (home / path).exists()):
            _tell_shipped(path)
            return found
    return path


@functools.cache
def _tell_shipped(path: Path) -> None:
    log.info("%s: as lpo-jax ships it, for there is none here", path)


def is_bucket(path: Path) -> bool:
    """Whether a path is in a bucket (gs://...)."""
    return "://" in str(path)
