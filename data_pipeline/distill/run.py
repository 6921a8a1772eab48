"""`lpo-data distill`: rules -> prompts -> writer -> parse -> judges -> refine -> finish.

A job is a directory. `journal.jsonl` holds what was paid for and is only ever appended to; everything else is computed from it and the
settings, and written anew by each run. Every prompt ends as a pair, as a rejection with its reason, or, where the budget or an unreachable
endpoint kept it from being answered, as pending for the next run.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

import judges
from data_pipeline.distill import cost, finish, prompts
from data_pipeline.distill.cost import CHARS_PER_TOKEN, TYPICAL_ANSWER, Estimate, bill
from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.distill.knowledge import Rule, titles
from data_pipeline.distill.parse import RejectedError, check, read_answer
from data_pipeline.distill.prompts import Job, Task
from data_pipeline.distill.refine import Candidate, Judge, judge_all, refine
from data_pipeline.distill.writer import Writer, WriterOptions
from foundation.errors import DataError, UserError
from foundation.files import Json, differing, hold_directory, read_object, write_json, write_lines


def distill(job: Job, rules: Sequence[Rule], libraries: Sequence[str], out: Path, options: WriterOptions, judge: Judge | None) -> Json:
    """Run a job, or go on with it; returns its summary, which `out`/summary.json holds too.

    Raises:
      DataError: `out` holds another job, or the endpoint can't be asked.
    """
    tasks = prompts.plan(rules, libraries, job.prompts, job.seed)
    with hold_directory(out):
        _claim(out / "job.json", job, tasks)
        with contextlib.closing(Journal(out / "journal.jsonl")) as journal:
            return asyncio.run(_distill(job, tasks, out, journal, options, judge))


def estimate(
    job: Job, rules: Sequence[Rule], libraries: Sequence[str], out: Path, options: WriterOptions, judged: bool
) -> tuple[int, Estimate, Estimate]:
    """What is left of a job, before anything is asked: prompts that are answered already, the others, and at most so many repairs.

    Raises:
      DataError: `out` holds another job.
    """
    tasks = prompts.plan(rules, libraries, job.prompts, job.seed)
    answers: dict[str, Json] = {}
    if (out / "job.json").is_file():
        with hold_directory(out):
            _check(out / "job.json", job, tasks)
            with contextlib.closing(Journal(out / "journal.jsonl")) as journal:
                answers = journal.answers
    bodies = {content_key(body): body for body in (prompts.pair_request(task, job) for task in tasks)}
    known = [answers[key] for key in bodies if key in answers]
    todo = [body for key, body in bodies.items() if key not in answers]
    pair = "x" * round((sum(answer["tokens_out"] for answer in known) / len(known) if known else TYPICAL_ANSWER) * CHARS_PER_TOKEN)
    parts = dict.fromkeys(prompts.PAIR_PARTS, "") | {"secure": pair}  # a repair repeats the pair
    repairs = [prompts.repair_request(parts, ["a finding in a line of it"], job)] * (job.rounds * len(todo) if judged else 0)
    first, second = (cost.estimate(requests, known, options.prices, options.batch) for requests in (todo, repairs))
    return len(known), first, second


def _facts(job: Job, tasks: Sequence[Task]) -> Json:
    return asdict(job) | {"plan": content_key({"tasks": [asdict(task) for task in tasks]})}


def _check(file: Path, job: Job, tasks: Sequence[Task]) -> int:
    """How many prompts the directory's job has, which may grow: a longer plan begins with the shorter one's tasks.

    Raises:
      DataError: it is another job, or a larger one.
    """
    there = read_object(file).get("prompts", job.prompts)
    if not isinstance(there, int) or there > job.prompts:
        raise DataError(f"{file.parent}: holds a job of {there} prompts; ask for as many or more (-n {there}), or choose another --out")
    if other := differing(file, _facts(replace(job, prompts=there), tasks[:there])):
        raise DataError(f"{file.parent}: holds a job with another {', '.join(other)}; choose another --out, or repeat its options")
    return there


def _claim(file: Path, job: Job, tasks: Sequence[Task]) -> None:
    """Make the directory this job's, or go on with it. Raises: as `_check`."""
    if not file.exists() or _check(file, job, tasks) < job.prompts:
        write_json(file, _facts(job, tasks))


async def _distill(job: Job, tasks: list[Task], out: Path, journal: Journal, options: WriterOptions, judge: Judge | None) -> Json:
    async with contextlib.aclosing(Writer(journal, options, job.seed)) as writer:
        bodies = [prompts.pair_request(task, job) for task in tasks]
        with tqdm(total=len(tasks), desc="ask the teacher", unit=" answers") as bar:
            failed = await writer.ask(bodies, bar.update)
        candidates, rejected, pending = _candidates(tasks, bodies, journal, failed)
        repairs: dict[str, int] = {}
        if judge and candidates:
            judge_all(candidates, judge)

            async def ask(requests: Sequence[Json]) -> dict[str, Json]:
                with tqdm(total=len(requests), desc="refine", unit=" answers") as bar:
                    await writer.ask(requests, bar.update)
                return journal.answers

            repairs = await refine(candidates, job, judge, ask)
    rows, more = finish.finish([_row(c, job) for c in candidates], job.near)
    rejected += more
    splits = finish.write(rows, out / "data", job.split_by, job.heldout, job.seed)
    for kind, left in (("rejected", rejected), ("pending", pending)):
        write_lines(out / f"{kind}.jsonl", [{"id": name, "reason": reason} for name, reason in left])
    summary = {
        "prompts": len(tasks),
        "pairs": len(rows),
        "rejected": dict(Counter(reason for _, reason in rejected).most_common()),
        "pending": dict(Counter(reason for _, reason in pending).most_common()),
        "repairs": repairs,
        "splits": splits,
        "cost": asdict(bill(journal.answers.values(), options.prices)),
        "retries": writer.endpoint.retries,
        "judged": judge is not None,
    }
    assert len(rows) + len(rejected) + len(pending) == len(tasks)
    write_json(out / "summary.json", summary)
    return summary


def _candidates(
    tasks: list[Task], bodies: list[Json], journal: Journal, failed: dict[str, str]
) -> tuple[list[Candidate], list[tuple[str, str]], list[tuple[str, str]]]:
    """Sort tasks by their answers: candidates, (task, reason) of those rejected, and of those to ask again."""
    candidates: list[Candidate] = []
    rejected: list[tuple[str, str]] = []
    pending: list[tuple[str, str]] = []
    for task, body in zip(tasks, bodies, strict=True):
        key = content_key(body)
        if key in journal.answers:
            answer = journal.answers[key]
            try:
                candidates.append(Candidate(task, check(read_answer(answer, prompts.PAIR_PARTS)), answer["model"]))
            except RejectedError as error:
                rejected.append((task.id, str(error)))
        else:
            (rejected if failed[key].startswith("refused") else pending).append((task.id, failed[key]))
    return candidates, rejected, pending


def _row(c: Candidate, job: Job) -> Json:
    """A candidate as a row: `Pair`'s fields, and where it came from."""
    rule, parts = c.task.rule, c.parts
    weakness = f"The code may have the vulnerability {rule.cwe}: '{titles().get(rule.cwe, rule.title)}'."
    return {
        "id": c.task.id,
        "chosen": parts["secure"],
        "rejected": parts["vulnerable"],
        "instruction": parts["instruction"],
        "reasoning": " ".join((weakness, rule.description, parts["why_vulnerable"], parts["why_secure"])),
        "cwe": rule.cwe,
        "language": "python",
        "group": {"rule": rule.id, "cwe": rule.cwe, "row": c.task.id}[job.split_by],
        "rule": rule.id,
        "library": c.task.library,
        "model": c.model,
        "template": prompts.VERSION,
        "rounds": c.rounds,
        "findings_before": c.findings_before,
        "findings": c.findings,
        "vulnerable_findings": c.vulnerable_findings,
        "judges_failed": c.failed,
        "vulnerable_judges_failed": c.vulnerable_failed,
    }


def judge_with(tools: Sequence[str], workers: int, cache: Path) -> Judge:
    """The judges named, as a function of sources.

    Raises:
      DataError: one doesn't exist or isn't installed; from the function, one broke down.
    """

    def look(sources: Sequence[str]) -> Sequence[judges.Verdict]:
        try:
            return judges.judge(sources, tools, workers=workers, cache=cache, progress=bool(sources))
        except UserError as error:
            raise DataError(f"{error}. Or ask others: --judges {' '.join(judges.available())}") from error

    look([])  # says what is missing before the writer costs anything
    return look
