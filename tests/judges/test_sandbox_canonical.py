"""The benchmarks' own solutions through the sandbox: a sample always, all of them slow. Skipped where the data isn't there."""

import gzip
import json

import pytest

from judges.sandbox import Case, run_many

# MBXP's own solutions that fail its own tests.
BROKEN = {56, 64, 160, 341, 349, 367, 596, 601, 607, 631, 642, 899, 927, 966, 967}

FILES = {
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "humaneval_x": "humaneval_x/humaneval_python.jsonl.gz",
    "mbxp": "mbxp/mbpp_release_v1.jsonl",
}


def programs(data, name, step):
    """(task id, canonical solution with its tests, a word that only a program which came to its end prints)."""
    path = data / FILES[name]
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for row in list(map(json.loads, file))[::step]:
            call = "" if name == "humaneval_x" else f"check({row['entry_point']})"  # HumanEval-X's tests call themselves
            yield row["task_id"], f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\n{call}\nprint('the end')"


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["humaneval", "humaneval_x", "mbxp"])
def test_canonical_solutions_pass(shared_data, name, step):
    ids, codes = zip(*programs(shared_data, name, step), strict=True)
    results = list(run_many(map(Case, codes), 2))
    failed = {i for i, r in zip(ids, results, strict=True) if r.outcome != "pass" or not r.stdout.endswith("the end\n")}
    assert failed == ({f"MBPP/{i}" for i in BROKEN} & set(ids) if name == "mbxp" else set())
