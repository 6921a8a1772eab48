"""What `lpo plan` says of a run is what the run does: its steps, its tokens, and what its checkpoints hold."""

import json
import math

import jax
import orbax.checkpoint as ocp
import pytest

from data_pipeline.build import BuildOptions, build
from lpo_jax import cli
from lpo_jax.plan import abstract
from lpo_jax.train import step_log
from tests.helpers.marks import needs_libtpu
from tests.helpers.training import read_log, tiny_args

WHOLE_EPOCHS = ["stages.sft.steps=null", "stages.sft.epochs=8", "stages.lpo.steps=null", "stages.lpo.epochs=8"]  # of 8 rows a step
ADAPTERS = ["model.lora.rank=2", "model.lora.alpha=4", "model.param_dtype=bfloat16"]
OPTIMIZERS = ["stages.sft.optim={name: adafactor, lr: 1.0e-3}", "stages.lpo.optim={name: lion, lr: 1.0e-4, moments: bfloat16}"]


@pytest.fixture
def few_rows(seed_shards, tmp_path):
    """A dozen pairs, two or so in a row."""
    lines = (seed_shards["trimmed"].parent / "pairs.jsonl").read_text().splitlines()[:12]
    (tmp_path / "few.jsonl").write_text("\n".join(lines))
    build([tmp_path / "few.jsonl"], tmp_path / "few", str(seed_shards["trimmed"] / "tokenizer"), BuildOptions(row_tokens=768, heldout=0.2))
    return tmp_path / "few"


@needs_libtpu
@pytest.mark.parametrize("more", [OPTIMIZERS, pytest.param(ADAPTERS, marks=pytest.mark.slow)], ids=["optimizers", "adapters"])
def test_a_real_run_takes_the_steps_tokens_and_bytes_that_were_planned(few_rows, tmp_path, monkeypatch, more):
    args = tiny_args(few_rows, tmp_path / "run", *WHOLE_EPOCHS, *more, "eval_every_steps=0", "checkpoint_every_steps=1000")

    def unasked(*_):  # what the compiler says of memory and speed is no matter here
        raise jax.errors.JaxRuntimeError("INTERNAL: not compiled")

    monkeypatch.setattr(abstract, "compile_step", unasked)
    plan = ["plan", *args[1:], "mesh.topology=v5e:2x4", "--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "plan.json")]
    assert cli.main(plan) == 1
    planned = json.loads((tmp_path / "plan.json").read_text())["stages"]

    tokens, means = [], step_log.means
    monkeypatch.setattr(step_log, "means", lambda terms: tokens.append(means(terms)["tokens"]) or means(terms))
    assert cli.main(args) == 0

    lines = [line for line in read_log(tmp_path / "run") if line["group"] == "train"]
    total = 0
    for name, facts in planned.items():
        mine = [at for at, line in enumerate(lines) if line["stage"] == name]
        assert len(mine) == facts["steps"]
        assert sum(int(tokens[at]) for at in mine) == facts["tokens"]
        total += len(mine)
        arrays = ocp.StandardCheckpointer().metadata(tmp_path / "run" / "checkpoints" / f"step_{total}" / "state").item_metadata.tree
        assert sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(arrays)) == facts["checkpoint"]
    assert len(lines) == len(tokens) == total
