"""What a campaign's declaration comes to."""

from dataclasses import replace

import pytest

from foundation.errors import ConfigError
from foundation.files import write_json
from lpo_jax.config import RunConfig, from_dict
from reproduce.campaign import CONFIGS, SIZES, _check, expand, load, merged
from reproduce.results import Results
from reproduce.run import Place, missing
from tests.helpers.campaigns import finish, smoke
from tests.helpers.marks import needs_sandbox


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_whole(size, tmp_path):
    """Pieces have names of their own and stand behind what they need; every training's config is one that `lpo train` takes."""
    campaign = load(size)
    place = Place(Results(tmp_path, size), tmp_path, "MODEL", "PAIRS")
    pieces = expand(campaign, place.results)
    names = [piece.name for piece in pieces]
    assert len(set(names)) == len(names)
    for at, piece in enumerate(pieces):
        assert set(piece.needs) <= set(names[:at])
        if piece.kind == "train":
            run = from_dict(RunConfig, place.filled(piece.config))
            assert list(run.stages) == [piece.system] and run.seed == piece.seed
    assert {claim for claim in campaign.claims if not claim.untestable and not claim.open} and {
        name for claim in campaign.claims for name in claim.systems
    } <= campaign.systems.keys()


@pytest.mark.parametrize("size", ["small", "full"])
def test_the_order_and_the_fairness(size, tmp_path):
    """The core rows come first, and every rival has as many tuning runs as LPO."""
    campaign = load(size)
    systems = [piece.system for piece in expand(campaign, Results(tmp_path, size)) if piece.system]
    assert list(dict.fromkeys(systems))[:5] == ["base", "sft", "lpo", "simpo", "dpo"]
    rivals = [name for name, system in campaign.systems.items() if system.after == "sft" and system.like is None]
    assert len(rivals) > 4 and {len(campaign.tune[name]) for name in rivals} == {len(campaign.tune["lpo"])}


def test_the_larger_model_is_steered_by_what_was_trained(tmp_path):
    """As many runs as there are thresholds; only what reads the larger model depends on which that is."""
    campaign, results = load("small"), Results(tmp_path, "small")
    before = {piece.name: piece for piece in expand(campaign, results)}
    command = before["dev-steered_by_lpo.2"].commands[0]
    assert {"{large}", "{model}", "{work}/adapters/lpo.1", "--threshold", "0.3"} <= set(command) and "0.1" not in command
    assert "lpo's tuning runs" in before["dev-steered_by_lpo.2"].waits
    assert not before["test-larger"].waits and before["test-steered_by_security"].needs == ("train-security.1",)
    assert "needs a larger model" in missing(before["test-larger"], Place(results, tmp_path))
    write_json(results.directory / "larger.json", {"larger": "another"})
    after = {piece.name: piece for piece in expand(campaign, results)}
    changed = {name for name in before if before[name].key != after[name].key}
    assert {name for name in before if before[name].reads_large} <= changed
    assert changed - {name for name in before if before[name].reads_large} == {
        "train-kd_security.1",
        "test-kd_security",
    }  # they stand behind kd
    with pytest.raises(ConfigError, match=r"systems\.larger\.security: base must be trained"):
        _check(replace(campaign, systems=campaign.systems | {"larger": replace(campaign.systems["larger"], security="base")}), tmp_path)


def test_a_changed_declaration_opens_a_piece_and_what_stands_behind_it(tmp_path):
    campaign, results = load("small"), Results(tmp_path, "small")
    hotter = replace(campaign, tune=campaign.tune | {"lpo": (merged(campaign.tune["lpo"][0], {"optim": {"lr": 1e-3}}), campaign.tune["lpo"][1])})  # fmt: skip
    before, after = ({piece.name: piece.key for piece in expand(each, results)} for each in (campaign, hotter))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert {"train-lpo.1", "dev-lpo.1"} <= changed
    assert not {name for name in changed if "lpo.2" in name or "sft" in name.split("-")[-1] or "simpo" in name or "base" in name}


@needs_sandbox
def test_the_development_part_chooses(tmp_path):
    """By the joint share; until all tuning runs are judged, what stands behind the choice waits. Equal ones: the first."""
    campaign, here, pieces = smoke(tmp_path)
    assert "lpo's tuning runs" in pieces["test-lpo"].waits
    finish(here, pieces, {"dev-lpo.1": "insecure"})
    assert {p.name: p for p in expand(campaign, here.results)}["test-lpo"].waits
    for side, best in (("canonical", 2), ("insecure", 1)):
        finish(here, pieces, {"dev-lpo.2": side})
        found = {p.name: p for p in expand(campaign, here.results)}["test-lpo"]
        assert found.waits == "" and found.needs == (f"train-lpo.{best}",) and f"{{work}}/runs/lpo.{best}" in found.commands[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("split: {near: 0", "not valid YAML"),
        ("split: {near: 0.7}", "split.seed: Field required"),
        ("phases: {core: {systems: [nobody]}}", "phases.core: there is no system 'nobody'; choose from base"),
        ("stages: 3", "stages"),
    ],
)
def test_damage_is_named(text, said, tmp_path):
    (tmp_path / "systems.yaml").write_text((CONFIGS / "systems.yaml").read_text())
    lines = (CONFIGS / "smoke.yaml").read_text()
    key = text.partition(":")[0]
    kept = "\n".join(
        line for line in lines.split("\n") if not line.startswith((f"{key}:", "  core:", "  codecoding:") if key == "phases" else f"{key}:")
    )
    (tmp_path / "smoke.yaml").write_text(f"{kept}\n{text}\n")
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        load("smoke", tmp_path)
    with pytest.raises(ConfigError, match="no size 'huge'"):
        load("huge", tmp_path)
