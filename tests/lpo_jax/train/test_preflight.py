"""What is known of a run before it begins: rows against the mesh, intervals against the stages, data against model and objective."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.shards import Manifest
from data_pipeline.tokenizer import train
from lpo_jax.config import load
from lpo_jax.train import preflight
from tests.helpers.launch import MANIFEST
from tests.helpers.paths import REPO

RUN = load(REPO / "configs/tiny_cpu.yaml")
FOUND = Manifest(**MANIFEST)


def with_rows(rows):
    return dataclasses.replace(FOUND, splits=FOUND.splits | {"train": FOUND.splits["train"] | {"rows": rows}})


def run(*overrides):
    return load(REPO / "configs/tiny_cpu.yaml", overrides)


@given(*(st.integers(1, 12) for _ in range(5)))
def test_a_remedy_for_rows_is_one(pieces, microbatch, data, fsdp, eval_rows):
    """What an error advises passes the check."""
    words = [f"mesh={{data: {data}, fsdp: {fsdp}, tensor: 2}}", f"eval_rows={eval_rows}", "stages.sft.batch_rows=1440"]
    words += [f"stages.lpo.batch_rows={pieces * microbatch}", f"stages.lpo.accumulate={pieces}"]
    errors = preflight.check(run(*words), 2 * data * fsdp, {}, None).errors
    fits = {"stages.lpo.batch_rows": microbatch % (data * fsdp) == 0, "eval_rows": eval_rows % (data * fsdp) == 0}
    fits["stages.sft.batch_rows"] = 1440 % (data * fsdp) == 0
    assert {error.split()[0] for error in errors} == {key for key, ok in fits.items() if not ok}
    advice = [error.rpartition("e.g. ")[2] for error in errors]
    assert preflight.check(run(*words, *advice), 2 * data * fsdp, {}, None).errors == []


@given(st.integers(1, 400), st.integers(1, 4), st.floats(0.1, 3), st.integers(0, 60), st.integers(1, 60))
def test_intervals_are_told_exactly_where_the_loop_passes_none(rows, batch, epochs, evaluate, save):
    words = [f"stages.lpo.batch_rows={batch}", f"stages.lpo.epochs={epochs}", "stages.sft.steps=1000", "stages.sft.epochs=null"]
    config = run(*words, f"eval_every_steps={evaluate}", f"checkpoint_every_steps={save}")
    told = preflight.check(config, 1, {RUN.data.path: with_rows(rows)}, None).warnings
    steps = max(1, math.ceil(epochs * rows / batch))
    for key, every in (("eval_every_steps", evaluate), ("checkpoint_every_steps", save)):
        passed = [step for step in range(1, steps) if every and step % every == 0]
        lines = [line for line in told if line.startswith(f"{key} is {every}: ")]
        assert len(lines) == (every > 0 and steps > 1 and not passed)
        if lines:
            assert f"stage lpo ({steps} steps); e.g. {key}=" in lines[0] and "sft" not in lines[0]
            better = int(lines[0].rpartition(f"e.g. {key}=")[2].partition(",")[0])
            assert 0 < better < steps


def test_the_reported_run_is_told():
    """3,000 pairs, 17 steps: neither the evaluation every 50 nor the checkpoint every 100 ever happened."""
    config = run("stages.lpo.epochs=1", "eval_every_steps=50", "checkpoint_every_steps=100", "log_every_steps=20")
    told = preflight.check(config, 1, {RUN.data.path: with_rows(17)}, None).warnings
    assert told == [
        "eval_every_steps is 50: held-out metrics are taken only before and after stage lpo (17 steps); e.g. eval_every_steps=4, or 0 if that is meant",
        "checkpoint_every_steps is 100: nothing is saved before the end of stage lpo (17 steps); e.g. checkpoint_every_steps=4",
        "log_every_steps is 20: metrics.jsonl has no line of stage lpo (17 steps); e.g. log_every_steps=1",
    ]
    assert preflight.check(config, 1, {}, None).warnings == []  # how long the stages are isn't known


def test_a_trace_of_steps_that_never_come_is_told():
    """92 rows: 17 and 18 steps."""
    asked = [
        run(f"profile.start={start}", "stages.sft.epochs=null", "stages.sft.steps=17", "stages.lpo.epochs=null", "stages.lpo.steps=18")
        for start in (35, 36)
    ]
    told = [preflight.check(config, 1, {}, None).warnings for config in asked]
    late = "profile.start is 36: the run has 35 steps, and no trace is written; e.g. profile.start=10"
    assert late not in told[0] and late in told[1]


def test_a_rank_above_a_matrix_is_told():
    shape = dataclasses.replace(RUN.model.new, n_kv_heads=1)
    told = {}
    for rank in (shape.head_dim, shape.head_dim + 1):
        config = run(f"model.lora={{rank: {rank}, alpha: 4, targets: 'blocks.(q|k)'}}", "model.new.n_kv_heads=1")
        told[rank] = [line for line in preflight.check(config, 1, {}, shape).warnings if line.startswith("model.lora.rank")]
    assert told[shape.head_dim] == []
    (line,) = told[shape.head_dim + 1]
    assert f"is {shape.head_dim + 1}, more than the smaller side of blocks.k ({shape.head_dim}): " in line


def test_the_shipped_default_has_nothing_to_be_told():
    assert preflight.check(RUN, 1, {RUN.data.path: with_rows(92)}, RUN.model.new) == preflight.Findings()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plain": 3}, "stages.lpo on runs/tiny_cpu_data: objective lpo learns from what differs"),
        ({"longest_path": 1025}, "the model was made for 1024 tokens: build the shards with --row-tokens 1024"),
        ({"vocab_size": 1025}, "tokenizer has 1025 entries, the model's vocabulary 1024"),
    ],
)
def test_data_that_a_run_would_refuse(change, said):
    errors = preflight.check(RUN, 1, {RUN.data.path: dataclasses.replace(FOUND, **change)}, RUN.model.new).errors
    assert errors and said in errors[0]


def test_what_lies_here_is_looked_at(tmp_path):
    train(["a tokenizer of our own"] * 9, 300).save(tmp_path / "tokenizer")
    for name, text in (("damaged", "{"), ("whole", json.dumps(MANIFEST))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    words = [f"data.tokenizer={tmp_path}/tokenizer", f"stages.sft.data=[{{path: {tmp_path}/damaged}}]"]
    found = preflight.look(run(*words, f"data.path={tmp_path}/whole"), 1)
    assert [part in error for part, error in zip(("damaged JSON", "another tokenizer than"), found.errors, strict=True)] == [True, True]
    copied = preflight.look(run("data.path=elsewhere", *words[:1]), 1, {"elsewhere": tmp_path / "whole"})
    assert len(copied.errors) == 1 and copied.errors[0].startswith("elsewhere was built with another tokenizer")
