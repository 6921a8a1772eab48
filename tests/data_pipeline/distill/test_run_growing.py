"""A job may grow, and says beforehand what is left to pay."""

import json

import pytest

from data_pipeline import cli
from data_pipeline.distill import knowledge, prompts
from data_pipeline.distill.cost import TYPICAL_ANSWER, Prices
from data_pipeline.distill.run import distill, estimate
from data_pipeline.distill.writer import WriterOptions
from demos.standin import Standin
from foundation.errors import DataError
from tests.helpers.endpoints import listening
from tests.helpers.seed_pairs import PAIRS

LIBRARIES = ["flask", "django", "aiohttp"]


@pytest.fixture
def rules():
    return knowledge.select("", "", "")[:40]


def test_a_grown_job_asks_for_what_is_new_alone(rules, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    out, ledger = tmp_path / "job", tmp_path / "ledger"
    with listening(Standin(PAIRS, 0, 0, ledger)) as url:
        options = WriterOptions(url, prices=Prices(1, 2))
        small, large = prompts.Job("m", 10, near=2.0), prompts.Job("m", 30, near=2.0)
        first = distill(small, rules, LIBRARIES, out, options, None)
        assert estimate(small, rules, LIBRARIES, out, options, judged=True)[1].requests == 0
        known, pairs, repairs = estimate(large, rules, LIBRARIES, out, options, judged=True)
        assert (known, pairs.requests, repairs.requests) == (10, 20, 20)
        assert estimate(large, rules, LIBRARIES, out, options, judged=False)[2].requests == 0
        second = distill(large, rules, LIBRARIES, out, options, None)
    asked = [json.loads(line)["key"] for line in ledger.read_text().splitlines()]
    assert len(asked) == len(set(asked)) == 30, "nothing is paid for twice"
    assert (first["prompts"], second["prompts"], second["cost"]["answers"]) == (10, 30, 30)
    more_out = second["cost"]["tokens_out"] - first["cost"]["tokens_out"]
    assert pairs.tokens_out == pytest.approx(more_out, rel=0.3) and second["cost"]["dollars"] - first["cost"]["dollars"] <= pairs.at_most
    with pytest.raises(DataError, match=r"holds a job of 30 prompts; ask for as many or more \(-n 30\)"):
        distill(small, rules, LIBRARIES, out, options, None)
    with pytest.raises(DataError, match="holds a job with another plan"):
        distill(large, rules[:20], LIBRARIES, out, options, None)
    with pytest.raises(DataError, match="holds a job with another temperature"):
        estimate(prompts.Job("m", 40, near=2.0, temperature=0.1), rules, LIBRARIES, out, options, judged=False)


def test_an_estimate_asks_nobody_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    out = tmp_path / "job"
    words = ["distill", "--model", "m", "-n", "100", "--price-in", "2.5", "--price-out", "10", "--out", str(out)]
    assert cli.main([*words, "--estimate", "--base-url", "http://127.0.0.1:1/v1"]) == 0
    table = {line[:20].strip(): line[20:].split() for line in capsys.readouterr().out.splitlines()[2:]}
    requests, asked, answered, dollars, most = map(float, table["pairs"])
    assert (requests, answered) == (100, 100 * TYPICAL_ANSWER) and 20_000 < asked < 60_000
    assert dollars == pytest.approx((asked * 2.5 + answered * 10) / 1e6, abs=0.01) and dollars < most
    assert table["repairs, at most"][0] == "100" and float(table["repairs, at most"][1]) > asked
    assert cli.main([*words, "--estimate", "--batch", "--judges"]) == 0
    table = {line[:20].strip(): line[20:].split() for line in capsys.readouterr().out.splitlines()[2:]}
    assert float(table["pairs"][3]) == pytest.approx(dollars / 2, abs=0.01) and table["repairs, at most"][0] == "0"
    free = ["distill", "--model", "m", "-n", "10", "--out", str(out), "--estimate"]
    assert cli.main(free) == 0
    said = capsys.readouterr().out
    assert "0.00" not in said and "dollars take the teacher's prices: --price-in and --price-out" in said
    assert not out.exists()
