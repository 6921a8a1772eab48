"""What a run takes, from plans that no compiler made, and how `lpo plan` tells it."""

import json

import pytest

from lpo_jax import cli, config
from lpo_jax.plan import planner, run
from lpo_jax.plan.prices import SHIPPED, Price, Prices
from lpo_jax.plan.run import Run
from tests.helpers.paths import TINY
from tests.helpers.plans import a_plan

PRICES = Prices("2031-05", "here", {"v5e": Price("mars", 2.0, 0.5), "tpu7x": Price("mars", 4.0)})
SAID = ["plan.pairs=900", "plan.row_tokens=1000", "plan.pair_tokens=100", "stages.sft.epochs=10", "stages.lpo.epochs=5"]
FOUR_CHIPS = ["mesh.topology=v5e:2x2", "stages.sft.batch_rows=4", "stages.lpo.batch_rows=4"]


def planned(*plans, more=(), **settings):
    return Run.of(config.load(TINY, ["data.path=none", *SAID, *more]), list(plans), PRICES, **settings)


def test_hours_and_dollars_run_from_the_bound_to_a_share_of_its_speed():
    """900 pairs are 90 rows: 900 and 450 steps of one row, of 2 and 4 seconds."""
    found = planned(a_plan("sft", seconds=2), a_plan("lpo", seconds=4))
    assert [length.steps for length in found.lengths] == [900, 450]
    assert found.hours == pytest.approx((1.0, 1.0 / run.PESSIMISTIC))
    assert found.dollars(2.0) == pytest.approx((8.0, 8.0 / run.PESSIMISTIC))  # four chips
    facts = found.facts()
    assert facts["prices"]["date"] == "2031-05" and facts["prices"]["spot"] == pytest.approx((2.0, 2.0 / run.PESSIMISTIC))
    assert facts["stages"]["lpo"]["steps"] == 450 and facts["stages"]["lpo"]["hours"] == pytest.approx((0.5, 0.5 / run.PESSIMISTIC))


def test_what_is_unknown_stays_unknown():
    assert planned(a_plan("sft"), more=["plan.pairs=null"]).hours is None
    large = planned(a_plan("sft"), a_plan("lpo", needs=60))
    assert large.hours is None and large.dollars(1.0) is None and large.at_notice is None and not large.facts()["fits"]
    assert planned(a_plan("sft", topology="v6e:2x2")).price is None


def test_the_worst_stage_is_told():
    assert planned(a_plan("sft", needs=12), a_plan("lpo", needs=3)).worst.stage == "sft"
    assert planned(a_plan("sft", needs=12), a_plan("lpo", needs=60)).worst.stage == "lpo"
    broken = a_plan("sft", needs=1, verdict="INTERNAL: a pass has failed")
    assert planned(broken, a_plan("lpo", needs=12)).worst.stage == "sft"


def test_chips_are_paid_for_and_not_their_halves():
    ironwood = planned(a_plan("lpo", topology="tpu7x:2x2x1", devices=8))
    assert ironwood.chips == 4 and ironwood.facts()["prices"]["chip_hour"]["on_demand"] == 4.0


def test_a_checkpoint_is_written_by_all_hosts_after_the_step_under_way():
    """12 GB by the four machines of a v5e:4x4."""
    found = planned(a_plan("lpo", topology="v5e:4x4", devices=16, seconds=2), write_rate=0.5)
    assert found.writing == pytest.approx(6.0) and found.at_notice == pytest.approx((8.0, 6.0 + 2 / run.PESSIMISTIC))
    assert found.facts()["checkpoint"]["at_once"] == 4  # keep_checkpoints: 2


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """What `lpo plan` prints and writes as JSON of a tiny run with these plans by stage; and its exit code."""

    def tell(plans, *arguments):
        monkeypatch.setattr(planner, "cached", lambda config, stage, row, cache: plans[stage])
        code = cli.main(["plan", str(TINY), *FOUR_CHIPS, *arguments, "--tries", "0", "--json", str(tmp_path / "plan.json")])
        return " ".join(capsys.readouterr().out.split()), json.loads((tmp_path / "plan.json").read_text()), code

    return tell


def test_prices_are_read_from_the_table_with_their_date(told, tmp_path):
    plans = {"sft": a_plan("sft", seconds=4), "lpo": a_plan("lpo", seconds=4)}
    said = [f"data.path={tmp_path / 'none'}", *SAID, "stages.sft.epochs=40", "stages.lpo.epochs=20"]
    shipped = Prices.load(SHIPPED)
    printed, found, code = told(plans, *said)
    assert code == 0 and f"list prices of {shipped.date} in {shipped.chips['v5e'].region}" in printed
    assert found["prices"]["on_demand"][0] == pytest.approx(1.5 * 4 * shipped.chips["v5e"].on_demand)

    mine = tmp_path / "mine.yaml"
    mine.write_text("date: 2031-05-06\nsource: our contract\nchips: {v5e: {region: mars, on_demand: 100}}\n")
    printed, found, _ = told(plans, *said, "--prices", str(mine))
    assert "on demand 600 to 1,500 (400.00 an hour), spot unknown; 4 chips, list prices of 2031-05-06 in mars" in printed
    assert found["prices"] | {"on_demand": None} == {
        "date": "2031-05-06", "source": "our contract", "on_demand": None, "spot": None,
        "chip_hour": {"region": "mars", "on_demand": 100.0, "spot": None},
    }  # fmt: skip
    assert (
        "dollars: unknown, the list prices of" in told({"sft": a_plan(topology="v4:2x2x1"), "lpo": a_plan(topology="v4:2x2x1")}, *said)[0]
    )


def test_without_data_it_says_what_is_missing_and_how_to_give_it(told, tmp_path):
    none = tmp_path / "none"
    plans = {"sft": a_plan("sft"), "lpo": a_plan("lpo")}
    printed, found, _ = told(plans, f"data.path={none}")
    assert f"no data yet: {none} (data.path) steps and hours of sft, lpo: unknown" in printed and "plan.pairs=10000" in printed
    assert found["stages"]["sft"]["steps"] is None and found["hours"] is None and "together ? ?" in printed
    assert "for plan.pairs=50 of plan.pair_tokens=700 tokens" in told(plans, f"data.path={none}", "plan.pairs=50")[0]


def test_with_data_its_manifests_count(told, seed_shards):
    printed, _, _ = told({"sft": a_plan("sft"), "lpo": a_plan("lpo")}, f"data.path={seed_shards['trimmed']}")
    assert "steps and tokens of sft, lpo: by the shards' manifests" in printed and "no data" not in printed


def test_all_stages_are_planned_and_one_that_does_not_fit_is_told(told, tmp_path):
    plans = {"sft": a_plan("sft", needs=60), "lpo": a_plan("lpo")}
    printed, found, code = told(plans, f"data.path={tmp_path}")
    assert code == 1 and found["worst"] == "sft" and not found["fits"] and "sft ? ? ? ? doesn't fit worst" in printed
    printed, found, code = told(plans, f"data.path={tmp_path}", "--stage", "lpo")
    assert code == 0 and list(found["stages"]) == ["lpo"] and "worst" not in printed


def test_a_spot_machine_that_goes_too_early_is_told(told, tmp_path):
    plans = {"sft": a_plan("sft"), "lpo": a_plan("lpo")}
    assert "a checkpoint take 14 to 17 s, in time" in told(plans, f"data.path={tmp_path}")[0]
    printed, _, _ = told(plans, f"data.path={tmp_path}", "--write-rate", "0.1")
    assert "take 122 to 125 s: if that is too long, up to 200 steps (checkpoint_every_steps) are lost, 6.7 to 17 minutes" in printed


def test_the_help_names_the_assumptions(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    printed = capsys.readouterr().out
    assert f"{run.PESSIMISTIC:.0%}".replace("%", " %") in printed and f"{run.NOTICE} s" in printed
    assert f"default: {run.WRITE_RATE:g}, an assumption" in " ".join(printed.split())
