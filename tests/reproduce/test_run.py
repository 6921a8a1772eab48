"""Pieces are done once, in their order; a stopped one goes on, and what is gone is made again."""

import shutil
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from foundation.errors import DataError
from lpo_jax.train.stop import EXIT_CODE
from reproduce import run as running
from reproduce.campaign import expand, load, merged
from reproduce.results import Results
from reproduce.run import Place, ReproduceError, begin, missing, run
from tests.helpers.campaigns import ROWS, evaluate, place, trained
from tests.helpers.marks import needs_sandbox
from tests.helpers.sampling import tokenizer
from tests.helpers.vocabularies import sentencepiece

CORE = ["model", "shards-whole", "shards-pairs", "dev-base", "test-base", "train-sft.1", "dev-sft.1", "test-sft"]


@pytest.fixture
def commands(monkeypatch):
    """`given`: the commands so far, each of which left what the product's would leave; `codes`: exit codes of those to come, else 0."""
    found = SimpleNamespace(given=[], codes=[])

    def call(argv, here, until):
        found.given.append(words := argv[2:])
        code = found.codes.pop(0) if found.codes else 0
        if code == 0 and words[1] == "train":
            name = words[2].rpartition("/")[2].removesuffix(".yaml").removeprefix("train-")
            shutil.rmtree(here.work / "runs" / name, ignore_errors=True)
            trained(here.work / "runs" / name, "sft" if name == "model" else name.partition(".")[0])
        if code == 0 and words[0] == "evaluation.cli":
            part = words[words.index("--data") + 1].rpartition("/")[2].removesuffix(".jsonl")
            shutil.copytree(evaluate(here, "canonical", part), words[words.index("-o") + 1], dirs_exist_ok=True)
        return code

    monkeypatch.setattr(running, "_call", call)
    return found


@needs_sandbox
def test_pieces_are_done_in_their_order_and_once(commands, tmp_path):
    campaign, here = load("smoke"), place(tmp_path)
    names = [piece.name for piece in begin(campaign, here)]
    assert names[: len(CORE)] == CORE
    finished, left = run(campaign, here)
    assert (finished, left) == (len(names), 0) and all(here.results.record(name)["times"] == 1 for name in names)
    trainings = [words[2] for words in commands.given if words[1] == "train"]
    assert [file.rpartition("/")[2] for file in trainings] == [f"{n}.yaml" for n in names if n.startswith(("model", "train-"))]
    commands.given.clear()
    assert run(campaign, here) == (0, 0) and commands.given == []


def test_a_stopped_piece_goes_on_in_parts(commands, tmp_path):
    """A training that comes to the limit of a piece goes on at once; when the time is up the rest stays open. It counts as one piece, its times together."""
    campaign, here = load("smoke"), place(tmp_path)
    commands.codes += [0, EXIT_CODE]  # build, train: stopped
    assert run(campaign, here, ["model"]) == (1, 0)
    assert [words[1] for words in commands.given] == ["build", "train", "build", "train", "export"]
    assert here.results.record("model")["parts"] == 2
    commands.given.clear()
    commands.codes += [EXIT_CODE]
    assert run(campaign, here, ["shards-whole"], minutes=2) == (0, 1) and len(commands.given) == 1  # within the grace of its end
    assert run(campaign, here, ["shards-whole"], minutes=1) == (0, 1) and len(commands.given) == 1  # too little to begin
    assert run(campaign, here, ["shards-whole"]) == (1, 0) and here.results.record("shards-whole")["parts"] == 2


def test_a_failed_command_is_named_and_what_is_done_stays(commands, tmp_path):
    campaign, here = load("smoke"), place(tmp_path)
    commands.codes += [0, 0, 0, 2]
    with pytest.raises(ReproduceError, match=r"shards-whole: `lpo-data build .* failed with exit code 2"):
        run(campaign, here)
    assert here.results.record("model") and not here.results.record("shards-whole")
    with pytest.raises(ReproduceError, match="--only nobody: neither a piece nor a system"):
        run(campaign, here, ["nobody"])


def test_what_is_gone_is_made_again_and_found_once(commands, tmp_path):
    """Elsewhere, with the results but without the adapters, a piece has what it needs made first; that changes no result."""
    campaign, here = load("smoke"), place(tmp_path)
    run(campaign, here, ["model", "shards-whole", "shards-pairs", "train-sft.1"])
    shutil.rmtree(here.results.directory / "shards-pairs")  # what it found is gone, what it made isn't
    assert run(campaign, here, ["shards-pairs"]) == (1, 0)
    before = here.results.record("train-sft.1")
    shutil.rmtree(here.work)
    commands.given.clear()
    run(campaign, here, ["train-simpo.1"])
    files = [words[2].rpartition("/")[2] for words in commands.given if words[1] == "train"]
    assert files == ["model.yaml", "train-sft.1.yaml", "train-simpo.1.yaml"] and here.results.record("train-sft.1") == before


def test_what_was_declared_otherwise_is_done_anew(commands, tmp_path):
    campaign, here = load("smoke"), place(tmp_path)
    run(campaign, here, ["train-sft.1"])
    left = here.work / "runs" / "sft.1" / "checkpoints"
    left.mkdir()
    changed = replace(campaign, stage=merged(campaign.stage, {"steps": 5}))
    assert run(changed, here, ["train-sft.1"]) == (1, 0) and not left.exists() and here.results.record("train-sft.1")["times"] == 2
    assert not here.results.done("train-sft.1", {p.name: p.key for p in expand(campaign, here.results)}["train-sft.1"])


def test_results_are_about_one_model_and_one_file(commands, tmp_path):
    campaign, here = load("smoke"), place(tmp_path)
    begin(campaign, here)
    (tmp_path / "other.jsonl").write_text("".join((tmp_path / "work/data/train.jsonl").read_text()))
    with pytest.raises(DataError, match="isn't the data"):
        run(campaign, replace(here, pairs=str(tmp_path / "other.jsonl")))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ReproduceError, match=r"is about another model and weights"):
        begin(replace(campaign, new=None), replace(here, model=str(tmp_path), large=None))


def test_a_benchmark_that_is_not_here_waits(tmp_path):
    here = place(tmp_path)
    piece = next(p for p in expand(load("small"), here.results) if p.name == "humaneval-base")
    assert missing(piece, here) == "needs BENCHMARKS/humaneval/HumanEval.jsonl.gz"
    file = tmp_path / "humaneval" / "HumanEval.jsonl.gz"
    assert missing(piece, replace(here, benchmarks=tmp_path)) == f"needs {file}"
    file.parent.mkdir()
    file.touch()
    assert missing(piece, replace(here, benchmarks=tmp_path)) == ""


def test_a_command_is_asked_to_stop_and_then_made_to(monkeypatch, tmp_path):
    """A process that saves when it is asked to; one that doesn't hear; one that is done in time."""
    here = place(tmp_path)
    saves = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit({EXIT_CODE})); print('up', flush=True); time.sleep(60)"
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    monkeypatch.setattr(running, "GRACE_S", 0.5)
    for code, wait in ((saves, 3), (deaf, 3), ("pass", 60), ("raise SystemExit(2)", 60)):
        found = running._call([sys.executable, "-c", code], here, time.monotonic() + wait)
        assert found == {"pass": 0, "raise SystemExit(2)": 2}.get(code, found) and (wait == 60 or found in running.STOPPED)


def test_a_larger_model_of_another_tokenizer_steers_nothing(tmp_path):
    """That is said before anything of it is put down."""
    for name, tok in (("small", tokenizer()), ("large", sentencepiece())):
        tok.save(tmp_path / name)
    here = Place(
        Results(tmp_path / "results", "small"), tmp_path / "work", str(tmp_path / "small"), str(ROWS), large=str(tmp_path / "large")
    )
    with pytest.raises(
        ReproduceError, match=r"--large .*large: its token 0 is '.*', and .*small's is '.*': give a model of one tokenizer with it"
    ):
        begin(load("small"), here)
    assert not here.results.root.exists()
