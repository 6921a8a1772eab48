"""Models in a bucket (``gs://BUCKET/models/NAME``): filled once from the hub, file by file; their weights are read by range, and never copied to a disk.

`LPO_MODELS` names where models of the hub are kept, a bucket's folder or a disk that all hosts see; `lpo fetch` fills it, and so does the first who asks
for one. A model is there when its `MARK` is: that is written last.
"""

import hashlib
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from foundation.errors import DataError
from foundation.files import Json, write_text

MARK, HAD = "lpo-fetched.json", "lpo-fetching"  # all of a model is there; of each file there so far: the commit that it is of
SMALL = re.compile(r"(.*\.json|tokenizer.*|chat_template.*|.*\.jinja)")  # all that is no weights, and needed
WEIGHTS = ".safetensors"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""OWNER/NAME."""
CHUNK = 2**26  # bytes asked for at a time


def place_of(name: str) -> str | None:
    """Where a model's files are if not in a directory here: `name` itself, a URL, or a hub id's place below LPO_MODELS. None: neither."""
    if "://" in name:
        return name.rstrip("/")
    root = os.environ.get("LPO_MODELS", "").rstrip("/")
    return f"{root}/{name}" if root and HUB_ID.fullmatch(name) else None


def directory_at(place: str) -> Path | None:
    """A directory with a place's small files: itself, if it is on a disk, else a copy of them that knows where the weights are (`weights_at`). None: there
    is no model.

    Raises:
      DataError: it can't be read.
    """
    found = mark(place)
    if "://" not in place:
        return Path(place) if found else None
    names = list(found["files"]) if found else _listed(place)
    if "config.json" not in names:
        return None
    told = json.dumps([place, found, sorted(names)])
    copy = Path(tempfile.gettempdir(), f"lpo-models-{os.getuid()}", hashlib.sha256(told.encode()).hexdigest()[:16])
    if not (copy / _POINTER).is_file():
        copy.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            if SMALL.fullmatch(name) and "/" not in name:
                _write_whole(copy / name, read(place, name))
        weights = [name for name in names if name.endswith(WEIGHTS) and "/" not in name]
        write_text(copy / _POINTER, json.dumps({"place": place, "weights": weights}))
    return copy


def directory_of(name: str | Path, patterns: list[str]) -> Path | None:
    """The directory that a name stands for: itself; of a model in a bucket, a copy of its small files (`weights_at` has the others); or a hub id's files
    that match `patterns`, downloaded once. None: it is neither."""
    here = Path(name).expanduser()
    if here.is_dir():
        return here
    if here.exists():
        raise DataError(f"{name} is a file; give the directory that it is in")
    if (place := place_of(str(name))) and (found := directory_at(place)):
        return found
    if not HUB_ID.fullmatch(str(name)):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns))
    except Exception as error:  # of the hub's own kinds, of its HTTP library's, of the disk's
        said = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name}: no such directory in {Path.cwd()}, and the hub doesn't give it ({type(error).__name__}: {said}); correct the name, log in "
            "(`hf auth login`), or give a directory"
        ) from None


_POINTER = ".lpo-weights"


def weights_at(directory: Path) -> list["RemoteFile"]:
    """The weights whose small files `directory_at` has put there; []: they are there themselves."""
    file = directory / _POINTER
    if not file.is_file():
        return []
    found = json.loads(file.read_text())
    return [RemoteFile(found["place"], name) for name in found["weights"]]


class RemoteFile:
    """A file in a store, which is read by range."""

    def __init__(self, place: str, name: str):
        self.parent, self.name = place, name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteFile) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: "RemoteFile") -> bool:
        return str(self) < str(other)

    def __str__(self) -> str:
        return f"{self.parent}/{self.name}"


class RemoteTensors:
    """A safetensors file in a store, as `safetensors.safe_open` would give it; only what is asked for is read."""

    def __init__(self, file: RemoteFile):
        """Reads the header.

        Raises:
          DataError: it isn't there, or is no such file.
        """
        self._file = file
        length = int.from_bytes(read(file.parent, file.name, 0, 8), "little")
        try:
            if length > 100_000_000:
                raise ValueError("a header of more than 100 MB")
            header = json.loads(read(file.parent, file.name, 8, 8 + length))
        except ValueError as error:
            raise DataError(f"{file} is damaged ({error}); copy it again") from None
        self._start, self._tensors = 8 + length, {name: facts for name, facts in header.items() if name != "__metadata__"}

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def get_slice(self, name: str) -> "RemoteSlice":
        facts = self._tensors[name]
        return RemoteSlice(self._file, facts["dtype"], facts["shape"], self._start + facts["data_offsets"][0])

    def get_tensor(self, name: str) -> np.ndarray:
        return self.get_slice(name)[:]


class RemoteSlice:
    """A tensor in a store: shape and dtype are known, rows are read when they are asked for."""

    def __init__(self, file: RemoteFile, dtype: str, shape: list[int], offset: int):
        self._file, self._dtype, self._shape, self._offset = file, dtype, shape, offset

    def get_shape(self) -> list[int]:
        return self._shape

    def get_dtype(self) -> str:
        return self._dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        dtype = _dtype(self._dtype)
        first, last, _ = rows.indices(self._shape[0]) if self._shape else (0, 1, 1)
        shape = [max(last - first, 0), *self._shape[1:]] if self._shape else []
        row = dtype.itemsize * int(np.prod(self._shape[1:], dtype=np.int64))
        raw = read(self._file.parent, self._file.name, self._offset + first * row, self._offset + first * row + row * max(last - first, 0))
        return np.frombuffer(raw, dtype).reshape(shape)


def _dtype(name: str) -> np.dtype:
    import ml_dtypes  # NumPy alone has no bfloat16

    return np.dtype({"F64": "f8", "F32": "f4", "F16": "f2", "BF16": ml_dtypes.bfloat16}[name])


def read(place: str, name: str, start: int | None = None, stop: int | None = None) -> bytes:
    """A file's bytes, all or from `start` to `stop`.

    Raises:
      DataError: it isn't there, or not to be read.
    """
    found = _read_if_there(place, name, start, stop)
    if found is None:
        raise DataError(f"{place}/{name} isn't there; copy it again")
    return found


def _read_if_there(place: str, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
    if start is not None and start == stop:
        return b""
    pieces = (
        [slice(start, stop)] if start is None or stop is None else [slice(at, min(at + CHUNK, stop)) for at in range(start, stop, CHUNK)]
    )
    try:
        asked = [_store(place).read(name, byte_range=None if start is None else piece) for piece in pieces]  # all at once
        found = [future.result() for future in asked]
    except (ValueError, OSError, RuntimeError) as error:  # what tensorstore raises
        raise DataError(f"{place}/{name}: {' '.join(str(error).split())[:300]}") from None
    if any(one.state != "value" for one in found):
        return None
    return found[0].value if len(found) == 1 else b"".join(one.value for one in found)


def mark(place: str) -> Json | None:
    """What was fetched there, if all of it is there."""
    found = _read_if_there(place, MARK)
    try:
        return None if found is None else dict(json.loads(found))
    except ValueError:
        raise DataError(
            f"{place}/{MARK} is damaged: delete it, and fetch the model again; what is there already isn't copied again"
        ) from None


def fetch(
    hub_id: str, place: str, index: int = 0, count: int = 1, progress: Callable[[Iterable[str]], Iterable[str]] = iter
) -> Json | None:
    """Copy a model's files from the hub to a place, those that aren't there yet. Of `count` processes each copies some, in memory, one file at a time; when
    all have, one of them calls `finish` with what this returns. None: all of it is there already.

    Raises:
      DataError: the hub doesn't give it, a file arrives damaged, or the place can't be written, or holds something else.
    """
    check_place(place)
    if there := mark(place):
        if there.get("hub_id") != hub_id:
            raise DataError(f"{place} holds {there.get('hub_id')}: give {hub_id} a place of its own")
        return None
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(hub_id, files_metadata=True)
    except Exception as error:  # of the hub's own kinds, of its HTTP library's
        raise DataError(f"{hub_id}: the hub doesn't give it ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None
    files = {one.rfilename: one for one in info.siblings or [] if _wanted(one.rfilename)}
    if not any(name.endswith(WEIGHTS) for name in files):
        raise DataError(f"{hub_id} has no {WEIGHTS} file: convert it once with transformers (from_pretrained, save_pretrained)")
    had = {name: _commit_of(place, name) for name in sorted(files)[index::count]}
    mine = [name for name, commit in had.items() if commit != info.sha]  # a store's files are whole or not there
    for name in mine:
        if had[name] is None and _read_if_there(place, name, 0, 1) is not None:
            raise DataError(f"{place}/{name} is there, and no `lpo fetch` has brought it: give {hub_id} a place of its own")
    for name in progress(mine):
        _put(place, f"{HAD}/{name}", b"")  # whose it will be
        _put(place, name, _from_hub(hub_id, str(info.sha), name, int(files[name].size or 0), files[name].lfs))
        _put(place, f"{HAD}/{name}", str(info.sha).encode())
    return {"hub_id": hub_id, "commit": info.sha, "files": {name: one.size for name, one in files.items()}}


def check_place(place: str) -> None:
    """Refuse what no model can be kept in, before anybody is asked over a network.

    Raises:
      DataError: a bucket without a folder or without credentials, a file, or no place at all; with the remedy.
    """
    if ":/" not in place:
        if Path(place).exists() and not Path(place).is_dir():
            raise DataError(f"{place} is a file: name a directory")
        return
    if not re.fullmatch(r"file://.+|gs://[^/]+/+[^/].*", place):
        raise DataError(f"{place}: models are kept in a folder of a bucket, as gs://BUCKET/models/OWNER/NAME, or in a directory")
    if place.startswith("gs://") and not _may_have_credentials():
        raise DataError(
            f"{place}: this machine has no credentials for Google Cloud: gcloud auth application-default login, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account's key"
        )


def _may_have_credentials() -> bool:
    """Whether tensorstore has a place to look at for them; without one it asks again and again for minutes."""
    if any(os.environ.get(name) for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_AUTH_TOKEN_FOR_TESTING", "GCE_METADATA_ROOT")):
        return True
    settings = Path(os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config/gcloud")
    if (settings / "application_default_credentials.json").is_file():
        return True
    try:  # a machine of Google's has those of its service account
        socket.getaddrinfo("metadata.google.internal", 80)
    except OSError:
        return False
    return True


def finish(place: str, found: Json) -> None:
    """Say that all of a model is there."""
    _put(place, MARK, json.dumps(found, indent=1).encode())


def _wanted(name: str) -> bool:
    return "/" not in name and (name.endswith(WEIGHTS) or SMALL.fullmatch(name) is not None)


def _from_hub(hub_id: str, commit: str, name: str, size: int, lfs: Any) -> bytes:
    """A file of the hub, by range, its content checked."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    url, held = hf_hub_url(hub_id, name, revision=commit), bytearray()
    try:
        while len(held) < size:
            asked = build_hf_headers() | {"Range": f"bytes={len(held)}-{min(len(held) + CHUNK, size) - 1}"}
            answer = http_backoff("GET", url, headers=asked, follow_redirects=True)
            hf_raise_for_status(answer)
            if not answer.content:
                break
            held += answer.content
    except Exception as error:  # of the hub's own kinds, of its HTTP library's
        raise DataError(
            f"{hub_id}/{name}: the hub doesn't give it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    if len(held) != size or (lfs is not None and hashlib.sha256(held).hexdigest() != lfs.sha256):
        raise DataError(f"{hub_id}/{name} arrived damaged ({len(held)} of {size} bytes); the same command fetches it again")
    return bytes(held)


def _commit_of(place: str, name: str) -> str | None:
    """Of which commit an earlier attempt has copied a file."""
    found = _read_if_there(place, f"{HAD}/{name}")
    return None if found is None else found.decode()


def _put(place: str, name: str, content: bytes) -> None:
    try:
        _store(place).write(name, content).result()
    except (ValueError, OSError, RuntimeError) as error:
        raise DataError(f"{place}/{name} can't be written: {' '.join(str(error).split())[:300]}") from None


def _listed(place: str) -> list[str]:
    try:
        return [name.decode() for name in _store(place).list().result()]
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{place}: {' '.join(str(error).split())[:300]}") from None


@cache
def _store(place: str) -> Any:
    import tensorstore  # here: only who reads a bucket needs it

    url = place if "://" in place else f"file://{Path(place).absolute()}"
    try:
        return tensorstore.KvStore.open(f"{url.rstrip('/')}/").result()
    except (ValueError, OSError, RuntimeError) as error:
        raise DataError(f"{place}: {' '.join(str(error).split())[:300]}") from None


def _write_whole(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    new.write_bytes(content)
    new.replace(path)
