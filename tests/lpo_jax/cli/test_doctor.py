"""`lpo doctor`: it says what is here and what is missing; with --device a path that computes something else is named."""

from importlib import metadata

import jax.numpy as jnp
import pytest

import judges
from judges import sandbox
from lpo_jax import cli
from lpo_jax.model.attention import gpu, paged, tpu
from lpo_jax.plan import device
from lpo_jax.plan.chips import CHIPS, peak_of, topology_devices
from tests.helpers.marks import needs_libtpu


def told(capsys, *arguments):
    code = cli.main(["doctor", *arguments])
    return code, *capsys.readouterr()


def test_it_says_what_is_here_and_how_to_get_what_is_not(monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "backends", lambda: ())
    monkeypatch.setattr(judges.codeql, "missing", lambda: "put it on the PATH")
    code, out, _ = told(capsys)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "8 x cpu" in lines["devices"]
    assert f"jax {metadata.version('jax')}," in lines["libraries"] and metadata.version("tensorflow") in lines["tensorflow"]
    assert "missing; install bubblewrap" in lines["sandbox"]
    assert lines["codeql"].endswith("missing; put it on the PATH") and lines["bandit"].endswith("found")


@pytest.fixture
def few(monkeypatch):
    """Of the checks those whose path and input hold one of these words."""
    every = device.cases

    def only(*words):
        monkeypatch.setattr(device, "cases", lambda platform: (c for c in every(platform) if any(w in f"{c.by}: {c.what}" for w in words)))

    return only


@pytest.mark.slow
def test_every_path_is_right_here(capsys):
    code, out, err = told(capsys, "--device")
    assert code == 0, out + err
    assert "all are right on cpu" in out
    for by in ("plain XLA", "kernel for TPUs, interpreted", "kernel for GPUs, interpreted", "log-probabilities", "decoding over pages"):
        assert by in out
    assert out.count("1e-05") == 3 * 3 + 1 + 4


WRONG = {
    "kernel for TPUs": (tpu, "_scores", lambda x: x + 0.001 * jnp.arange(x.shape[0])[:, None]),
    "kernel for GPUs": (gpu, "_masked", lambda x: jnp.where(x > 2.0, 2.0, x)),
    "decoding over pages": (paged, "_write", lambda cache: paged.KVPages(cache.k, cache.v * 1.001)),
}


@pytest.mark.parametrize("by", WRONG)
def test_a_path_broken_on_purpose_is_named(by, few, monkeypatch, capsys):
    module, name, spoilt = WRONG[by]
    whole = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **more: spoilt(whole(*args, **more)))
    few(f"{by}: trees", f"{by}: a token")
    code, out, err = told(capsys, "--device")
    assert code == 1
    assert f"{by}: wrong on cpu" in err and "WRONG" in out


def test_a_path_that_does_not_compile_is_named_and_the_others_are_checked(few, monkeypatch, capsys):
    def refused(*_, **__):
        raise ValueError("Mosaic failed to compile TPU kernel:\n  unsupported layout")

    monkeypatch.setattr(tpu, "forward", refused)
    few("kernel for TPUs: trees", "log-probabilities")
    code, out, err = told(capsys, "--device")
    assert code == 1 and "kernel for TPUs: wrong on cpu (trees); model.attention=einsum trains without it" in err
    assert "FAILED" in out and "Mosaic failed to compile TPU kernel: unsupported layout" in out
    assert "log-probabilities" in out and "log-probabilities" not in err


@needs_libtpu
@pytest.mark.parametrize("generation", CHIPS)
def test_a_chip_is_known_by_the_name_that_jax_gives_it(generation):
    smallest = "2x2" if generation in ("v5e", "v6e") else "2x2x1"
    chip = CHIPS[generation]
    assert peak_of(topology_devices(f"{generation}:{smallest}")[0].device_kind) == (chip.flops, chip.hbm_rate)
    assert peak_of("cpu") is None and peak_of("NVIDIA H100 80GB HBM3").flops == 989e12
