"""Low-rank adapters (Hu et al. 2021) merged into their weights, for export and serving: w becomes w + scale * a @ b.

Training computes them beside the weights, see `lpo_jax.model.linear`.

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


def merge(params: Params, adapters: Params, config: LoraConfig) -> Params:
    """The parameters with w + config.scale * a @ b for each w that has an adapter, computed in float32 and cast to w's dtype.

    `params` and `adapters` may be the whole trees, the same subtree of both, or one layer's slices of `blocks` inside a scan. A tied head with
    an adapter becomes a head of its own, see `lpo_jax.model.adapters.untied`: its change isn't the embedding's.
    """
    if isinstance(params, Mapping):
        if "head" in adapters and "head" not in params:
            params = params | {"head": params["embed"].T}
        return params | {name: merge(params[name], adapters[name], config) for name in adapters}
    w, a, b = jnp.asarray(params), jnp.asarray(adapters["a"]), jnp.asarray(adapters["b"])
    batch = tuple(range(a.ndim + b.ndim - w.ndim - 2))  # the layer axis, unless we are inside the scan
    # HIGHEST: accelerators would round float32 operands.
    change = jax.lax.dot_general(a, b, (((a.ndim - 1,), (len(batch),)), (batch, batch)), precision=jax.lax.Precision.HIGHEST)
    whole = w.astype(jnp.promote_types(w.dtype, jnp.float32)) + config.scale * change
    if "norm" in adapters:  # DoRA's: of each output's column
        inputs = tuple(range(len(batch), a.ndim - 1))
        norm = jnp.asarray(adapters["norm"])
        whole *= jnp.expand_dims(norm, inputs) / jnp.sqrt((whole * whole).sum(inputs, keepdims=True))
    return whole.astype(w.dtype)
