"""A stage's own data: what is refused before the first step, and whole runs of sft on a mixture, then lpo on pairs."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest

from data_pipeline.build import BuildOptions, build
from data_pipeline.feed import Feed
from data_pipeline.shards import Manifest
from lpo_jax import cli
from lpo_jax.config import ConfigError
from lpo_jax.model import hf
from lpo_jax.sharding import make_mesh
from lpo_jax.train import stop
from lpo_jax.train.data import check_fit, data_key, open_data
from tests.helpers.training import load, read_log, tiny_args


def mixture(stage, *sets):
    return f"stages.{stage}.data={json.dumps([{'path': str(path), **({} if weight is None else {'weight': weight})} for path, weight in sets])}"


def check(run):
    """What `train` does before it makes the run's directory."""
    data, feeds, _ = open_data(run)
    check_fit(run, data, feeds, hf.open_model(run.model), make_mesh(run.mesh))
    return data, feeds


@pytest.fixture(scope="module")
def odd(seed_shards, tmp_path_factory):
    """Sets that can't be used, of one plain row: `other` has another tokenizer, `long` longer sequences, `empty` no train split."""
    out, mine = tmp_path_factory.mktemp("odd"), str(seed_shards["trimmed"] / "tokenizer")
    (out / "few.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (out / "long.jsonl").write_text(json.dumps({"instruction": "a", "output": "word = 1\n" * 400}))
    build([out / "few.jsonl"], out / "other", None, BuildOptions(row_tokens=256), vocab_size=300)
    build([out / "few.jsonl"], out / "empty", mine, BuildOptions(row_tokens=256, heldout=1.0))
    build([out / "few.jsonl"], out / "asked", mine, BuildOptions(row_tokens=256, heldout=0.0, template="plain"))
    build([out / "long.jsonl"], out / "long", mine, BuildOptions(row_tokens=8192, heldout=0.0))
    shutil.copytree(out / "asked", out / "damaged")
    shard = next((out / "damaged").glob("train*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-3])
    return out


def test_plain_rows_are_refused_only_where_a_stage_reads_them(seed_shards, plain_shards, tmp_path):
    pairs, key = seed_shards["trimmed"], "stages.lpo.objective"
    check(load(tiny_args(pairs, tmp_path, mixture("sft", (pairs, 1), (plain_shards, 3)))))
    check(load(tiny_args(plain_shards, tmp_path, mixture("lpo", (pairs, None)))))  # the run's own data serve sft alone
    with pytest.raises(ConfigError, match=rf"^stages\.lpo on {plain_shards}: objective lpo learns from what differs"):
        check(load(tiny_args(pairs, tmp_path, mixture("lpo", (pairs, 1), (plain_shards, 3)))))
    with pytest.raises(ConfigError, match=rf"^stages\.lpo on {pairs}: objective simpo scores whole rejected answers.*--untrimmed"):
        check(load(tiny_args(seed_shards["untrimmed"], tmp_path, f"{key}.name=simpo", f"{key}.alpha=null", mixture("lpo", (pairs, None)))))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "stages.sft.data: {}/manifest.json: no such file; build the set"),
        ("damaged", "damaged shard"),
        ("other", "stages.sft.data: {} was built with another tokenizer than"),
        ("long", "stages.sft on {}: the set holds sequences of"),
        ("empty", "stages.sft on {}: the train split is empty; build the set with a smaller --heldout"),
    ],
)
def test_sets_that_can_not_be_used_are_named_with_their_stage(seed_shards, odd, tmp_path, name, message):
    pairs = seed_shards["trimmed"]
    with pytest.raises(ValueError, match=r"^stages\.sft") as error:
        check(load(tiny_args(pairs, tmp_path, mixture("sft", (pairs, 1), (odd / name, 1)))))
    assert message.format(odd / name) in str(error.value) and str(odd / name) in str(error.value)


def test_another_template_is_a_warning(seed_shards, plain_shards, odd, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "lpo_jax")
    pairs = seed_shards["trimmed"]
    check(load(tiny_args(pairs, tmp_path, mixture("sft", (pairs, None), (plain_shards, None)))))  # the same, but nothing to think about
    assert not caplog.records
    check(load(tiny_args(pairs, tmp_path, mixture("sft", (pairs, 1), (odd / "asked", 1)))))
    assert [record.getMessage() for record in caplog.records] == [
        f"stages.sft.data: {odd / 'asked'} was built with template plain, {pairs} with alpaca: the model will be asked in the latter"
    ]


def test_the_key_of_the_data_is_what_is_read(seed_shards, plain_shards, tmp_path):
    """Of one set it is what it always was, so that old runs go on; a stage's sets and weights change it, where they lie doesn't."""
    pairs = seed_shards["trimmed"]

    def key(*more):
        run = load(tiny_args(pairs, tmp_path, *more))
        data, feeds, _ = open_data(run)
        return data_key(run, data, feeds)

    moved = shutil.copytree(plain_shards, tmp_path / "moved")
    assert key() == Manifest.load(pairs).build_key
    both = key(mixture("sft", (pairs, 1), (plain_shards, 3)))
    assert both == key(mixture("sft", (pairs, 1), (moved, 3)))
    others = [
        [mixture("sft", (pairs, 1), (plain_shards, 2))],
        [mixture("sft", (pairs, None), (plain_shards, None))],
        [mixture("sft", (plain_shards, 1), (pairs, 3))],
        [mixture("sft", (plain_shards, None))],
        [mixture("lpo", (plain_shards, None))],
    ]
    assert len({key(), both, *(key(*more) for more in others)}) == 7


def args_of(seed_shards, plain_shards, run):
    """Sft on a quarter pairs and the rest plain rows; then lpo on the run's pairs."""
    sets = mixture("sft", (seed_shards["trimmed"], 1), (plain_shards, 3))
    return tiny_args(seed_shards["trimmed"], run, sets, "stages.sft.steps=6", "stages.lpo.steps=4")


def final_params(run_dir):
    from lpo_jax.train.weights import open_run, restore_params

    return restore_params(run_dir, open_run(run_dir))[1]


@pytest.fixture(scope="module")
def straight(seed_shards, plain_shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert cli.main(args_of(seed_shards, plain_shards, run)) == 0
    return run


@pytest.mark.slow
def test_sft_on_a_mixture_then_lpo_on_pairs(seed_shards, plain_shards, straight, tmp_path, capsys):
    pairs = seed_shards["trimmed"]
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["sft"]["unchanged_nll"] < summary["init"]["unchanged_nll"]
    assert "pair_accuracy" in summary["lpo"]  # held-out pairs are the run's
    page = (straight / "report.html").read_text()
    assert re.search(
        rf"\(sft\) on {pairs} \(0.25 of the rows\) and {plain_shards} \(0.75 of the rows\), then stage “lpo” by .*\(lpo, mode clean\)\. ",
        page,
    )
    assert f"Held-out pairs are those of {pairs}." in page
    assert Manifest.read(straight / "data_sft_1.json") == Manifest.load(plain_shards)
    assert Manifest.read(straight / "data.json") == Manifest.load(pairs)

    assert cli.main(["export", str(straight), str(tmp_path / "hf")]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"### Stage sft: {plain_shards}" in card and "rows.jsonl" in card and "pairs.jsonl" in card
    (straight / "data_sft_1.json").rename(tmp_path / "aside.json")
    capsys.readouterr()
    assert cli.main(["export", str(straight), str(tmp_path / "hf")]) == 2
    assert "data_sft_1.json" in capsys.readouterr().err
    (tmp_path / "aside.json").rename(straight / "data_sft_1.json")


@pytest.mark.slow
def test_a_stopped_mixture_goes_on_bit_equal_and_only_with_its_data(seed_shards, plain_shards, straight, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    args = args_of(seed_shards, plain_shards, run)
    with monkeypatch.context() as patched:
        patched.setattr(stop.StopRequest, "reached", lambda self, step: step == 4)
        assert cli.main(args) == stop.EXIT_CODE
    capsys.readouterr()
    other = mixture("sft", (seed_shards["trimmed"], 1), (plain_shards, 2))
    assert cli.main([*args, other]) == 2
    assert f"were trained on other data than {seed_shards['trimmed']} and {plain_shards} hold now" in capsys.readouterr().err
    moved = shutil.copytree(plain_shards, tmp_path / "moved")
    assert cli.main([*args, mixture("sft", (seed_shards["trimmed"], 1), (moved, 3))]) == 0
    jax.tree.map(np.testing.assert_array_equal, final_params(run), final_params(straight))
    assert read_log(run) == read_log(straight)


@pytest.mark.slow
def test_a_stage_is_trained_on_its_own_set_as_if_it_were_the_runs(seed_shards, plain_shards, tmp_path):
    def trained(name, shards, own):
        kept = [a for a in tiny_args(shards, tmp_path / name) if not a.startswith("stages.")]
        stage = {"objective": {"name": "sft"}, "optim": {"lr": 1e-2}, "batch_rows": 8, "epochs": 0.2, "data": own}
        assert cli.main([*kept, f"stages={json.dumps({'sft': stage})}"]) == 0
        return [line for line in read_log(tmp_path / name) if line["group"] == "train"]

    expected = trained("runs", plain_shards, None)
    assert trained("own", seed_shards["trimmed"], [{"path": str(plain_shards)}]) == expected
    assert len(expected) > 1


@pytest.mark.slow
def test_a_teacher_computed_before_belongs_to_all_rows_of_a_mixture(seed_shards, plain_shards, tmp_path, capsys):
    pairs, teacher = seed_shards["trimmed"], tmp_path / "teacher"
    model = hf.open_model(load(tiny_args(pairs, tmp_path)).model)
    hf.write_params(teacher, model, jax.jit(model.init)(jax.random.key(3)))
    for file in (pairs / "tokenizer").iterdir():
        shutil.copy(file, teacher)
    kept = [a for a in tiny_args(pairs, tmp_path / "run") if not a.startswith("stages.")]
    stage = {
        "objective": {"name": "kd", "kl": {"direction": "reverse", "weight": 0.5, "teacher": str(teacher)}},
        "optim": {"lr": 1e-2},
        "batch_rows": 8,
        "steps": 3,
        "data": [{"path": str(pairs), "weight": 1}, {"path": str(plain_shards), "weight": 1}],
    }
    args = [*kept, f"stages={json.dumps({'kd': stage})}"]
    assert cli.main(args) == 0
    assert cli.main(["teacher", *args[1:], "-o", str(tmp_path / "top"), "--top-k", "512"]) == 0
    assert json.loads((tmp_path / "top" / "teacher.json").read_text())["rows"] == Feed(pairs, plain_shards).rows("train")
    before = [*args, f"stages.kd.objective.kl.teacher={tmp_path / 'top'}", f"run_dir={tmp_path / 'before'}"]
    assert cli.main(before) == 0
    found, expected = ([line["loss"] for line in read_log(tmp_path / d) if line["group"] == "train"] for d in ("before", "run"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    capsys.readouterr()
    assert cli.main([*before, "stages.kd.data=null", f"run_dir={tmp_path / 'alone'}"]) == 2
    assert "was computed of other shards than the stage is trained on" in capsys.readouterr().err
