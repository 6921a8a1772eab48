"""The embedding on a mesh is the plain lookup: values, and gradients of tokens that occur often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lpo_jax.config import MeshConfig
from lpo_jax.model.embedding import embed
from lpo_jax.sharding import make_mesh


@pytest.mark.parametrize(
    "shape", [(8, 24, 16), (3, 24, 16), (8, 25, 16), (8, 24, 18)], ids=["cut", "rows whole", "vocabulary whole", "D whole"]
)
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2), (1, 4, 2), (2, 1, 4)], ids=str)
def test_a_mesh_changes_nothing(mesh, shape):
    B, V, D = shape
    table, pull = jax.random.normal(jax.random.key(0), (V, D)), jax.random.normal(jax.random.key(1), (B, 40, D))
    tokens = jnp.minimum(jax.random.randint(jax.random.key(2), (B, 40), 0, 2 * V), V - 1)  # half of them the last one
    expected = table[tokens], jax.grad(lambda t: (t[tokens] * pull).sum())(table)
    mesh = make_mesh(MeshConfig(*mesh))
    with jax.set_mesh(mesh):
        cut = NamedSharding(
            mesh, PartitionSpec("tensor" if V % mesh.shape["tensor"] == 0 else None, "fsdp" if D % mesh.shape["fsdp"] == 0 else None)
        )
        table = jax.device_put(table, cut)
        found = jax.jit(lambda t: (embed(t, tokens, "float32"), jax.grad(lambda t: (embed(t, tokens, "float32") * pull).sum())(t)))(table)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-5)


def test_bfloat16_activations_sum_their_gradients_in_the_tables_dtype():
    """1,000 gradients of 1 add up to 1,000: in bfloat16 they would stop at 256."""
    tokens = jnp.zeros((1, 1000), jnp.int32)
    grad = jax.grad(lambda t: embed(t, tokens, "bfloat16").astype(jnp.float32).sum())(jnp.zeros((4, 2)))
    np.testing.assert_array_equal(grad[0], [1000, 1000])
