"""Where every parameter of every family lies on a mesh: a text file that is read in diffs.

To accept a change on purpose: ``UPDATE_GOLDEN=1 make test ARGS="-k golden"``.
"""

import os
from pathlib import Path

import jax
from jax.sharding import PartitionSpec

from lpo_jax.model.decoder import Model
from lpo_jax.model.families import config_from_hf
from lpo_jax.sharding import spec
from tests.model.test_parity import FAMILIES

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
