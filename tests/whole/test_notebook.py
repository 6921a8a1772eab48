"""Notebooks run from top to bottom (of the Colab one its tiny path), and are committed without outputs."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.paths import REPO

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
SHORT = [
    *(f"stages.{stage}.{setting}" for stage in ("sft", "lpo") for setting in ("epochs=null", "steps=3")),
    "eval_every_steps=0",
    "report_pairs=2",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The parts of the checkout that the notebook uses, so that it writes its runs there."""
    for name in ("lpo_jax", "data_pipeline", "judges", "foundation", "configs", "docs", "requirements.txt"):
        (tmp_path / name).symlink_to(REPO / name)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(REPO / "notebooks" / "colab_tpu.ipynb", tmp_path / "notebooks")
    return tmp_path


def outputs_of(path: Path) -> dict:
    """What each code cell of a notebook puts out when all are run, by the cell's id."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def printed(outputs: list) -> str:
    return "".join(output.get("text", "") for output in outputs)


def displayed(outputs: list, kind: str) -> str:
    return "".join(output.data.get(kind, "") for output in outputs if output.output_type == "display_data")


@pytest.mark.slow
def test_the_tiny_path_runs(checkout, monkeypatch):
    monkeypatch.setenv("LPO_NOTEBOOK_OVERRIDES", " ".join(SHORT))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    outputs = outputs_of(checkout / "notebooks" / "colab_tpu.ipynb")
    assert "already installed" in printed(outputs["install"])
    assert "\x1b[30;42m" in printed(outputs["show"]) and "\x1b[97;41m" in printed(outputs["show"])  # the masks, in colour
    assert "I0000" not in printed(outputs["show"])
    assert "<svg" in displayed(outputs["tree"], "image/svg+xml")
    assert "(cpu)" in printed(outputs["doctor"]) and "sandbox" in printed(outputs["doctor"])
    summary = json.loads((checkout / "runs/colab_tiny/summary.json").read_text())
    table = displayed(outputs["summary"], "text/markdown").splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == ["init", "sft", "lpo"]
    assert f"{summary['lpo']['pair_accuracy']:.0%}" in table[-1]
    assert "training report" in displayed(outputs["page"], "text/html")
    assert not any(outputs[cell] for cell in outputs if cell.startswith("qwen"))  # the switch is off


@pytest.mark.slow
def test_a_pair_by_hand(tmp_path, monkeypatch):
    """Its cells compare what they compute with the library and stop where it differs; here, that they say so, wherever they run."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    notebook = Path(shutil.copy(REPO / "notebooks" / "pair_by_hand.ipynb", tmp_path))
    assert len(nbformat.read(notebook, as_version=4).cells) == 15
    outputs = outputs_of(notebook)
    assert displayed(outputs["masks"], "text/html").count("<span") > 2 and "chosen tokens are changed" in printed(outputs["masks"])
    assert "two whole sequences" in printed(outputs["tree"])
    sees = re.search(r"rejected +'load' *((?: [#.])+)", printed(outputs["attention"]))[1].split()
    assert sees[:10] == [*"####", *".....", "#"]  # the trunk and itself, nothing of the chosen branch
    assert float(re.search(r"difference is (\S+)", printed(outputs["model"]))[1]) < 1e-10
    before, after = map(float, re.search(r"loss (\S+) -> (\S+)", printed(outputs["step"])).groups())
    assert after < before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id
