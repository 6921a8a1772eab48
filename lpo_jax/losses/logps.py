"""Log-probabilities of the scored tokens, without ever holding [tokens, V] logits.

The head is applied to scored positions only, a chunk of them at a time. Where the loss is linear in a log-probability (SFT, LPO's imitation
term) its gradient is computed beside it, from the same logits. For the other tokens, few in LPO, the forward pass keeps one number, the log
of their softmax's sum, and the backward pass computes their logits again. Rows are padded to the scored tokens of the fullest; the padding
is left out.

On a mesh the *vocabulary* is cut along `tensor` and `fsdp`, whatever the head's own layout: a chunk's hidden states are gathered along `fsdp`
and each device computes all of them against its own columns. So no device ever holds the whole head or its gradient.

Dims: B rows, T tokens, N scored tokens in a row, D model, V vocabulary, C tokens in a chunk, those gathered included.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lpo_jax.batch import TreeBatch
from lpo_jax.model.attention.mask import platform
from lpo_jax.sharding import spec

CHUNK = 1024
"""Scored tokens whose logits exist at the same time, of one device; up to 4 times as many where several share a vocabulary."""


def token_logps(
    hidden: jax.Array, head: jax.Array, batch: TreeBatch, bias: jax.Array | None = None, linear: jax.Array | None = None
) -> jax.Array:
    """Log-probability of every scored token; 0 at padding.

    Args:
      hidden: [B, T, D].
      head: [D, V].
      bias: [V], of the head, or None.
      linear: [B, N], see `objectives.linear_weights`: the caller's promise that wherever this isn't 0 the gradient of its loss by the
        log-probability is this times one number, the same for all tokens.

    Returns:
      [B, N] float32 or wider.
    """
    source, target, real = (jnp.asarray(x) for x in (batch.source, batch.target, batch.pair >= 0))
    layout = _Layout(hidden)
    padding = -head.shape[1] % layout.parts  # columns that make the vocabulary divisible
    if padding:
        bias = jnp.zeros(head.shape[1], head.dtype) if bias is None else bias
        head, bias = jnp.pad(head, ((0, 0), (0, padding))), jnp.pad(bias, (0, padding), constant_values=-jnp.inf)
    return _token_logps(hidden, head, bias, _Tokens(source, target, real, linear))


FEW = 8
"""One in so many scored tokens is a changed one, or fewer (real pairs: one in 11)."""


class _Tokens(NamedTuple):
    """The scored tokens, [B, N] each."""

    source: Any
    target: Any
    real: Any  # not padding
    linear: Any  # or None


class _Gradient(NamedTuple):
    """Of the loss, as far as it is known; of the head and its bias each replica has its own part of the sum."""

    hidden: Any  # [B * T, D]
    head: Any  # [replicas, D, V]
    bias: Any  # [replicas, V] or None


@jax.custom_vjp
def _token_logps(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: _Tokens) -> jax.Array:
    layout = _Layout(hidden)

    def local(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: _Tokens) -> jax.Array:
        return _values(_Chunks(hidden, tokens, tokens.real, CHUNK, layout), head, bias)[0]

    return layout.shard(local, (layout.rows, layout.head, layout.vocab, layout.rows), layout.rows)(hidden, head, bias, tokens)


def _forward(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: _Tokens) -> tuple[jax.Array, Any]:
    layout = _Layout(hidden)

    def local(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: _Tokens) -> tuple[jax.Array, jax.Array, Any]:
        logps, lse = _values(_rest(hidden, tokens, layout), head, bias)
        if tokens.linear is None:
            return logps, lse, None
        chunks = _Chunks(hidden, tokens, tokens.linear != 0, CHUNK, layout)
        weights = chunks.sorted(tokens.linear)

        def step(at: jax.Array, carry: tuple[jax.Array, _Gradient]) -> tuple[jax.Array, _Gradient]:
            states, target = layout.gather(chunks.states(at)), layout.gather(chunks.target(at))
            logits = _logits(states, head, bias)
            top, exp, total = layout.softmax(logits)
            logp = layout.at_target(logits, target) - top - jnp.log(total)
            weight = layout.gather(chunks.slice(weights, at))
            return chunks.write(carry[0], layout.own(logp), at), _add(carry[1], chunks, at, states, target, head, exp, total, weight)

        linear_logps, gradient = chunks.loop(step, (jnp.zeros(chunks.total, chunks.wide), _zeros(hidden, head, bias)))
        return logps + chunks.unsorted(linear_logps), lse, gradient

    rows, gradient = layout.rows, None if tokens.linear is None else layout.gradient(bias)
    logps, lse, gradient = layout.shard(local, (rows, layout.head, layout.vocab, rows), (rows, rows, gradient))(hidden, head, bias, tokens)
    return logps, (hidden, head, bias, tokens, lse, gradient)


def _backward(residuals: Any, dlogps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None, None]:
    hidden, head, bias, tokens, lse, gradient = residuals
    layout = _Layout(hidden)

    def local(
        hidden: jax.Array,
        head: jax.Array,
        bias: jax.Array | None,
        tokens: _Tokens,
        lse: jax.Array,
        dlogps: jax.Array,
        known: _Gradient | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        chunks = _rest(hidden, tokens, layout)
        # Beyond the chunks' tokens: weight 0, and exp(logits - inf) = 0 beside it.
        norms, weights = chunks.sorted(lse, beyond=jnp.inf), chunks.sorted(dlogps)

        def step(at: jax.Array, gradient: _Gradient) -> _Gradient:
            states = layout.gather(chunks.states(at))
            target, norm, weight = (layout.gather(x) for x in (chunks.target(at), chunks.slice(norms, at), chunks.slice(weights, at)))
            probability = jnp.exp(_logits(states, head, bias) - norm[:, None])
            return _add(gradient, chunks, at, states, target, head, probability, jnp.ones_like(weight), weight)

        found = chunks.loop(step, _zeros(hidden, head, bias) if known is None else known)
        dhead = layout.over_replicas(found.head[0]).astype(head.dtype)
        dbias = None if bias is None else layout.over_replicas(found.bias[0]).astype(bias.dtype)
        return found.hidden.reshape(hidden.shape).astype(hidden.dtype), dhead, dbias

    if gradient is not None:  # the number that the caller promised
        factor = (tokens.linear * dlogps).sum() / jnp.maximum(jnp.square(tokens.linear).sum(), jnp.finfo(dlogps.dtype).tiny)
        gradient = jax.tree.map(lambda x: factor * x, gradient)
    rows, vocab = layout.rows, layout.vocab
    in_specs = (rows, layout.head, vocab, rows, rows, rows, None if gradient is None else layout.gradient(bias))
    grads = layout.shard(local, in_specs, (rows, layout.head, vocab))
    return *grads(hidden, head, bias, tokens, lse, dlogps, gradient), None


_token_logps.defvjp(_forward, _backward)


def _values(chunks: "_Chunks", head: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities, logs of the softmax's sums) of the chunks' tokens, [B, N] each; 0 elsewhere."""
    layout = chunks.layout

    def step(at: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = _logits(layout.gather(chunks.states(at)), head, bias)
        top, _, total = layout.softmax(logits)
        lse = top + jnp.log(total)
        logp = layout.at_target(logits, layout.gather(chunks.target(at))) - lse
        return chunks.write(carry[0], layout.own(logp), at), chunks.write(carry[1], layout.own(lse), at)

    empty = jnp.zeros(chunks.total, chunks.wide)
    logps, lse = chunks.loop(step, (empty, empty))
    return chunks.unsorted(logps), chunks.unsorted(lse)


def _add(
    gradient: _Gradient,
    chunks: "_Chunks",
    at: jax.Array,
    states: jax.Array,
    target: jax.Array,
    head: jax.Array,
    exp: jax.Array,
    total: jax.Array,
    weight: jax.Array,
) -> _Gradient:
    """Add the gradient of `weight` [C] times the chunk's log-probabilities, whose softmax is `exp` [C, V] / `total` [C].

    d logp / d logits = [the target's column] - softmax. The numbers of a token are multiplied into its D hidden states, not its V logits.
    """
    layout, wide = chunks.layout, gradient.hidden.dtype
    dlogits = jnp.where(layout.columns(exp) == target[:, None], total[:, None], 0) - exp
    scale, dlogits = (weight / total)[:, None], dlogits.astype(states.dtype)
    dstates = layout.own_sum(scale * jnp.einsum("CV,DV->CD", dlogits, head, preferred_element_type=wide))
    dhead = jnp.einsum("CV,CD->DV", dlogits, (scale * states).astype(states.dtype), preferred_element_type=wide)
    bias = None if gradient.bias is None else gradient.bias + jnp.einsum("CV,CR->RV", dlogits, scale, preferred_element_type=wide)
    return _Gradient(gradient.hidden.at[chunks.row(at)].add(dstates), gradient.head + dhead, bias)


def _zeros(hidden: jax.Array, head: jax.Array, bias: jax.Array | None) -> _Gradient:
    D, V = head.shape
    shapes = (hidden.size // D, D), (1, D, V), None if bias is None else (1, V)
    return _Gradient(*(None if shape is None else jnp.zeros(shape, _wide(hidden)) for shape in shapes))


def _rest(hidden: jax.Array, tokens: _Tokens, layout: "_Layout") -> "_Chunks":
    """The tokens in whose log-probability the loss isn't linear; where others are, they are few, and so are those of a chunk."""
    if tokens.linear is None:
        return _Chunks(hidden, tokens, tokens.real, CHUNK, layout)
    return _Chunks(hidden, tokens, tokens.real & (tokens.linear == 0), -(-CHUNK // 4), layout, FEW)


class _Chunks:
    """Some of a device's scored tokens in a line, and a loop over as many chunks as they fill."""

    def __init__(self, hidden: jax.Array, tokens: _Tokens, which: jax.Array, most: int, layout: "_Layout", share: int = 1):
        """The tokens where `which` [B, N] is true, usually one in `share`; at most `most` in a chunk."""
        B, T, D = hidden.shape
        rows = jnp.arange(B)[:, None] * T + tokens.source
        self._share = share
        self.layout, self.wide, self._which = layout, _wide(hidden), which
        self.size = min(max(min(4, layout.sharers) * most // layout.sharers, 1), rows.size)
        self.total = -(-rows.size // self.size) * self.size
        order = jnp.argsort(~which.reshape(-1), stable=True)
        self._rank = jnp.argsort(order)
        self._order = jnp.pad(order, (0, self.total - rows.size))
        self._count = which.sum()
        self._hidden = hidden.reshape(-1, D)
        self._rows, self._targets = self.sorted(rows), self.sorted(tokens.target)

    def sorted(self, x: jax.Array, beyond: float = 0) -> jax.Array:
        """[B, N] -> [total], with `beyond` behind the chunks' tokens."""
        return jnp.where(jnp.arange(self.total) < self._count, x.reshape(-1)[self._order], beyond)

    def unsorted(self, x: jax.Array) -> jax.Array:
        """[total] -> [B, N], 0 at other tokens."""
        return jnp.where(self._which, x[self._rank].reshape(self._which.shape), 0)

    def slice(self, x: jax.Array, at: jax.Array) -> jax.Array:
        """Chunk `at` of [total]: [size]."""
        return jax.lax.dynamic_slice_in_dim(x, at * self.size, self.size)

    def write(self, x: jax.Array, part: jax.Array, at: jax.Array) -> jax.Array:
        """The inverse of `slice`."""
        return jax.lax.dynamic_update_slice_in_dim(x, part, at * self.size, 0)

    def row(self, at: jax.Array) -> jax.Array:
        """Where the hidden states of a chunk stand in [B * T]."""
        return self.slice(self._rows, at)

    def target(self, at: jax.Array) -> jax.Array:
        return self.slice(self._targets, at)

    def states(self, at: jax.Array) -> jax.Array:
        """[size, D]"""
        return self._hidden[self.row(at)]

    def loop(self, step: Callable, carry: Any) -> Any:
        """`fori_loop` over the chunks that hold tokens. The numbers in the condition are for who counts FLOPs: these are how many there usually are."""
        all_chunks, filled = self.total // self.size, self.layout.most(-(-self._count // self.size))
        usual = -(-all_chunks // self._share)
        go_on = lambda state: (state[0] < filled) & ((state[0] < usual) | (state[0] < all_chunks))  # noqa: E731
        return jax.lax.while_loop(go_on, lambda state: (state[0] + 1, step(*state)), (0, carry))[1]


class _Layout:
    """How rows and vocabulary lie on the mesh; without one, everything is here."""

    def __init__(self, hidden: jax.Array):
        self._mesh = jax.sharding.get_abstract_mesh()
        shape = dict(self._mesh.shape)
        rows = None if self._mesh.empty else spec(("batch",), hidden.shape[:1], shape)[0]
        row_axes = rows if isinstance(rows, tuple) else (rows,)
        # The columns' order: the devices of a tensor-parallel group hold neighbouring fsdp parts.
        self._vocab_axes = tuple(axis for axis in ("tensor", "fsdp") if shape.get(axis, 1) > 1)
        self._gathers = "fsdp" in self._vocab_axes and "fsdp" in row_axes
        self._sum_axes = tuple(axis for axis in row_axes if axis is not None and axis not in self._vocab_axes)
        self.parts = 1
        for axis in self._vocab_axes:
            self.parts *= shape[axis]
        self.sharers = shape["fsdp"] if self._gathers else 1  # devices whose tokens are gathered
        self.rows, self.vocab = PartitionSpec(rows), PartitionSpec(self._vocab_axes or None)
        self.head = PartitionSpec(None, self._vocab_axes or None)

    def gradient(self, bias: jax.Array | None) -> _Gradient:
        """How a `_Gradient` lies."""
        replicas, vocab = self._sum_axes or None, self._vocab_axes or None
        return _Gradient(self.rows, PartitionSpec(replicas, None, vocab), None if bias is None else PartitionSpec(replicas, vocab))

    def shard(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`f` run by each device on its part."""
        return f if self._mesh.empty else jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def gather(self, x: jax.Array) -> jax.Array:
        """What all sharers hold of a chunk: [size, ...] -> [C, ...]."""
        return jax.lax.all_gather(x, "fsdp", tiled=True) if self._gathers else x

    def own(self, x: jax.Array) -> jax.Array:
        """This device's tokens of a chunk: [C] -> [size]."""
        if not self._gathers:
            return x
        size = x.shape[0] // self.sharers
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("fsdp") * size, size)

    def own_sum(self, x: jax.Array) -> jax.Array:
        """The sum over the vocabulary's parts, of this device's tokens: [C, D] -> [size, D]."""
        if self._gathers:
            x = jax.lax.psum_scatter(x, "fsdp", tiled=True)
        others = tuple(axis for axis in self._vocab_axes if axis != "fsdp" or not self._gathers)
        return jax.lax.psum(x, others) if others else x

    def columns(self, logits: jax.Array) -> jax.Array:
        """Which ids this device's columns stand for."""
        first = jax.lax.axis_index(self._vocab_axes) * logits.shape[-1] if self._vocab_axes else 0
        return first + jnp.arange(logits.shape[-1])

    def softmax(self, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[C, part of V] -> (top [C], exp(logits - top) [C, part of V], its sum over the whole vocabulary [C])."""
        top = logits.max(-1)
        if self._vocab_axes:
            top = jax.lax.pmax(top, self._vocab_axes)
        exp = jnp.exp(logits - top[:, None])
        if platform() == "cpu":  # where a sum fused with its exp runs on one core
            exp = jax.lax.optimization_barrier(exp)
        return top, exp, self.over_vocabulary(exp.sum(-1))

    def at_target(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        """[C, part of V], [C] -> [C]"""
        column = target - self.columns(logits)[0]
        mine = (column >= 0) & (column < logits.shape[-1])
        return self.over_vocabulary(jnp.where(mine, jnp.take_along_axis(logits, jnp.where(mine, column, 0)[:, None], axis=1)[:, 0], 0))

    def over_vocabulary(self, x: jax.Array) -> jax.Array:
        """The sum over the parts of the vocabulary."""
        return jax.lax.psum(x, self._vocab_axes) if self._vocab_axes else x

    def over_replicas(self, x: jax.Array) -> jax.Array:
        """The sum over the devices that hold the same columns and other rows."""
        return jax.lax.psum(x, self._sum_axes) if self._sum_axes else x

    def most(self, count: jax.Array) -> jax.Array:
        """The largest count among the sharers, who must loop together."""
        return jax.lax.pmax(count, "fsdp") if self._gathers else count


def _logits(states: jax.Array, head: jax.Array, bias: jax.Array | None) -> jax.Array:
    """[C, V]"""
    logits = jnp.einsum("CD,DV->CV", states, head, preferred_element_type=_wide(states))
    return logits if bias is None else logits + bias.astype(logits.dtype)


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
