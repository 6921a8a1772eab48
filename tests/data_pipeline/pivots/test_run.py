"""`lpo-data pivots` against a model made by hand: it finds the token on which success hangs, and asks for nothing twice, killed or not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline import pairs, template
from data_pipeline.cli import main
from data_pipeline.encode import MaskOptions, encode
from data_pipeline.pairs import Drops, Pair
from data_pipeline.pivots import success
from foundation.files import read_journal, write_lines
from judges import Verdict
from judges.findings import Finding
from judges.prepare import parse
from tests.helpers.automaton import Automaton, pair, small_tokenizer
from tests.helpers.paths import REPO


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def quick(monkeypatch):
    """Bandit's verdicts on hashes without Bandit, which takes a second to start; `test_pivots_served.py` and the killed job ask it."""

    def judge(sources, tools, workers=1):
        finding = Finding("bandit", "B324", "CWE-327", 1, 1, "high", "weak")
        return [Verdict(parse(text) is not None, (finding,) * ("hashlib.md5" in text)) for text in sources]

    monkeypatch.setattr(success, "judge", judge)


@pytest.fixture
def files(tmp_path, tok):
    tok.save(tmp_path / "tok")
    pairs.write([pair("digest"), pair("fingerprint")], tmp_path / "pairs.jsonl")
    return tmp_path


def command(files, url, *more, out="out.jsonl"):
    return ["pivots", str(files / "pairs.jsonl"), "--tokenizer", str(files / "tok"), "--template", "alpaca", "--model", "m", "--judges",
            "bandit", "--base-url", url, "--backoff", "0.01", "-o", str(files / out), *more]  # fmt: skip


def rows(files, out="out.jsonl"):
    return [json.loads(line) for line in (files / out).read_text().splitlines()]


def token_with(tok, code, at):
    """The characters of the token that holds a character of code."""
    encoded = tok.encode("```python\n" + code, goes_on=True)
    return next([a - 10, b - 10] for a, b in encoded.offsets if a - 10 <= at < b - 10)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("hangs_on", "front"), [("word", "Make it "), ("kind", "hashlib.")])
def test_the_token_on_which_success_hangs_is_found_on_both_sides(files, tok, hangs_on, front):
    model = Automaton(tok, hangs_on)
    with model.serve() as url:
        assert main(command(files, url)) == 0
    for row in rows(files):
        for side in ("chosen", "rejected"):
            expected = token_with(tok, row[side], row[side].index(front) + len(front))
            assert row[f"{side}_spans"] == [expected]
            (token,) = row["pivots"][side]["tokens"]
            assert token["characters"] == expected and token["text"] == row[side][slice(*expected)]
            assert abs(token["before"] - 0.5) < 0.25 and (token["after"] > 0.85 if side == "chosen" else token["after"] < 0.1)
            assert len(row["pivots"][side]["prefixes"]) < 12  # of some 60 tokens
    assert len(model.asked) == len(set(model.asked))
    assert all(
        len(set(json.dumps(body) for body in model.bodies if body["seed"] == seed)) == 1 for seed in {b["seed"] for b in model.bodies}
    )
    drops = Drops()
    read = list(pairs.read(files / "out.jsonl", drops))
    assert not drops.rows and not drops.unused["out.jsonl"]
    how, _ = template.load("alpaca", tok)
    for found in read:
        encoded = encode(found, tok, how, MaskOptions("spans", hole=0))
        assert encoded.m_plus.sum() == encoded.m_minus.sum() == 1
        assert tok.backend.decode(encoded.chosen[encoded.m_plus]) == rows(files)[0]["pivots"]["chosen"]["tokens"][0]["text"]


@pytest.mark.usefixtures("quick")
def test_prompts_are_the_ids_of_training(files, tok):
    model = Automaton(tok)
    with model.serve() as url:
        assert main(command(files, url, "--limit", "1", "--samples", "8")) == 0
    encoded = encode(pair(), tok, template.load("alpaca", tok)[0], MaskOptions())
    for body in model.bodies:
        prompt = body["prompt"]
        assert prompt in (encoded.chosen[: len(prompt)].tolist(), encoded.rejected[: len(prompt)].tolist())
        assert len(prompt) >= encoded.chosen_code_start


@pytest.mark.usefixtures("quick")
def test_noise_below_the_threshold_finds_nothing_and_is_told(files, tok, capsys):
    with Automaton(tok, clumsy=0.85).serve() as url:
        assert main(command(files, url, "--samples", "128", "--threshold", "0.3")) == 0
    assert rows(files) == [] and "dropped       2 rows: no pivotal token" in capsys.readouterr().out
    assert "digest\tno pivotal token (p: chosen 0." in (files / "out.jsonl.dropped.tsv").read_text()


@pytest.mark.usefixtures("quick")
def test_one_side_alone_leaves_the_other_to_the_diff_and_facts_stay(files, tok):
    told = [json.loads(line) | {"rule": "r1"} for line in (files / "pairs.jsonl").read_text().splitlines()]
    write_lines(files / "pairs.jsonl", told)
    with Automaton(tok).serve() as url:
        assert main(command(files, url, "--sides", "rejected")) == 0
    (row, _) = rows(files)
    assert row["rule"] == "r1" and row["cwe"] == "CWE-327"
    assert len(row["rejected_spans"]) == 1 and "chosen" not in row["pivots"]
    assert [row["chosen"][a:b] for a, b in row["chosen_spans"]] == ["safe", "sha256"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("waited_for", ["said", pytest.param("passed", marks=pytest.mark.slow)])
def test_killed_and_resumed_gives_the_same_bytes_and_asks_for_nothing_twice(files, tok, waited_for):
    model = Automaton(tok)
    with model.serve() as url:
        assert main(command(files, url, out="straight.jsonl")) == 0
        model.asked.clear()
        model.wait_s = 0.05
        journal = files / "out.jsonl.journal.jsonl"
        job = subprocess.Popen([sys.executable, "-m", "data_pipeline.cli", *command(files, url, "--concurrency", "2")], cwd=REPO)
        while not journal.exists() or sum(f'"{waited_for}"' in line for line in journal.read_text().splitlines()) < 3:
            assert job.poll() is None
            time.sleep(0.01)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        time.sleep(0.3)  # what was under way is answered to nobody
        assert not (files / "out.jsonl").exists()
        known = {line["key"] for line in read_journal(journal)}
        before = len(model.asked)
        assert main(command(files, url)) == 0
        assert before and len(model.asked) > before and not known & set(model.asked[before:])
        done = len(model.asked)
        assert main(command(files, url)) == 0 and len(model.asked) == done
    assert (files / "out.jsonl").read_bytes() == (files / "straight.jsonl").read_bytes()


@pytest.mark.usefixtures("quick")
def test_another_option_or_input_is_refused_by_name_but_a_limit_may_grow(files, tok, capsys):
    model = Automaton(tok)
    with model.serve() as url:
        assert main(command(files, url, "--limit", "1", "--samples", "20")) == 0
        assert len(rows(files)) == 1
        assert main(command(files, url, "--samples", "20", "--threshold", "0.25", "--seed", "3")) == 2
        assert "begun with another seed, threshold (see" in capsys.readouterr().err
        assert main(command(files, url, "--samples", "20")) == 0
        assert len(rows(files)) == 2 and len(model.asked) == len(set(model.asked))
        pairs.write([pair("digest")], files / "pairs.jsonl")
        assert main(command(files, url, "--samples", "20")) == 2
        assert "begun with another inputs" in capsys.readouterr().err
        assert main([*command(files, url), "-o", str(files / "pairs.jsonl")]) == 2
        assert "isn't of `lpo-data pivots`" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_rows_without_a_judge_are_named_and_a_dry_run_asks_nobody(files, tok, capsys):
    blind = Pair("blind", "x = 1\ny = 2\n", "x = 1\ny = 3\n", instruction="Set x.", cwe="CWE-89")
    pairs.write([blind, pair("digest")], files / "pairs.jsonl")
    assert main(command(files, "http://127.0.0.1:9/v1", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "1 pairs can be judged; with no pivotal token in them 4 requests, with one on each side " in said
    assert "dropped       1 rows: no judge: bandit let the rejected side pass\nblind  " in said
    assert {file.name for file in files.iterdir()} == {"tok", "pairs.jsonl"}
    with Automaton(tok).serve() as url:
        assert main(command(files, url)) == 0
    assert [row["id"] for row in rows(files)] == ["digest"]
    assert (files / "out.jsonl.dropped.tsv").read_text() == "blind\tno judge: bandit let the rejected side pass (CWE-89)\n"


@pytest.mark.usefixtures("quick")
def test_an_endpoint_that_cannot_be_used_is_one_line_and_the_job_goes_on_later(files, tok, capsys):
    assert main(command(files, "http://127.0.0.1:9/v1", "--tries", "2")) == 2
    assert "127.0.0.1 gave no continuation (connection lost: Connection error.); run the same command again" in capsys.readouterr().err
    with Automaton(tok, vocab=100).serve() as url:
        assert main(command(files, url)) == 2
    assert "prompt: tokens lie in 0 .. 99" in (said := capsys.readouterr().err) and "is --tokenizer that of the model there" in said
    with Automaton(tok, longest=20).serve() as url:
        assert main(command(files, url)) == 0
    assert "dropped       2 rows: too long for the endpoint" in capsys.readouterr().out
    model = Automaton(tok, short=3)
    with model.serve() as url:
        assert main(command(files, url)) == 0
    assert len(rows(files)) == 2 and len(model.asked) - len(set(model.asked)) == 3  # no answer lacks a sample
