"""An append-only file of what was paid for: one line an answer, found again by the hash of its request."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from foundation.files import Json, read_journal


def content_key(request: Json) -> str:
    """The name of a request: the same body, the same key, in any run."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def read_completion(body: Json) -> Json:
    """What is kept of a completion. One whose message is odd is kept as an answer without text: it has been paid for.

    Raises:
      ValueError: it isn't one, whatever its status said.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("an answer without choices")
    message, usage = choices[0].get("message"), body.get("usage")
    message, usage = (found if isinstance(found, dict) else {} for found in (message, usage))
    content, counts = message.get("content"), [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(part for part in parts if isinstance(part, str))
    return {
        "text": content if isinstance(content, str) else None,
        "refusal": message.get("refusal"),
        "finish_reason": choices[0].get("finish_reason"),
        "model": " ".join(str(body.get("model") or "").encode(errors="replace").decode().split())[:100],
        **{name: _count(count) for name, count in zip(("tokens_in", "tokens_out"), counts, strict=True)},
    }


def _count(value: object) -> int:
    """Tokens of an answer, as far as a number of them is credible."""
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


@dataclass(frozen=True)
class Batch:
    """Requests that go to the Batch API together. Recorded before it is created, again when its id is known, and when it is over."""

    keys: list[str]
    id: str = ""  # the endpoint's name for it
    over: bool = False


class Journal:
    """Records {key, request, answer} of a job, on disk before `add` returns. A killed writer may leave half a line: it is cut off.

    Raises:
      DataError: a line in its midst is damaged.
    """

    def __init__(self, path: Path):
        self._file = open(path, "ab")  # noqa: SIM115
        records = read_journal(path)
        self.answers: dict[str, Json] = {record["key"]: record["answer"] for record in records if "key" in record}
        self.batches = {  # by the mark that each was submitted under
            record["batch"]: Batch(record["keys"], record["id"], record["over"]) for record in records if "batch" in record
        }

    def add(self, key: str, request: Json, answer: Json) -> None:
        self._write({"key": key, "request": request, "answer": answer})
        self.answers[key] = answer

    def put_batch(self, mark: str, batch: Batch) -> None:
        """Record a batch, or what has become of it since."""
        self._write({"batch": mark} | asdict(batch))
        self.batches[mark] = batch

    def _write(self, record: Json) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
