"""TreeBatch: the contract between the data and the model.

A preference pair is a small tree: the *trunk* (prompt, reasoning and the code both sides share), a *chosen* branch and a
*rejected* branch. A row holds a forest in depth-first order, ``trunk | chosen | rejected | trunk | ...``, so a token's
descendants are contiguous and one integer a token says who may look at whom:

    attends(q, k)  =  k <= q < subtree_end[k]

Dims: B rows, T tokens in a row, N scored tokens in a row, P pairs in a row.
"""

import flax.struct
from jax import Array

TRUNK, CHOSEN, REJECTED = 0, 1, -1
"""Values of `TreeBatch.side`."""


@flax.struct.dataclass
class TreeBatch:
    """Packed rows of preference trees: what the model reads, and what is scored."""

    # What the model reads.
    tokens: Array  # [B, T] int32: input ids
    positions: Array  # [B, T] int32: position on the token's own path; a branch goes on where its trunk ended
    subtree_end: Array  # [B, T] int32: row index one past the token's last descendant; padding holds its own index + 1

    # What is scored. A scored token need not be an input: the last token of a path never is.
    source: Array  # [B, N] int32: row index whose hidden state predicts the scored token
    target: Array  # [B, N] int32: the scored token's id
    pair: Array  # [B, N] int32: the pair it belongs to, counted within the row; -1 is padding
    side: Array  # [B, N] int8: TRUNK, CHOSEN or REJECTED
    answer: Array  # [B, N] bool: it belongs to (reasoning, code), not to the prompt
    changed: Array  # [B, N] bool: the masks m+ (chosen side) and m- (rejected side)

    # Full lengths in tokens, before trimming, EOS included; 0 where the row has no such pair.
    chosen_len: Array  # [B, P] int32: |y+|, from the first code token
    rejected_len: Array  # [B, P] int32: |y-|, from the first code token
    reasoning_len: Array  # [B, P] int32: |R|, the answer tokens in front of the code
