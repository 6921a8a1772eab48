"""The device that is here, beside the definition: what the fast paths compute is compared with dense float32, and timed.

Kernels are written against a compiler on a machine without their chip. This says, the minute that there is one, whether they are right on it, and
how near they come to its peak.

Dims: B rows, T tokens or queries, N scored tokens, D model, V vocabulary, K kv heads, G query heads per kv head, H head dim, P pages of S slots,
M of them a row.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.row import RowShape, pad
from lpo_jax.batch import TreeBatch
from lpo_jax.config import ModelConfig
from lpo_jax.losses.logps import token_logps
from lpo_jax.model.attention import NO_PAGE, TOLD, KVPages, ancestors, attend, attend_dense, attend_pages, backend_of, memory, walk
from lpo_jax.model.decoder import Model

ALLOWED = {"float32": 1e-5, "bfloat16": 0.01}
"""How far a result may lie from dense float32, as a share of that one's largest number: some 20 times, and twice, what paths that are right have
shown on CPUs (5e-7 and 0.005). A mask that is wrong in one place is off by more."""

MEASURED_S = 0.3
"""A path is repeated for so long to be timed."""


@dataclass(frozen=True)
class Sizes:
    """How large the checks are: as in training where kernels run, tiny where they are interpreted."""

    tokens: int  # T of a row of trees
    heads: int  # K * G
    head_dim: int
    window: int
    scored: int  # N
    width: int  # D
    vocab: int
    texts: int  # B of decoding
    longest: int  # of these texts, in tokens
    slots: int  # S
    dtype: str  # of what is computed

    @staticmethod
    def of(platform: str) -> "Sizes":
        if platform == "cpu":
            return Sizes(300, 4, 16, 40, 100, 32, 500, 4, 90, 16, "float32")
        return Sizes(4096, 16, 128, 1024, 4096, 4096, 32_000, 32, 4096, 128, "bfloat16")


@dataclass(frozen=True)
class Case:
    """One path on one input."""

    by: str  # what computes it, as errors name it
    what: str
    dtype: str
    found: Callable[[], Any]  # both give the same arrays
    exact: Callable[[], Any]
    work: float  # FLOPs that the result needs, or bytes that must be read for it
    unit: str  # "FLOP" or "B"
    interpreted: bool  # such a path isn't timed: no chip runs it


@dataclass(frozen=True)
class Finding:
    """What a case has shown."""

    case: Case
    error: float  # as `ALLOWED`
    problem: str = ""  # what was raised in the place of a result
    rate: float | None = field(default=None)  # of the case's unit a second

    @property
    def allowed(self) -> float:
        return ALLOWED[self.case.dtype]

    @property
    def right(self) -> bool:
        return not self.problem and self.error <= self.allowed


def check(case: Case) -> Finding:
    """Compare a case with the definition, and time it. A compiler that refuses it is a finding too."""
    try:
        found = jax.block_until_ready(case.found())
    except Exception as raised:  # noqa: BLE001 (whatever a compiler or a chip has against a kernel)
        return Finding(case, math.nan, " ".join(str(raised).split())[:300] or repr(raised))
    with jax.default_matmul_precision("highest"):
        exact = jax.device_get(case.exact())
    errors = [_distance(f, e) for f, e in zip(jax.tree.leaves(jax.device_get(found)), jax.tree.leaves(exact), strict=True)]
    error = max(errors, key=lambda x: math.inf if math.isnan(x) else x)
    return Finding(case, math.inf if math.isnan(error) else error, rate=None if case.interpreted else case.work / _seconds(case.found))


def cases(platform: str) -> Iterator[Case]:
    """All of them for a device of this platform ("cpu", "gpu" or "tpu"). On CPUs the other platforms' kernels are interpreted."""
    sizes, backends = Sizes.of(platform), ("cpu", "tpu", "gpu") if platform == "cpu" else (backend_of("auto"), "cpu")
    N, H = sizes.heads, sizes.head_dim
    kinds = ("trees", N, H, None), ("grouped heads of another width", N // 4, H * 5 // 8, None), ("a window", N // 2, H, sizes.window)
    inputs = [_Attention(what, sizes, kv_heads, head_dim, window) for what, kv_heads, head_dim, window in kinds]
    for backend in backends:
        yield from (each.case(backend, platform) for each in inputs)
    yield _logps(sizes)
    for what, kv_heads, new, window in (
        ("a token a row", N // 4, 1, None),
        ("blocks of 4", N // 4, 4, None),
        ("a window", N // 4, 1, sizes.window),
        ("prompts, a page at a time", N // 2, sizes.slots, None),
    ):
        yield _decoding(what, sizes, kv_heads, new, window)


class _Attention:
    """Forward and backward over a row of trees. What is exact is computed once for all back ends."""

    def __init__(self, what: str, sizes: Sizes, K: int, H: int, window: int | None):
        self.what, self.dtype, self.window = what, sizes.dtype, window
        self.trees = ends, positions = _trees(np.random.default_rng(0), sizes.tokens)
        T, G = sizes.tokens, sizes.heads // K
        shapes = (1, T, K, G, H), (1, T, K, H), (1, T, K, H), (1, T, K, G, H)
        self.inputs = [_normal(seed, self.dtype, shape) for seed, shape in enumerate(shapes)]
        # Two products forward, five backward; of what is seen, not of the blocks around it.
        self.work = 7 * 2 * H * K * G * _seen(np.asarray(ends[0]), np.asarray(positions[0]), window)

    def case(self, backend: str, platform: str) -> Case:
        by_blocks = self._both_ways(lambda *x: attend(*x, ancestors(*self.trees, self.window, backend)))
        return Case(
            f"attention, forward and backward: {TOLD[backend]}",
            self.what,
            self.dtype,
            lambda: by_blocks(*self.inputs),
            lambda: self._exact,
            self.work,
            "FLOP",
            interpreted=backend not in ("cpu", platform),
        )

    @cached_property
    def _exact(self) -> Any:
        dense = self._both_ways(lambda q, k, v: attend_dense(q, k, v, *self.trees, self.window))
        return jax.device_get(dense(*_wide(*self.inputs)))

    @staticmethod
    def _both_ways(attention: Callable[..., jax.Array]) -> Callable[..., Any]:
        def run(q: jax.Array, k: jax.Array, v: jax.Array, pull: jax.Array) -> Any:
            out, back = jax.vjp(attention, q, k, v)
            return out, back(pull)

        return jax.jit(run)


def _logps(sizes: Sizes) -> Case:
    """Log-probabilities in chunks, and their gradients; for half of the tokens the gradient is claimed to be linear, as LPO's is."""
    T, N, D, V, dtype = sizes.tokens, sizes.scored, sizes.width, sizes.vocab, sizes.dtype
    rng = np.random.default_rng(0)
    row = {"source": np.sort(rng.integers(0, T, N - 3)), "target": rng.integers(0, V, N - 3), "pair": np.zeros(N - 3)}
    batch = TreeBatch.of(pad([row], RowShape(T, N, 1)))
    hidden, head = _normal(0, dtype, (1, T, D)), _normal(1, dtype, (D, V)) * D**-0.5
    weight = jnp.asarray(rng.standard_normal((1, N)), jnp.float32)
    linear = jnp.where((jnp.arange(N) % 2 == 0) & (jnp.asarray(batch.pair) >= 0), -1 / N, 0.0)

    def loss(logps: jax.Array) -> jax.Array:
        return (jnp.where(linear != 0, 3 * linear, weight) * logps).sum()

    def in_chunks(hidden: jax.Array, head: jax.Array) -> Any:
        logps = token_logps(hidden, head, batch, linear=linear)
        return loss(logps), logps

    def dense(hidden: jax.Array, head: jax.Array) -> Any:
        every = jax.nn.log_softmax(jnp.einsum("BTD,DV->BTV", hidden, head)[0][jnp.asarray(batch.source[0])])
        logps = jnp.take_along_axis(every, jnp.asarray(batch.target[0])[:, None], axis=1)[:, 0]
        logps = jnp.where(jnp.asarray(batch.pair[0]) >= 0, logps, 0)[None]
        return loss(logps), logps

    def both_ways(f: Callable[..., Any]) -> Callable[..., Any]:
        def run(hidden: jax.Array, head: jax.Array) -> Any:
            (_, logps), gradients = jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(hidden, head)
            return logps, gradients

        return jax.jit(run)

    chunked, exact = both_ways(in_chunks), both_ways(dense)
    work = 6.0 * N * D * V  # one product forward, two backward
    return Case(
        "log-probabilities in chunks",
        "forward and backward",
        dtype,
        lambda: chunked(hidden, head),
        lambda: exact(*_wide(hidden, head)),
        work,
        "FLOP",
        interpreted=False,
    )


def _decoding(what: str, sizes: Sizes, K: int, new: int, window: int | None) -> Case:
    """New tokens over texts on pages, which lie in any order."""
    B, G, H, S, dtype = sizes.texts, sizes.heads // K, sizes.head_dim, sizes.slots, sizes.dtype
    rng = np.random.default_rng(0)
    lengths = rng.integers(new, sizes.longest + 1, B)  # with the new tokens
    lengths[0] = sizes.longest
    M = -(-sizes.longest // S)
    table = np.full((B, M), NO_PAGE, np.int32)
    places = iter(rng.permutation(B * M))
    for row, length in enumerate(lengths):
        used = -(-length // S)
        table[row, :used] = [next(places) for _ in range(used)]
    positions = jnp.asarray(lengths[:, None] - new + np.arange(new), jnp.int32)
    q = _normal(0, dtype, (B, new, K, G, H))
    k, v = _normal(1, dtype, (B, M * S, K, H)), _normal(2, dtype, (B, M * S, K, H))
    # Pages as a model of this shape has them: a kernel may want them wider than heads are.
    empty = Model(ModelConfig("llama", 8, K * G * H, 1, K * G, K, H, 8, sizes.longest), dtype, dtype).empty_cache(B * M, S)

    def paged(x: jax.Array, pages: jax.Array) -> jax.Array:
        by_page = x.reshape(B, M, S, K, H).transpose(0, 1, 3, 2, 4)
        return pages.at[0, table, :, :, :H].set(by_page, mode="drop")

    cache = KVPages(paged(k, empty.k), paged(v, empty.v))
    k_new, v_new = (jnp.take_along_axis(x, positions[..., None, None], axis=1) for x in (k, v))

    def run(q: jax.Array, k_new: jax.Array, v_new: jax.Array, cache: KVPages, positions: jax.Array, table: jax.Array) -> jax.Array:
        pairs = walk(positions, table, S, window)
        scores = memory(pairs, positions, (K, G, S), q.dtype)
        return attend_pages(q, k_new, v_new, cache, jnp.int32(0), positions, table, pairs, scores, window)[0]

    def dense(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        back = positions[..., None] - jnp.arange(M * S)
        seen = (back >= 0) & (back < (M * S if window is None else window))
        scores = jnp.where(seen[:, None, None], jnp.einsum("BTKGH,BSKH->BKGTS", q, k) * H**-0.5, -jnp.inf)
        return jnp.einsum("BKGTS,BSKH->BTKGH", jax.nn.softmax(scores), v)

    compiled, on_device = jax.jit(run), jnp.asarray(table)
    read = np.minimum(lengths, math.inf if window is None else window + new).sum() * K * H * 2 * jnp.dtype(dtype).itemsize
    return Case(
        "decoding over pages",
        what,
        dtype,
        lambda: compiled(q, k_new, v_new, cache, positions, on_device),
        lambda: jax.jit(dense)(*_wide(q, k, v)),
        float(read),
        "B",
        interpreted=False,
    )


def _trees(rng: np.random.Generator, T: int) -> tuple[jax.Array, jax.Array]:
    """Ends and positions [1, T] of a row of trees, each a trunk with two branches; the last tokens are padding."""
    ends, positions, at = np.arange(1, T + 1), np.zeros(T, int), 0
    while at < T - T // 20:
        size = min(int(rng.integers(T // 10, T // 3)), T - T // 20 - at)
        trunk, chosen = size // 2, size // 4
        ends[at : at + size] = at + size
        ends[at + trunk : at + trunk + chosen] = at + trunk + chosen
        positions[at : at + size] = np.r_[np.arange(trunk + chosen), np.arange(trunk, size - chosen)]
        at += size
    return jnp.asarray(ends[None], jnp.int32), jnp.asarray(positions[None], jnp.int32)


def _seen(ends: np.ndarray, positions: np.ndarray, window: int | None) -> int:
    """How many pairs of a token and one that it sees."""
    if window is None:
        return int((ends - np.arange(len(ends))).sum())
    return sum(int((positions[key:end] - positions[key] < window).sum()) for key, end in enumerate(ends))


def _normal(seed: int, dtype: str, shape: tuple[int, ...]) -> jax.Array:
    """From the host, where nothing is compiled for it; they repeat after a prime number of them, so that no two rows or pages are alike."""
    return jnp.asarray(np.resize(np.random.default_rng(seed).standard_normal(4_194_301, np.float32), shape), dtype)


def _wide(*arrays: jax.Array) -> Iterator[jax.Array]:
    return (x.astype(jnp.float32) for x in arrays)


def _distance(found: np.ndarray, exact: np.ndarray) -> float:
    exact = exact.astype(np.float32)
    return float(np.abs(found.astype(np.float32) - exact).max() / np.abs(exact).max())


def _seconds(run: Callable[[], Any]) -> float:
    """Of one run, from as many as `MEASURED_S` holds."""
    begin = time.perf_counter()
    jax.block_until_ready(run())
    times = max(1, min(100, int(MEASURED_S / max(time.perf_counter() - begin, 1e-6))))
    begin = time.perf_counter()
    jax.block_until_ready([run() for _ in range(times)])
    return (time.perf_counter() - begin) / times
