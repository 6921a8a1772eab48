"""The evaluation report: numbers that hold, text that can't become markup, a page that works in a real browser."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.measures import by_task, difference, estimate, measures, pass_at_k, state
from evaluation.report import ReportError, write
from tests.helpers.evaluations import HOSTILE, make
from tests.helpers.train_runs import CONFIG, SUMMARY, make_run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models on three benchmarks, one task of which is hostile, and a training run."""
    root = tmp_path_factory.mktemp("report")
    runs = []
    for model, share in (("models/base", 0.45), ("models/lpo", 0.75)):
        name = model.split("/")[-1]
        runs.append(make(root / f"{name}-security", model, share, hostile=True))
        runs.append(make(root / f"{name}-function", model, share, benchmark="HumanEval", tasks=10, functional=True, judged=False))
        runs.append(make(root / f"{name}-both", model, share, benchmark="CWEval", tasks=12, functional=True))
    training = make_run(root / "training", SUMMARY)
    (training / "config.json").write_text(json.dumps(CONFIG))
    (training / "summary.json").write_text(json.dumps(SUMMARY | {"names": {}}))
    data = {"splits": {"train": {"pairs": 7}}, "build_key": "key", "tokenizer_sha256": "tok", "inputs": []}
    (training / "data.json").write_text(json.dumps(data))
    write(runs, root / "report.html", [training])
    return root / "report.html"


class Page(HTMLParser):
    """Tags in their order, the text of scripts, and whether all that opens closes."""

    VOID = {"meta", "img", "br", "input", "link", "hr"}  # noqa: RUF012

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def sample(**given: Any) -> dict[str, Any]:
    return {"task_id": "t", "cwe": None, "parses": True, "empty": False, "duplicate": False, "findings": [], "functional": None, "security": None} | given  # fmt: skip


def test_unparseable_and_empty_samples_are_never_secure() -> None:
    found = [{"line": 1, "cwe": "CWE-89"}, {"line": 2, "cwe": "CWE-89"}]
    samples = [
        sample(),
        sample(findings=found),
        sample(parses=False, findings=found),
        sample(empty=True),
        sample(security={"outcome": "timeout"}),
    ]
    assert [state(s) for s in samples] == ["secure", "insecure", "unparseable", "empty", "insecure"]
    by_key = {m.key: m for m in measures(samples, judged=True)}
    values = {key: estimate(m, by_task(samples)) for key, m in by_key.items()}
    assert {k: v.value for k, v in values.items() if v} == pytest.approx(
        {"insecure": 2 / 5, "insecure_parseable": 2 / 3, "secure": 1 / 5, "deleted": 1 / 5, "issues": 200 / 3, "unparseable": 1 / 5, "empty": 1 / 5, "duplicate": 0}
    )  # fmt: skip


def test_pass_at_k_is_the_mean_over_all_draws_and_refuses_k_above_n() -> None:
    from itertools import combinations

    for n in range(1, 7):
        for correct in range(n + 1):
            for k in range(1, n + 1):
                draws = [any(i < correct for i in draw) for draw in combinations(range(n), k)]
                assert pass_at_k(n, correct, k) == pytest.approx(np.mean(draws))
    with pytest.raises(ValueError, match="at least 6"):
        pass_at_k(5, 1, 6)


def test_intervals_cover_the_truth_and_pairing_narrows_them() -> None:
    rng = np.random.default_rng(3)
    covered, paired, apart = 0, [], []
    for _ in range(60):
        hard = rng.random(80)
        a, b = ({str(t): [sample(findings=[1] * int(rng.random() < p))] for t, p in enumerate(hard > 0.5 + shift)} for shift in (0, 0.1))
        m = measures(next(iter(a.values())), True)[0]
        one, both = estimate(m, a), difference(m, a, b)
        assert one and both
        covered += one.low <= 0.5 <= one.high
        paired.append(both.high - both.low)
        other = estimate(m, b)
        assert other
        apart.append(np.hypot(one.high - one.low, other.high - other.low))
    assert covered >= 51
    assert np.mean(paired) < 0.7 * np.mean(apart)


def test_the_table_holds_what_ten_lines_recompute(page: Path) -> None:
    text = page.read_text()
    for run in ("base", "lpo"):
        samples = [json.loads(line) for line in (page.parent / f"{run}-both/samples.jsonl").read_text().splitlines()]
        code = [s for s in samples if s["parses"] and not s["empty"]]
        insecure = sum(bool(s["findings"]) for s in code)
        both = sum(not s["findings"] and s["functional"]["outcome"] == "pass" for s in code)
        for share in (insecure / len(samples), insecure / len(code), both / len(samples)):
            assert f"<b>{100 * share:.1f}</b>" in text


def test_the_page_loads_nothing_and_is_well_formed(page: Path) -> None:
    text = page.read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert not [a for _, a in parsed.tags if a.keys() & {"src", "srcset", "action", "data", "ping"}]
    assert all((a.get("href") or "#").startswith("#") for _, a in parsed.tags)
    styles = "".join(re.findall(r"<style>.*?</style>|style=\"[^\"]*\"", text, re.S))
    assert styles
    assert not re.findall(r"@import|url\((?!#)", styles)
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in parsed.tags if tag == "a" and a["href"]} <= set(ids)
    csp = next(a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert csp and csp.startswith("default-src 'none'") and "'unsafe-inline'" not in csp.split("script-src")[1]


def test_completions_can_not_become_markup(page: Path) -> None:
    parsed = Page(page.read_text())
    assert [a for tag, a in parsed.tags if tag == "script"] == [{"type": "application/json", "id": "samples"}, {}]
    assert not [tag for tag, _ in parsed.tags if tag == "img"]
    data = json.loads(parsed.scripts[0])
    assert data[0]["tasks"][0]["id"] == HOSTILE
    assert HOSTILE in data[0]["runs"][0]["samples"][HOSTILE][0]["code"]
    assert not set("<>&\u2028\u202e") & set(parsed.scripts[0])


def test_marked_and_unknown_samples_are_on_the_page(tmp_path: Path) -> None:
    """Without its script, too: what they reach for, whether they passed within the test's process, and how many are unknown."""
    run = make(tmp_path / "run", "m", 1.0, benchmark="CWEval", tasks=4, functional=True)
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    code = {"code": "x = 1\n", "parses": True, "empty": False, "findings": []}
    inside = {"outcome": "pass", "detail": "", "seconds": 0.1, "inside": True}
    rows[0] |= code | {"reaches": ["__eq__", "ctypes"], "functional": inside}
    rows[1] |= code | {"reaches": ["<b>"], "functional": inside | {"outcome": "fail"}}
    rows[2] |= code | {"gave_up": ["semgrep"]}
    rows[3] |= code | {
        "gave_up": ["semgrep"],
        "findings": [{"judge": "bandit", "rule": "B1", "cwe": "CWE-1", "line": 1, "end_line": 1, "severity": "low", "message": "found"}],
    }
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write([run], tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    section = re.sub(r"<[^>]*>", " ", text[text.index('id="marked"') : text.index('id="completions"')])
    words = " ".join(section.split())
    assert "2 of 12 samples reach for such things; 1 of these passed a test within its own process. 1 unknown." in words
    assert f"{rows[0]['task_id']}, 1 __eq__, ctypes pass, within its own process –" in words
    assert f"{rows[1]['task_id']}, 2 &lt;b&gt; fail –" in words
    assert f"{rows[2]['task_id']}, 3 – {rows[2]['functional']['outcome']} unknown: semgrep gave up" in words
    assert re.search(r"Unknown.*?<b>8.3</b>", text, re.S)  # the share, in the table of scores
    data = json.loads(Page(text).scripts[0])
    shown = [sample for samples in data[0]["runs"][0]["samples"].values() for sample in samples]
    assert [s["reaches"] for s in shown[:3]] == ["__eq__, ctypes", "<b>", ""] and [s["state"] for s in shown[2:4]] == [
        "unknown",
        "insecure",
    ]
    assert [s["gave_up"] for s in shown[:4]] == ["", "", "semgrep", "semgrep"] and shown[0]["inside"]


def test_faults_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="at least one"):
        write([], tmp_path / "x.html")
    with pytest.raises(ReportError, match=r"run\.json.*lpo-eval run"):
        write([tmp_path / "absent"], tmp_path / "x.html")
    a, b = (make(tmp_path / name, name, 0.5, tasks=3) for name in "ab")
    (odd := make(tmp_path / "odd", "odd", 0.5, tasks=3)).joinpath("samples.jsonl").write_text("5\n")
    with pytest.raises(ReportError, match=r"samples\.jsonl: a line is no object"):
        write([odd], tmp_path / "x.html")
    (odd / "run.json").write_text("[]")
    with pytest.raises(ReportError, match=r"run\.json: no object"):
        write([odd], tmp_path / "x.html")
    with (b / "samples.jsonl").open("a") as file:
        file.write('{"task_id": ')
    with pytest.raises(ReportError, match=r"samples\.jsonl: line 10 is no JSON"):
        write([a, b], tmp_path / "x.html")
    b = make(tmp_path / "c", "c", 0.5, tasks=3)
    (b / "run.json").write_text((b / "run.json").read_text().replace("5e5e", "aaaa"))
    with pytest.raises(ReportError, match="different data"):
        write([a, b], tmp_path / "x.html")


def test_models_that_were_asked_otherwise_are_told_of(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, name, 0.5, tasks=3) for name in ("a", "b")]
    for path, name, sha in zip(runs, ("chat", "alpaca"), ("1a", "2b"), strict=True):
        info = json.loads((path / "run.json").read_text())
        info["sampling"] |= {"template": name, "template_sha256": sha, "system": "", "think": True}
        (path / "run.json").write_text(json.dumps(info))
    write(runs, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert "b and a differ in template, not only in the model." in text
    assert "; template chat; template_sha256 1a; think True<" in text and "; template alpaca" in text


@pytest.fixture(scope="module")
def chromium() -> Any:
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(page: Path, chromium: Any, width: int) -> None:
    tab = chromium.new_page(viewport={"width": width, "height": 900})
    tab.set_default_timeout(60_000)
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    assert asked == [page.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("window.pwned") is None
    assert tab.locator("#b-list article").count() == 4
    assert "onerror" in (tab.locator("#b-list pre.code").first.text_content() or "")
    assert "⟨U+202E⟩" in (tab.locator("#b-list pre.code").first.text_content() or "")
    assert tab.locator("#b-list .finding").count() > 0

    total = int(tab.locator("#b-count").inner_text().split()[-1])
    tab.locator("#b-next").press("Enter")
    assert tab.locator("#b-count").inner_text().startswith("5–8 of")
    tab.select_option("#b-change", "fixed")
    fixed = int(tab.locator("#b-count").inner_text().split()[-1])
    assert 0 < fixed < total
    assert tab.locator("#b-list .pane:first-child .badge.insecure").count() == tab.locator("#b-list article").count()
    tab.fill("#b-text", "there is no such text")
    assert "No sample fits" in tab.locator("#b-count").inner_text()
    tab.fill("#b-text", "")
    tab.select_option("#b-change", "all")
    tab.select_option("#b-benchmark", label="HumanEval")
    assert tab.locator("#b-count").inner_text().endswith("of 30")
    tab.select_option("#b-right", "0")
    assert tab.locator("#b-list .pane").count() == 4
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    tab.close()


def test_without_javascript(page: Path, chromium: Any) -> None:
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 390, "height": 800})
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("table.numbers").first.is_visible()
    assert tab.locator(".cwes table").first.is_visible()
    assert tab.locator("noscript p").is_visible()
    assert not tab.locator("#browser").is_visible()
    context.close()


def test_an_estimated_codeql_share_stands_beside_the_plain_one_and_says_whence_it_is(tmp_path):
    run = make(tmp_path / "run", "models/base", 0.5)
    lines = [json.loads(line) | {"codeql": 0.25} for line in (run / "samples.jsonl").read_text().splitlines()]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write([run], tmp_path / "report.html")
    text = " ".join(re.sub(r"<[^>]+>", " ", (tmp_path / "report.html").read_text()).split())
    assert "CodeQL, estimated lower is better 25.0 % [" in text
    assert "fitted on 771 answers of 7 models (VulnBench" in text
