"""`lpo-data distill`: rules -> prompts -> teacher -> parse -> judges -> refine -> finish.

A job is a directory. `journal.jsonl` holds what was paid for and is only ever appended to; everything else is computed from it and the
settings, and written anew by each run. Every prompt ends as a pair, as a rejection with its reason, or, where the budget or an unreachable
endpoint kept it from being answered, as pending for the next run.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.distill import finish, prompts
from data_pipeline.distill.endpoint import Teacher, TeacherOptions
from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.distill.knowledge import Rule, titles
from data_pipeline.distill.parse import RejectedError, check, read_answer
from data_pipeline.distill.refine import Candidate, Judge, Verdict, in_words, judge_all, refine
from data_pipeline.pairs import DataError


@dataclass(frozen=True)
class Job:
    """What decides which pairs a job ends with, besides the teacher."""

    model: str
    prompts: int
    seed: int = 0
    form: str = "sections"  # of the answers: "json" (by schema) or "sections"
    temperature: float = 0.7
    max_tokens: int = 3000
    rounds: int = 1  # of refinement
    split_by: str = "rule"
    heldout: tuple[float, float] = (0.03, 0.02)  # shares of the validation and test splits
    near: float = 0.85


def distill(
    job: Job, rules: Sequence[Rule], libraries: Sequence[str], out: Path, teacher: TeacherOptions, judge: Judge | None
) -> dict[str, Any]:
    """Run a job, or go on with it; returns its summary, which `out`/summary.json holds too.

    Raises:
      DataError: `out` holds another job, or the teacher can't be asked.
    """
    tasks = prompts.plan(rules, libraries, job.prompts, job.seed)
    _claim(out, job, tasks)
    journal = Journal(out / "journal.jsonl")
    try:
        return asyncio.run(_distill(job, tasks, out, journal, teacher, judge))
    finally:
        journal.close()


async def _distill(
    job: Job, tasks: list[prompts.Task], out: Path, journal: Journal, options: TeacherOptions, judge: Judge | None
) -> dict[str, Any]:
    teacher = Teacher(journal, options, job.seed)
    try:
        bodies = [prompts.pair_request(task, job.model, job.form, job.temperature, job.max_tokens) for task in tasks]
        with tqdm(total=len(tasks), desc="ask the teacher", unit=" answers") as bar:
            failed = await teacher.ask(bodies, bar.update)
        candidates, rejected, pending = _candidates(tasks, bodies, journal, failed)
        repairs: dict[str, int] = {}
        if judge and candidates:
            judge_all(candidates, judge)

            async def ask(requests: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
                with tqdm(total=len(requests), desc="refine", unit=" answers") as bar:
                    await teacher.ask(requests, bar.update)
                return journal.answers

            def request(c: Candidate) -> dict[str, Any]:
                found = [in_words(finding) for finding in c.findings]
                secure, vulnerable = c.parts["secure"], c.parts["vulnerable"]
                return prompts.repair_request(
                    c.parts["instruction"], secure, vulnerable, found, job.model, job.form, job.temperature, job.max_tokens
                )

            repairs = await refine(candidates, job.rounds, judge, ask, request)
    finally:
        await teacher.aclose()
    rows, more = finish.finish([_row(c, job) for c in candidates], job.near)
    rejected += more
    splits = finish.write(rows, out / "data", job.split_by, job.heldout, job.seed)
    _write_lines(out / "rejected.jsonl", [{"id": name, "reason": reason} for name, reason in rejected])
    _write_lines(out / "pending.jsonl", [{"id": name, "reason": reason} for name, reason in pending])
    summary = {
        "prompts": len(tasks),
        "pairs": len(rows),
        "rejected": dict(Counter(reason for _, reason in rejected).most_common()),
        "pending": dict(Counter(reason for _, reason in pending).most_common()),
        "repairs": repairs,
        "splits": splits,
        "cost": asdict(teacher.bill()),
        "retries": teacher.retries,
        "judged": judge is not None,
    }
    assert len(rows) + len(rejected) + len(pending) == len(tasks)
    _replace(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _candidates(
    tasks: list[prompts.Task], bodies: list[dict[str, Any]], journal: Journal, failed: dict[str, str]
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


def _row(c: Candidate, job: Job) -> dict[str, Any]:
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


def _claim(out: Path, job: Job, tasks: list[prompts.Task]) -> None:
    """Make `out` this job's directory.

    Raises:
      DataError: it is another's.
    """
    mine = asdict(job) | {"heldout": list(job.heldout), "plan": content_key({"tasks": [asdict(task) for task in tasks]})}
    file = out / "job.json"
    if file.is_file():
        theirs = json.loads(file.read_text())
        changed = [key for key in mine if mine[key] != theirs.get(key)]
        if changed:
            raise DataError(f"{out}: holds a job with another {', '.join(changed)}; choose another --out, or repeat its options")
        return
    out.mkdir(parents=True, exist_ok=True)
    _replace(file, json.dumps(mine, indent=2) + "\n")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    _replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def judge_with(tools: Sequence[str], workers: int, cache: Path) -> Judge:
    """The judges named, as a function of sources.

    Raises:
      DataError: one doesn't exist or isn't installed; from the function, one broke down.
    """
    from judges import available, judge

    def look(sources: Sequence[str]) -> Sequence[Verdict]:
        try:
            return judge(sources, tools, workers=workers, cache=cache, progress=bool(sources))
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{error}. Or ask others: --judges {' '.join(available())}") from error

    look([])  # says what is missing before the teacher costs anything
    return look
