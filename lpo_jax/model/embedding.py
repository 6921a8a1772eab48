"""Looking tokens up in the embedding table.

Dims: B rows, T tokens, V vocabulary, D model.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lpo_jax.sharding import constrain, spec


def embed(table: jax.Array, tokens: jax.Array, dtype: str) -> jax.Array:
    """[V, D] and [B, T] ids -> [B, T, D] in `dtype`. The gradients of a token's occurrences are summed in the table's own dtype.

    Where rows and D are cut along `fsdp`, each device looks all rows up in its own part of D. Then the devices exchange rows for parts. The
    table is never gathered: for a large vocabulary it would be the largest array of the whole step.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows = vocab = cut = None
    if not mesh.empty:
        rows, vocab, cut = spec(("batch", "vocab", "embed"), (len(tokens), *table.shape), dict(mesh.shape))
    if cut is None or rows is None or cut not in rows:
        # The table's rows are gathered whole: looking up a table cut along D makes XLA replicate the activations.
        return constrain(table, "vocab", None)[tokens].astype(dtype)

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        everyone = jax.lax.all_gather(tokens, cut, tiled=True)
        at = everyone if vocab is None else everyone - jax.lax.axis_index(vocab) * table.shape[0]
        mine = (at >= 0) & (at < table.shape[0])
        found = jnp.where(mine[..., None], table[jnp.where(mine, at, 0)].astype(dtype), 0)
        if vocab is not None:
            found = jax.lax.psum(found, vocab)
        return jax.lax.all_to_all(found, cut, split_axis=0, concat_axis=2, tiled=True)

    return jax.shard_map(local, in_specs=(PartitionSpec(vocab, cut), PartitionSpec(rows)), out_specs=PartitionSpec(rows))(table, tokens)
