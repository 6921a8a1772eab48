"""A campaign on the rows that ship with it, and results as pieces leave them: by `lpo-eval run` on sides that are known, and by runs that trained nothing."""

import json
from pathlib import Path

from evaluation import cli as lpo_eval
from reproduce.campaign import load
from reproduce.results import Results, of_evaluation, of_training
from reproduce.run import Place, begin
from tests.helpers.paths import REPO
from tests.helpers.train_runs import SUMMARY, make_run

ROWS = REPO / "reproduce" / "smoke.jsonl"


def place(scratch: Path) -> Place:
    model = str(scratch / "work" / "model")
    return Place(Results(scratch / "results", "smoke"), scratch / "work", model, str(ROWS), large=model)


def smoke(scratch: Path):
    """(campaign, place, pieces by name), the rows cut."""
    campaign, here = load("smoke"), place(scratch)
    return campaign, here, {piece.name: piece for piece in begin(campaign, here)}


def evaluate(here: Place, side: str, part: str) -> Path:
    """What `lpo-eval run` writes about the rows' own sides: "canonical" is secure and works, "insecure" works."""
    out = here.work / "known" / f"{side}-{part}"
    data = str(here.work / "data" / f"{part}.jsonl")
    words = ["run", "--benchmark", "seccodeplt", "--data", data, "--any-data", "--completions", side, "-o", str(out)]
    assert lpo_eval.main(words) == 0
    return out


def finish(here: Place, pieces, sides) -> None:
    """Put down evaluations: piece -> its side."""
    known = {}
    for name, side in sides.items():
        part = pieces[name].benchmark
        if (side, part) not in known:
            known[side, part] = evaluate(here, side, part)
        here.results.keep(name, pieces[name].key, {"seconds": 60.0, "parts": 1, "cores": 2}, of_evaluation(known[side, part], name))


def trained(run_dir: Path, stage: str) -> dict[str, bytes]:
    """What is kept of a training with one pair; the stage's numbers are those of `train_runs.SUMMARY`."""
    make_run(run_dir, {"init": SUMMARY["init"], stage: SUMMARY["lpo"]})
    for file in (run_dir / "eval").glob("*.json"):
        found = json.loads(file.read_text())
        assert found["pairs"]
    return of_training(run_dir, [stage])
