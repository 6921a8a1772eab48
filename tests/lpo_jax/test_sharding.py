"""Where every parameter of every family lies on a mesh: a text file that is read in diffs.

To accept a change on purpose: ``UPDATE_GOLDEN=1 make test ARGS="-k golden"``.
"""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
from jax.sharding import PartitionSpec

from lpo_jax.config import MeshConfig
from lpo_jax.model.decoder import Model
from lpo_jax.model.translate import config_from_hf
from lpo_jax.sharding import make_mesh, spec
from tests.helpers.families import FAMILIES

GOLDEN = Path(__file__).parent / "sharding_golden.txt"
MESH = {"data": 2, "fsdp": 4, "tensor": 2}


def describe():
    for name, make in FAMILIES.items():
        model = Model(config_from_hf(make().to_dict()))
        yield f"# {name}"
        shapes, axes = model.shapes(), model.axes()
        flat = jax.tree.leaves_with_path(
            jax.tree.map(lambda s, a: (s.shape, a), shapes, axes, is_leaf=lambda x: isinstance(x, tuple)),
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for path, (shape, names) in flat:
            placed: PartitionSpec = spec(names, shape, MESH)
            where = " ".join("+".join(p) if isinstance(p, tuple) else p or "-" for p in placed)
            yield f"{'.'.join(k.key for k in path):24} {'x'.join(map(str, shape)):14} {where}"


def test_sharding_golden():
    text = "\n".join(describe()) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "fake"
    device_kind: str = "fake"


def test_the_data_axis_lies_across_slices(caplog):
    devices = [FakeDevice(i, slice_index=i // 2 % 2) for i in range(8)]  # neighbours in pairs, in any order
    for mesh_config in (MeshConfig(2, 4, 1), MeshConfig(4, 2, 1), MeshConfig(-1, 2, 2)):
        mesh = make_mesh(mesh_config, devices)
        slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
        assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
        assert (slices == slices[:, :1, :1]).all()  # fsdp and tensor stay within
        assert slices[:, 0, 0].tolist() == sorted(slices[:, 0, 0])
    assert "slices" not in caplog.text
    make_mesh(MeshConfig(1, 8, 1), devices)
    assert "mesh.data=1 is no multiple of the 2 slices" in caplog.text
