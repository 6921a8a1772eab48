"""The arithmetic of low-rank adapters (Hu et al. 2021): a matrix w becomes w + (alpha / rank) * a @ b, and only a and b are trained.

Adapters are a second pytree beside the parameters. In the place of each adapted matrix it has {"a": ..., "b": ...}.

Dims: L layers, R rank, in and out a matrix's input and output dims: D -> N, H for `blocks.q`, N, H -> D for `blocks.o`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lpo_jax.config import LoraConfig

Params = dict[str, Any]
"""Nested dict of arrays."""


def merge(params: Params, adapters: Params, config: LoraConfig, key: jax.Array | None = None) -> Params:
    """The parameters with w + (alpha / rank) * a @ b for each w that has an adapter, computed in float32 and cast to w's dtype.

    `params` and `adapters` may be the whole trees, the same subtree of both, or one layer's slices of `blocks` inside a scan.

    With a `key`, inputs are dropped with probability `config.dropout`, and the others scaled up. PEFT draws a mask for each token; here one
    mask serves all tokens of the call. The expectation is the same, the noise of a step is larger.
    """
    if isinstance(params, Mapping):
        keys = [None if key is None else jax.random.fold_in(key, i) for i in range(len(adapters))]
        return params | {name: merge(params[name], adapters[name], config, k) for name, k in zip(sorted(adapters), keys, strict=True)}
    w, a, b = jnp.asarray(params), jnp.asarray(adapters["a"]), jnp.asarray(adapters["b"])
    batch = tuple(range(a.ndim + b.ndim - w.ndim - 2))  # the layer axis, unless we are inside the scan
    if key is not None and config.dropout:
        keep = jax.random.bernoulli(key, 1 - config.dropout, (*a.shape[:-1], 1))
        a = jnp.where(keep, a / (1 - config.dropout), 0)
    # HIGHEST: accelerators would round float32 operands. The product is a small share of a step.
    change = jax.lax.dot_general(a, b, (((a.ndim - 1,), (len(batch),)), (batch, batch)), precision=jax.lax.Precision.HIGHEST)
    return (w.astype(jnp.promote_types(w.dtype, jnp.float32)) + config.alpha / config.rank * change).astype(w.dtype)
