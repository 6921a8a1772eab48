"""Secure sides that the judges object to go back to the writer, with what was found."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field

from data_pipeline.distill.journal import content_key
from data_pipeline.distill.parse import RejectedError, check, read_answer
from data_pipeline.distill.prompts import REPAIR_PARTS, Job, Task, repair_request
from foundation.files import Json
from judges import Verdict

Judge = Callable[[Sequence[str]], Sequence[Verdict]]


@dataclass
class Candidate:
    """A pair on its way."""

    task: Task
    parts: dict[str, str]
    model: str
    findings: list[Json] = field(default_factory=list)  # in the secure side as it is now
    findings_before: int = 0  # in the first secure side
    vulnerable_findings: list[Json] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # judges that gave up on the secure side as it is now
    vulnerable_failed: list[str] = field(default_factory=list)
    rounds: int = 0  # repairs that were adopted


Ask = Callable[[Sequence[Json]], Awaitable[dict[str, Json]]]  # requests -> key -> answer, where there is one


def judge_all(candidates: list[Candidate], judge: Judge) -> None:
    """Record what is found in both sides, and who gave up on them."""
    verdicts = judge([c.parts[side] for c in candidates for side in ("secure", "vulnerable")])
    for c, secure, vulnerable in zip(candidates, verdicts[::2], verdicts[1::2], strict=True):
        c.findings, c.failed = _recorded(secure)
        c.vulnerable_findings, c.vulnerable_failed = _recorded(vulnerable)
        c.findings_before = len(c.findings)


async def refine(candidates: list[Candidate], job: Job, judge: Judge, ask: Ask) -> dict[str, int]:
    """Up to `job.rounds` repairs of each secure side with findings. One is adopted, with its reasoning, if it leaves fewer of them and every judge that
    could read the code before can read it still.

    Args:
      ask: answers of requests from the journal or the writer.

    Returns:
      How many repairs came to what.
    """
    outcomes: Counter[str] = Counter()
    open_ = [c for c in candidates if c.findings]
    for _ in range(job.rounds):
        if not open_:
            break
        requests = [repair_request(c.parts, [in_words(finding) for finding in c.findings], job) for c in open_]
        answers = await ask(requests)
        repaired = []
        for c, body in zip(open_, requests, strict=True):
            answer = answers.get(content_key(body))
            if answer is None:
                outcomes["no answer"] += 1
                continue
            try:
                repaired.append((c, check(c.parts | read_answer(answer, REPAIR_PARTS))))
            except RejectedError as error:
                outcomes[str(error)] += 1
        open_ = []
        for (c, parts), verdict in zip(repaired, judge([parts["secure"] for _, parts in repaired]), strict=True):
            if set(verdict.failed) - set(c.failed):
                outcomes["a judge gave up"] += 1
            elif len(verdict.findings) >= len(c.findings):
                outcomes["no better"] += 1
            else:
                outcomes["adopted"] += 1
                c.parts, c.rounds = parts, c.rounds + 1
                c.findings, c.failed = _recorded(verdict)
                if c.findings:
                    open_.append(c)
    return outcomes


def _recorded(verdict: Verdict) -> tuple[list[Json], list[str]]:
    return [asdict(finding) for finding in verdict.findings], list(verdict.failed)


def in_words(finding: Json) -> str:
    """A finding as the writer reads it."""
    return f"line {finding['line']}: {finding['message'].strip()} ({' '.join(filter(None, (finding['cwe'], finding['rule'])))})"
