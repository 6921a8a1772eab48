"""Statistics: numbers that a few lines recompute, text that can't become markup or terminal control, a page that fits a phone."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from data_pipeline.cli import main
from data_pipeline.distill import stats
from data_pipeline.pairs import DataError
from tests.helpers.paths import REPO, SEED_PAIRS

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m"
SEED = [json.loads(line) for line in SEED_PAIRS.read_text(encoding="utf-8").splitlines()]


def found(rule):
    return {"judge": "bandit", "rule": rule, "cwe": "CWE-89", "line": 1, "end_line": 1, "severity": "low", "message": HOSTILE}


@pytest.fixture
def job(tmp_path):
    """A job of six pairs, one of them hostile."""
    job = tmp_path / "job"
    (job / "data").mkdir(parents=True)
    rows = []
    for i, pair in enumerate(SEED[:6]):
        found_after = [found("B608")] if i == 0 else []
        more = {"group": f"g{i // 2}", "library": HOSTILE if i == 5 else "flask", "rounds": int(i == 1), "findings": found_after}
        rows.append(pair | more | {"cwe": "CWE-89" if i < 3 else "CWE-1", "findings_before": int(i < 2), "vulnerable_findings": [found("B608")] * (i % 3)})  # fmt: skip
    for split, part in (("train", rows[:5]), ("test", rows[5:])):
        (job / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    cost = {"answers": 9, "tokens_in": 900, "tokens_out": 1200, "dollars": 1.5}
    summary = {"prompts": 8, "pairs": 6, "rejected": {"refused": 2}, "pending": {}, "repairs": {"adopted": 1}, "retries": {}, "cost": cost, "judged": True}  # fmt: skip
    (job / "summary.json").write_text(json.dumps(summary))
    return job


def test_a_job_s_numbers(job):
    tables = {table.title: table.rows for table in stats.stats(job).tables}
    assert tables["Splits"] == [("train", 5, 2, 1, "–"), ("test", 1, 1, 1, "1")]  # g2 is in both
    assert tables["Libraries asked for"] == [("flask", 5), (HOSTILE, 1)]
    assert tables["Findings"] == [
        ("vulnerable", 4, "66.7%", 6),
        ("vulnerable, the pair's own weakness", 2, "33.3%", 3),
        ("secure, as first written", 2, "33.3%", 2),
        ("secure, after refinement", 1, "16.7%", 1),
    ]
    assert tables["Findings by rule"] == [("bandit B608", "CWE-89", 6, 1)]
    assert tables["Rejections"] == [("refused", 2)] and tables["Repairs"] == [("adopted", 1)]
    assert tables["Cost"][0] == ("answers", 9, 1.5) and "Pending" not in tables


def test_any_file_of_pairs():
    found = stats.stats(SEED_PAIRS)
    tables = {table.title: table.rows for table in found.tables}
    assert sum(n for *_, n in tables["Weaknesses"]) == sum(n for _, n in tables["Size of the fix"]) == len(SEED)
    assert found.facts == [(str(len(SEED)), "pairs"), (str(len({row["cwe"] for row in SEED})), "CWEs")]
    assert dict(tables["Libraries used"])["flask"] == sum("import flask" in r["chosen"] or "from flask " in r["chosen"] for r in SEED)
    assert not tables.keys() & {"Findings", "Splits", "Cost"}


def test_text_stays_text(job, tmp_path, capsys):
    assert main(["stats", str(job), "--html", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "<img src=x" in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags: list[tuple[str, dict]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    assert not {tag for tag, _ in tags} & {"img", "script", "link", "a"} and "<svg" in page
    assert not [a for _, a in tags if a.keys() & {"src", "href", "onerror"}]
    assert not re.search(r"@import|url\(", page)


def test_its_look_is_that_of_the_other_reports(job):
    page = stats.page(stats.stats(job))
    shared, own = (
        (REPO / path).read_text(encoding="utf-8").strip() for path in ("foundation/page.css", "data_pipeline/distill/templates/stats.css")
    )
    assert shared in page and own in page and ":root" not in own


def test_what_holds_no_pairs_is_named(tmp_path):
    with pytest.raises(DataError, match="name a job"):
        stats.stats(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        stats.stats(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(job, tmp_path, width):
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    page = tmp_path / "page.html"
    page.write_text(stats.page(stats.stats(job)), encoding="utf-8")
    asked, said = [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=120_000)
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(page.as_uri(), timeout=60_000)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        bars = "[...document.querySelectorAll('section:has(#t3) rect')].map(bar => bar.getBoundingClientRect().width)"
        flask, other = tab.evaluate(bars)  # libraries: 5 and 1
        assert flask == pytest.approx(5 * other, rel=0.01) and other > 0
        browser.close()
    assert asked == [page.as_uri()] and said == []
