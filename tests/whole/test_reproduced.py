"""`make reproduce SIZE=smoke`, from the split to the page: the product's own commands on a real, tiny model, and twice the same numbers."""

import os
import subprocess
import sys

import pytest

from reproduce.results import Results
from tests.helpers.marks import needs_sandbox
from tests.helpers.paths import REPO

COMMANDS_OF_ONE_PROCESS = """
import importlib, sys
from reproduce import run
run._call = lambda argv, place, until: importlib.import_module(argv[2]).main(argv[3:])
from reproduce.__main__ import main
sys.exit(main(sys.argv[1:]))
"""  # they load JAX once; tests/reproduce/test_run.py has processes of their own


LAZY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""More is compiled than computed."""


def reproduce(scratch, cache):
    """The files of the results: relative path -> bytes."""
    words = ["run", "smoke", "--only", "test-base", "test-simpo", "--work", str(scratch / "work"), "--results", str(scratch / "results")]
    env = os.environ | {"XLA_FLAGS": LAZY, "PYTHONPATH": str(REPO), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run([sys.executable, "-c", COMMANDS_OF_ONE_PROCESS, *words], env=env, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    root = scratch / "results"
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.mark.slow
@needs_sandbox
def test_a_second_run_gives_the_same_numbers_bit_for_bit(tmp_path):
    one, other = (reproduce(tmp_path / name, tmp_path / "compiled") for name in ("one", "other"))
    took = {name for name in one if name.endswith(("piece.json", "index.html"))}  # how long it took
    assert one.keys() == other.keys() and {n: x for n, x in one.items() if n not in took} == {
        n: x for n, x in other.items() if n not in took
    }
    pages = [text.decode().partition("<h2>Pieces</h2>")[0] for text in (one["index.html"], other["index.html"])]
    assert pages[0].partition("<h2>Claims")[2] == pages[1].partition("<h2>Claims")[2] != ""

    results = Results(tmp_path / "one" / "results", "smoke")
    samples = results.evaluation("test-simpo").samples
    assert len(samples) == 6 and all(sample["functional"]["outcome"] in ("pass", "fail") for sample in samples)
    for name in ("train-sft.1", "train-simpo.1"):
        heldout = results.training(name)["heldout"]
        assert list(heldout)[0] == "init" and len(heldout) == 2
        for found in heldout.values():  # what is kept of each pair says what the run said of all
            compared = [(a[2] / a[3], b[2] / b[3]) for a, b in found["pairs"].values() if a[3] and b[3]]
            assert len(found["pairs"]) == 9 and found["metrics"]["pair_accuracy"] == pytest.approx(
                sum(a > b for a, b in compared) / len(compared)
            )
            assert found["metrics"]["margin"] == pytest.approx(sum(a - b for a, b in compared) / len(compared), abs=1e-3)
