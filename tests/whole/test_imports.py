"""What importing a module loads, in processes of their own. Who may import whom is for import-linter (`make lint`)."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import REPO

OURS = {"foundation", "judges", "data_pipeline", "lpo_jax", "evaluation"}
HEAVY = {"tensorflow", "torch", "transformers", "jax", "numba"}
EXTRAS = {
    "bandit",
    "datasets",
    "detect_secrets",
    "matplotlib",
    "openai",
    "pyarrow",
    "tensorboardX",
}  # with the above: what `data` and `eval` have


def loaded(statement):
    code = f"{statement}\nimport sys\nprint(*sorted({OURS | HEAVY | EXTRAS} & sys.modules.keys()))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO).stdout.split()


@pytest.mark.parametrize(
    "module",
    [
        "lpo_jax.train",
        "lpo_jax.train.loop",
        "lpo_jax.train.data",
        "lpo_jax.objectives",
        "lpo_jax.model.hf",
        "lpo_jax.decode.job",
        "lpo_jax.serve.server",
        "lpo_jax.export",
        "lpo_jax.plan.run",
        "lpo_jax.cli",
    ],
)
def test_the_trainer_pulls_in_neither_tensorflow_nor_torch(module):
    assert set(loaded(f"import {module}")) <= {"jax", "lpo_jax", "data_pipeline", "judges", "foundation"}


def test_pair_tools_need_no_framework():
    assert loaded("import data_pipeline.build, data_pipeline.encode, data_pipeline.masks") == [
        "data_pipeline",
        "foundation",
        "judges",
        "numba",
    ]


def test_a_pair_needs_no_compiler():
    assert loaded("import data_pipeline.pairs") == ["data_pipeline", "foundation", "judges"]


def test_the_sandbox_and_the_foundation_need_nothing_above_them():
    assert set(loaded("import judges.sandbox")) <= {"judges", "foundation"}
    assert loaded("from foundation import console, errors, files, pages, settings") == ["foundation"]


def test_the_data_pipeline_loads_nothing_of_the_learner():
    assert "lpo_jax" not in loaded("import data_pipeline.feed, data_pipeline.show, data_pipeline.cli")


def test_the_judges_import_nothing_of_ours_but_the_foundation():
    assert set(loaded("import judges")) <= {"judges", "foundation"}


def test_tensorflow_says_nothing():
    """It, and its part for texts, which is loaded for spans alone."""
    code = "from data_pipeline import masks; import numpy as np; masks.spans((np.array([[0, 1]]),) * 2, ([(0, 1)],) * 2)"
    env = {name: value for name, value in os.environ.items() if name not in ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO, env=env)
    assert done.stdout + done.stderr == ""
