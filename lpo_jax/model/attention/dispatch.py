"""`attend`: one differentiable function over the back ends, laid out over the mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from lpo_jax.config import ConfigError
from lpo_jax.model.attention import gpu, mask, tpu, xla
from lpo_jax.model.attention.mask import Ancestors
from lpo_jax.sharding import spec

BACKENDS = {"cpu": xla, "gpu": gpu, "tpu": tpu}
"""Modules with ``forward(q, k, v, ancestors, scale) -> (out, lse)`` and ``backward(q, k, v, ancestors, scale, lse, delta, dout) -> (dq, dk,
dv)``, in heads-first layout: q, out [B, K, G, T, H]; k, v [B, K, T, H]; lse (log of the softmax's sum) and delta (out . dout) [B, K, G, T]."""

TOLD = {
    "cpu": "blocks of einsums in plain XLA",
    "gpu": "Pallas flash kernel for GPUs",
    "tpu": "Pallas flash kernel for TPUs",
}
"""What a log calls a back end."""


def backend_of(choice: str) -> str:
    """The back end that `model.attention` asks for, on the platform that the computation is traced for (`mask.platform`).

    Raises:
      ConfigError: "kernel", where there is none.
    """
    here = mask.platform()
    if choice == "einsum" or here not in ("gpu", "tpu"):
        if choice == "kernel":
            raise ConfigError(f"model.attention=kernel: the kernels are for TPUs and GPUs, and this runs on {here}: set auto or einsum")
        return "cpu"
    return here


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q: jax.Array, k: jax.Array, v: jax.Array, ancestors: Ancestors, scale: float | None = None) -> jax.Array:
    """Softmax attention of every token over its ancestors and itself; softmax and sums are float32 or wider.

    Args:
      q: [B, T, K, G, H], scaled by nothing yet.
      k, v: [B, T, K, H].
      ancestors: the mask of the batch.
      scale: what scores are multiplied by; None: 1 / sqrt(H).

    Returns:
      [B, T, K, G, H] in q's dtype.
    """
    return _forward(q, k, v, ancestors, scale)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, ancestors: Ancestors, scale: float | None) -> tuple[jax.Array, tuple]:
    def local(q: jax.Array, k: jax.Array, v: jax.Array, ancestors: Ancestors) -> tuple[jax.Array, jax.Array]:
        heads_first = (_heads_first(x, ancestors) for x in (q, k, v))
        out, lse = BACKENDS[ancestors.backend].forward(*heads_first, ancestors, _scale(q, scale))
        return _tokens_first(out, q), lse

    heads = Layout(q, k)
    out, lse = heads.shard(local, (heads.q, heads.kv, heads.kv), (heads.q, heads.lse), ancestors)(q, k, v, ancestors)
    # Names for a rematerialisation policy that keeps them: then the backward pass needs no second forward of the attention.
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, ancestors, out, lse)


def _backward(scale: float | None, residuals: tuple, dout: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, ancestors, out, lse = residuals
    heads = Layout(q, k)

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, dout: jax.Array, lse: jax.Array, ancestors: Ancestors
    ) -> tuple[jax.Array, ...]:
        wide = lse.dtype
        delta = _heads_first((out.astype(wide) * dout.astype(wide)).sum(-1, keepdims=True), ancestors)[..., 0]
        heads_first = (_heads_first(x, ancestors) for x in (q, k, v))
        backward = BACKENDS[ancestors.backend].backward
        grads = backward(*heads_first, ancestors, _scale(q, scale), lse, delta, _heads_first(dout, ancestors))
        dq, dk, dv = (_tokens_first(g, x) for g, x in zip(grads, (q, k, v), strict=True))
        if heads.shares_kv:
            dk, dv = (jax.lax.psum(x, "tensor") for x in (dk, dv))
        return dq, dk, dv

    specs = (heads.q, heads.kv, heads.kv, heads.q, heads.q, heads.lse)
    return *heads.shard(local, specs, (heads.q, heads.kv, heads.kv), ancestors)(q, k, v, out, dout, lse, ancestors), None


attend.defvjp(_forward, _backward)


def _scale(q: jax.Array, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


class Layout:
    """How heads and rows lie on the mesh. A device computes the attention of its rows and heads by itself.

    The mesh's tensor axis may divide the query heads of each kv head but not the kv heads (multi-query attention). Then all its devices
    hold all kv heads, and the gradients of these are summed over them (`shares_kv`).
    """

    def __init__(self, q: jax.Array, k: jax.Array):
        self.mesh = jax.sharding.get_abstract_mesh()
        mesh_shape, (K, G) = dict(self.mesh.shape), q.shape[2:4]
        ways = mesh_shape.get("tensor", 1)
        self.shares_kv = ways > 1 and K % ways > 0 and G % ways == 0
        rows = self.rows_of(len(k))[0]
        kv = "tensor" if ways > 1 and K % ways == 0 else None
        group = "tensor" if self.shares_kv else None
        self.q, self.kv = PartitionSpec(rows, None, kv, group, None), PartitionSpec(rows, None, kv, None)
        self.lse, self.rows = PartitionSpec(rows, kv, group, None), PartitionSpec(rows)
        self.scores = PartitionSpec(rows, kv, group)

    @staticmethod
    def rows_of(count: int) -> PartitionSpec:
        """How the rows of a batch of so many lie."""
        mesh = jax.sharding.get_abstract_mesh()
        return PartitionSpec(None) if mesh.empty else PartitionSpec(spec(("batch",), (count,), dict(mesh.shape))[0])

    def shard(self, f: Callable, in_specs: tuple, out_specs: Any, ancestors: Ancestors) -> Callable:
        """`f` as each device runs it on its part. Its last argument is the mask."""
        if self.mesh.empty:
            return f
        masks = jax.tree.map(lambda _: self.rows, ancestors)
        return jax.shard_map(f, in_specs=(*in_specs, masks), out_specs=out_specs, check_vma=False)


def _heads_first(x: jax.Array, ancestors: Ancestors) -> jax.Array:
    """[B, T, heads ..., H] -> [B, heads ..., T, H], T padded to whole blocks."""
    padding = ancestors.subtree_end.shape[1] - x.shape[1]
    return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2))), 1, -2)


def _tokens_first(x: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse, in `like`'s shape and dtype."""
    return jnp.moveaxis(x, -2, 1)[:, : like.shape[1]].astype(like.dtype)
