"""What a config file may get wrong: the message names the file, the line and the key."""

import json
import re

import pytest

from lpo_jax import config
from lpo_jax.config import ConfigError, RunConfig, ShardSet
from tests.helpers.paths import REPO

GOOD = """\
run_dir: r
data: {path: p}
model: {path: m}
stages:
  sft:
    objective: {name: sft}
    optim: {lr: 1e-5}
    batch_rows: 1
    steps: 1
"""


def load(tmp_path, text, *overrides):
    file = tmp_path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load(file, overrides)


BOMB = "seed: [&a0 [x], " + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)) + "]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: expected a mapping of settings, not an empty file"),
        ("words", "c.yaml: expected a mapping of settings, not 'words'"),
        (b"run_dir: \xff", "c.yaml: not a text in UTF-8; a config is a YAML file, see configs/"),
        ("run_dir: \x00", "c.yaml: not valid YAML: it has characters that can't be printed"),
        ("seed: 1\n\tmesh: 1", r"c.yaml:2: not valid YAML: found character '\t' that cannot start any token"),
        (GOOD + "---\n" + GOOD, "c.yaml:10: not valid YAML: but found another document"),
        (GOOD + "x: !!python/name:os.system", "c.yaml:10: not valid YAML: could not determine a constructor"),
        (GOOD + "x: !!int y", "c.yaml:10: not valid YAML: 'y' is no int"),
        (GOOD + "x: !!int ''", "c.yaml:10: not valid YAML: '' is no int"),
        (GOOD + "x: !!bool y", "c.yaml:10: not valid YAML: 'y' is no bool"),
        (GOOD + "x: !!timestamp y", "c.yaml:10: not valid YAML: 'y' is no timestamp"),
        (GOOD + "x: &a {b: *a}", "c.yaml: not valid YAML: an anchor contains itself"),
        (BOMB, "c.yaml:1: not valid YAML: with what its anchors repeat it holds more than"),
        ("[" * 3000, "c.yaml: not valid YAML: an anchor contains itself, or it is nested too deeply"),
        (GOOD + "mesh: *b", "c.yaml:10: not valid YAML: found undefined alias 'b'"),
        (GOOD + "mesh: {<<: 3}", "c.yaml:10: not valid YAML: expected a mapping or list of mappings for merging"),
        (GOOD + "[1, 2]: 3", "c.yaml:10: not valid YAML: a key must be a word"),
        (GOOD + "run_dir: x", "c.yaml:10: not valid YAML: run_dir stands here a second time"),
        (GOOD + "mesh:\n  fsdp: 1\n  fsdp: 1", "c.yaml:12: not valid YAML: fsdp stands here a second time"),
        (GOOD + "sead: 1", "c.yaml:10: unknown key sead: did you mean 'seed'?"),
        (GOOD + "2026-01-31: 1", "c.yaml:10: unknown key 2026-01-31: valid keys: best_metric, "),
        (GOOD + "mesh: {1: 2}", "c.yaml:10: unknown key mesh.1: valid keys: data, expert, fsdp, tensor, topology"),
        (GOOD + "mesh:\n  fdsp: 2", "c.yaml:11: unknown key mesh.fdsp: did you mean 'fsdp'?"),
        (GOOD + "mesh: [1, 2]", "c.yaml:10: mesh: expected a mapping, not [1, 2]"),
        (GOOD + "mesh: null", "c.yaml:10: mesh: null isn't possible here"),
        (GOOD + "seed: null", "c.yaml:10: seed: null isn't possible here"),
        (GOOD + "seed: '3'", "c.yaml:10: seed: expected int, not '3'"),
        (GOOD + "seed: 2026-01-31", "c.yaml:10: seed: expected int, not '2026-01-31'"),
        (GOOD + "eval_rows: {a: 1}", "c.yaml:10: eval_rows: expected int, not {'a': 1}"),
        (GOOD.replace("run_dir: r", "run_dir: 1"), "c.yaml:1: run_dir: expected str, not 1"),
        (GOOD.replace("lr: 1e-5", "rl: 1e-5"), "c.yaml:7: unknown key stages.sft.optim.rl: did you mean 'lr'?"),
        (GOOD.replace("lr: 1e-5", "lr: -1"), "c.yaml:7: stages.sft.optim.lr=-1: it must be greater than 0"),
        (GOOD.replace("lr: 1e-5", "lr: fast"), "c.yaml:7: stages.sft.optim.lr: expected float, not 'fast'"),
        (GOOD.replace("{lr: 1e-5}", "{}"), "c.yaml:7: missing key stages.sft.optim.lr"),
        (GOOD.replace("{lr: 1e-5}", ""), "c.yaml:7: stages.sft.optim: null isn't possible here"),
        (GOOD.replace("{path: m}", "{path: m, lora: {rank: 1}}"), "c.yaml:3: missing key model.lora.alpha"),
        (GOOD.replace("{path: m}", "{path: m, new: {famly: x}}"), "c.yaml:3: unknown key model.new.famly: did you mean 'family'?"),
        (GOOD.replace("{path: m}", "{path: m, remat: bloc}"), "c.yaml:3: unknown value model.remat=bloc: did you mean 'block'?"),
        (GOOD[: GOOD.index("stages")], "c.yaml: missing key stages"),
        (GOOD[: GOOD.index("  sft")], "c.yaml:4: stages: null isn't possible here"),
        (GOOD[: GOOD.index("  sft")] + "  - sft", "c.yaml:4: stages: expected a mapping, not ['sft']"),
        (GOOD[: GOOD.index("  sft")] + "  sft: 3", "c.yaml:5: stages.sft: expected a mapping, not 3"),
    ],
)
def test_errors_name_file_line_and_key(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(message)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("sft", "stages.sft.objective: expected a mapping, not 'sft'"),
        ("null", "stages.sft.objective: null isn't possible here"),
        ("{}", "missing key stages.sft.objective.name: one of sft, lpo, "),
        ("{name: stf}", "unknown value stages.sft.objective.name=stf: did you mean 'sft'?"),
        ("{name: [1]}", "unknown value stages.sft.objective.name=[1]: valid values: "),
        ("{name: sft, beta: 3}", "stages.sft.objective.beta: objective sft has no such option; take it out. It has score_prompt"),
        ("{name: sft, score: true}", "unknown key stages.sft.objective.score: did you mean 'score_prompt'?"),
        ("{name: lpo, beta: 1, gamma: 1}", "objective lpo: set alpha"),
        ("{name: lpo, beta: [1], gamma: 1, alpha: 1}", "stages.sft.objective.beta: expected float, not [1]"),
        ("{name: lpo, beta: 1, gamma: 1, alpha: 1, mode: 3}", "unknown value stages.sft.objective.mode=3: valid values: clean, paper, ref"),
        ("{name: lpo, beta: 1, gamma: 1, alpha: 1, off_mask: 2}", "stages.sft.objective.off_mask=2: it must be less than or equal to 1"),
        ("{name: kd}", "objective kd: set kl"),
        ("{name: kd, kl: {direction: reverse, wait: 1}}", "unknown key stages.sft.objective.kl.wait: did you mean 'weight'?"),
        ("{name: kd, kl: {direction: revers, weight: 1}}", "unknown value stages.sft.objective.kl.direction=revers: did you mean 'rev"),
        ("{name: kd, kl: {direction: reverse, weight: 1}}", "stages.sft.objective: objective kd: set kl.teacher"),
    ],
)
def test_errors_within_an_objective(tmp_path, objective, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD.replace("{name: sft}", objective))
    assert str(error.value).removeprefix(f"{tmp_path}/c.yaml:6: ").startswith(message)


SETS = "    data:\n      - path: a\n        weight: 1\n      - path: b\n        weight: 3\n"


def test_a_stages_data_are_a_list_in_the_file_and_in_an_override(tmp_path):
    sets = (ShardSet("a", 1.0), ShardSet("b", 3.0))
    run = load(tmp_path, GOOD + SETS)
    assert run.stages["sft"].data == sets
    assert load(tmp_path, GOOD, "stages.sft.data=[{path: a, weight: 1}, {path: b, weight: 3}]") == run
    assert load(tmp_path, GOOD + SETS, "stages.sft.data=null") == load(tmp_path, GOOD)
    assert config.from_dict(RunConfig, json.loads(json.dumps(config.to_dict(run)))) == run
    old = config.to_dict(load(tmp_path, GOOD))
    assert old["stages"]["sft"].pop("data") is None  # as it stands in run directories from before there was such a key
    assert config.from_dict(RunConfig, old) == load(tmp_path, GOOD)


def test_what_a_stage_reads_has_a_key_each(tmp_path):
    run = load(tmp_path, GOOD + SETS)
    assert run.shard_sets("sft") == {"stages.sft.data.0.path": ShardSet("a", 1.0), "stages.sft.data.1.path": ShardSet("b", 3.0)}
    assert run.shard_paths() == {"data.path": "p", "stages.sft.data.0.path": "a", "stages.sft.data.1.path": "b"}
    again = load(tmp_path, GOOD + SETS.replace("path: b", "path: p"))
    assert again.shard_paths() == {"data.path": "p", "stages.sft.data.0.path": "a"}
    assert load(tmp_path, GOOD).shard_sets("sft") == {"data.path": ShardSet("p")}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (SETS.replace("weight: 3", "wait: 3"), "c.yaml:14: unknown key stages.sft.data.1.wait: did you mean 'weight'?"),
        (SETS.replace("weight: 3", "weight: 0"), "c.yaml:14: stages.sft.data.1.weight=0: it must be greater than 0"),
        (SETS.replace("weight: 3", "weight: .inf"), "c.yaml:14: stages.sft.data.1.weight=inf: it must be a finite number"),
        (SETS.replace("path: b\n        ", ""), "c.yaml:13: missing key stages.sft.data.1.path"),
        (SETS.replace("path: b", "path: [b]"), "c.yaml:13: stages.sft.data.1.path: expected str, not ['b']"),
        (SETS + "      - c\n", "c.yaml:15: stages.sft.data.2: expected a mapping, not 'c'"),
        ("    data: {path: a}", "c.yaml:10: stages.sft.data: expected a list in brackets, not {'path': 'a'}"),
        ("    data: []", "c.yaml:5: stages.sft: data: name a shard set, e.g. [{path: data/pairs}], or null: the run's data"),
        (SETS.replace("path: b", "path: a"), "c.yaml:5: stages.sft: data: a stands there twice; to read it more often give it a larger"),
        (SETS.replace("        weight: 3\n", ""), "c.yaml:5: stages.sft: data: either each set has a weight, or none"),
        (SETS.replace("weight: 3", "weight: 3000"), "c.yaml:5: stages.sft: data: a has less than one row in 1000 by its weight"),
    ],
)
def test_errors_within_a_stages_data(tmp_path, sets, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD + sets)
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_the_example_in_the_documentation_loads(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (REPO / "docs" / "data.md").read_text(), re.DOTALL)
    run = load(tmp_path, text + "run_dir: r\nmodel: {path: m}\n")
    assert [one.weight for one in run.stages["sft"].data] == [1.0, 3.0] and run.stages["lpo"].data is None


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = load(tmp_path, GOOD.replace("run_dir: r", "run_dir: ~/r"), "data.path=~/d", "model.adapter=x~/a")
    assert (found.run_dir, found.data.path, found.model.adapter) == ("/home/me/r", "/home/me/d", "x~/a")


def test_a_stage_may_be_called_objective(tmp_path):
    with pytest.raises(ConfigError, match=r"c\.yaml:6: unknown key stages\.objective\.objective\.beat: did you mean 'beta'"):
        load(tmp_path, GOOD.replace("  sft:", "  objective:").replace("name: sft", "name: lpo, beat: 1"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=3", "override '=3': write key.sub=value"),
        ("stages..lr=3", "override 'stages..lr=3': write key.sub=value"),
        ("stages.stf.optim.lr=3", "override stages.stf.optim.lr=3: unknown stage stages.stf: did you mean 'sft'?"),
        ("model.lora.rank=3", "override model.lora.rank=3: missing key model.lora.alpha"),
        ("mesh={data: 1, data: 2}", "override mesh: '{data: 1, data: 2}' isn't valid YAML: data stands here a second time"),
        ("mesh={dta: 1}", "override mesh={dta: 1}: unknown key mesh.dta: did you mean 'data'?"),
        ("stages.sft.objective.beta=3", "override stages.sft.objective.beta=3: stages.sft.objective.beta: objective sft has no such opt"),
        ("seed=", "override seed=: seed: null isn't possible here"),
        ("stages.sft.accumulate=3", " with override stages.sft.accumulate=3: stages.sft: "),
        (f"seed={'[' * 3000}", f"override seed: '{'[' * 200} ...' isn't valid YAML"),
    ],
)
def test_errors_name_the_override(tmp_path, override, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD, override)
    assert str(error.value).startswith(message) or (message.startswith(" with") and message in str(error.value))


def test_what_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory; a config is a YAML file, see configs/"):
        config.load(tmp_path)


def test_yaml_is_read_as_meant(tmp_path):
    """1e-5 is a number, a date and a name that reads like a number are text, and << takes settings over."""
    second = "  '2e3':\n    objective: {name: sft}\n    optim: {<<: *o, lr: 1}\n    batch_rows: 1\n    epochs: 1\n"
    run = load(tmp_path, GOOD.replace("{lr: 1e-5}", "&o {lr: 1e-5, b1: 0.8}").replace("run_dir: r", "run_dir: 2026-01-31") + second)
    assert run.run_dir == "2026-01-31"
    assert [(name, stage.optim.lr, stage.optim.b1) for name, stage in run.stages.items()] == [("sft", 1e-5, 0.8), ("2e3", 1.0, 0.8)]


def test_files_of_old_list_every_objectives_options(tmp_path):
    """An option that an objective hasn't is dropped at null and at the default it had, and refused at anything else."""
    everything = "mode: clean, empty_side: detach, norm_len: code, imitation: sum, off_mask: 1.0e-6, label_smoothing: 0.0, kl: null"
    sft = "{name: sft, beta: null, gamma: null, alpha: null, score_prompt: false, " + everything + "}"
    lpo = "{name: lpo, beta: 1, gamma: 2, alpha: 3, score_prompt: false, " + everything + "}"
    assert load(tmp_path, GOOD.replace("{name: sft}", sft)) == load(tmp_path, GOOD)
    new = load(tmp_path, GOOD.replace("{name: sft}", "{name: lpo, beta: 1, gamma: 2, alpha: 3}"))
    assert load(tmp_path, GOOD.replace("{name: sft}", lpo)) == new
    with pytest.raises(ConfigError, match="objective sft has no such option"):
        load(tmp_path, GOOD.replace("{name: sft}", sft.replace("clean", "paper")))
    written = config.to_dict(new)
    written["stages"]["sft"]["objective"] |= {"score_prompt": False, "kl": None}
    before = str(written)
    assert config.from_dict(RunConfig, written) == new
    assert str(written) == before


def test_from_dict_names_where_it_stands():
    with pytest.raises(ConfigError, match="^runs/x/config.json: unknown key sead: did you mean 'seed'"):
        config.from_dict(RunConfig, {"sead": 1}, "runs/x/config.json")


def test_a_misspelt_stage_is_said_once(tmp_path):
    """And not all that a stage of that name lacks."""
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD, "stages.stf.objective.score_prompt=true", "stages.stf.optim.lr=1")
    hint = "unknown stage stages.stf: did you mean 'sft'? (a new one lacks objective, batch_rows)"
    assert str(error.value) == f"override stages.stf.objective.score_prompt=true: {hint}"
    with pytest.raises(ConfigError, match="2 settings are wrong:\n.*missing key stages.lpo.objective\n.*missing key stages.lpo.batch_rows"):
        load(tmp_path, GOOD, "stages.lpo.optim.lr=1")  # like none that is there
    with pytest.raises(ConfigError, match="c.yaml:5: missing key stages.sft.optim"):
        load(tmp_path, GOOD.replace("    optim: {lr: 1e-5}\n", ""))
