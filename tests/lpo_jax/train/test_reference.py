"""Runs whose last stage compares the model with itself at the stage's start: in the step, kept on disk, resumed, refused."""

import json
import shutil

import numpy as np
import pytest

from data_pipeline.shards import Manifest
from lpo_jax import cli
from lpo_jax.config import ConfigError
from lpo_jax.train import per_token, reference, stop
from lpo_jax.train.step import Reference
from lpo_jax.train.stop import TrainingError
from tests.helpers.training import load, read_log, tiny_args

STAGE = {"objective": {"name": "dpo", "beta": 0.5, "tokens": "changed"}, "optim": {"lr": 1e-2}, "batch_rows": 8, "steps": 5}
LORA = "model.lora.rank=4", "model.lora.alpha=8"


def dpo_args(shards, run_dir, *more):
    """A short run: sft, then dpo, or dpo alone where a word of `more` says so."""
    sft = {"objective": {"name": "sft"}, "optim": {"lr": 1e-2}, "batch_rows": 8, "steps": 3}
    stages = {"dpo": STAGE} if "alone" in more else {"sft": sft, "dpo": STAGE}
    smaller = "eval_every_steps=0", "checkpoint_every_steps=2", "report_pairs=0"
    kept = [a for a in tiny_args(shards, run_dir, *smaller) if not a.startswith("stages.")]
    return [*kept, f"stages={json.dumps(stages)}", *(word for word in more if word != "alone")]


def of_dpo(run_dir, key="loss"):
    return [line[key] for line in read_log(run_dir) if line["group"] == "train" and line["stage"] == "dpo"]


def interrupted(args, at, monkeypatch):
    """Run the command up to a step of the whole run, then to the end."""
    with monkeypatch.context() as patched:
        patched.setattr(stop.StopRequest, "reached", lambda self, step: step == at)
        assert cli.main(args) == stop.EXIT_CODE
    assert cli.main(args) == 0


def place(*args):
    run = load(args)
    return {name: reference.open_reference(run, name, None) for name in run.stages}


def test_where_a_reference_is(tmp_path):
    shards, run_dir = tmp_path / "shards", tmp_path / "run"
    assert place(*dpo_args(shards, run_dir)) == {"sft": None, "dpo": Reference("frozen")}
    assert place(*dpo_args(shards, run_dir, *LORA)) == {"sft": None, "dpo": Reference("frozen")}
    assert place(*dpo_args(shards, run_dir, "alone", *LORA)) == {"dpo": Reference("base")}
    assert place(*dpo_args(shards, run_dir, "alone")) == {"dpo": Reference("frozen")}
    assert place(*dpo_args(shards, run_dir, f"stages.dpo.objective.reference={tmp_path}"))["dpo"] == Reference("batch")


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), LORA], ids=["whole", "lora"])
def test_kept_equals_in_the_step_and_both_resume(more, seed_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(per_token, "BLOCK_ROWS", 12)  # eval_rows is 8: a file isn't a whole number of batches
    shards, kept = seed_shards["trimmed"], f"stages.dpo.objective.reference={tmp_path / 'kept'}"
    assert cli.main(dpo_args(shards, tmp_path / "step", *more)) == 0
    losses = of_dpo(tmp_path / "step")
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6), "the reference is the model at the stage's start, after sft"
    assert losses[-1] < losses[0]
    assert not (tmp_path / "step" / "reference").exists(), "a finished run keeps no copy"
    interrupted(dpo_args(shards, tmp_path / "stopped", *more), 5, monkeypatch)
    assert read_log(tmp_path / "stopped") == read_log(tmp_path / "step")

    interrupted(dpo_args(shards, tmp_path / "disk", kept, *more), 5, monkeypatch)
    np.testing.assert_allclose(of_dpo(tmp_path / "disk"), losses, rtol=1e-6)
    assert cli.main(dpo_args(shards, tmp_path / "again", kept, "seed=0", *more)) == 0, "another run of the same reference reads it"
    assert read_log(tmp_path / "again") == read_log(tmp_path / "disk")


@pytest.mark.slow
def test_the_first_stages_reference_is_loaded_again(seed_shards, tmp_path, monkeypatch):
    interrupted(dpo_args(seed_shards["trimmed"], tmp_path / "run", "alone"), 2, monkeypatch)
    assert of_dpo(tmp_path / "run")[0] == pytest.approx(np.log(2), abs=1e-6)
    assert cli.main(dpo_args(seed_shards["trimmed"], tmp_path / "adapters", "alone", *LORA)) == 0
    assert of_dpo(tmp_path / "adapters")[0] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.slow
def test_another_reference_is_refused_by_name(seed_shards, tmp_path, capsys):
    shards, kept = seed_shards["trimmed"], tmp_path / "kept"
    args = dpo_args(shards, tmp_path / "run", "alone", f"stages.dpo.objective.reference={kept}", "stages.dpo.steps=1")
    assert cli.main(args) == 0

    def refused(*more):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        assert cli.main([*args, f"run_dir={tmp_path / 'other'}", *more]) == 2
        return capsys.readouterr().err

    capsys.readouterr()
    assert f"{kept} holds the log-probabilities of another reference (other model)" in refused("seed=7")
    assert "(other shards)" in refused(f"data.path={seed_shards['untrimmed']}")
    facts = json.loads((kept / "reference.json").read_text())
    (kept / "reference.json").write_text(json.dumps(facts | {"tokenizer": "other"}))
    assert "(other tokenizer); choose another directory, or delete it" in refused()
    (kept / "reference.json").write_text("[1]")
    assert f"delete {kept}: it is computed again" in refused()


def test_only_a_directory_of_its_own_will_do(seed_shards, tmp_path):
    """Said before the first step; nothing is written into what is somebody else's."""

    def refused(where):
        run = load(dpo_args(seed_shards["trimmed"], tmp_path / "run", f"stages.dpo.objective.reference={where}"))
        with pytest.raises(ConfigError) as told:
            reference.open_reference(run, "dpo", Manifest.load(seed_shards["trimmed"]))
        assert str(told.value).startswith("stages.dpo.objective.reference: ")
        return str(told.value)

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").touch()
    assert f"{model} holds config.json; name a directory on this disk" in refused(model)
    assert sorted(path.name for path in model.iterdir()) == ["config.json"]
    assert "holds manifest.json" in refused(seed_shards["trimmed"]) or "holds dropped.tsv" in refused(seed_shards["trimmed"])
    assert "can't be used: File exists" in refused(model / "config.json")
    assert "is a bucket" in refused("gs://bucket/reference")
    assert "is deleted when the run is finished" in refused(tmp_path / "run" / "reference" / "mine")


def test_two_stages_cannot_share_a_directory(seed_shards, tmp_path):
    twice = {name: STAGE | {"objective": STAGE["objective"] | {"reference": "data/kept/"}} for name in ("one", "two")}
    with pytest.raises(ConfigError, match="stages.two.objective.reference: data/kept is stage one's"):
        load([*dpo_args(seed_shards["trimmed"], tmp_path / "run"), f"stages={json.dumps(twice)}"])


def test_what_is_damaged_or_anothers_is_not_read(tmp_path):
    tensors = {"starts": np.array([0, 2, 3]), "logps": np.array([-1.0, -2.0, -3.0], np.float32)}
    file = tmp_path / "rows-00000.safetensors"

    def written(key="mine"):
        per_token._write_block(file, tensors, key)
        return file.read_bytes()

    whole = written()
    assert per_token.unsound(tmp_path, 2, "mine") == []
    assert per_token._read(file, 1, "mine")["logps"].tolist() == [-3.0]
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    for damage in (b"", whole[:-4], flipped, written("another's")):
        file.write_bytes(damage)
        assert per_token.unsound(tmp_path, 2, "mine") == [0]
    with pytest.raises(TrainingError, match="something else writes to this directory"):
        per_token._read(file, 1, "mine")
    file.unlink()
    with pytest.raises(TrainingError, match="run the same command again"):
        per_token._read(file, 1, "mine")


@pytest.mark.slow
def test_what_a_stopped_run_needs_must_be_there(seed_shards, tmp_path, capsys, monkeypatch):
    shards = seed_shards["trimmed"]

    def stopped(*args):
        with monkeypatch.context() as patched:
            patched.setattr(stop.StopRequest, "reached", lambda self, step: step == 5)
            assert cli.main(list(args)) == stop.EXIT_CODE
        capsys.readouterr()
        return args

    args = stopped(*dpo_args(shards, tmp_path / "step"))
    facts = tmp_path / "step" / "reference" / "dpo.json"
    mark = facts.read_text()
    facts.write_text(json.dumps({"fingerprint": "0"}))
    assert cli.main(list(args)) == 2
    assert "isn't the model that stage dpo began with" in capsys.readouterr().err
    facts.write_text(mark)
    shutil.rmtree(tmp_path / "step" / "reference" / "dpo")
    assert cli.main(list(args)) == 2
    assert "the reference can't be read" in capsys.readouterr().err

    args = stopped(*dpo_args(shards, tmp_path / "disk", f"stages.dpo.objective.reference={tmp_path / 'kept'}"))
    file = next((tmp_path / "kept").glob("rows-*"))
    before = file.read_bytes()
    shutil.rmtree(tmp_path / "kept")  # as on a machine that was taken away
    assert cli.main([*args, f"stages.dpo.objective.reference={tmp_path / 'elsewhere'}"]) == 0
    assert (tmp_path / "elsewhere" / file.name).read_bytes() == before


def test_an_early_word_on_the_wrong_shards(seed_shards, tmp_path):
    """Before the first stage, not after hours of it."""
    run = load(dpo_args(seed_shards["trimmed"], tmp_path / "run", f"stages.dpo.objective.reference={tmp_path}"))
    (tmp_path / "reference.json").write_text(json.dumps({"model": "1", "dtype": "float32", "shards": "2", "tokenizer": "3"}))
    with pytest.raises(ConfigError, match=r"other shards, tokenizer"):
        reference.open_reference(run, "dpo", Manifest.load(seed_shards["trimmed"]))
