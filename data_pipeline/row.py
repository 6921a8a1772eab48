"""What a packed row holds: the contract between the data and the model. Everything that reads or writes rows follows from `PackedRows`.

A preference pair is a small tree: the *trunk* (prompt, reasoning and the code both sides share), a *chosen* branch and a *rejected*
branch. A row holds a forest in depth-first order, ``trunk | chosen | rejected | trunk | ...``, so a token's descendants are
contiguous and one integer a token says who may look at whom:

    attends(q, k)  =  k <= q < subtree_end[k]

Dims: B rows, T tokens in a row, N scored tokens in a row, P pairs in a row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

TRUNK, CHOSEN, REJECTED = 0, 1, -1
"""Values of `PackedRows.side`."""


class RowShape(NamedTuple):
    """How wide rows are padded."""

    tokens: int  # T
    scored: int  # N
    pairs: int  # P


class Column(NamedTuple):
    """One field of a packed row."""

    name: str
    axis: Literal["tokens", "scored", "pairs"]  # one value for each of these
    dtype: str
    padding: int | None  # None: a place's own index + 1


def _column(axis: str, dtype: str = "int32", padding: int | None = 0) -> Any:
    return dataclasses.field(metadata={"column": (axis, dtype, padding)})


@dataclass(frozen=True)
class PackedRows:
    """Packed rows of preference trees: what the model reads, and what is scored."""

    # What the model reads.
    tokens: Any = _column("tokens")  # [B, T]: input ids
    positions: Any = _column("tokens")  # [B, T]: position on the token's own path; a branch goes on where its trunk ended
    subtree_end: Any = _column("tokens", padding=None)  # [B, T]: row index one past the token's last descendant; padding sees itself

    # What is scored. A scored token need not be an input: the last token of a path never is.
    source: Any = _column("scored")  # [B, N]: row index whose hidden state predicts the scored token
    target: Any = _column("scored")  # [B, N]: the scored token's id
    pair: Any = _column("scored", padding=-1)  # [B, N]: the pair it belongs to, counted within the row; -1 is padding
    side: Any = _column("scored", "int8")  # [B, N]: TRUNK, CHOSEN or REJECTED
    answer: Any = _column("scored", "bool")  # [B, N]: it belongs to (reasoning, code), not to the prompt
    changed: Any = _column("scored", "bool")  # [B, N]: the masks m+ (chosen side) and m- (rejected side)

    # Full lengths in tokens, before trimming, EOS included; 0 where the row has no such pair.
    chosen_len: Any = _column("pairs")  # [B, P]: |y+|, from the first code token
    rejected_len: Any = _column("pairs")  # [B, P]: |y-|, from the first code token
    reasoning_len: Any = _column("pairs")  # [B, P]: |R|, the answer tokens in front of the code


COLUMNS = tuple(Column(field.name, *field.metadata["column"]) for field in dataclasses.fields(PackedRows))


def pad(rows: Sequence[Mapping[str, np.ndarray]], shape: RowShape) -> PackedRows:
    """Rows of any length, each its columns by name, as arrays of one shape. ``{}`` is a row of padding."""
    padded = {}
    for column in COLUMNS:
        width = getattr(shape, column.axis)
        filler = np.arange(1, width + 1) if column.padding is None else column.padding
        padded[column.name] = np.broadcast_to(filler, (len(rows), width)).astype(column.dtype)
        for place, row in zip(padded[column.name], rows, strict=True):
            values = row.get(column.name, ())
            place[: len(values)] = values
    return PackedRows(**padded)


def answer_tokens(rows: PackedRows, row: int, pair: int) -> list[tuple[int, int, int | None]]:
    """A pair's answer in reading order, for people: (token id, side, index of the scored token or None).

    A trimmed rejected branch scores its changed tokens only; the ones between them are found among the row's inputs.
    """
    source, target, side = (np.asarray(x[row]) for x in (rows.source, rows.target, rows.side))
    mine = np.flatnonzero((np.asarray(rows.pair[row]) == pair) & np.asarray(rows.answer[row]))
    kept, rejected = mine[side[mine] != REJECTED], mine[side[mine] == REJECTED]
    found: list[tuple[int, int, int | None]] = [(int(target[n]), int(side[n]), int(n)) for n in kept]
    if not len(rejected):
        return found
    # The rejected branch's inputs follow the chosen branch's; its first token is predicted from the trunk.
    chosen = kept[side[kept] == CHOSEN]
    first = int(source[chosen].max() if len(chosen) else source[rejected].min()) + 1
    inputs = np.asarray(rows.tokens[row])[first : int(source[rejected].max()) + 1]
    branch: list[tuple[int, int, int | None]] = [(int(token), REJECTED, None) for token in (*inputs, target[rejected[-1]])]
    for n in rejected:
        branch[max(int(source[n]) - first + 1, 0)] = int(target[n]), REJECTED, int(n)
    return found + branch
