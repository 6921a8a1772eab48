"""report.html: complete, self-contained, safe against the text of tokens, and the same for the same run."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lpo_jax.objectives.heldout import ENGLISH
from lpo_jax.report.training import write_report
from tests.helpers.train_runs import CONFIG, HOSTILE, SUMMARY, TOKENS, make_run


def test_headline_numbers_and_their_change(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "fake", SUMMARY), CONFIG, SUMMARY).read_text()
    assert "<h1>fake</h1>" in page
    for number in ("50.0%", "62.5%", "87.5%", "−0.012", "0.250", "1.250", "3.200", "1.200", "0.812"):
        assert f"<td>{number}<small" in page
    assert '<small class="better">+25.0<' in page
    assert '<small class="better">−0.300<' in page  # a lower negative log-likelihood
    assert '<small class="worse">+0.062<' in page
    assert all(english in page for english in ENGLISH.values())
    assert "localized preference optimization (lpo, mode paper)" in page


def test_what_stages_read_is_said_where_it_is_not_the_runs_data(tmp_path: Path) -> None:
    sft, lpo = CONFIG["stages"]["sft"], CONFIG["stages"]["lpo"]
    sets = [{"path": "data/pairs", "weight": 1.0}, {"path": "data/plain", "weight": 3.0}]
    run = make_run(tmp_path / "fake", SUMMARY)
    own = CONFIG | {"data": {"path": "data/pairs"}, "stages": {"sft": sft | {"data": sets}, "lpo": lpo | {"data": None}}}
    page = write_report(run, own, SUMMARY).read_text()
    assert "(sft) on data/pairs (0.25 of the rows) and data/plain (0.75 of the rows), then stage “lpo”" in page
    assert "mode paper). Held-out pairs are those of data/pairs." in page
    joined = [{**one, "weight": None} for one in sets]
    assert (
        "(sft) on data/pairs and data/plain, then"
        in write_report(run, own | {"stages": {"sft": sft | {"data": joined}, "lpo": lpo}}, SUMMARY).read_text()
    )
    assert "Held-out pairs are those" not in write_report(run, CONFIG, SUMMARY).read_text()


def test_tokens_show_mask_and_change_between_the_last_two_evaluations(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "fake", SUMMARY), CONFIG, SUMMARY).read_text()
    span = re.search(r"<span class=\"([^\"]*)\" style=\"([^\"]*)\" title=\"([^\"]*)\">eval\(x\)</span>", page)
    assert span is not None
    assert span.groups() == ("up changed", "--s:0.25", "init −3.000, sft −2.500, lpo −2.000; change +0.500 nats")
    assert page.count('class="up changed"') == sum(changed for _, _, changed in TOKENS)
    assert "<i></i>\n    </span>" in page  # white space is kept


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "fake", SUMMARY), CONFIG | {"run_dir": HOSTILE}, SUMMARY).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3  # token, pair id, settings
    assert "&#34;quoted&#34; &amp; \ufffd\u240d<i></i>\n" in page


def test_page_is_self_contained_and_well_formed(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "fake", SUMMARY), CONFIG, SUMMARY).read_text()
    assert not re.findall(r"https?:", re.sub(r'xmlns(:\w+)?="http://www\.w3\.org/[\w/]+"', "", page))
    assert not re.findall(r"@import|<link|src=|url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)

    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag != "meta":
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

    balance = Balance()
    balance.feed(page)
    assert balance.open == []


def test_same_run_same_page(tmp_path: Path) -> None:
    pages = [write_report(make_run(tmp_path / parent / "fake", SUMMARY), CONFIG, SUMMARY).read_text() for parent in "ab"]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(("steps", "plots"), [(6, 4), (0, 0)])
def test_without_heldout_data_or_logged_steps(tmp_path: Path, steps: int, plots: int) -> None:
    summary: dict[str, dict[str, float]] = {"init": {}, "sft": {}, "lpo": {}}
    page = write_report(make_run(tmp_path / "fake", summary, [], steps), CONFIG, summary).read_text()
    assert page.count("<td>–<small") == 12
    assert page.count("<svg") == plots
    assert "No held-out pair was drawn" in page


def test_one_stage_and_a_metric_or_side_missing(tmp_path: Path) -> None:
    summary = {"init": {"unchanged_nll": 2.0}, "lpo": {"unchanged_nll": 1.5, "changed_nll": 1.0}}
    page = write_report(make_run(tmp_path / "fake", summary, [t for t in TOKENS if t[1] >= 0]), CONFIG, summary).read_text()
    assert '<td>1.500<small class="better">−0.500<' in page
    assert '<td>1.000<small class=""><' in page  # nothing above to compare with
    assert "from “init” to\n“lpo”" in page
    assert "No tokens of its own" in page


def test_import_adds_nothing_heavy() -> None:
    code = """if True:
        import sys
        import lpo_jax.train.metrics
        before = set(sys.modules)
        import lpo_jax.report.training
        print({name.split(".")[0] for name in set(sys.modules) - before} & {"matplotlib", "tensorflow", "torch"})
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
