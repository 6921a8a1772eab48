"""TreeBatch: the contract between the data and the model.

A preference pair is a small tree: the *trunk* (prompt, reasoning and the code both sides share), a *chosen* branch and a
*rejected* branch. A row holds a forest in depth-first order, ``trunk | chosen | rejected | trunk | ...``, so a token's
descendants are contiguous and one integer a token says who may look at whom:

    attends(q, k)  =  k <= q < subtree_end[k]

Dims: B rows, T tokens in a row, N scored tokens in a row, P pairs in a row, K tokens kept of a teacher.
"""

import flax.struct
import numpy as np
from jax import Array

TRUNK, CHOSEN, REJECTED = 0, 1, -1
"""Values of `TreeBatch.side`."""


@flax.struct.dataclass
class TeacherTop:
    """What a teacher holds most probable in the place of each scored token; K tokens, in falling order."""

    ids: Array  # [B, N, K] int32
    logps: Array  # [B, N, K] float32
    rest: Array  # [B, N] float32: log of the probability that all other tokens have together


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

    teacher: TeacherTop | None = None  # of a `kd` stage whose teacher's log-probabilities were computed before


def answer_tokens(batch: TreeBatch, row: int, pair: int) -> list[tuple[int, int, int | None]]:
    """A pair's answer in reading order, for people: (token id, side, index of the scored token or None).

    A trimmed rejected branch scores its changed tokens only; the ones between them are found among the row's inputs.
    """
    source, target, side = (np.asarray(x[row]) for x in (batch.source, batch.target, batch.side))
    mine = np.flatnonzero((np.asarray(batch.pair[row]) == pair) & np.asarray(batch.answer[row]))
    kept, rejected = mine[side[mine] != REJECTED], mine[side[mine] == REJECTED]
    found: list[tuple[int, int, int | None]] = [(int(target[n]), int(side[n]), int(n)) for n in kept]
    if not len(rejected):
        return found
    # The rejected branch's inputs follow the chosen branch's; its first token is predicted from the trunk.
    chosen = kept[side[kept] == CHOSEN]
    first = int(source[chosen].max() if len(chosen) else source[rejected].min()) + 1
    inputs = np.asarray(batch.tokens[row])[first : int(source[rejected].max()) + 1]
    branch: list[tuple[int, int, int | None]] = [(int(token), REJECTED, None) for token in (*inputs, target[rejected[-1]])]
    for n in rejected:
        branch[max(int(source[n]) - first + 1, 0)] = int(target[n]), REJECTED, int(n)
    return found + branch
