"""Runs of the phases kd and security through the command line: plain rows, a teacher beside the student or computed before, resume."""

import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import pairs
from data_pipeline.build import BuildOptions, build
from data_pipeline.feed import Feed
from lpo_jax import cli, config
from lpo_jax.config import ConfigError, ModelConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.plan import abstract, chips, flops
from lpo_jax.plan.rows import PlannedRows
from lpo_jax.sharding import make_mesh
from lpo_jax.train import per_token, stop, teacher
from lpo_jax.train.step import Teacher
from tests.helpers.paths import REPO, SEED_PAIRS
from tests.helpers.training import load, tiny_args

TEACHER = Model(ModelConfig("llama", 520, 48, 1, 2, 1, 24, 64, 384))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Plain rows as a shard set, and a teacher with a larger vocabulary that begins with theirs."""
    out = tmp_path_factory.mktemp("plain")
    rows = [pair for pair in pairs.read(SEED_PAIRS, pairs.Drops()) if len(pair.chosen) < 700]
    lines = [json.dumps({"instruction": " ".join(p.instruction.split()[:5]), "output": p.chosen}) for p in rows]
    (out / "rows.jsonl").write_text("\n".join(lines))
    build([out / "rows.jsonl"], out / "shards", None, BuildOptions(row_tokens=256, heldout=0.1), vocab_size=512)
    params = jax.jit(TEACHER.init)(jax.random.key(3))
    hf.write_params(out / "teacher", TEACHER, jax.tree.map(lambda x: 4 * x, params))
    for file in (out / "shards" / "tokenizer").iterdir():
        shutil.copy(file, out / "teacher")
    return out


def kd_args(plain, run_dir, *more):
    """A short run of one kd stage; the same for `lpo teacher` behind the first word."""
    kept = [a for a in tiny_args(plain / "shards", run_dir) if not a.startswith("stages.")]
    stage = {
        "objective": {"name": "kd", "kl": {"direction": "reverse", "weight": 0.5, "teacher": str(plain / "teacher")}},
        "optim": {"lr": 1e-2},
        "batch_rows": 8,
        "steps": 4,
    }
    return [*kept, f"stages={json.dumps({'kd': stage})}", "best_metric=unchanged_nll", *more]


def losses(run_dir):
    return [line["loss"] for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()) if line["group"] == "train"]


@pytest.fixture(scope="module")
def straight(plain, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert cli.main(kd_args(plain, run)) == 0
    return run


def test_kd_learns_from_plain_rows_and_reports(straight):
    assert losses(straight)[-1] < losses(straight)[0]
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["kd"]["unchanged_nll"] < summary["init"]["unchanged_nll"]
    assert "pair_accuracy" not in summary["kd"]  # nothing to compare
    page = (straight / "report.html").read_text()
    assert "distillation from a teacher" in page and "Divergence" in page


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_teacher(plain, straight, tmp_path, monkeypatch):
    args = kd_args(plain, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(stop.StopRequest, "reached", lambda self, step: step == 2)
        assert cli.main(args) == stop.EXIT_CODE
    assert cli.main(args) == 0
    assert losses(tmp_path / "run") == losses(straight)


@pytest.mark.slow
def test_computed_before_is_the_same_and_can_be_resumed(plain, straight, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(per_token, "BLOCK_ROWS", 12)  # eval_rows is 8: a file isn't a whole number of batches
    args = kd_args(plain, tmp_path / "run")
    write = ["teacher", *args[1:], "-o", str(tmp_path / "top"), "--top-k", "512"]
    assert cli.main(write) == 0
    files = sorted((tmp_path / "top").glob("*.safetensors"))
    assert len(files) > 2
    first, second = (file.read_bytes() for file in files[:2])
    files[1].unlink()
    args.append(f"stages.kd.objective.kl.teacher={tmp_path / 'top'}")
    assert cli.main(args) == 2
    assert f"is unfinished: 1 of {len(files)} files are missing or damaged" in capsys.readouterr().err
    untouched = files[0].stat().st_mtime_ns
    assert cli.main(write) == 0
    assert (files[0].read_bytes(), files[1].read_bytes(), files[0].stat().st_mtime_ns) == (first, second, untouched)
    assert cli.main(args) == 0
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(straight), rtol=1e-5)

    assert cli.main([*write, "--top-k", "9"]) == 2
    assert "what another job computed (other top_k)" in capsys.readouterr().err
    facts = json.loads((tmp_path / "top" / "teacher.json").read_text())
    (tmp_path / "top" / "teacher.json").write_text(json.dumps(facts | {"shards": "others"}))
    assert cli.main(args) == 2
    assert "was computed of other shards" in capsys.readouterr().err
    assert cli.main([*args, "stages.kd.objective.score_prompt=true"]) == 2
    assert "build them with `lpo-data build --score-prompt`" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(plain, seed_shards, tmp_path, capsys):
    def refused(*args):
        assert cli.main(list(args)) == 2
        return capsys.readouterr().err

    args = kd_args(plain, tmp_path / "run")
    key = "stages.kd.objective"
    assert "rows of these shards are plain" in refused(*tiny_args(plain / "shards", tmp_path / "run"))
    assert "set model.lora" in refused(*args, f"{key}.name=security")
    assert f"{key}.kl.teacher: no config.json of nowhere" in refused(*args, f"{key}.kl.teacher=nowhere")
    assert "--top-k must lie between 1 and" in refused("teacher", *args[1:], "-o", str(tmp_path / "top"), "--top-k", "513")
    small = tmp_path / "small"
    model = Model(ModelConfig("llama", 500, 16, 1, 2, 1, 8, 16, 384))
    hf.write_params(small, model, jax.jit(model.init)(jax.random.key(0)))
    assert "knows 500 tokens, the shards' tokenizer has 512" in refused(*args, f"{key}.kl.teacher={small}")
    for file in (seed_shards["trimmed"] / "tokenizer").iterdir():
        shutil.copy(file, small)
    assert "a teacher shares the student's tokenizer" in refused(*args, f"{key}.kl.teacher={small}")
    sft = config.load(REPO / "configs" / "tiny_cpu.yaml")
    with pytest.raises(ConfigError, match="a stage of objective kd whose kl.teacher is a model"):
        teacher.write(sft, "sft", Feed(plain / "shards"), tmp_path / "top", 3)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_plans_count_the_teacher(plain, tmp_path):
    """The step that would run on a TPU: the teacher lies among its arguments, and its products are counted once."""
    run = load(kd_args(plain, tmp_path / "run", "mesh.topology=v5e:2x4"))
    mesh, row = make_mesh(run.mesh, chips.topology_devices("v5e:2x4")), PlannedRows.assumed(run.plan)
    model, stage, taught = hf.open_model(run.model, planned=True), run.stages["kd"], teacher.open_teacher(run, "kd", None)
    assert taught == Teacher(512, 0, TEACHER)
    arguments = abstract.arguments(model, stage, row, mesh, taught)
    assert jax.tree.map(lambda x: x.shape, arguments[1]["teacher"]) == jax.tree.map(lambda x: x.shape, TEACHER.shapes())

    def executed(teacher):
        return flops.count(abstract.trace_step(model, stage, row, mesh, teacher).jaxpr.jaxpr).executed

    c, tokens = TEACHER.config, 8 * row.tokens
    matrices = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.d_model * c.d_mlp
    head = 2 * 8 * row.scored * c.d_model * 512
    more = executed(taught) - executed(Teacher(512, 4))
    attention = 4 * tokens * row.tokens * c.n_heads * c.head_dim  # at most
    # The head runs over whole chunks, and once more for the backward pass.
    assert 2 * tokens * matrices + head < more < 2 * tokens * matrices + attention + 2 * head * 1.1


@pytest.mark.slow
def test_security_run_by_the_command(seed_shards, tmp_path):
    args = [a for a in tiny_args(seed_shards["trimmed"], tmp_path / "run") if not a.startswith("stages.")]
    stage = {
        "objective": {"name": "security", "kl": {"direction": "forward", "weight": 1.0}},
        "optim": {"lr": 1e-2},
        "batch_rows": 8,
        "steps": 6,
    }
    assert cli.main([*args, f"stages={json.dumps({'security': stage})}", "model.lora.rank=4", "model.lora.alpha=8"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["security"]["changed_nll"] < summary["init"]["changed_nll"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["group"] == "train"]
    assert train[0]["kl"] == pytest.approx(0, abs=1e-6) and train[0]["loss"] == pytest.approx(train[0]["ce"])
    assert jnp.isfinite(jnp.array([line["loss"] for line in train])).all()
