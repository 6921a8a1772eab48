"""Two processes read a model from a bucket (Cloud Storage's API, tensorstore's own driver): each its half of every matrix, and together what one process reads
from a disk. A hub id is fetched into the bucket once."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict

from lpo_jax.config import MeshConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from tests.helpers.families import FAMILIES
from tests.helpers.paths import REPO
from tests.helpers.web_store import HUB_ID, Web, served


def read_by_two(url, path, out):
    """Two hosts, each with a disk of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    env = os.environ | {
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(REPO),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    env |= {"HF_ENDPOINT": url, "TENSORSTORE_GCS_HTTP_URL": url, "LPO_MODELS": "gs://bkt/models", "HF_HUB_OFFLINE": "0"}
    running = []
    for index in range(2):
        (out.parent / f"host{index}").mkdir(exist_ok=True)
        mine = {"JAX_PROCESS_ID": str(index), "GOOGLE_AUTH_TOKEN_FOR_TESTING": f"host{index}", "TMPDIR": str(out.parent / f"host{index}")}
        command = [sys.executable, "-m", "tests.helpers.web_store", path, str(out)]
        running.append(subprocess.Popen(command, env=env | mine, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    texts = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(texts)
    return np.load(out)


def saved(family, directory):
    """A tiny model in several files, and what one process reads of it."""
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).save_pretrained(directory, max_shard_size="60KB")
    model = Model(hf.read_config(directory), param_dtype="float32")
    alone = hf.read_params(directory, model, param_shardings(model, make_mesh(MeshConfig(1), jax.devices()[:1])))
    return flatten_dict(alone, sep="."), sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def check(found, expected, web, size):
    """Both hosts together hold the very weights, and each has read its half: more is headers, vectors, and tiny matrices that can't be cut in eight."""
    assert set(found.files) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], np.asarray(value))
    assert all(size / 3 < web.read[host] < 0.75 * size for host in ("host0", "host1")), (web.read, size)
    web.read.clear()


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_once_and_each_host_reads_its_rows(tmp_path):
    expected, size = saved("phi3 window", tmp_path / "model")  # with fused matrices
    web = Web()
    web.hold(tmp_path / "model")
    files = sorted(name for name in web.hub if name.endswith((".safetensors", ".json")))
    with served(web) as url:
        for out in ("first.npz", "second.npz"):  # the second after a preemption: new disks, the same bucket
            found = read_by_two(url, HUB_ID, tmp_path / out)
            assert sorted(web.from_hub) == files  # by both hosts together
            web.read.pop("", None)  # the hub's
            check(found, expected, web, size)
    assert list((tmp_path / "host0").rglob("*.safetensors")) == []


@pytest.mark.slow
def test_a_model_that_was_copied_into_a_bucket(tmp_path):
    expected, size = saved("qwen3_moe", tmp_path / "model")  # with experts
    web = Web()
    web.hold(tmp_path / "model", "models/mine")
    with served(web) as url:
        check(read_by_two(url, "gs://bkt/models/mine", tmp_path / "found.npz"), expected, web, size)
