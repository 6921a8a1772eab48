"""Who decides whether code is secure and works: analyzers that read it, and a sandbox that runs it. Stands on `foundation` alone."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from foundation.commands import choices
from foundation.errors import ConfigError
from foundation.files import write_text
from judges import bandit, codeql, codeshield, semgrep
from judges.findings import NOISE, Finding, JudgeError
from judges.prepare import Prepared, prepare

log = logging.getLogger(__name__)

TOOLS = {"bandit": bandit, "semgrep": semgrep, "codeql": codeql, "codeshield": codeshield}
CHUNK_FILES = 500  # in one run of a tool: enough to make up for its start, few enough that a killed job loses little


@dataclass(frozen=True)
class Verdict:
    """What was found in one source. Code that doesn't parse was read by no tool but codeshield: no findings then say nothing about it."""

    parses: bool
    findings: tuple[Finding, ...]
    failed: tuple[str, ...] = ()  # tools that gave up on this source (a timeout, syntax they don't know)


def available() -> tuple[str, ...]:
    """The tools that can run here."""
    return tuple(name for name, tool in TOOLS.items() if tool.missing() is None)


def judge(
    sources: Sequence[str],
    tools: Sequence[str] = ("bandit", "semgrep"),
    *,
    workers: int = 2,
    cache: Path | None = None,
    noise: bool = False,
    progress: bool = False,
) -> list[Verdict]:
    """A verdict for every source, in order. Sources may be whole programs, or functions and methods without their imports.

    Args:
      cache: a directory where findings are kept by the hash of the source and of everything else they depend on.
      noise: keep the findings of `findings.NOISE` too.

    Raises:
      ConfigError: a tool that doesn't exist.
      JudgeError: a tool is missing here (the message says how to get it) or broke down.
    """
    for name in tools:
        if name not in TOOLS:
            raise ConfigError(f"there is no judge {name!r}{choices(name, [*TOOLS])}")
        if reason := TOOLS[name].missing():
            raise JudgeError(f"{name} can't run: {reason}")
    prepared = {source: prepare(source) for source in dict.fromkeys(sources)}
    readable = {source: p for source, p in prepared.items() if p is not None}
    raw = {source: Prepared(source, 0) for source in prepared}
    given_to = {name: raw if TOOLS[name].ANY_TEXT else readable for name in tools}
    bar = tqdm(total=sum(map(len, given_to.values())), desc="judge", unit=" sources", dynamic_ncols=True, disable=not progress)
    with bar:
        answers = {name: _ask(name, sources, workers, cache, bar) for name, sources in given_to.items()}
    verdicts = {}
    for source in prepared:
        given = {name: answers[name][source] for name in tools if source in given_to[name]}
        found = [f for findings in given.values() for f in findings or () if noise or f.rule not in NOISE]
        failed = tuple(name for name in given if given[name] is None)
        verdicts[source] = Verdict(source in readable, tuple(sorted(found, key=lambda f: (f.line, f.rule))), failed)
    return [verdicts[source] for source in sources]


def _ask(name: str, sources: dict[str, Prepared], workers: int, cache: Path | None, bar: tqdm) -> dict[str, list[Finding] | None]:
    """One tool's findings, noise included; None where it gave up."""
    answers: dict[str, list[Finding] | None] = {}
    version = TOOLS[name].version()
    if cache is not None:
        for source, p in sources.items():
            file = _cached(cache, version, p)
            if file.is_file():
                with contextlib.suppress(ValueError, TypeError, AttributeError):  # a damaged file is made anew
                    answers[source] = [Finding(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    rest = [source for source in sources if source not in answers]
    size = max(1, min(CHUNK_FILES, -(-len(rest) // workers) if TOOLS[name].ONE_CORE else CHUNK_FILES))
    chunks = [rest[i : i + size] for i in range(0, len(rest), size)]
    bar.set_postfix_str(name)
    bar.update(len(answers))
    with ThreadPoolExecutor(workers if TOOLS[name].ONE_CORE else 1) as pool:
        for chunk, results in zip(chunks, pool.map(lambda c: _run(name, [sources[s] for s in c], workers), chunks), strict=True):
            for source, findings in zip(chunk, results, strict=True):
                answers[source] = findings
                if cache is not None and findings is not None:
                    cache = _keep(cache, _cached(cache, version, sources[source]), findings)
            bar.update(len(chunk))
    return answers


def _keep(cache: Path, file: Path, findings: list[Finding]) -> Path | None:
    """Write findings to the cache; returns it, or None where it can't be written."""
    try:
        write_text(file, json.dumps([dataclasses.asdict(f) for f in findings]))
    except OSError as error:
        log.warning("%s: findings can't be kept (%s); they are made again the next time", cache, error.strerror)
        return None
    return cache


def _run(name: str, chunk: list[Prepared], workers: int) -> list[list[Finding] | None]:
    with tempfile.TemporaryDirectory(prefix="judges-") as directory:
        for number, p in enumerate(chunk):
            (Path(directory) / f"{number}.py").write_text(p.text, encoding="utf-8", errors="replace")  # lone surrogates, in strings
        findings, gave_up = TOOLS[name].run(Path(directory), workers)
    by_file = defaultdict(list)
    for file, finding in findings:
        shift = chunk[int(Path(file).stem)].shift
        if finding.line > shift:  # else it is about the imports that we put in front
            by_file[file].append(dataclasses.replace(finding, line=finding.line - shift, end_line=finding.end_line - shift))
    return [None if f"{n}.py" in gave_up else by_file[f"{n}.py"] for n in range(len(chunk))]


def _cached(cache: Path, version: str, p: Prepared) -> Path:
    key = hashlib.sha256(json.dumps([version, p.text, p.shift]).encode()).hexdigest()
    return cache / key[:2] / f"{key}.json"
