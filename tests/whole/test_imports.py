"""Who may import whom, in processes of their own."""

import subprocess
import sys

import pytest

from tests.conftest import REPO


def loaded(statement):
    code = f"{statement}\nimport sys\nprint(' '.join(sorted(m for m in ('tensorflow', 'torch', 'transformers', 'jax', 'data_pipeline', 'lpo_jax', 'evaluation', 'judges') if m in sys.modules)))"  # fmt: skip
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO).stdout.split()


@pytest.mark.parametrize(
    "module",
    [
        "lpo_jax.train",
        "lpo_jax.train.loop",
        "lpo_jax.objectives",
        "lpo_jax.model.hf",
        "lpo_jax.decode.job",
        "lpo_jax.serve.server",
        "lpo_jax.cli",
    ],
)
def test_the_trainer_pulls_in_neither_tensorflow_nor_torch(module):
    assert set(loaded(f"import {module}")) <= {"jax", "lpo_jax"}


def test_pair_tools_need_no_framework():
    assert loaded("import data_pipeline.build, data_pipeline.encode, data_pipeline.masks") == ["data_pipeline"]


def test_the_sandbox_needs_nothing_of_ours():
    assert loaded("import judges.sandbox") == ["judges"]


def test_the_data_pipeline_knows_the_contract_and_nothing_else():
    code = "import data_pipeline.feed, sys\nprint(*sorted(m for m in sys.modules if m.startswith('lpo_jax')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO).stdout.split()
    assert found == ["lpo_jax", "lpo_jax.batch"]


def test_the_judges_import_nothing_of_ours():
    assert loaded("import judges") == ["judges"]
