"""Attention over packed trees: block by block, against the same without leaving blocks out, and against all scores at once.

  blocks   `attend`: the back end of this platform, blocks that nobody needs left out
  causal   the same back end over rows that are one sequence each: every block below the diagonal
  dense    all [T, T] scores and a mask

Forward and backward, of one layer. Also counted: the share of causal blocks that the trees need, at several block sizes.
"""

import argparse
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from data_pipeline.trees import plant
from lpo_jax.model.attention import ancestors, attend, attend_dense, mask


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_arguments(parser)
    parser.add_argument("--row-tokens", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--heads", type=int, default=8, help="query heads (default: 8)")
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16" if jax.default_backend() != "cpu" else "float32")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)

    trees = [plant(p) for p in common.load_pairs(args.data, common.load_tokenizer(args.tokenizer))]
    batch = common.pack([t for t in trees if len(t.tokens) <= args.row_tokens], args.row_tokens)
    shares = {size: needed_share(np.asarray(batch.subtree_end), size) for size in (64, 128, 256, 512)}
    print(
        f"{len(batch.tokens)} rows of {args.row_tokens} tokens need of their causal blocks: "
        + ", ".join(f"{v:.0%} at {k}" for k, v in shares.items())
    )

    ends, positions = (jnp.asarray(x[: args.rows]) for x in (batch.subtree_end, batch.positions))
    rows, groups = len(ends), args.heads // args.kv_heads
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (rows, args.row_tokens, args.kv_heads, groups, args.head_dim), args.dtype)
    k, v = (jax.random.normal(key, (rows, args.row_tokens, args.kv_heads, args.head_dim), args.dtype) for key in keys[1:])
    whole = jnp.full_like(ends, args.row_tokens)
    ways = {
        "blocks": timed(lambda *x: attend(*x, ancestors(ends, positions)), q, k, v),
        "causal": timed(lambda *x: attend(*x, ancestors(whole, positions)), q, k, v),
        "dense": timed(lambda q, k, v: attend_dense(q, k, v, ends, positions), q, k, v),
    }
    seconds = common.interleave(ways, args.repeats)
    table = common.table(seconds, "blocks", dict.fromkeys(seconds, rows * args.row_tokens), "tokens")
    ratios = {f"{name}_over_blocks": table[name]["ratio"] for name in ("causal", "dense")}
    common.write_json(args.json, {"ratios": ratios, "rows": table, "needed_share": shares, "back_end": mask.platform()})
    return 0


def timed(attention: Callable[..., jax.Array], *inputs: jax.Array) -> Callable[[], object]:
    """One forward and backward pass."""
    step = jax.jit(jax.grad(lambda *x: attention(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
    return lambda: jax.block_until_ready(step(*inputs))


def needed_share(subtree_end: np.ndarray, size: int) -> float:
    """Blocks that hold anything visible, of all blocks on or below the diagonal."""
    n = -(-subtree_end.shape[1] // size)
    own = np.arange(subtree_end.shape[1], n * size) + 1
    padded = np.concatenate([subtree_end, np.broadcast_to(own, (len(subtree_end), len(own)))], axis=1)
    reach, first = padded.reshape(-1, n, size).max(-1), np.arange(n) * size
    needed = (first[:, None] >= first) & (reach[:, None, :] > first[:, None])
    return float(needed.sum() / (len(subtree_end) * n * (n + 1) / 2))


if __name__ == "__main__":
    sys.exit(main())
