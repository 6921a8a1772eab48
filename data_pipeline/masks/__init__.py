"""The localised-preference masks m- (rejected) and m+ (chosen): which tokens differ between the two sides.

Four definitions, one shape: two token sequences in, two boolean arrays of the same lengths out, ``(m_minus, m_plus)``.

- `clean`: the diff of `difflib.SequenceMatcher`, on integers. The default, applied to the code alone.
- `lcs`: the shortest diff, and the one that can be made inside a jitted function (`lpo_jax.diff`). Applied to the code alone.
- `reference`: what the LPO authors compute: `difflib.ndiff` over decimal strings of the whole sequence, fixed here to the
  behaviour of CPython 3.10 to 3.13 (later versions pair lines differently), then holes of one token filled.
- `spans`: character spans of the change, mapped to tokens with `tensorflow_text.span_overlaps`.
"""

import difflib
import re
from collections.abc import Sequence

import numpy as np

from data_pipeline.masks import kernels
from data_pipeline.masks.kernels import fill_holes
from data_pipeline.pairs import Span

Ids = Sequence[int] | np.ndarray
Masks = tuple[np.ndarray, np.ndarray]


def clean(rejected: Ids, chosen: Ids, hole: int = 1) -> Masks:
    """Masks of `difflib.SequenceMatcher` without its popularity heuristic; runs of up to `hole` unchanged tokens are filled."""
    return kernels.clean(_ids(rejected), _ids(chosen), hole)


def lcs(rejected: Ids, chosen: Ids, hole: int = 1) -> Masks:
    """Masks of a longest common subsequence: before filling, no two masks that explain the change mark fewer tokens.

    Of several, the one that `lpo_jax.diff.token_diff` takes, bit for bit: the longest common prefix is kept, then the longest
    common suffix of the rest; of what remains, the last common token lies as early as possible in the rejected side, then as
    early as possible in the chosen side; then the token before it; and so on.
    """
    return kernels.lcs(_ids(rejected), _ids(chosen), hole)


def reference(rejected: Ids, chosen: Ids, hole: int = 1) -> Masks:
    """Masks of the authors' code: `difflib.ndiff` over ids written as decimal strings.

    Only two things set ndiff apart from a plain opcode diff. Its matcher ignores ids that are frequent in a chosen side of 200
    ids or more (`autojunk`). And inside a replaced block it aligns ids whose *spelling* is alike, which matters only if the
    block still holds an id that occurs on both sides: such an id may become the point where the block is split.
    """
    return kernels.ndiff(_ids(rejected), _ids(chosen), hole)


def spans(offsets: tuple[np.ndarray, np.ndarray], changes: tuple[Sequence[Span], Sequence[Span]], hole: int = 0) -> Masks:
    """Masks of character spans.

    Args:
      offsets: for (rejected, chosen), the tokens' half-open character ranges, [n, 2].
      changes: for (rejected, chosen), the changed character ranges, in the same coordinates; an empty one marks nothing.
    """
    from data_pipeline.tf import text

    masks = []
    for tokens, changed in zip(offsets, changes, strict=True):
        ranges = np.array([span for span in changed if span[0] < span[1]], np.int64).reshape(-1, 2)
        mask = np.zeros(len(tokens), bool)
        if len(tokens) and len(ranges):
            places = *tokens.astype(np.int64).T, *ranges.T
            mask = text().span_overlaps(*places, partial_overlap=True, contains=True, contained_by=True).numpy().any(axis=1)
        masks.append(fill_holes(mask, hole))
    return masks[0], masks[1]


def changed_spans(rejected: str, chosen: str) -> tuple[list[Span], list[Span]]:
    """Changed character spans of two texts by a diff of their words, for pairs that come without recorded spans."""
    words = [re.findall(r"\w+|\s|[^\w\s]", text) for text in (rejected, chosen)]
    ends = [np.cumsum([0] + [len(word) for word in side]) for side in words]
    found: tuple[list[Span], list[Span]] = ([], [])
    for tag, alo, ahi, blo, bhi in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        for side, (low, high) in enumerate(((alo, ahi), (blo, bhi))):
            if tag != "equal" and low < high:
                found[side].append((int(ends[side][low]), int(ends[side][high])))
    return found


def _ids(tokens: Ids) -> np.ndarray:
    return np.ascontiguousarray(tokens, np.int32)
