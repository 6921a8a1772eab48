"""A machine without an accelerator is asked for none, and says nothing of it."""

import os
import subprocess
import sys

import pytest

from foundation import console
from tests.helpers.marks import needs_libtpu
from tests.helpers.paths import REPO


@pytest.mark.parametrize(
    ("devices", "given", "expected"),
    [(("none*",), None, "cpu"), (("null",), None, None), (("none*",), "tpu", "tpu"), (("null",), "cpu", "cpu")],
)
def test_jax_is_told_where_there_is_no_accelerator(monkeypatch, devices, given, expected):
    monkeypatch.setattr(console, "_ACCELERATORS", devices)
    monkeypatch.setenv("JAX_PLATFORMS", given or "")
    if given is None:
        monkeypatch.delenv("JAX_PLATFORMS")
    console.on_cpu_only()
    assert os.environ.get("JAX_PLATFORMS") == expected


@needs_libtpu
def test_libtpu_says_nothing_then():
    code = "from foundation import console; console._ACCELERATORS = (); console.on_cpu_only(); import jax; print(jax.devices()[0].platform)"
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=REPO, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("cpu\n", "")
