"""Configs: overrides, errors that name the nearest key, and every shipped file."""

from functools import reduce
from pathlib import Path

import pytest
import yaml

from lpo_jax import config
from lpo_jax.config import ConfigError, RunConfig
from tests.helpers.paths import REPO, TINY


def test_overrides_and_types():
    run = config.load(TINY, ["stages.lpo.optim.lr=1e-5", "run_dir=/x", "mesh.fsdp=2", "stages.sft.epochs=null", "stages.sft.steps=3"])
    assert run.stages["lpo"].optim.lr == 1e-5
    assert (run.run_dir, run.mesh.fsdp, run.stages["sft"].epochs, run.stages["sft"].steps) == ("/x", 2, None, 3)
    assert config.from_dict(RunConfig, config.to_dict(run)) == run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.lpo.optim.learning_rate=1", "unknown key stages.lpo.optim.learning_rate: valid keys: b1, b2"),
        ("stages.lpo.optim.warmup_ration=1", "unknown key stages.lpo.optim.warmup_ration: did you mean 'warmup_ratio'?"),
        ("mash.data=1", "unknown key mash: did you mean 'mesh'?"),
        ("stages.lpo.objective.mode=cleen", "unknown value stages.lpo.objective.mode=cleen: did you mean 'clean'?"),
        ("stages.lpo.objective.beta=null", "objective lpo: set beta"),
        ("seed=ten", "seed: expected int, not 'ten'"),
        ("seed=1.5", "seed: expected int, not 1.5"),
        ("mesh.data=true", "mesh.data: expected int, not True"),
        ("run_dir.sub=1", "override 'run_dir.sub=1': run_dir has no sub-keys"),
        ("stages.lpo.optim.lr=[1", r"override stages.lpo.optim.lr: '\[1' isn't valid YAML"),
        ("seed", "write key.sub=value"),
        ("stages.lpo.accumulate=3", "batch_rows .* must be a multiple of accumulate"),
        ("stages.lpo.epochs=null", "set exactly one of epochs and steps"),
        ("stages.lpo.optim.lr=-1", "optim.lr=-1: it must be greater than 0"),
        ("model.new=null", "exactly one of model.path .* and model.new"),
        ("model.new.n_kv_heads=3", "n_heads .* must be a multiple of n_kv_heads"),
    ],
)
def test_errors_name_the_key(override, message):
    with pytest.raises(ConfigError, match=message):
        config.load(TINY, [override])


def test_an_override_takes_the_place_of_what_cannot_stand_beside_it():
    stage = config.load(TINY, ["stages.lpo.steps=3"]).stages["lpo"]
    assert (stage.steps, stage.epochs) == (3, None)
    model = config.load(TINY, ["model.path=x"]).model
    assert (model.path, model.new) == ("x", None)
    assert config.load(TINY, ["data.path=x", "stages.lpo.steps=null"]) == config.load(TINY, ["data.path=x"])
    with pytest.raises(ConfigError, match="override stages.lpo.steps=3.*override stages.lpo.epochs=1.*set exactly one"):
        config.load(TINY, ["stages.lpo.epochs=1", "stages.lpo.steps=3"])


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    given = ["model.lora={}", "seeed=3", "stages.sft.optim.name=adam"]
    with pytest.raises(ConfigError) as error:
        config.load(TINY, given)
    first, *rest = str(error.value).split("\n  ")
    assert first == "4 settings are wrong:"
    assert rest == [
        "override seeed=3: unknown key seeed: did you mean 'seed'?",
        "override model.lora={}: missing key model.lora.rank",
        "override model.lora={}: missing key model.lora.alpha",
        "override stages.sft.optim.name=adam: unknown value stages.sft.optim.name=adam: did you mean 'adamw'? valid values: adafactor, adamw, lion, muon, sgd",
    ]


def test_broken_files(tmp_path):
    with pytest.raises(ConfigError, match="no such config"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="expected a mapping"):
        config.load(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("run_dir: x")
    with pytest.raises(ConfigError, match="missing key data"):
        config.load(tmp_path / "c.yaml")


SHIPPED = sorted(path for path in (REPO / "configs").rglob("*.yaml") if path.parent.name != "reproduce")  # campaigns: tests/reproduce/


def entries(mapping, above=()):
    """Keys and values of nested mappings, level by level flattened."""
    for key, value in mapping.items():
        yield from entries(value, (*above, key)) if isinstance(value, dict) else [((*above, key), value)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_configs_load_and_say_only_what_is_special(path: Path):
    whole = config.to_dict(config.load(path))
    for keys, _ in entries(yaml.safe_load(path.read_text())):
        without, (*parents, last) = yaml.safe_load(path.read_text()), keys
        reduce(dict.__getitem__, parents, without).pop(last)
        try:
            same = config.to_dict(config.from_dict(RunConfig, without)) == whole
        except ConfigError:
            continue  # a key without a default
        assert not same, f"{path}: {'.'.join(keys)} stands at its default"


def test_shipped_configs_are_short():
    assert sum(len(list(entries(yaml.safe_load(path.read_text())))) for path in SHIPPED) < 23 * len(SHIPPED)
