"""The mixture of experts that stands in an MLP's place: a router sends each token through K of the E experts, and adds up what they say.

A token's way depends on the token alone. There is no capacity: whatever the routing, also all tokens to one expert, no token is dropped, and
no other token, padding or the other branch of a tree, changes its result.

Tokens are sorted by expert, and `jax.lax.ragged_dot` multiplies each run of rows by its own expert's matrix. XLA skips the blocks of other experts
on TPUs; on CPUs it computes every row with every expert, which suits tests alone. Of frozen matrices it forms no gradient, as the library's
Pallas kernel (megablox) would.

*On a mesh* experts are cut along `expert` and their width along `tensor`. Where rows are cut along `expert` too, each device gets all tokens of the
devices along it, computes what its own experts add to them, one device's tokens at a time, and sends back the sums. So a token travels to
all n devices, not only to the up to K that have an expert of its: n / K times what an exchange of single tokens sends at least, but without
one's worst case in memory. Along `fsdp` a layer's experts are gathered whole, as other matrices are; quantised ones as codes, which each device
dequantises where it multiplies.

Dims: B rows, T tokens, D model, E experts, K of them for a token, F an expert's width; of a device: t tokens, e experts, R = t K sorted rows.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from qwix import QArray

from lpo_jax.config import ConfigError, ModelConfig
from lpo_jax.model.linear import Adapter, weight
from lpo_jax.model.quantized import specs
from lpo_jax.sharding import spec

X = TypeVar("X")

MATRICES = ("expert_gate", "expert_up", "expert_down")
"""[E, D, F], [E, D, F] and [E, F, D] of a layer."""

_Factors = dict[str, tuple[jax.Array, jax.Array]]


def mixture(
    h: jax.Array,
    counted: jax.Array,
    router: jax.Array,
    matrices: Mapping[str, jax.Array | QArray],
    adapters: Mapping[str, Adapter],
    c: ModelConfig,
    activate: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """The experts' answer to normalised hidden states [B, T, D], in their dtype, and each expert's load [E].

    Args:
      counted: [B, T] bool, the tokens whose choices count as load. All are computed.
      router: [E, D].
      matrices: a layer's `MATRICES`.
      adapters: of some of them: a [E, in, R] and b [E, R, out]. Each expert has its own.

    Raises:
      ConfigError: the mesh's expert axis doesn't divide the experts.
    """
    mesh, (E, _, F), down = jax.sharding.get_abstract_mesh(), matrices["expert_gate"].shape, matrices["expert_down"]
    rows = cut = width = None
    if not mesh.empty:
        if E % mesh.shape["expert"]:
            raise ConfigError(f"mesh.expert is {mesh.shape['expert']}: it must divide the model's {E} experts")
        parts = down.scale.shape[1] if isinstance(down, QArray) and down.scale.shape[1] > 1 else F  # blocks aren't torn
        rows, cut, width = spec(("batch", "experts", "mlp"), (len(h), E, parts), dict(mesh.shape))
    row_axes = (rows,) if isinstance(rows, str) else tuple(rows or ())
    axes = tuple(dict.fromkeys([*row_axes, *(axis for axis in (cut, width) if axis is not None)]))
    scales = {name: adapter.scale for name, adapter in adapters.items()}

    def local(
        h: jax.Array, counted: jax.Array, router: jax.Array, matrices: dict[str, jax.Array | QArray], factors: _Factors
    ) -> tuple[jax.Array, jax.Array]:
        x = h.reshape(-1, h.shape[-1])
        chosen, weights = _route(x, router, c)
        load = jnp.zeros(E, jnp.float32).at[chosen].add(counted.reshape(-1, 1).astype(jnp.float32))
        load = jax.lax.psum(load, row_axes) if row_axes else load
        # Here, so that a sum over devices in the backward pass is one of tokens, not of their K rows.
        x, chosen, weights = _varying((x, chosen, weights), (by_row, by_row, by_row), axes)
        matrices, factors = _varying((matrices, factors), (matrix_specs, factor_specs), axes)
        first = jax.lax.axis_index(cut) * matrices["expert_gate"].shape[0] if cut else None
        share = partial(_share, first=first, matrices=matrices, factors=factors, scales=scales, activate=activate)
        if cut in row_axes:
            everyone = jax.lax.all_gather((x, chosen, weights), cut)
            y = jax.lax.map(jax.checkpoint(lambda tokens: share(*tokens)), everyone)
            y = jax.lax.psum_scatter(y, cut)
        else:
            y = share(x, chosen, weights)
            y = jax.lax.psum(y, cut) if cut else y
        y = jax.lax.psum(y, width) if width else y
        return y.reshape(h.shape), load

    by_row = PartitionSpec(rows)
    into, out = PartitionSpec(cut, None, width), PartitionSpec(cut, width)  # of matrices that end in the width, or begin with it
    matrix_specs = {name: specs(matrices[name], out if name == "expert_down" else into) for name in MATRICES}
    whole = PartitionSpec(cut)
    factor_specs = {name: (out, whole) if name == "expert_down" else (whole, into) for name in adapters}
    given = {name: w if isinstance(w := matrices[name], QArray) else weight(w, h.dtype) for name in MATRICES}
    factors = {name: (adapter.a.astype(h.dtype), adapter.b.astype(h.dtype)) for name, adapter in adapters.items()}
    if mesh.empty:
        return local(h, counted, router, given, factors)
    in_specs = (by_row, by_row, PartitionSpec(), matrix_specs, factor_specs)
    return jax.shard_map(local, in_specs=in_specs, out_specs=(by_row, PartitionSpec()))(h, counted, router, given, factors)


def _route(x: jax.Array, router: jax.Array, c: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """[t, D] -> each token's experts and what they weigh, [t, K] each; in float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = jnp.einsum("tD,ED->tE", x.astype(wide), router.astype(wide), precision=jax.lax.Precision.HIGHEST)
    probabilities = jax.nn.softmax(logits, axis=-1)
    # Kept by every remat policy: computed again with other rounding, a near tie would put rows in another order than those that were kept.
    chosen = checkpoint_name(jax.lax.top_k(probabilities, c.experts_per_token)[1], "chosen")
    weights = jnp.take_along_axis(probabilities, chosen, axis=-1)
    return chosen, weights / weights.sum(-1, keepdims=True) if c.normalized_experts else weights


def _share(
    x: jax.Array,
    chosen: jax.Array,
    weights: jax.Array,
    first: jax.Array | None,
    matrices: Mapping[str, jax.Array | QArray],
    factors: _Factors,
    scales: Mapping[str, float],
    activate: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """What this device's experts, from number `first` on, add to tokens [t, D]; None: all experts are here."""
    e = matrices["expert_gate"].shape[0]
    K, own = chosen.shape[1], chosen.reshape(-1)
    if first is not None:
        own = jnp.where((own >= first) & (own < first + e), own - first, e)  # the others' rows go to the end
    at = jnp.argsort(own, stable=True)
    order = _Order(at, jnp.argsort(at))
    sizes = jnp.zeros(e + 1, jnp.int32).at[own].add(1)[:e]

    def filled(rows: jax.Array) -> jax.Array:
        """0 behind the last run, here and in the gradient: no product writes there, so anything may stand there, NaN too."""
        return rows if first is None else jnp.where(jnp.arange(len(rows))[:, None] < sizes.sum(), rows, 0)

    def multiply(rows: jax.Array, w: jax.Array | QArray) -> jax.Array:
        return jax.lax.ragged_dot(rows, weight(w, rows.dtype), sizes)

    def times(rows: jax.Array, w: jax.Array | QArray) -> jax.Array:
        """The backward pass dequantises a quantised matrix again: nothing else of it is kept."""
        return filled((jax.checkpoint(multiply) if isinstance(w, QArray) else multiply)(rows, w))

    def product(rows: jax.Array, name: str) -> jax.Array:
        y = times(rows, matrices[name])
        if name in factors:
            a, b = factors[name]
            y += times(checkpoint_name(times(rows, a), "low_rank") * scales[name], b)
        # Of cut experts most rows are others': they aren't worth keeping.
        return checkpoint_name(y, name) if first is None else y

    rows = filled(_spread(x, order, K))
    inner = activate(product(rows, "expert_gate")) * product(rows, "expert_up")
    # An expert's weight may stand in front of its last matrix, where there is less to multiply and nothing to keep for the gradient.
    inner = inner * filled(weights.reshape(-1, 1)[order.at]).astype(inner.dtype)
    return _collect(product(inner, "expert_down"), order, K)


class _Order(NamedTuple):
    """The sorted rows: row i is choice `at[i]` of all R, and choice j stands in row `back[j]`."""

    at: jax.Array
    back: jax.Array


# Each is the other's gradient. Both read rows from anywhere; the gradient that JAX would take of either adds rows up anywhere, which is slow.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spread(x: jax.Array, order: _Order, K: int) -> jax.Array:
    """[t, D] -> [R, D]: each token once for each of its K choices, sorted."""
    return x[order.at // K]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _collect(rows: jax.Array, order: _Order, K: int) -> jax.Array:
    """[R, D] -> [t, D]: the sum over each token's K choices."""
    return rows[order.back].reshape(-1, K, rows.shape[-1]).sum(1)


_spread.defvjp(lambda x, order, K: (_spread(x, order, K), order), lambda K, order, g: (_collect(g, order, K), None))
_collect.defvjp(lambda rows, order, K: (_collect(rows, order, K), order), lambda K, order, g: (_spread(g, order, K), None))


def _varying(tree: X, specs: Any, axes: tuple[str, ...]) -> X:
    """Arrays that are cut as `specs` say, as ones that may differ from device to device along all of `axes`."""

    def cast(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        already = {axis for part in spec for axis in (part if isinstance(part, tuple) else (part,))}
        return jax.lax.pcast(x, tuple(axis for axis in axes if axis not in already), to="varying")

    return jax.tree.map(cast, tree, specs)
