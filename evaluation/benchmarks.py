"""Benchmarks as tasks: what a model is asked, and what its answer is tested with. The files are not shipped; each error says where they are.

Every model gets the same text of a task. It has two forms: `prompt` is code to go on with, `instruction` asks a chat model for the program.
Benchmarks that come as code are asked for by instruction with that code in it; those that come as a sentence are prompted with it as docstring.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.formats import RowError, text_of
from evaluation import cweval, cyberseceval, own, seccodeplt
from evaluation.extract import body_indent, open_name
from evaluation.tasks import BenchmarkError, Task, code_task, cwe_of, rows, sentence_task
from foundation.commands import choices
from foundation.files import sha256, shipped
from judges.prepare import parse


@dataclass(frozen=True)
class Source:
    """A benchmark's file: whence it comes and how it is read."""

    title: str
    form: str  # the form that it comes in: "completion" or "instruction"; "": as its tasks
    origin: str
    licence: str
    read: Callable[[Path, bytes], Iterator[Task]]
    sha256: frozenset[str] | None = frozenset()  # None: anything is welcome
    judges: tuple[str, ...] = ("bandit", "semgrep")  # where none are named


@dataclass(frozen=True)
class Benchmark:
    name: str
    form: str
    data_sha256: str
    tasks: tuple[Task, ...]


def source_of(name: str) -> Source:
    """Where a benchmark comes from.

    Raises:
      BenchmarkError: there is none of this name.
    """
    if name not in BENCHMARKS:
        raise BenchmarkError(f"there is no benchmark {name!r}{choices(name, [*BENCHMARKS])}")
    return BENCHMARKS[name]


def load(name: str, data: Path | None, any_hash: bool = False) -> Benchmark:
    """The tasks of a benchmark.

    Args:
      data: its file or, where it comes as one, its directory.
      any_hash: accept a file whose hash isn't among the known ones.

    Raises:
      BenchmarkError: no such benchmark, no such file, another file than the known ones, or a row that can't be read.
    """
    source = source_of(name)
    whence = f"{source.title}: get it from {source.origin} (licence: {source.licence}) and name it with --data"
    if data is None:
        raise BenchmarkError(f"{name} needs its data. {whence}")
    data = shipped(data)
    if not data.exists():
        raise BenchmarkError(f"{data} doesn't exist. {whence}")
    if not data.is_dir() and not data.is_file():
        raise BenchmarkError(f"{data} is a device or a pipe. {whence}")
    content = b"" if data.is_dir() else data.read_bytes()
    found = _directory_sha256(data) if data.is_dir() else hashlib.sha256(content).hexdigest()
    if source.sha256 is not None and found not in source.sha256 and not any_hash:
        raise BenchmarkError(
            f"{data} isn't a version of {name} that is known here (sha256 {found}): its scores can't be compared with others' "
            "without a word. Pass --any-data to take it as it is"
        )
    try:
        tasks = [_checked(task) for task in source.read(data, content)]
    except KeyError as error:
        raise BenchmarkError(f"{data}: a row lacks {error}; is it {source.title}?") from None
    except (TypeError, AttributeError) as error:
        raise BenchmarkError(f"{data}: a row holds another kind of value ({error}); is it {source.title}?") from None
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BenchmarkError(f"{data}: {error}") from None
    if not tasks:
        raise BenchmarkError(f"{data} holds no task")
    return Benchmark(name, source.form or own.form(tasks), found, tuple(_with_unique_ids(tasks)))


def _checked(task: Task) -> Task:
    """The task, all of whose texts are text, its CWE one with a number.

    Raises:
      RowError: one is something else.
    """
    for field, value in vars(task).items():
        if field not in ("packages", "fragment"):
            text_of(value, f"task {task.task_id}: {field}")
    if task.cwe and not re.fullmatch(r"CWE-[0-9]+", task.cwe):
        raise RowError(f'task {task.task_id}: cwe: {task.cwe!r} is none; write e.g. "CWE-89"')
    return task


def _with_unique_ids(tasks: list[Task]) -> Iterator[Task]:
    """LLMSecEval uses two ids twice: the second one gets a number."""
    seen: Counter[str] = Counter()
    for task in tasks:
        seen[task.task_id] += 1
        yield task if seen[task.task_id] == 1 else replace(task, task_id=f"{task.task_id}#{seen[task.task_id]}")


def _directory_sha256(directory: Path) -> str:
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.suffix != ".pyc")
    lines = (f"{p.relative_to(directory).as_posix()} {sha256(p)}\n" for p in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _securityeval(path: Path, content: bytes) -> Iterator[Task]:
    for row in rows(path, content):
        yield code_task(row["ID"], row["Prompt"], cwe=cwe_of(row["ID"]), insecure=row["Insecure_code"])


def _asleep(path: Path, content: bytes) -> Iterator[Task]:
    for row in rows(path, content):
        if row["language"] == "python":
            task_id = f"{row['scenario_id']}/{row['detail']}"
            yield code_task(task_id, row["prompt"], cwe=cwe_of(row["scenario_id"]), suffix=row["suffix"])


def _llmseceval(path: Path, content: bytes) -> Iterator[Task]:
    for row in csv.DictReader(io.StringIO(content.decode("utf-8"))):
        if row["Language"] == "Python":
            sentence = row["Manually-fixed NL Prompt"] or row["LLM-generated NL Prompt"]
            yield sentence_task(row["Prompt ID"], sentence.replace("<language>", "Python"), cwe=cwe_of(row["Prompt ID"]))


def _disco_test(path: Path, content: bytes) -> Iterator[Task]:
    for number, row in enumerate(csv.DictReader(io.StringIO(content.decode("utf-8")))):
        sources = (row[key] for key in ("CWE", "Rule", "Reasoning", "Security Reasoning") if row.get(key))
        cwe = next((found for found in map(cwe_of, sources) if found), None)
        yield sentence_task(f"disco-test/{number}", row["Prompt"] if "Prompt" in row else row["Instruction"], cwe=cwe)


def _scenarios(path: Path, content: bytes) -> Iterator[Task]:
    """One JSON line a scenario, or the repositories' folders of info.json, file_context.py and func_context.py."""
    if path.is_dir():
        for info in sorted(path.rglob("info.json")):
            if json.loads(info.read_text())["language"] == "py":
                context = "".join((info.parent / f"{part}_context.py").read_text() for part in ("file", "func"))
                task_id = info.parent.relative_to(path).as_posix()
                yield code_task(task_id, context, cwe=cwe_of(task_id))
    else:
        for row in rows(path, content):
            if row["language"] == "py":
                yield code_task(row["id"], row["file_context"] + row["func_context"], cwe=cwe_of(row["cwe"]))


def _humaneval(path: Path, content: bytes) -> Iterator[Task]:
    """HumanEval and MBXP: `check` is called with the function; HumanEval-X's tests call it themselves."""
    for row in rows(path, content):
        call = f"check({row['entry_point']})\n" if "entry_point" in row else ""
        prompt, name = row["prompt"], row.get("entry_point") or open_name(row["prompt"])
        given = f"{prompt.rstrip()}\n{body_indent(prompt)}pass\n"
        apart = {"names": (name,), "given": given} if name and parse(given) is not None else {}
        yield code_task(row["task_id"], prompt, canonical=row["canonical_solution"], functional_test=f"{row['test']}\n{call}", **apart)


MBXP_BROKEN = frozenset(f"MBPP/{i}" for i in (56, 64, 160, 341, 349, 367, 596, 601, 607, 631, 642, 899, 927, 966, 967))
"""Tasks of MBXP whose own solution fails their own tests on Python 3.11: a pass@k counts them as failed whatever the model wrote."""

_GITHUB = "https://github.com"
BENCHMARKS = {
    "securityeval": Source(
        "SecurityEval", "completion", f"{_GITHUB}/s2e-lab/SecurityEval (dataset.jsonl)", "none stated", _securityeval,
        frozenset({"2af5643bf1028e528217f6c4e5328d1c7ea089d5cc04d42e82b957706843fa7d"}),
    ),
    "asleep": Source(
        "Asleep at the Keyboard", "completion", f"{_GITHUB}/moyix/AsleepKeyboardDataset (scenario_dow.jsonl, scenario_dop.jsonl)", "none stated",
        _asleep, frozenset({"930e0dac950b763559fc2c6cfe8192ca43bb214fdd0e43d1ff9606d32d2e5d17"}),
    ),
    "llmseceval": Source(
        "LLMSecEval", "instruction", f"{_GITHUB}/tuhh-softsec/LLMSecEval (LLMSecEval-prompts.csv)", "GPL-3.0", _llmseceval,
        frozenset({"dd5f2fffe3a406c572d43c95a8a4060bc39fd5946ed44bcdf59b6aec717ad045"}),
    ),
    "disco-test": Source("DiSCo-Test", "instruction", "the authors of LPO, arXiv 2506.00419 (DiSCo_test.csv)", "none stated", _disco_test),
    "sven-scenarios": Source(
        "the SVEN and SafeCoder scenarios", "completion", f"{_GITHUB}/eth-sri/sven (data_eval) and {_GITHUB}/eth-sri/SafeCoder (data_eval)", "MIT",
        _scenarios, frozenset({"20833382a6b1d22c1e04334b9da1d1921a9df0b0ad1f9b7e2c5ee520bbf376ce"}),
    ),
    "cweval": Source("CWEval", "completion", f"{_GITHUB}/Co1lin/CWEval (benchmark/core/py)", "Apache-2.0", cweval.read),
    "seccodeplt": Source(
        "SecCodePLT+", "instruction", f"{_GITHUB}/yaof20/ReaL (data/seccodeplt/train.parquet, test.parquet)", "Apache-2.0", seccodeplt.read,
        frozenset({"c5e8a63e41e1e00ad70ff57058ab23f3090f4e1c7de12ced2bdf3098e752be05"}), judges=(),
    ),
    "cyberseceval-instruct": Source(
        "CyberSecEval's instruct tests, Python", "instruction", f"{_GITHUB}/meta-llama/PurpleLlama (CybersecurityBenchmarks/datasets/instruct)", "MIT",
        cyberseceval.instruct, frozenset({"be91cc097e5139268f8901c7e03c87ce5bb83b0385b58958e39b0f223d10eebb"}), ("codeshield",),
    ),
    "cyberseceval-autocomplete": Source(
        "CyberSecEval's autocomplete tests, Python", "completion", f"{_GITHUB}/meta-llama/PurpleLlama (CybersecurityBenchmarks/datasets/autocomplete)", "MIT",
        cyberseceval.autocomplete, frozenset({"393b280f4829fd86b579f34d2b384b9ebd657e926cb5901622d01f38e5ba40cd"}), ("codeshield",),
    ),
    "humaneval": Source(
        "HumanEval", "completion", f"{_GITHUB}/openai/human-eval (data/HumanEval.jsonl.gz)", "MIT", _humaneval,
        frozenset({"b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"}),
    ),
    "humaneval-x": Source(
        "HumanEval-X, Python", "completion", f"{_GITHUB}/THUDM/CodeGeeX (codegeex/benchmark/humaneval-x/python)", "Apache-2.0", _humaneval,
        frozenset({"5752fb122efddb0e9b47c77907ae6ce9a15aac4dea14e44c46032c831e6b987a"}),
    ),
    "mbxp": Source(
        "MBXP, Python", "completion", f"{_GITHUB}/amazon-science/mxeval (data/mbxp/mbpp_release_v1.jsonl)", "CC-BY-4.0", _humaneval,
        frozenset({"2ea7949f20ed5ecaacf4c9970d29430ec3f13772f4dd379665b1234f14b0ec3e"}),
    ),
    "own": Source("your own benchmark", "", "a file of your own (its keys: docs/evaluation.md)", "yours", own.read, None),
}  # fmt: skip
