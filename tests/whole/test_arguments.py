"""What can't be is refused before anything is loaded, by every command: one line that names the argument, exit code 2."""

import pytest

from data_pipeline import cli as lpo_data
from evaluation import cli as lpo_eval
from lpo_jax import cli as lpo

GENERATE = ["generate", "p.jsonl", "-o", "o.jsonl", "--model", "m"]
SERVE = ["serve", "--model", "m"]
EVAL = ["run", "--benchmark", "humaneval", "--completions", "canonical", "-o", "d"]
DISTILL = ["distill", "--out", "d", "--model", "m", "-n", "3"]
BUILD = ["build", "p.jsonl", "--out", "d", "--train-tokenizer", "300"]
BELOW = ("0", "-1", "1.5", "x", "", "99999999999999999999")
NOT_REAL = ("-1", "nan", "inf", "x")

WRONG = [
    *((lpo, GENERATE, flag, value) for flag in ("--samples", "--max-new-tokens", "--rows", "--block") for value in BELOW),
    *((lpo, GENERATE, "--seed", value) for value in ("-1", str(2**32), "1.5", "x")),
    *((lpo, GENERATE, "--temperature", value) for value in NOT_REAL),
    *((lpo, GENERATE, flag, value) for flag in ("--top-p", "--threshold", "--weight") for value in ("1.1", *NOT_REAL)),
    *((lpo, GENERATE, "--top-k", value) for value in ("-1", "x")),
    (lpo, GENERATE, "--top-p", "0"),
    (lpo, GENERATE, "--max-len-tokens", "1"),
    (lpo, GENERATE, "--dtype", "float8"),
    (lpo, GENERATE, "--preset", "best"),
    *((lpo, GENERATE, axis, "-2") for axis in ("--data", "--fsdp", "--expert", "--tensor")),
    *((lpo, SERVE, "--port", value) for value in ("-1", "65536", "http")),
    *((lpo, SERVE, "--grace", value) for value in NOT_REAL),
    (lpo, SERVE, "--max-waiting", "-1"),
    *((lpo_eval, EVAL, flag, value) for flag in ("--samples", "--limit", "--workers", "--concurrency", "--memory-mb") for value in BELOW),
    *((lpo_eval, EVAL, "--time-s", value) for value in ("0", *NOT_REAL)),
    (lpo_eval, EVAL, "--seed", "-1"),
    *((lpo_data, DISTILL, flag, value) for flag in ("--prompts", "--max-tokens", "--concurrency", "--tries", "--jobs") for value in BELOW),
    *((lpo_data, DISTILL, flag, value) for flag in ("--price-in", "--price-out", "--budget", "--temperature", "--backoff") for value in NOT_REAL),
    *((lpo_data, DISTILL, flag, "-1") for flag in ("--seed", "--rounds")),
    (lpo_data, DISTILL, "--timeout", "0"),
    *((lpo_data, BUILD, flag, value) for flag in ("--row-tokens", "--jobs") for value in BELOW),
    *((lpo_data, BUILD, flag, "-1") for flag in ("--seed", "--hole", "--balance-cwe", "--near", "--heldout")),
    *((lpo_data, BUILD, "--heldout", value) for value in ("1", "nan", "x")),
    (lpo_data, BUILD, "--train-tokenizer", "256"),
    *((lpo_data, ["show", "d"], "-n", value) for value in ("-1", "1.5", "x")),
    (lpo_data, ["check", "p.jsonl"], "--workers", "0"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0].__name__.partition('.')[0]} {case[1][0]} {case[2]} {case[3]}")
def test_an_argument_out_of_bounds(case, tmp_path, monkeypatch, capsys):
    program, words, flag, value = case
    monkeypatch.chdir(tmp_path)
    assert program.main([*words, f"{flag}={value}" if flag.startswith("--") else f"{flag}{value}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and flag in lines[0] and not list(tmp_path.iterdir())
