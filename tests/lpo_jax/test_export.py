"""What an export says of itself and how its weights are held; what goes to the hub."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml
from etils import epath
from safetensors.numpy import load_file

from data_pipeline.shards import Manifest
from lpo_jax import cli
from lpo_jax.config import AdamW, DataConfig, LoraConfig, ModelSource, RunConfig, StageConfig, to_dict
from lpo_jax.model import hf
from lpo_jax.objectives.sft import Sft
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state
from lpo_jax.train.checkpoint import Checkpoints, Progress
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.weights import load_params
from tests.helpers.families import save_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of bfloat16 as the hub's cache holds it, with its card."""
    found = tmp_path_factory.mktemp("hub") / "models--Org--Base-1B" / "snapshots" / "abc"
    shutil.copytree(save_llama(tmp_path_factory.mktemp("base"), 32, 48), found)
    raw = json.loads((found / "config.json").read_text()) | {"dtype": "bfloat16"}
    (found / "config.json").write_text(json.dumps(raw))
    (found / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    return found


@pytest.fixture(params=[None, LoraConfig(rank=2, alpha=4.0)], ids=["full", "lora"])
def run(request, seed_shards, base, tmp_path):
    """A run directory as `lpo train` leaves it in the midst of a stage: step 3 of 5."""
    directory, stage = tmp_path / "run", StageConfig(Sft(), AdamW(lr=1e-3), batch_rows=8, steps=5)
    source = ModelSource(path=str(base), lora=request.param)
    data = DataConfig(str(seed_shards["trimmed"]), str(seed_shards["trimmed"] / "tokenizer"))
    config = RunConfig(str(directory), data, source, {"sft": stage})
    mesh, model = make_mesh(config.mesh), hf.open_model(source)
    with jax.set_mesh(mesh):
        params, _ = load_params(config, model, mesh)
        checkpoints = Checkpoints(epath.Path(directory), config, -1)
        checkpoints.save(state.new_state(params, optimizer(stage.optim, 1, model)), Progress("sft", 3, 3, "key", to_dict(config)), {})
    checkpoints.close()
    (directory / "config.json").write_text(json.dumps(to_dict(config)))
    manifest = Manifest.load(seed_shards["trimmed"])
    (directory / "data.json").write_text(json.dumps(dataclasses.asdict(manifest)))
    (directory / "eval").mkdir()
    (directory / "eval" / "init.json").write_text(json.dumps({"metrics": {"margin": 0.25}, "pairs": []}))
    return directory, request.param is not None


def test_step_dtype_prompt_base_and_licences(run, tmp_path, capsys):
    directory, lora = run
    assert cli.main(["export", str(directory), str(tmp_path / "out"), "--data-license", "cc-by-4.0"]) == 0
    said, own = capsys.readouterr().out, "float32" if lora else "bfloat16"
    assert f"step 3 (stage sft, step 3) of {directory}, as {own}" in said
    front, card = (tmp_path / "out" / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    facts = yaml.safe_load(front)
    assert (facts["base_model"], facts["license"]) == ("Org/Base-1B", "apache-2.0")
    assert (facts["library_name"], facts["base_model_relation"]) == (("peft", "adapter") if lora else ("transformers", "finetune"))
    for text in (
        "step 3 (stage sft, step 3)",
        f"as {own}",
        "the base: apache-2.0",
        "the data: cc-by-4.0",
        "0.250",
        "Trained with the template `alpaca`",
    ):
        assert text in card
    assert "### Instruction:\nWrite a function that ..." in card
    assert json.loads((tmp_path / "out" / "data.json").read_text()) == json.loads((directory / "data.json").read_text())
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    assert {str(x.dtype) for x in load_file(weights).values()} == {own}
    if lora:
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "Org/Base-1B"


def test_another_dtype_is_what_rounding_gives(run, tmp_path):
    directory, lora = run
    kinds = ("float32", "bfloat16", "float16")
    for kind in kinds:
        assert cli.main(["export", str(directory), str(tmp_path / kind), "--dtype", kind, *(["--merge"] if lora else [])]) == 0
        assert json.loads((tmp_path / kind / "config.json").read_text())["dtype"] == kind
    whole, brain, half = (load_file(tmp_path / kind / "model.safetensors") for kind in kinds)
    for name, exact in whole.items():
        np.testing.assert_array_equal(brain[name], exact.astype(ml_dtypes.bfloat16))
        np.testing.assert_array_equal(half[name], exact.astype(np.float16))


def test_relative_paths_count_from_where_the_run_was_trained(run, base, seed_shards, tmp_path, monkeypatch, capsys):
    """And are found from elsewhere, as long as the run's directory lies where it was."""
    home, (directory, lora) = tmp_path / "home", run
    shutil.copytree(base, home / "models/deep/base")
    shutil.copytree(seed_shards["trimmed"] / "tokenizer", home / "tok")
    shutil.move(directory, home / "runs/mine")
    raw = json.loads((home / "runs/mine/config.json").read_text())
    raw["run_dir"], raw["model"]["path"], raw["data"]["tokenizer"] = "runs/mine", "models/deep/base", "tok"
    (home / "runs/mine/config.json").write_text(json.dumps(raw))
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert cli.main(["export", "../runs/mine", "out"]) == 0
    if lora:
        assert json.loads((home / "elsewhere/out/adapter_config.json").read_text())["base_model_name_or_path"] == "../models/deep/base"
    shutil.move(home / "runs/mine", home / "elsewhere/moved")
    capsys.readouterr()
    assert cli.main(["export", "moved", "again"]) == 2
    where = f"in {home}/elsewhere: call this where the run was trained, from where its paths count"
    assert f"lpo: error: moved needs models/deep/base (its model.path), which isn't {where}\n" in capsys.readouterr().err


def test_only_its_own_files_go_to_the_hub(run, tmp_path, capsys, monkeypatch):
    sent = {}

    def push(directory, name, kind, message, files, private):
        sent.update(name=name, kind=kind, message=message, private=private)
        sent["files"] = {file.name for pattern in files for file in directory.glob(pattern)}
        return "there"

    monkeypatch.setattr("foundation.hub.push", push)
    directory, lora = run
    assert cli.main(["export", str(directory), "--push", "me/mine", "--private", "--base", "Other/Base"]) == 0
    assert sent.pop("files") == {
        "README.md", "data.json", "prompt_template.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        *(("adapter_model.safetensors", "adapter_config.json") if lora else ("model.safetensors", "config.json")),
    }  # fmt: skip
    assert sent == {"name": "me/mine", "kind": "model", "message": "lpo export: step 3 (stage sft, step 3)", "private": True}
    assert capsys.readouterr().out.startswith("there: step 3")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "say where to: a directory, or --push OWNER/NAME"),
        (["DIR", "--private"], "give --push OWNER/NAME too"),
        (["--push", "mine"], "'mine' is no name on the hub: write OWNER/NAME"),
        (["DIR", "--base", "/models/base"], "'/models/base' is no name on the hub"),
    ],
)
def test_what_cannot_be_meant_is_said_at_once(more, message, tmp_path, capsys):
    words = [str(tmp_path / "out") if word == "DIR" else word for word in more]
    assert cli.main(["export", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
