"""Whether a program is what the chosen side of a pair is: by the pair's executable check where there is one, else by analyzers.

| a pair | its program succeeds if |
|---|---|
| with an executable check (see `data_pipeline.check`) | `functional` and `exploit` both pass in the sandbox: it works and is secure |
| without, of a CWE | it parses, and no analyzer finds a weakness of the CWE's family in it; whether it works, nobody knows |
| without, of no CWE | it parses, and no analyzer finds any weakness in it |

An analyzer that gives up on a program has not found it secure. A pair is judged at all only where its judge tells the two sides apart.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.check import case, checks
from data_pipeline.distill.journal import content_key
from data_pipeline.pairs import Pair
from foundation.files import Json
from judges import TOOLS, judge
from judges.findings import same_family
from judges.sandbox import run_many


class Judges:
    """Judges programs, each for its pair.

    Args:
      pairs: all of them: every check in `tests` has to belong to one.
      tools: analyzers by name, for pairs without a check.
      tests: the folder of the checks, if there are any.
      workers: processes.

    Raises:
      UserError: an analyzer or the folder is missing, or a check belongs to no pair.
    """

    def __init__(self, pairs: Sequence[Pair], tools: Sequence[str], tests: Path | None, workers: int):
        self._tools, self._workers = tuple(tools), workers
        self._known: dict[tuple[str, str, bytes], bool] = {}  # by pair, CWE and the program's hash
        self._checks = {pair.id: files for pair, files in checks(pairs, tests)} if tests else {}
        judge([], tools)  # says what is missing

    @property
    def facts(self) -> Json:
        """What decides verdicts, besides the program."""
        return {"judges": {name: TOOLS[name].version() for name in self._tools}, "tests": content_key(self._checks)}

    def of(self, pair: Pair) -> str:
        """Who judges a pair, for people; "": nobody."""
        return "its check" if pair.id in self._checks else " and ".join(self._tools)

    def passed(self, asked: Sequence[tuple[Pair, str]]) -> list[bool]:
        """Whether each program succeeds, all of them looked at together: analyzers and sandboxes take their time to start."""
        keys = [(pair.id, pair.cwe, hashlib.sha256(code.encode(errors="replace")).digest()) for pair, code in asked]
        new = {key: code for key, (_, code) in zip(keys, asked, strict=True) if key not in self._known}
        tested = [key for key in new if key[0] in self._checks]
        cases = [case(new[key], self._checks[key[0]], which) for key in tested for which in ("functional", "exploit")]
        outcomes = [result.outcome == "pass" for result in run_many(cases, self._workers)]
        self._known |= {key: all(outcomes[2 * n : 2 * n + 2]) for n, key in enumerate(tested)}
        read = [key for key in new if key not in self._known]
        for key, verdict in zip(read, judge([new[key] for key in read], self._tools, workers=self._workers), strict=True):
            of_a_cwe = re.fullmatch(r"CWE-\d+", key[1])
            weak = any(not of_a_cwe or same_family(finding.cwe, key[1]) for finding in verdict.findings)
            self._known[key] = verdict.parses and not verdict.failed and not weak
        return [self._known[key] for key in keys]

    def unfit(self, pairs: Sequence[Pair]) -> list[str]:
        """Of each pair, why nobody can judge it; "": the chosen side succeeds, and the rejected one doesn't."""
        sides = self.passed([(pair, code) for pair in pairs for code in (pair.chosen, pair.rejected)])
        return [self._unfit(pair, *sides[2 * n : 2 * n + 2]) for n, pair in enumerate(pairs)]

    def _unfit(self, pair: Pair, chosen: bool, rejected: bool) -> str:
        if pair.plain:
            return "no judge: it has no second side"
        if not (who := self.of(pair)):
            return "no judge: it has no check, and no analyzer is asked"
        if chosen and rejected:
            return f"no judge: {who} let the rejected side pass" + (f" ({pair.cwe})" if pair.cwe else "")
        return "" if chosen else f"no judge: {who} let the chosen side fail" + (f" ({pair.cwe})" if pair.cwe else "")


class Together:
    """Gathers programs while others are judged, so that many are judged at once. For one event loop."""

    def __init__(self, judges: Judges):
        self._judges = judges
        self._waiting: list[tuple[Pair, Sequence[str], asyncio.Future[list[bool]]]] = []
        self._work: asyncio.Task[None] | None = None

    async def passed(self, pair: Pair, codes: Sequence[str]) -> list[bool]:
        """Whether each program of a pair succeeds.

        Raises:
          JudgeError, SandboxError: a judge broke down.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((pair, codes, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._judge())
        return await future

    async def _judge(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                found = iter(await asyncio.to_thread(self._judges.passed, [(pair, code) for pair, codes, _ in batch for code in codes]))
            except Exception as error:  # each who waits is told
                for *_, future in batch:
                    future.set_exception(error)
            else:
                for _, codes, future in batch:
                    future.set_result([next(found) for _ in codes])
