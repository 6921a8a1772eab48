"""A machine with a TPU's library and no TPU is used as a CPU; where there may be one, JAX looks for itself."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

from lpo_jax import devices
from tests.helpers.marks import needs_libtpu
from tests.helpers.paths import REPO


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets a machine up; returns what JAX_PLATFORMS is then."""
    monkeypatch.setattr(devices, "ROOT", tmp_path)
    for name in [name for name in os.environ if name.startswith(("JAX_PLATFORMS", "TPU_"))]:
        monkeypatch.delenv(name)

    def look(files=(), packages=("libtpu",), cards=(), **env):
        there = ModuleSpec("jax_plugins", None, is_package=True)
        there.submodule_search_locations = [str(tmp_path / "jax_plugins")]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: there if name in packages else None)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        for index, (vendor, device) in enumerate(cards):
            card = tmp_path / f"sys/bus/pci/devices/{index}"
            card.mkdir(parents=True)
            (card / "vendor").write_text(f"{vendor}\n")
            (card / "device").write_text(f"{device}\n")
        devices.leave_absent_tpus_alone()
        return os.environ.get("JAX_PLATFORMS")

    yield look
    os.environ["JAX_PLATFORMS"] = "cpu"


@pytest.mark.parametrize(
    "setup",
    [
        {},
        {"cards": [("0x1ae0", "0x0042"), ("0x8086", "0x0063")]},
        {"files": ["dev/vfio/vfio"]},
        {"packages": ("libtpu", "jax_plugins"), "files": ["jax_plugins/__pycache__/left.pyc"]},
    ],
    ids=str,
)
def test_no_tpu(setup, machine):
    assert machine(**setup) == "cpu"


@pytest.mark.parametrize(
    "setup",
    [
        {"files": ["dev/accel0"]},
        {"files": ["dev/vfio/0"]},
        {"cards": [("0x1ae0", "0x0042"), ("0x1ae0", "0x0063")]},
        {"TPU_WORKER_ID": "0"},
        {"packages": ("libtpu", "jax_plugins"), "files": ["jax_plugins/xla_cuda13/__init__.py"]},
        {"packages": ()},
    ],
    ids=str,
)
def test_perhaps_a_tpu_or_a_gpu(setup, machine):
    assert machine(**setup) is None
    assert machine(**setup | {"files": (), "cards": ()}, JAX_PLATFORMS="tpu") == "tpu"  # who says it has it


@needs_libtpu
@pytest.mark.slow
def test_a_cpu_command_says_nothing_of_tpus():
    fresh = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_PLATFORMS", "XLA_FLAGS", "TPU_"))}
    path = os.pathsep.join(filter(None, (str(REPO), fresh.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "lpo_jax.cli", "doctor"]
    done = subprocess.run(command, env=fresh | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0 and "1 x cpu (cpu)" in done.stdout
    assert done.stderr == ""
