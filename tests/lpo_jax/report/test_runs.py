"""Training runs side by side: what differs, the best, and one curve a run."""

import copy
import dataclasses
import json
import re

import pytest

from lpo_jax import cli, config
from lpo_jax.config import to_dict
from lpo_jax.report import runs
from lpo_jax.report.runs import TrainedRun, differences
from lpo_jax.report.training import COLOURS
from tests.helpers.paths import TINY
from tests.helpers.train_runs import CONFIG, HOSTILE, SUMMARY, make_run


def page(tmp_path, found):
    runs.write(tmp_path / "page.html", found)
    return (tmp_path / "page.html").read_text()


def test_only_settings_that_differ_are_shown():
    one = {"run_dir": "a", "seed": 1, "stages": {"sft": {"lr": 1e-5, "data": None}}, "track": ["wandb"]}
    two = {"run_dir": "b", "seed": 1, "stages": {"sft": {"lr": 2e-5, "data": [{"path": "x"}]}}, "track": ["wandb"], "new": "text"}
    assert differences([one, two]) == [
        ("stages.sft.lr", ["1e-05", "2e-05"]),
        ("stages.sft.data", ["null", "–"]),
        ("stages.sft.data.0.path", ["–", "x"]),
        ("new", ["–", "text"]),
    ]
    assert differences([one, one]) == []


def test_the_best_end_is_marked_by_its_direction(tmp_path):
    worse = {
        name: row | {"pair_accuracy": row["pair_accuracy"] - 0.1, "changed_nll": row["changed_nll"] - 0.5} for name, row in SUMMARY.items()
    }
    found = [TrainedRun(make_run(tmp_path / name, summary), CONFIG, summary) for name, summary in (("a", SUMMARY), ("b", worse))]
    text = page(tmp_path, found)
    bold = re.findall(r"<td class=best>([^<]+)</td>", text)
    assert bold == ["87.5%", "1.250", "0.812", "1.250", "0.700", "0.812"]  # of equal ones both
    assert text.count('<th scope="row">') == 6 and "In no setting but their directories" in text


def test_curves_of_all_runs_and_what_is_still_missing(tmp_path):
    """More runs than colours; one that has just begun; names that are the same."""
    found = [TrainedRun(make_run(tmp_path / str(i) / "run", SUMMARY), CONFIG | {"seed": i}, SUMMARY) for i in range(len(COLOURS) + 1)]
    (tmp_path / "begun").mkdir()
    text = page(tmp_path, [*found, TrainedRun(tmp_path / "begun", CONFIG, {})])
    assert all(str(tmp_path / str(i) / "run") in text for i in range(len(found)))
    loss = text[text.index("<b>Loss.</b>") : text.index("</figure>", text.index("<b>Loss.</b>"))]
    assert all(loss.count(f"stroke: {colour}") >= 1 for colour in COLOURS) and loss.count(f"stroke: {COLOURS[0]}") == 2
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert not re.findall(r"@import|<link|src=|url\((?!#)", text)


def test_hostile_names_are_escaped(tmp_path):
    hostile = copy.deepcopy(CONFIG) | {"note": HOSTILE}
    found = [TrainedRun(make_run(tmp_path / name, SUMMARY), config, SUMMARY) for name, config in (("a", CONFIG), ("b", hostile))]
    text = page(tmp_path, found)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_the_command_reads_run_directories(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 2)):
        run = make_run(tmp_path / name, SUMMARY)
        tiny = dataclasses.replace(config.load(TINY), seed=seed, run_dir=str(run))
        (run / "config.json").write_text(json.dumps(to_dict(tiny)))
    (tmp_path / "b" / "eval" / "lpo.json").unlink()  # it is still going on
    out = tmp_path / "page.html"
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(out)]) == 0
    text = out.read_text()
    assert re.search(r'<td class="key">seed</td><td>1</td><td>2</td>', text) and text.count('<th scope="row">') == 5
    assert cli.main(["report", str(tmp_path), "-o", str(out)]) == 2
    assert "no run's config.json; give the run_dirs" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2])
def test_unlike_runs_share_the_panels_that_one_has(tmp_path, count):
    found = [TrainedRun(make_run(tmp_path / str(i), {}, steps=0 if i else 6), CONFIG, {}) for i in range(count)]
    assert page(tmp_path, found).count("<figure") == 4
