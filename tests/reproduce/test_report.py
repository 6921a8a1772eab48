"""The page is made from files alone, and says what they say."""

import json
import re
import shutil

import pytest

from reproduce import __main__ as program
from reproduce.campaign import load
from reproduce.report import Page, write
from reproduce.results import Results, accuracies, sums
from tests.helpers.campaigns import ROWS, finish, smoke, trained
from tests.helpers.marks import needs_sandbox
from tests.helpers.train_runs import SUMMARY, TOKENS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Results: a base whose code is never secure, an LPO whose code always is, no SimPO yet. The runs themselves are gone."""
    scratch = tmp_path_factory.mktemp("report")
    _, here, pieces = smoke(scratch)
    finish(here, pieces, {"test-base": "insecure", "dev-base": "insecure", "dev-lpo.1": "insecure", "dev-lpo.2": "canonical"})
    _, here, pieces = smoke(scratch)
    finish(here, pieces, {"test-lpo": "canonical"})
    took = {"seconds": 90.0, "parts": 2, "cores": 2}
    for name in ("train-sft.1", "train-lpo.2"):
        stage = pieces[name].system
        here.results.keep(name, pieces[name].key, took, trained(scratch / "run" / stage, stage))
    shutil.rmtree(here.work)
    return here.results.root


def table(text, title):
    """The rows of a table of results.md, by their first cells."""
    lines = text.partition(f"### {title}\n")[2].partition("\n### ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


@needs_sandbox
def test_the_page_says_what_the_files_say(root):
    page, text = (file.read_text() for file in write(root))
    code = table(text, "Function and security")
    assert code["lpo"]["test joint"] == "100.0 [100.0, 100.0]" and code["base"]["test joint"] == "0.0 [0.0, 0.0]"
    assert (
        code["base"]["test functional"] == "100.0 [100.0, 100.0]"
        and code["simpo"]["test joint"] == "open"
        and code["lpo"]["HumanEval"] == "–"
    )
    assert code["lpo"]["dev joint"] == "100.0 [100.0, 100.0]" and table(text, "Tuning, on the development part")["lpo.2"][""] == "chosen"
    claims = table(text, "Claims")
    assert claims["Localised beats uniform: LPO is above SimPO"]["verdict"] == "open"
    assert next(row for claim, row in claims.items() if "39.6 % joint" in claim)["verdict"] == "confirmed"
    heldout = table(text, "Held-out pairs")
    assert heldout["lpo"]["changed tokens, %"] == f"{100 * SUMMARY['lpo']['pair_accuracy']:.1f}" and heldout["simpo"]["margin"] == "open"
    pieces = table(text, "Pieces")
    assert pieces["train-lpo.2"]["took"] == "1.5 min, 2 parts, 2 cores" and pieces["test-simpo"]["state"] == "open"
    assert "lpo minus base" in table(text, "Paired differences")
    for row in (*code.values(), *claims.values()):
        for cell in row.values():
            assert cell.replace("'", "&#39;").replace(">", "&gt;") in page
    assert "<script" not in page and page.count("<polyline") == 2


@needs_sandbox
def test_what_is_kept_is_the_models_text_alone_and_the_same_bytes_every_time(root, tmp_path):
    before = {file: file.read_bytes() for file in write(root)}
    assert {file: file.read_bytes() for file in write(root)} == before
    samples = Results(root, "smoke").evaluation("test-lpo").samples
    texts = json.dumps(samples)
    for row in map(json.loads, ROWS.read_text().splitlines()):
        assert row["prompt"][:30] not in texts and row["testcases"][:40] not in texts
    assert all(sample["functional"]["seconds"] == 0 for sample in samples)


@needs_sandbox
def test_the_programs_commands(root, capsys):
    assert program.main(["report", "--results", str(root)]) == 0
    assert program.main(["list", "smoke", "--results", str(root)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"core +train-sft.1 +done +1.5 min on 2 cores", out) and len(re.findall(r" next +about", out)) == 1
    assert "7 of 20 pieces are done" in out
    for words, said in (
        (["run", "small"], "small needs --model"),
        (["run", "smoke", "--model", "x"], "trains a model of its own"),
        (["run", "full"], "needs a TPU slice"),
        (["list", "huge"], "invalid choice"),
    ):
        assert program.main(words) == 2
        assert said in capsys.readouterr().err


def test_a_training_for_another_machine(tmp_path, capsys):
    from lpo_jax.config import load as load_run

    assert program.main(["configs", "full", "--model", "OWNER/NAME", "--work", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len({line.partition(":")[0] for line in lines}) > 20
    run = load_run(tmp_path / "configs" / "train-lpo.1.yaml")
    assert run.model.path == "OWNER/NAME" and run.model.adapter == str(tmp_path / "adapters" / "sft.1") and run.mesh.topology == "v5e:2x4"


def test_sums_of_a_pair():
    """Against what stands there: logps -1, -2 (shared); -0.5 changed and -0.25 of the secure side; -3 changed of the vulnerable one; one isn't scored."""
    numbers = [-1.0, -2.0, -0.5, -0.25, None, -3.0]
    found = sums([[*token, number] for token, number in zip(TOKENS, numbers, strict=True)])
    assert found == [[-3.75, 4, -0.5, 1], [-6.0, 3, -3.0, 1]]
    assert accuracies({"a": found, "b": found[::-1]}) == {"answer_accuracy": 0.5, "answer_accuracy_sum": 0.5}


def test_an_empty_campaign_takes_what_is_expected(tmp_path):
    campaign = load("small")
    page = Page(campaign, Results(tmp_path, "small"), {})
    assert page.left() == pytest.approx(sum(page.minutes(piece) for piece in page.pieces) / 60) and page.left() > 10
    found = {piece.name: piece for piece in page.pieces}
    assert page.minutes(found["train-sft.1"]) == campaign.minutes["sft"]
    took = {"seconds": 6000.0, "cpu_seconds": 960.0, "parts": 3, "cores": 2}  # on a busy machine: ten minutes of two cores
    page.results.keep("dev-base", found["dev-base"].key, took, {})
    assert page.minutes(found["dev-base"]) == 100 and page.minutes(found["dev-sft.1"]) == pytest.approx(10)
