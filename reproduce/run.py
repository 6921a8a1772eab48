"""Doing pieces: one after another, each a few of the product's own commands in processes of their own, until the time is up."""

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline import tokenizer
from foundation.errors import UserError
from foundation.files import Json, claim, hold_directory, read_journal, read_object, write_json, write_text
from lpo_jax.config.load import Dumper
from lpo_jax.train.stop import EXIT_CODE
from reproduce import results, split
from reproduce.campaign import Campaign, Piece, expand
from reproduce.results import Results

MODULES = {"lpo": "lpo_jax.cli", "lpo-data": "data_pipeline.cli", "lpo-eval": "evaluation.cli"}
STOPPED = (EXIT_CODE, -signal.SIGTERM, -signal.SIGKILL)  # asked to stop; what is done is kept, and the same command goes on
GRACE_S = 90.0
"""What a command gets to put down what it has; it is asked to stop that much before the time is up."""


class ReproduceError(UserError):
    """A piece that can't be done; the message names it and the remedy."""


@dataclass(frozen=True)
class Place:
    """Where a campaign runs: places that stand in commands as {model} and so on. None: not given."""

    results: Results
    work: Path
    model: str | None = None
    pairs: str | None = None
    benchmarks: Path | None = None
    large: str | None = None

    def filled(self, value: Any) -> Any:
        """A text, or texts in a list or mapping, with the places in it."""
        if isinstance(value, dict):
            return {key: self.filled(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.filled(each) for each in value]
        if isinstance(value, str):
            for name in ("model", "large", "work", "benchmarks"):
                value = value.replace(f"{{{name}}}", str(getattr(self, name)))
        return value


def missing(piece: Piece, place: Place) -> str:
    """Why a piece can't be done here yet; "": it can."""
    if piece.waits:
        return f"waits for {piece.waits}"
    if piece.reads_large and place.large is None:
        return "needs a larger model of the same tokenizer (--large)"
    if "{benchmarks}" in json.dumps(piece.commands):
        file = next(word for word in piece.commands[0] if "{benchmarks}" in word)
        if place.benchmarks is None or not Path(place.filled(file)).exists():
            return f"needs {place.filled(file) if place.benchmarks else file.replace('{benchmarks}', 'BENCHMARKS')}"
    return ""


def begin(campaign: Campaign, place: Place) -> list[Piece]:
    """The split, and what the size is about; returns the pieces.

    Raises:
      DataError, ReproduceError: the data or the model isn't the one that the results are about.
    """
    assert place.pairs is not None
    if place.large is not None and campaign.new is None:
        _check_tokenizers(place.model, place.large)
    record = split.split(place.pairs, campaign.split, place.results.root / "split.json", place.work / "data")
    facts: Json = {"pairs": record["sha256"], "split": split.identity(record)}
    if campaign.new is not None:
        facts |= {"model": "its own"}
    else:
        assert place.model is not None
        facts |= {"model": Path(place.model).name, "weights": _identity(place.model)}

    def refuse(names: list[str]) -> UserError:
        return ReproduceError(f"{place.results.directory} is about another {' and '.join(names)}: give that, or other --results")

    claim(place.results.directory / "subject.json", facts, refuse)
    if place.large is not None:
        larger = {"larger": "its own"} if campaign.new else {"larger": Path(place.large).name, "larger_weights": _identity(place.large)}
        claim(place.results.directory / "larger.json", larger, refuse)
    return expand(campaign, place.results)


def _check_tokenizers(model: str | None, large: str) -> None:
    """One steers the other only where each token means the same to both."""
    assert model is not None
    unlike = tokenizer.compare(tokenizer.load(model), tokenizer.load(large))[0]
    if unlike:
        raise ReproduceError(
            f"--large {large}: its token {unlike[0]} is {unlike[2]!r}, and {model}'s is {unlike[1]!r}: give a model of one tokenizer with it"
        )


def _identity(model: str) -> str:
    from lpo_jax.train.weights import identity  # here: it brings JAX

    return identity(model)


def run(campaign: Campaign, place: Place, only: Sequence[str] = (), minutes: float | None = None) -> tuple[int, int]:
    """Do what is open, in its order, as far as the time goes.

    Args:
      only: names of pieces, or of systems.

    Returns:
      how many pieces were finished, and how many stay open.

    Raises:
      ReproduceError: a command of a piece failed.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    finished = 0
    with hold_directory(place.work):
        while True:
            pieces = begin(campaign, place)
            wanted = [p for p in pieces if not only or p.name in only or p.system in only]
            if not wanted:
                raise ReproduceError(
                    f"--only {' '.join(only)}: neither a piece nor a system; `python -m reproduce list {campaign.size}` has them"
                )
            open_ = [p for p in wanted if not place.results.done(p.name, p.key)]
            ready = next((p for p in open_ if not missing(p, place)), None)
            if ready is None or (end is not None and end - time.monotonic() <= GRACE_S):
                return finished, len(open_)
            by_name = {p.name: p for p in pieces}
            for piece in (*_lacking(ready, by_name, place), ready):
                if not _do(piece, place, campaign.piece_minutes, end):
                    return finished, len(open_)
            finished += 1


def _lacking(piece: Piece, by_name: dict[str, Piece], place: Place) -> list[Piece]:
    """The pieces whose products a piece needs and that aren't here as they are declared now: another machine's, or deleted. Each behind its own needs."""
    found: list[Piece] = []
    for need in (by_name[name] for name in piece.needs):
        if read_object(_begun(need, place)) != {"key": need.key, "finished": True}:
            found += [p for p in (*_lacking(need, by_name, place), need) if p not in found]
    return found


def _begun(piece: Piece, place: Place) -> Path:
    return place.work / "begun" / f"{piece.name}.json"


def _do(piece: Piece, place: Place, piece_minutes: float, end: float | None) -> bool:
    """Do a piece, in as many parts as it takes; returns whether it is finished."""
    again = place.results.done(piece.name, piece.key)
    print(f"{piece.name}: {piece.about}{' (again: what it made is not here)' if again else ''}", flush=True)
    journal = place.work / "parts" / f"{piece.name}.{piece.key}.jsonl"
    if read_object(_begun(piece, place)).get("key", piece.key) != piece.key:  # it was declared otherwise then
        for output in piece.outputs:
            shutil.rmtree(place.filled(output), ignore_errors=True)
    write_json(_begun(piece, place), {"key": piece.key, "finished": False})
    if piece.config is not None:
        write_config(piece, place)
    while True:
        start, busy = time.monotonic(), _busy()
        limit = start + 60 * piece_minutes
        stopped = False
        for command in piece.commands:
            argv = [place.filled(word) for word in command]
            print(f"$ {' '.join(argv)}", flush=True)
            code = _call([sys.executable, "-m", MODULES[argv[0]], *argv[1:]], place, min(limit, end or limit) - GRACE_S)
            if code in STOPPED:
                stopped = True
                break
            if code:
                raise ReproduceError(f"{piece.name}: `{' '.join(argv)}` failed with exit code {code}, see above; what is done is kept")
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seconds": round(time.monotonic() - start, 1), "cpu_seconds": round(_busy() - busy, 1)}) + "\n")
        if not stopped:
            break
        if end is not None and end - time.monotonic() <= 2 * GRACE_S:
            return False
    parts = read_journal(journal)
    took: Json = {key: round(sum(part[key] for part in parts), 1) for key in ("seconds", "cpu_seconds")}
    took |= {"parts": len(parts), "cores": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    if not again:
        place.results.keep(piece.name, piece.key, took, found(piece, place.work))
    elif any((place.results.directory / piece.name / name).read_bytes() != content for name, content in found(piece, place.work).items()):
        print(f"{piece.name}: what came out this time isn't what {place.results.directory / piece.name} holds, which stays", flush=True)
    write_json(_begun(piece, place), {"key": piece.key, "finished": True})
    return True


def _busy() -> float:
    """Seconds of a core that commands have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_config(piece: Piece, place: Place) -> Path:
    """A training's config where its `lpo train` reads it."""
    file = place.work / "configs" / f"{piece.name}.yaml"
    write_text(file, yaml.dump(place.filled(piece.config), Dumper=Dumper, sort_keys=False))
    return file


def found(piece: Piece, work: Path) -> dict[str, bytes]:
    """What is kept of what a piece has left in the work directory."""
    if piece.kind == "evaluate":
        return results.of_evaluation(work / "evals" / piece.name, piece.name)
    if piece.config is not None:
        return results.of_training(Path(piece.config["run_dir"].replace("{work}", str(work))), list(piece.config["stages"]))
    return {}


def _call(argv: list[str], place: Place, until: float) -> int:
    """A command's exit code. When the time is up it is asked to stop, as before a preemption, and after the grace it is killed."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(place.work / "compiled"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(argv, env=env) as process:
        try:
            return process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.terminate()
        except KeyboardInterrupt:  # the command has heard it, too
            process.wait()
            raise
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait() or EXIT_CODE  # it may have come to its end just then: the next part finds that out
