"""notebooks/colab_tpu.ipynb: its tiny path runs from top to bottom, and it is committed without outputs."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.paths import REPO

NOTEBOOK = REPO / "notebooks" / "colab_tpu.ipynb"
SHORT = [
    *(f"stages.{stage}.{setting}" for stage in ("sft", "lpo") for setting in ("epochs=null", "steps=3")),
    "eval_every_steps=0",
    "report_pairs=2",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The parts of the checkout that the notebook uses, so that it writes its runs there."""
    for name in ("lpo_jax", "data_pipeline", "configs", "docs", "requirements.txt"):
        (tmp_path / name).symlink_to(REPO / name)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOK, tmp_path / "notebooks")
    return tmp_path


@pytest.mark.slow
def test_the_tiny_path_runs(checkout, monkeypatch):
    monkeypatch.setenv("LPO_NOTEBOOK_OVERRIDES", " ".join(SHORT))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(checkout / "notebooks")}}).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    def text(cell):
        return "".join(output.get("text", "") for output in outputs[cell])

    def shown(cell, kind):
        return "".join(output.data.get(kind, "") for output in outputs[cell] if output.output_type == "display_data")

    assert "already installed" in text("install")
    assert "\x1b[30;42m" in text("show") and "\x1b[97;41m" in text("show")  # the masks, in colour
    assert "I0000" not in text("show")
    assert "<svg" in shown("tree", "image/svg+xml")
    assert "(cpu)" in text("doctor") and "sandbox" in text("doctor")
    summary = json.loads((checkout / "runs/colab_tiny/summary.json").read_text())
    table = shown("summary", "text/markdown").splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == ["init", "sft", "lpo"]
    assert f"{summary['lpo']['pair_accuracy']:.0%}" in table[-1]
    assert "training report" in shown("page", "text/html")
    assert not any(outputs[cell] for cell in outputs if cell.startswith("qwen"))  # the switch is off


def test_no_outputs_are_committed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id
