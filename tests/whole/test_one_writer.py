"""Every command that writes a directory or a file keeps the others out, before it does any work."""

import pytest

import lpo_jax.cli
from data_pipeline import cli as data_cli
from evaluation import run as evaluation
from evaluation.benchmarks import Benchmark
from evaluation.completions import Completions
from foundation.errors import DataError
from foundation.files import hold
from tests.helpers.paths import SEED_PAIRS

COMMANDS = {
    "build": (data_cli.main, ["build", str(SEED_PAIRS), "--train-tokenizer", "300", "--out"]),
    "distill": (data_cli.main, ["distill", "--prompts", "2", "--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--out"]),
    "pivots": (data_cli.main, ["pivots", str(SEED_PAIRS), "--tokenizer", "none", "--model", "m", "--out"]),
    "generate": (lpo_jax.cli.main, ["generate", "--model", "none", "none.jsonl", "--out"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_another_process_writes_is_left_alone(command, tmp_path, capsys):
    main, args = COMMANDS[command]
    out = tmp_path / "out"
    if command not in ("pivots", "generate"):
        out.mkdir()
    with hold(out):
        before = sorted(tmp_path.rglob("*"))
        assert main([*args, str(out)]) == 2
        assert sorted(tmp_path.rglob("*")) == before
    assert f"{out}: another process is writing to it (process " in capsys.readouterr().err.splitlines()[-1]


def test_an_evaluation_too(tmp_path):
    nothing = Benchmark("none", "completion", "", ())
    with hold(tmp_path), pytest.raises(DataError, match="another process"):
        evaluation.run(nothing, Completions("m", 1, lambda _: iter(())), evaluation.Options("completion"), tmp_path)


@pytest.mark.parametrize(
    ("main", "args", "said"),
    [
        (data_cli.main, ["build", str(SEED_PAIRS), "--train-tokenizer", "300", "--out", "FILE"], "is a file; name a directory"),
        (data_cli.main, ["build", str(SEED_PAIRS), "--train-tokenizer", "300", "--out", "FILE/x"], "can't be made"),
        (data_cli.main, ["stats", "DIRECTORY", "--html", "DIRECTORY"], "is a directory; name a file"),
        (lpo_jax.cli.main, ["generate", "--model", "none", "none.jsonl", "-o", "DIRECTORY"], "is a directory; name a file"),
        (lpo_jax.cli.main, ["export", "none", "FILE"], "is a file; name a directory"),
        (lpo_jax.cli.main, ["plan", "configs/tiny_cpu.yaml", "--json", "FILE/x"], "can't be made"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(main, args, said, tmp_path, capsys):
    (tmp_path / "FILE").touch()
    (tmp_path / "DIRECTORY").mkdir()
    args = [str(tmp_path / arg) if arg.startswith(("FILE", "DIRECTORY")) else arg for arg in args]
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list((tmp_path / "DIRECTORY").iterdir())
