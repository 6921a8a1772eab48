"""What a benchmark asks and tests: its tasks, and how their readers read files and put sentences and code."""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.files import Json


class BenchmarkError(UserError):
    """A benchmark that can't be read; the message names the file and the remedy."""


@dataclass(frozen=True)
class Task:
    """One task. A test is code that raises where the program fails it.

    With `names` it runs apart from the program, in `given`, and calls these functions of it; else within the program: see `judges.sandbox.Test`.
    """

    task_id: str
    prompt: str  # completion form
    instruction: str  # instruction form
    cwe: str | None = None
    canonical: str | None = None  # the known-good continuation of `prompt`
    insecure: str | None = None  # a known-insecure whole program
    functional_test: str | None = None
    security_test: str | None = None
    suffix: str = ""  # code that follows the completion
    packages: bool = False  # its tests need the installed packages
    names: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()  # functions of its setup that its tests call as well
    given: str = ""
    module: str = ""  # by which its tests import the program
    setup: str = ""  # code that runs in front of the program when it is tested; no analyzer sees it
    fragment: bool = (
        False  # `prompt` is cut out of a file: only what is found behind it counts, and a judge that reads any text reads it too
    )


def rows(path: Path, content: bytes) -> Iterator[Json]:
    return json_lines(gzip.decompress(content) if path.suffix == ".gz" else content)


def json_lines(content: bytes) -> Iterator[Json]:
    """The rows of a JSONL file; blank lines are none.

    Raises:
      ValueError: a line that is no JSON, or bytes that are no UTF-8.
    """
    for number, line in enumerate(content.decode("utf-8").split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"line {number} is no JSON") from None


def cwe_of(text: str) -> str | None:
    """ "CWE-020_author_1.py" -> "CWE-20"."""
    match = re.search(r"cwe[-_ ]?0*(\d+)", text, re.IGNORECASE)
    return f"CWE-{match[1]}" if match else None


def code_task(task_id: str, prompt: str, **fields: Any) -> Task:
    asked = f"Complete this Python code. Answer with the whole program in one code block.\n\n```python\n{prompt.rstrip()}\n```"
    return Task(task_id, prompt, asked, **fields)


def sentence_task(task_id: str, sentence: str, **fields: Any) -> Task:
    sentence = sentence.strip()
    quoted = sentence.replace("\\", "\\\\").replace('"""', r"\"\"\"")
    return Task(task_id, f'"""\n{quoted}\n"""\n', f"{sentence}\n\nAnswer with the whole Python program in one code block.", **fields)
