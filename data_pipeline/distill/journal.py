"""An append-only file of what was paid for: one line an answer, found again by the hash of its request."""

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.pairs import DataError


def content_key(request: dict[str, Any]) -> str:
    """The name of a request: the same body, the same key, in any run."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Batch:
    """Requests that go to the Batch API together. Recorded before it is created, again when its id is known, and when it is over."""

    keys: list[str]
    id: str = ""  # the endpoint's name for it
    over: bool = False


class Journal:
    """Records {key, request, answer} of a job, on disk before `add` returns. A killed writer may leave half a line: it is cut off.

    Raises:
      DataError: another process holds the journal, or a line in its midst is damaged.
    """

    def __init__(self, path: Path):
        self.answers: dict[str, dict[str, Any]] = {}  # key -> answer
        self.batches: dict[str, Batch] = {}  # mark -> what was submitted under it
        self._file: BinaryIO = open(path, "a+b")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{path}: another process is writing to it; wait for it, or choose another --out") from None
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                record = json.loads(line)
                if "batch" in record:
                    self.batches[record["batch"]] = Batch(record["keys"], record["id"], record["over"])
                else:
                    self.answers[record["key"]] = record["answer"]
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path} line {number} is damaged; remove the line (its answer will be paid for again)") from None
        self._file.truncate(whole)

    def add(self, key: str, request: dict[str, Any], answer: dict[str, Any]) -> None:
        self._write({"key": key, "request": request, "answer": answer})
        self.answers[key] = answer

    def put_batch(self, mark: str, batch: Batch) -> None:
        """Record a batch, or what has become of it since."""
        self._write({"batch": mark} | asdict(batch))
        self.batches[mark] = batch

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
