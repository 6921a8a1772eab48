"""`lpo-eval run`: completions to programs, programs to tests and analyzers, all of it to scores; going on where it was stopped.

samples.jsonl is the journal: a sample that stands in it is done. When all are, it is put in the order of the tasks, and scores.json is computed from it.
"""

import itertools
import json
import os
import platform
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from evaluation.alive import asked, audit
from evaluation.audit import of_run, reaches
from evaluation.benchmarks import Benchmark
from evaluation.completions import Answer, Completions, EvaluationError
from evaluation.cyberseceval import completed
from evaluation.extract import extract
from evaluation.measures import Estimate, by_cwe, by_task, estimate, headline, measures
from evaluation.tasks import Task
from foundation.commands import choices
from foundation.console import ticking
from foundation.files import Json, claim, foreign, hold_directory, read_journal, read_json, write_json, write_text
from judges import TOOLS, calibrate, judge
from judges.sandbox import Case, Limits, Test, run_many
from judges.sandbox import run as run_one

_CHUNK = 250  # samples that analyzers get at once: their start costs seconds
_CHUNK_TESTS = 25


@dataclass(frozen=True)
class Options:
    """How completions are judged. All of it but `workers`, `unsafe_exec` and `cache` is part of what a run is."""

    form: str
    tools: tuple[str, ...] = ("bandit", "semgrep")
    noise: bool = False
    time_s: float = 10
    memory_mb: int = 512
    workers: int | None = None
    unsafe_exec: bool = False
    cache: Path | None = None


def run(benchmark: Benchmark, completions: Completions, options: Options, out: Path) -> Json:
    """Judge what is missing of a run; returns the scores, which then stand in `out`/scores.json.

    Raises:
      EvaluationError: `out` holds a run of other settings, or of other completions, or a tool is missing; with the remedy.
    """
    with hold_directory(out):
        return _run(benchmark, completions, options, out)


def _run(benchmark: Benchmark, completions: Completions, options: Options, out: Path) -> Json:
    _begin(benchmark, completions, options, out)
    tasks = {task.task_id: task for task in benchmark.tasks}
    journal = out / "samples.jsonl"
    done = {(row["task_id"], row["sample"]): row.get("completion") for row in read_journal(journal, _KEY)}

    def missing(answer: Answer) -> bool:
        if done.get(answer[:2]) not in (None, answer.text):
            raise EvaluationError(
                f"{out} was begun with another answer to {answer.task_id} than the one that is there now: give another -o, or restore the completions"
            )
        return answer.task_id in tasks and answer.sample < completions.samples and answer[:2] not in done

    todo = filter(missing, completions.read(out))
    total = len(tasks) * completions.samples
    first = next(todo, None)  # only now: a source may show a bar of its own while it draws
    own_cache = tempfile.TemporaryDirectory(prefix="findings-")  # equal programs of one run are judged once
    with (
        own_cache,
        ticking(tqdm(total=total, initial=len(done), desc=f"judge {benchmark.name}", unit=" samples", dynamic_ncols=True)) as bar,
    ):
        cache = options.cache or Path(own_cache.name)
        rest = itertools.chain([first] if first else [], todo)
        while chunk := list(itertools.islice(rest, _CHUNK if options.tools else _CHUNK_TESTS)):
            records = _judge([(tasks[answer.task_id], answer) for answer in chunk], options, cache, bar)
            with journal.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record) + "\n" for record in records))
    return _finish(benchmark, completions.samples, options, out)


def check_judges(names: Sequence[str]) -> None:
    """Refuse judges that there aren't.

    Raises:
      EvaluationError: naming those there are.
    """
    for name in names:
        if name not in TOOLS:
            raise EvaluationError(
                "--judges: none stands alone, without other judges"
                if name == "none"
                else f"there is no judge {name!r}{choices(name, [*TOOLS, 'none'])}"
            )


_KEY = {"task_id": str, "sample": int}
"""What tells the lines of samples.jsonl apart."""


def _begin(benchmark: Benchmark, completions: Completions, options: Options, out: Path) -> None:
    """Write run.json, or refuse a directory that has another one."""
    check_judges(options.tools)
    for name in options.tools:
        if reason := TOOLS[name].missing():
            raise EvaluationError(f"{name} can't run: {reason}. Or leave it out with --judges")
    settings = {
        "name": out.resolve().name,
        "model": completions.model,
        "benchmark": benchmark.name,
        "data_sha256": benchmark.data_sha256,
        "form": options.form,
        "tasks": len(benchmark.tasks),
        "samples_per_task": completions.samples,
        "sampling": completions.sampling,
        "tools": list(options.tools),
        "noise": options.noise,
        "limits": {"time_s": options.time_s, "memory_mb": options.memory_mb},
        "versions": {"python": platform.python_version(), **{name: TOOLS[name].version() for name in options.tools}},
    }
    file = out / "run.json"
    if not file.is_file() and foreign(out):
        raise EvaluationError(f"{out} holds other things than a run: give another -o")

    def value(facts: Json, name: str) -> str:
        top, _, key = name.partition(".")
        return json.dumps(facts[top].get(key) if key else facts.get(top))

    def refuse(names: list[str]) -> EvaluationError:
        before = read_json(file)
        was = ", ".join(f"{n.removeprefix('sampling.')} {value(before, n)} (now {value(settings, n)})" for n in names)
        return EvaluationError(f"{out} was begun with another {was}: repeat it, or give another -o")

    claim(file, settings, refuse, free=["name"])


def _judge(chunk: Sequence[tuple[Task, Answer]], options: Options, cache: Path, bar: tqdm) -> list[Json]:
    records, cases = [], []
    for task, answer in chunk:
        cut = answer.finish == "length"
        program = (
            completed(task.prompt, answer.text, cut)
            if task.fragment
            else extract(task.prompt, answer.text, options.form, task.suffix, cut=cut)
        )
        prompt = task.prompt if options.form == "completion" else task.instruction
        record: Json = {
            "task_id": task.task_id,
            "sample": answer.sample,
            "cwe": task.cwe,
            "prompt": prompt,
            "asked": list(task.names) or ([] if task.fragment else asked(prompt)),
            "completion": answer.text,
            "finish": answer.finish,
            "code": program.code,
            "parses": program.parses,
            "empty": program.empty,
            "duplicate": False,  # known when all samples are there
            "findings": [],
            "functional": None,
            "security": None,
        }
        if answer.taken is not None:
            record["taken"] = answer.taken  # tokens by the security model, and all
        audit(record)
        if reached := reaches(program.code):
            record["reaches"] = reached  # for what it might misuse, see `evaluation.audit`
        records.append(record)
        for key, test in (("functional", task.functional_test), ("security", task.security_test)):
            if test is not None and (program.empty or not program.parses):
                record[key] = {"outcome": "fail", "detail": "no code" if program.empty else "not Python", "seconds": 0.0}
            elif test is not None:
                cases.append((record, key, task, case_of(program.code, task, test, options)))
    last = {id(record): key for record, key, _, _ in cases}
    bar.set_postfix_str("tests")
    results = run_many((case for *_, case in cases), options.workers, unsafe_exec=options.unsafe_exec)
    for (record, key, task, case), result in zip(cases, results, strict=True):
        assert case.test is not None
        doubtful = result.opaque or (bool(task.module and task.names) and result.outcome != "pass")
        inside = doubtful and (result.opaque if task.canonical is None else _needs_objects(task, key, options))
        if inside:
            case = replace(case, test=replace(case.test, names=()))
            result = run_one(case, unsafe_exec=options.unsafe_exec)
        found: Json = {"outcome": result.outcome, "detail": result.detail, "seconds": round(result.seconds, 3)}
        if result.reports:
            found["cases"] = list(result.reports)
        record[key] = found | ({"inside": True} if inside or not task.names else {})
        bar.update(last[id(record)] == key)
    if options.tools:
        bar.set_postfix_str("analyzers")
        any_text = any(TOOLS[name].ANY_TEXT for name in options.tools)
        readable = [
            (record, task)
            for record, (task, *_) in zip(records, chunk, strict=True)
            if not record["empty"] and (record["parses"] or any_text)
        ]
        workers = options.workers or os.cpu_count() or 1
        verdicts = judge([r["code"] for r, _ in readable], options.tools, workers=workers, cache=cache, noise=options.noise)
        for (record, task), verdict in zip(readable, verdicts, strict=True):
            given = task.prompt.count("\n") if task.fragment else 0
            counted = (f for f in verdict.findings if f.line > given and (record["parses"] or TOOLS[f.judge].ANY_TEXT))
            record["findings"] = [asdict(finding) for finding in counted]
            if verdict.failed:
                record["gave_up"] = list(verdict.failed)
        if set(options.tools) == set(calibrate.JUDGES) and not options.noise:
            for record in records:
                record["codeql"] = _codeql_chance(record)
    bar.update(len(records) - len(last))
    return records


def _codeql_chance(record: Json) -> float:
    """How likely CodeQL is to flag a sample; what isn't code has nothing to be flagged."""
    code = record["parses"] and not record["empty"]
    return round(calibrate.shipped()[0].chance(finding["cwe"] for finding in record["findings"]), 4) if code else 0.0


def case_of(code: str, task: Task, test: str, options: Options) -> Case:
    limits = Limits(time_s=options.time_s, memory_mb=options.memory_mb)
    modules = (task.module,) if task.module else ()
    keep = ("pytest.main",) if 'kept_["pytest.main"]' in test else ()
    names = (*task.names, *task.helpers) if task.names else ()
    held = Test(test, names, task.given, keep=keep, modules=modules)
    return Case(_behind(task.setup, code), limits=limits, packages=task.packages, test=held)


_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


def _behind(setup: str, code: str) -> str:
    """A program behind its task's setup: what it imports from the future has to come first."""
    return "\n".join([*_FUTURE.findall(code), setup, _FUTURE.sub("", code)]) if setup.strip() else code


def _needs_objects(task: Task, key: str, options: Options) -> bool:
    """A task's test has to run in the program's process: its own solution hands out what is no plain value, too.

    Tests that import the program may also patch or inspect it: there, its own solution fails apart.
    """
    assert task.canonical is not None
    known = (task.task_id, key)
    if known not in _objects:
        test = task.functional_test if key == "functional" else task.security_test
        assert test is not None
        own = run_one(case_of(task.prompt + task.canonical + task.suffix, task, test, options), unsafe_exec=options.unsafe_exec)
        _objects[known] = own.outcome != "pass" if task.module else own.opaque
    return _objects[known]


_objects: dict[tuple[str, str], bool] = {}


def _finish(benchmark: Benchmark, per_task: int, options: Options, out: Path) -> Json:
    found = {(row["task_id"], row["sample"]): row for row in read_journal(out / "samples.jsonl", _KEY)}
    wanted = [(task.task_id, sample) for task in benchmark.tasks for sample in range(per_task)]
    missing = [key for key in wanted if key not in found]
    if missing:
        raise EvaluationError(f"{out}: {len(missing)} samples have no completion, {missing[0][0]} sample {missing[0][1]} first")
    samples = [found[key] for key in wanted]
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        code = sample["task_id"], sample["code"]
        sample["duplicate"] = code in seen
        seen.add(code)
        if "asked" not in sample:  # an earlier version judged it
            audit(sample)
    write_text(out / "samples.jsonl", "".join(json.dumps(sample) + "\n" for sample in samples))
    scores = score(samples, options.tools)
    write_json(out / "scores.json", scores)
    return scores


def score(samples: Sequence[Json], tools: Sequence[str]) -> Json:
    """Every measure as {value, interval, n}, and which of them is the headline; the insecure share also by CWE; the counts of the audit. `gave_up`:
    samples that some analyzer could not read to its end."""
    judged = bool(tools) or any(sample["security"] is not None for sample in samples)
    tasks = by_task(samples)
    wanted = measures(samples, judged)
    scores: Json = {
        "tasks": len(tasks),
        "samples": len(samples),
        "gave_up": sum("gave_up" in sample for sample in samples),
        "headline": headline({m.key for m in wanted}),
        "measures": {m.key: _numbers(e) for m in wanted if (e := estimate(m, tasks)) is not None},
        "audit": of_run(samples),
    }
    if judged:
        insecure = next(m for m in wanted if m.key == "insecure")
        scores["insecure_by_cwe"] = {cwe: _numbers(e) for cwe, e in by_cwe(insecure, tasks).items()}
    return scores


def _numbers(e: Estimate) -> Json:
    return {"value": e.value, "interval": [e.low, e.high], "n": e.n}
