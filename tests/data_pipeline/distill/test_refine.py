"""Refinement: what is found goes back, a repair is adopted only if it leaves less, and what remains is recorded. The judge is a search for a word."""

import asyncio
from dataclasses import dataclass, replace

import pytest

import judges
from data_pipeline.distill.journal import content_key
from data_pipeline.distill.knowledge import Rule
from data_pipeline.distill.prompts import Job, Task, label
from data_pipeline.distill.refine import Candidate, judge_all, refine
from data_pipeline.distill.run import judge_with
from data_pipeline.pairs import DataError

TASK = Task("t", Rule("r", "CWE-1", "t", "d", "cwe", "any"), "os")
CODE = "import os\n\ndef f(x):\n    bad(x)\n    bad(x)\n    return x"


@dataclass(frozen=True)
class Found:
    judge: str
    rule: str
    cwe: str
    line: int
    message: str


@dataclass(frozen=True)
class Verdict:
    findings: tuple[Found, ...]
    failed: tuple[str, ...] = ()


def judge(sources):
    return [Verdict(tuple(Found("j", "R1", "CWE-1", n, "a bad call") for n, line in enumerate(s.splitlines(), 1) if "bad(" in line)) for s in sources]  # fmt: skip


def run(fixes, rounds, judge=judge):
    """A candidate with two findings, whose teacher answers with `fixes` one after the other."""
    parts = {
        "instruction": "Write f that returns x.",
        "vulnerable": CODE + "\n",
        "secure": CODE,
        "why_vulnerable": "v",
        "why_secure": "old",
    }
    parts["vulnerable"] = CODE.replace("return x", "return bad(x)")
    c = Candidate(TASK, parts, "m")
    judge_all([c], judge)
    left, asked = list(fixes), []

    async def ask(bodies):
        asked.extend(body["messages"][0]["content"] for body in bodies)
        code = left.pop(0)
        sections = {"secure": f"```python\n{code}\n```", "why_vulnerable": "why", "why_secure": "new"}
        text = "\n".join(f"{label(part)}\n{value}" for part, value in sections.items())
        return {content_key(body): {"text": text, "finish_reason": "stop"} for body in bodies}

    return c, asyncio.run(refine([c], Job("m", 1, rounds=rounds), judge, ask)), asked


ONE, NONE = CODE.replace("bad", "good", 1), CODE.replace("bad", "good")


def test_rounds_go_on_until_nothing_is_found():
    c, outcomes, asked = run([ONE, NONE, "unused"], 3)
    assert (c.parts["secure"], c.parts["why_secure"], c.findings, c.rounds, c.findings_before) == (NONE, "new", [], 2, 2)
    assert outcomes == {"adopted": 2}
    assert "line 4: a bad call (CWE-1 R1)\n- line 5:" in asked[0] and "- line 4" not in asked[1]
    assert len(c.vulnerable_findings) == 3


def test_what_remains_is_recorded():
    c, _, _ = run([ONE], 1)
    assert [finding["line"] for finding in c.findings] == [5] and c.rounds == 1


def test_a_repair_that_is_no_better_or_no_program_changes_nothing():
    for fix, outcome in ((CODE.replace("return x", "return 1"), "no better"), ("def f(:\n 1\n", "secure code doesn't parse")):
        c, outcomes, _ = run([fix], 1)
        assert (c.parts["secure"], c.parts["why_secure"], len(c.findings), c.rounds) == (CODE, "old", 2, 0)
        assert outcomes == {outcome: 1}


def test_who_gave_up_is_recorded_and_a_repair_that_a_judge_cannot_read_is_not_adopted():
    def weary(word):
        def judged(sources):
            return [
                replace(verdict, failed=("j",) if word in source else ()) for source, verdict in zip(sources, judge(sources), strict=True)
            ]

        return judged

    c, outcomes, _ = run([NONE], 1, weary("good"))
    assert (c.parts["secure"], len(c.findings), c.rounds, outcomes) == (CODE, 2, 0, {"a judge gave up": 1})
    assert (c.failed, c.vulnerable_failed) == ([], [])
    c, outcomes, _ = run([ONE], 1, weary("return x"))
    assert (c.failed, c.vulnerable_failed, outcomes) == (["j"], [], {"adopted": 1})


def test_a_judge_that_is_missing_is_named_before_the_teacher_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(judges.semgrep, "missing", lambda: "run `make semgrep`")
    with pytest.raises(DataError, match=r"semgrep can't run: run `make semgrep`.*--judges bandit"):
        judge_with(["bandit", "semgrep"], 1, tmp_path)
    with pytest.raises(DataError, match="no judge 'lint'"):
        judge_with(["lint"], 1, tmp_path)
