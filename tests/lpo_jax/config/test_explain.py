"""`lpo config`: what it prints is a config, and says what every key means."""

import dataclasses
from pathlib import Path

import pytest

import lpo_jax
from lpo_jax import cli, config
from lpo_jax.config import OPTIMIZERS, OptimOptions, explain
from lpo_jax.config.explain import texts
from lpo_jax.objectives import OBJECTIVES, KlConfig

CONFIGS = Path(lpo_jax.__file__).parents[1] / "configs"
SCHEMA = [cls for cls in vars(config).values() if dataclasses.is_dataclass(cls)]


@pytest.mark.parametrize("name", ["tiny_cpu.yaml", "phi2.yaml", "cosec_plus/codegen_kd.yaml", "pods/codellama_70b_v5e_16x16.yaml"])
def test_what_it_prints_loads_to_the_same(name, tmp_path, capsys):
    overrides = ["run_dir=1.0e5:x", "seed=7", "eval_rows=3", 'data.path="1e5"', "data.tokenizer='null'"]
    assert cli.main(["config", str(CONFIGS / name), *overrides[1:]]) == 0
    (tmp_path / "whole.yaml").write_text(capsys.readouterr().out)
    assert config.load(tmp_path / "whole.yaml") == config.load(CONFIGS / name, overrides[1:])
    (tmp_path / "whole.yaml").write_text(explain(config.load(CONFIGS / name, overrides)))
    assert config.load(tmp_path / "whole.yaml") == config.load(CONFIGS / name, overrides)


def test_stages_of_any_name_are_printed_so_that_they_load(tmp_path):
    run = config.load(CONFIGS / "tiny_cpu.yaml")
    run = dataclasses.replace(run, stages={"1e5": run.stages["sft"], "0x1F": run.stages["lpo"], "on": run.stages["lpo"]})
    (tmp_path / "whole.yaml").write_text(explain(run))
    assert config.load(tmp_path / "whole.yaml") == run


def test_a_stages_sets_are_printed_so_that_they_load(tmp_path):
    """Each with the keys in two columns, as everywhere."""
    run = config.load(CONFIGS / "tiny_cpu.yaml", ["stages.sft.data=[{path: 'null', weight: 1}, {path: b, weight: 3}]"])
    (tmp_path / "whole.yaml").write_text(explain(run))
    assert config.load(tmp_path / "whole.yaml") == run
    lines = explain(run).splitlines()
    assert (
        "      - path: 'null'                      # its directory" in lines
        and "      - path: b                           # its directory" in lines
    )
    assert any(line.startswith("        weight: 3.0                       # its share") for line in lines)


@pytest.mark.parametrize("cls", [*SCHEMA, KlConfig, *(record.options for record in OBJECTIVES.values())], ids=lambda cls: cls.__name__)
def test_every_key_has_an_explanation(cls):
    named = [record.options for record in OBJECTIVES.values()], (OptimOptions, *OPTIMIZERS.values())
    told = {"name": "said by `explain`"} if any(cls in kinds for kinds in named) else {}
    assert [field.name for field in dataclasses.fields(cls) if not (told | texts(cls)).get(field.name)] == []


def test_it_says_choices_defaults_and_what_an_objective_is():
    lines = explain(config.load(CONFIGS / "tiny_cpu.yaml", ["seed=7"])).splitlines()
    assert "seed: 7                                   # of weights, the order of rows and dropout (default: 42)" in lines
    assert "      name: lpo                           # localized preference optimization" in lines
    assert "      name: adamw                         # one of adamw, adafactor, lion, muon, sgd" in lines
    assert any(line.startswith("    positions: rope ") and line.endswith("[rope | learned]") for line in lines)
    assert max(map(len, lines)) <= 120


def test_wrong_settings_are_one_line_on_stderr(capsys):
    assert cli.main(["config", str(CONFIGS / "tiny_cpu.yaml"), "sead=1"]) == 2
    assert capsys.readouterr() == ("", "lpo: error: override sead=1: unknown key sead: did you mean 'seed'?\n")
