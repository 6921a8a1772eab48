"""Who sees whom: the mask of packed trees, and the blocks of it that have anything to compute.

Dims: B batch, T tokens, n blocks in a row, C tokens in a block.
"""

import flax.struct
import jax
import jax.numpy as jnp

BLOCK = {"cpu": 64, "gpu": 64, "tpu": 512}
"""Tokens in a block, by back end."""

LANES = 128
"""A TPU block's tokens are a multiple of this."""

FAR = 2**30
"""The window of a layer that sees everything, where other layers don't: wider than any sequence."""

LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The Pallas kernels' score of a key that isn't seen: exp(LOWEST - anything real) is 0, and LOWEST - LOWEST is 0, not NaN."""


@flax.struct.dataclass
class Ancestors:
    """The mask of a batch, and for each block the blocks it meets, in ascending order.

    A list is as long as a row has blocks. Behind its count it repeats its last entry, so that a kernel that walks all of it fetches nothing
    new. T is padded to whole blocks here; a padding token sees itself.
    """

    subtree_end: jax.Array  # [B, T] int32
    positions: jax.Array  # [B, T] int32
    lowest: jax.Array  # [B, T] int32: the lowest position that a token sees
    key_blocks: jax.Array  # [B, n, n] int32: of a block of queries, the blocks of keys
    key_counts: jax.Array  # [B, n] int32: how many of them
    query_blocks: jax.Array  # [B, n, n] int32: of a block of keys, the blocks of queries
    query_counts: jax.Array  # [B, n] int32
    windowed: bool = flax.struct.field(pytree_node=False)  # whether `lowest` hides anything
    backend: str = flax.struct.field(pytree_node=False)
    block: int = flax.struct.field(pytree_node=False)


def ancestors(subtree_end: jax.Array, positions: jax.Array, window: int | None = None, backend: str | None = None) -> Ancestors:
    """The mask of packed rows, ready for `attend`.

    Args:
      subtree_end, positions: [B, T] int32, as in `lpo_jax.batch.TreeBatch`.
      window: a token sees ancestors less than so many positions away. Masks of layers with different windows (one of them may be `FAR`) differ
        in their arrays alone.
      backend: "cpu", "gpu" or "tpu"; default: the platform that the computation is traced for. A kernel of another platform is interpreted.
    """
    backend = backend or platform()
    subtree_end, positions = jnp.asarray(subtree_end), jnp.asarray(positions)
    T = subtree_end.shape[1]
    size = BLOCK[backend]
    if backend == "tpu":
        size = min(size, -(-T // LANES) * LANES)
    padding = -T % size
    if padding:
        own_end = jnp.arange(T + 1, T + padding + 1, dtype=subtree_end.dtype)
        subtree_end = jnp.concatenate([subtree_end, jnp.broadcast_to(own_end, (len(subtree_end), padding))], axis=1)
        positions = jnp.pad(positions, ((0, 0), (0, padding)))

    # A block of keys matters to a later block of queries if its longest subtree reaches the first query.
    n = (T + padding) // size
    first = jnp.arange(n) * size
    reach, where = (x.reshape(-1, n, size) for x in (subtree_end, positions))
    meets = (first[:, None] >= first) & (reach.max(-1)[:, None, :] > first[:, None])  # [B, n queries, n keys]
    if window is not None:
        meets &= where.min(-1)[:, :, None] - where.max(-1)[:, None, :] < window
    key_blocks, key_counts = _listed(meets)
    query_blocks, query_counts = _listed(meets.swapaxes(1, 2))
    lowest = positions - (FAR if window is None else window) + 1
    lists = key_blocks, key_counts, query_blocks, query_counts
    return Ancestors(subtree_end, positions, lowest, *lists, window is not None, backend, size)


def platform() -> str:
    """The platform that the traced computation will run on: that of the context's mesh, whose devices needn't be here, else JAX's default."""
    mesh = jax.sharding.get_abstract_mesh()
    name = jax.default_backend() if mesh.empty else mesh.abstract_device.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def _listed(meets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, n, n] bool -> the True columns of each row in front, and their count. Every block meets itself, so no count is 0."""
    counts = meets.sum(-1, dtype=jnp.int32)
    order = jnp.argsort(~meets, axis=-1, stable=True).astype(jnp.int32)
    kept = jnp.minimum(jnp.arange(meets.shape[-1]), counts[..., None] - 1)
    return jnp.take_along_axis(order, kept, axis=-1), counts
