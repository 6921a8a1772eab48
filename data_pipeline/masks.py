"""The localised-preference masks m- (rejected) and m+ (chosen): which tokens differ between the two sides.

Three definitions, one signature: two token sequences in, two boolean arrays of the same lengths out, ``(m_minus, m_plus)``.

- `clean`: a diff of integer sequences. The default, applied to the code alone.
- `reference`: what the LPO authors compute: `difflib.ndiff` over decimal strings of the whole sequence, fixed here to the
  behaviour of CPython 3.10 to 3.13 (later versions pair lines differently), then holes of one token filled.
- `spans`: character spans of the change, mapped to tokens with `tensorflow_text.span_overlaps`.
"""

import difflib
import re
from collections.abc import Sequence

import numpy as np

Masks = tuple[np.ndarray, np.ndarray]
Span = tuple[int, int]
"""Half-open character range."""


def clean(rejected: Sequence[int], chosen: Sequence[int], hole: int = 1) -> Masks:
    """Masks of an integer diff; runs of up to `hole` unchanged tokens between changed ones are filled."""
    masks = np.zeros(len(rejected), bool), np.zeros(len(chosen), bool)
    _mark(masks, difflib.SequenceMatcher(None, rejected, chosen, autojunk=False).get_opcodes())
    return fill_holes(masks[0], hole), fill_holes(masks[1], hole)


def reference(rejected: Sequence[int], chosen: Sequence[int], hole: int = 1) -> Masks:
    """Masks of the authors' code: `difflib.ndiff` over ids written as decimal strings.

    Only two things set ndiff apart from a plain opcode diff. Its matcher ignores ids that are frequent in a chosen side of 200
    ids or more (`autojunk`). And inside a replaced block it aligns ids whose *spelling* is alike, which matters only if the
    block still holds an id that occurs on both sides: such an id may become the point where the block is split.
    """
    a, b = [str(t) for t in rejected], [str(t) for t in chosen]
    masks = np.ones(len(a), bool), np.ones(len(b), bool)
    for tag, alo, ahi, blo, bhi in difflib.SequenceMatcher(None, a, b).get_opcodes():
        if tag == "equal":
            masks[0][alo:ahi] = masks[1][blo:bhi] = False
        elif tag == "replace":
            _match_inside(a, b, masks, (alo, ahi, blo, bhi))
    return fill_holes(masks[0], hole), fill_holes(masks[1], hole)


def _match_inside(a: list[str], b: list[str], masks: Masks, block: tuple[int, int, int, int]) -> None:
    """Unmark the ids that ndiff matches inside one replaced block."""
    blocks = [block]
    while blocks:
        alo, ahi, blo, bhi = blocks.pop()
        if not set(a[alo:ahi]) & set(b[blo:bhi]):
            continue
        i, j = _split_point(a, b, alo, ahi, blo, bhi)
        if a[i] == b[j]:
            masks[0][i] = masks[1][j] = False
        blocks += [(alo, i, blo, j), (i + 1, ahi, j + 1, bhi)]


def _split_point(a: list[str], b: list[str], alo: int, ahi: int, blo: int, bhi: int) -> tuple[int, int]:
    """The most alike pair of different ids if their similarity exceeds 0.74, else the first identical pair, chosen side first."""
    best, best_ratio, identical = None, 0.74, None
    matcher = difflib.SequenceMatcher()
    for j in range(blo, bhi):
        matcher.set_seq2(b[j])  # the matcher caches its second sequence
        for i in range(alo, ahi):
            if a[i] == b[j]:
                identical = identical or (i, j)
                continue
            matcher.set_seq1(a[i])
            if matcher.real_quick_ratio() > best_ratio and matcher.quick_ratio() > best_ratio:
                ratio = matcher.ratio()
                if ratio > best_ratio:
                    best, best_ratio = (i, j), ratio
    # The caller has seen an identical pair, so one of the two is set. A best ratio below 0.75 doesn't count as alike.
    return best if best is not None and best_ratio >= 0.75 else identical  # type: ignore[return-value]


def spans(offsets: tuple[np.ndarray, np.ndarray], changes: tuple[Sequence[Span], Sequence[Span]], hole: int = 0) -> Masks:
    """Masks of character spans.

    Args:
      offsets: for (rejected, chosen), the tokens' half-open character ranges, [n, 2].
      changes: for (rejected, chosen), the changed character ranges, in the same coordinates.
    """
    import tensorflow_text as tf_text

    masks = []
    for tokens, changed in zip(offsets, changes, strict=True):
        if len(tokens) and len(changed):
            starts, limits = np.asarray(changed, np.int64).T
            overlap = tf_text.span_overlaps(
                tokens[:, 0].astype(np.int64), tokens[:, 1].astype(np.int64), starts, limits, partial_overlap=True,
                contains=True, contained_by=True,
            )  # fmt: skip
            masks.append(fill_holes(overlap.numpy().any(axis=1), hole))
        else:
            masks.append(np.zeros(len(tokens), bool))
    return masks[0], masks[1]


def changed_spans(rejected: str, chosen: str) -> tuple[list[Span], list[Span]]:
    """Changed character spans of two texts by a diff of their words, for pairs that come without recorded spans."""
    words = [re.findall(r"\w+|\s|[^\w\s]", text) for text in (rejected, chosen)]
    ends = [np.cumsum([0] + [len(word) for word in side]) for side in words]
    found: tuple[list[Span], list[Span]] = ([], [])
    for tag, alo, ahi, blo, bhi in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        if tag != "equal":
            for side, (low, high) in enumerate(((alo, ahi), (blo, bhi))):
                if low < high:
                    found[side].append((int(ends[side][low]), int(ends[side][high])))
    return found


def fill_holes(mask: np.ndarray, hole: int) -> np.ndarray:
    """Set the runs of up to `hole` unset positions that lie between two set ones."""
    filled = mask.copy()
    marked = np.flatnonzero(mask)
    for left, right in zip(marked[:-1], marked[1:], strict=True):
        if right - left <= hole + 1:
            filled[left:right] = True
    return filled


def _mark(masks: Masks, opcodes: Sequence[tuple[str, int, int, int, int]]) -> None:
    for tag, alo, ahi, blo, bhi in opcodes:
        if tag != "equal":
            masks[0][alo:ahi] = masks[1][blo:bhi] = True
