"""The token diffs behind `data_pipeline.masks`, compiled by numba at the first call; the machine code is cached on disk.

`clean`, `ndiff` and `lcs` take two int32 arrays of ids, `a` (rejected) and `b` (chosen), choose which tokens are kept (those of `a`
and of `b`, in order, are the same), and return the others as boolean arrays (m_minus, m_plus), holes filled.
"""

import numpy as np
from numba import njit

Kept = tuple[np.ndarray, np.ndarray]
Masks = tuple[np.ndarray, np.ndarray]
Numbers = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@njit(cache=True)
def clean(a: np.ndarray, b: np.ndarray, hole: int) -> Masks:
    """Keep the matching blocks of ``difflib.SequenceMatcher(None, a, b, autojunk=False)``."""
    return _changed(_blocks(_number(a, b), False), hole)


@njit(cache=True)
def _blocks(numbers: Numbers, autojunk: bool) -> Kept:
    """The longest common block is kept (of equals the first in `a`, then in `b`), then the same on its left and on its right.

    With `autojunk`, ids that are frequent in a `b` of 200 ids or more don't start a block; they lengthen it.
    """
    a, b, first, where = numbers
    most = len(b) // 100 + 1 if autojunk and len(b) >= 200 else len(b)
    places = np.empty(len(a), np.int32)  # of each token of a: how many tokens of b it may start a block with
    for i in range(len(a)):
        count = first[a[i] + 1] - first[a[i]]
        places[i] = count if count <= most else 0
    kept_a, kept_b = np.zeros(len(a), np.bool_), np.zeros(len(b), np.bool_)
    todo = [(0, len(a), 0, len(b))]
    while todo:
        alo, ahi, blo, bhi = todo.pop()
        i, j, size = _longest(a, b, places, first, where, alo, ahi, blo, bhi)
        while i > alo and j > blo and a[i - 1] == b[j - 1]:
            i, j, size = i - 1, j - 1, size + 1
        while i + size < ahi and j + size < bhi and a[i + size] == b[j + size]:
            size += 1
        if size:
            kept_a[i : i + size] = True
            kept_b[j : j + size] = True
            if alo < i and blo < j:
                todo.append((alo, i, blo, j))
            if i + size < ahi and j + size < bhi:
                todo.append((i + size, ahi, j + size, bhi))
    return kept_a, kept_b


@njit(cache=True)
def _longest(
    a: np.ndarray, b: np.ndarray, places: np.ndarray, first: np.ndarray, where: np.ndarray, alo: int, ahi: int, blo: int, bhi: int
) -> tuple[int, int, int]:
    """(i, j, size) of the longest common block of ``a[alo:ahi]`` and ``b[blo:bhi]``; of equals the first in `a`, then in `b`.

    Not every pair of equal ids is looked at. A block of at least `size` ids holds a whole window of ``(size + 1) // 2`` ids of
    `a`, wherever the windows begin, so it's found from any one id of the window, and the rarest has the fewest places in `b`.
    """
    best = alo, blo, 0
    i = alo
    while i < ahi:  # a first guess, to have wide windows: blocks around ids that occur only once in b
        if places[i] == 1 and blo <= where[first[a[i]]] < bhi:
            block = _extend(a, b, places, i, where[first[a[i]]], alo, ahi, blo, bhi)
            best = _better(block, best)
            i = block[0] + block[2]
        else:
            i += 1
    i = alo
    while i < ahi:
        rarest, stop = i, min(i + max((best[2] + 1) // 2, 1), ahi)
        while i < stop:
            if places[i] < places[rarest]:
                rarest = i
            i += 1
        if places[rarest] > 1:  # 0: the window is in no block; 1: the block is found already
            for p in range(first[a[rarest]], first[a[rarest] + 1]):
                if where[p] >= bhi:
                    break
                if where[p] >= blo:
                    best = _better(_extend(a, b, places, rarest, where[p], alo, ahi, blo, bhi), best)
    return best


@njit(cache=True)
def _extend(
    a: np.ndarray, b: np.ndarray, places: np.ndarray, i: int, j: int, alo: int, ahi: int, blo: int, bhi: int
) -> tuple[int, int, int]:
    """The block (i, j, size) around the equal ids ``a[i]`` and ``b[j]``."""
    start = stop = 0
    while i + start > alo and j + start > blo and a[i + start - 1] == b[j + start - 1] and places[i + start - 1]:
        start -= 1
    while i + stop < ahi and j + stop < bhi and a[i + stop] == b[j + stop] and places[i + stop]:
        stop += 1
    return i + start, j + start, stop - start


@njit(cache=True)
def _better(x: tuple[int, int, int], y: tuple[int, int, int]) -> tuple[int, int, int]:
    return x if x[2] > y[2] or (x[2] == y[2] and x[:2] < y[:2]) else y


@njit(cache=True)
def _number(a: np.ndarray, b: np.ndarray) -> Numbers:
    """(a, b, first, where): the ids of `b` numbered in order of appearance; an id of `a` that `b` lacks gets the next number.

    Number k occurs in `b` at ``where[first[k] : first[k + 1]]``, ascending.
    """
    bits = 1
    while 1 << bits < 2 * len(b):
        bits += 1
    slots, ids = np.full(1 << bits, -1, np.int32), np.empty(1 << bits, np.int32)  # an open hash table: number and id
    number_a, number_b, first = np.empty(len(a), np.int32), np.empty(len(b), np.int32), np.zeros(len(b) + 2, np.int32)
    known = 0
    for j in range(len(b)):
        slot = _slot(b[j], slots, ids, bits)
        if slots[slot] < 0:
            slots[slot], ids[slot] = known, b[j]
            known += 1
        number_b[j] = slots[slot]
        first[number_b[j] + 1] += 1
    for i in range(len(a)):
        if i < len(b) and a[i] == b[i]:  # most often
            number_a[i] = number_b[i]
        else:
            number = slots[_slot(a[i], slots, ids, bits)]
            number_a[i] = number if number >= 0 else known
    for k in range(known + 1):
        first[k + 1] += first[k]
    where, filled = np.empty(len(b), np.int32), first[:known].copy()
    for j in range(len(b)):
        where[filled[number_b[j]]] = j
        filled[number_b[j]] += 1
    return number_a, number_b, first[: known + 2], where


@njit(cache=True)
def _slot(token: int, slots: np.ndarray, ids: np.ndarray, bits: int) -> int:
    """Where the table has, or would have, `token`."""
    slot = ((int(token) * 2654435769) & 0xFFFFFFFF) >> (32 - bits)
    while slots[slot] >= 0 and ids[slot] != token:
        slot = (slot + 1) & ((1 << bits) - 1)
    return slot


@njit(cache=True)
def ndiff(a: np.ndarray, b: np.ndarray, hole: int) -> Masks:
    """Keep the lines that `difflib.ndiff` keeps of ids written in decimal, as CPython 3.10 to 3.13 does.

    Inside a replaced block ndiff aligns lines that are spelled alike. That matters only if the block holds an id of both sides,
    which may then become the point where the block is split.
    """
    numbers = _number(a, b)
    kept_a, kept_b = _blocks(numbers, True)
    replaced = []
    i = j = 0
    while i < len(a) and j < len(b):
        if kept_a[i] and kept_b[j]:
            i, j = i + 1, j + 1
            continue
        alo, blo = i, j
        while i < len(a) and not kept_a[i]:
            i += 1
        while j < len(b) and not kept_b[j]:
            j += 1
        replaced.append((alo, i, blo, j))
    seen, block = np.zeros(len(b) + 1, np.int64), 0  # the last block of b that had the id, by its number
    while replaced:
        alo, ahi, blo, bhi = replaced.pop()
        block += 1
        for j in range(blo, bhi):
            seen[numbers[1][j]] = block
        shared = False
        for i in range(alo, ahi):
            shared |= seen[numbers[0][i]] == block
        if shared:
            i, j = _split_point(a[alo:ahi], b[blo:bhi])
            i, j = alo + i, blo + j
            if a[i] == b[j]:
                kept_a[i] = kept_b[j] = True
            replaced.append((alo, i, blo, j))
            replaced.append((i + 1, ahi, j + 1, bhi))
    return _changed((kept_a, kept_b), hole)


@njit(cache=True)
def _split_point(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """The most alike pair of different ids if their similarity is at least 0.75, else the first identical pair, `b` first.

    A pair is better than another only if its similarity exceeds the other's and 0.74.
    """
    digits_a, size_a, counts_a = _spell(a)
    digits_b, size_b, counts_b = _spell(b)
    best, best_ratio, identical = (-1, -1), 0.74, (-1, -1)
    for j in range(len(b)):
        for i in range(len(a)):
            if a[i] == b[j]:
                if identical[0] < 0:
                    identical = i, j
                continue
            total, common = size_a[i] + size_b[j], 0
            for digit in range(10):
                common += min(counts_a[i, digit], counts_b[j, digit])
            if 2.0 * common / total > best_ratio:  # an upper bound of the similarity
                matched, _ = _blocks(_number(digits_a[i, : size_a[i]], digits_b[j, : size_b[j]]), False)
                ratio = 2.0 * matched.sum() / total
                if ratio > best_ratio:
                    best, best_ratio = (i, j), ratio
    return best if best_ratio >= 0.75 else identical


@njit(cache=True)
def _spell(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(digits, size, counts): each id's decimal digits from the left, [n, 10], how many they are, and how often each occurs, [n, 10]."""
    digits, size, counts = np.empty((len(tokens), 10), np.int32), np.zeros(len(tokens), np.int64), np.zeros((len(tokens), 10), np.int8)
    for i in range(len(tokens)):
        rest = tokens[i]
        while size[i] == 0 or rest > 0:
            digits[i, size[i]] = rest % 10
            counts[i, rest % 10] += 1
            rest //= 10
            size[i] += 1
        digits[i, : size[i]] = digits[i, : size[i]][::-1].copy()
    return digits, size, counts


@njit(cache=True)
def lcs(a: np.ndarray, b: np.ndarray, hole: int) -> Masks:
    """Keep a longest common subsequence, the one that `data_pipeline.masks.lcs` describes.

    The table is a row of bits for each token of `b`, after Hyyrö, "Bit-parallel LCS-length computation revisited" (2004): bit i
    of row j is unset where ``a[: i + 1]`` has one more token in common with ``b[:j]`` than ``a[:i]`` has.
    """
    kept_a, kept_b = np.zeros(len(a), np.bool_), np.zeros(len(b), np.bool_)
    start, stop, shorter = 0, 0, min(len(a), len(b))
    while start < shorter and a[start] == b[start]:
        start += 1
    while stop < shorter - start and a[len(a) - 1 - stop] == b[len(b) - 1 - stop]:
        stop += 1
    kept_a[:start] = kept_b[:start] = True
    kept_a[len(a) - stop :] = kept_b[len(b) - stop :] = True
    middle_b, middle_a, first, _ = _number(b[start : len(b) - stop], a[start : len(a) - stop])
    ids = len(first) - 2
    rows = np.flatnonzero(middle_b < ids)  # the tokens of b that occur in a

    one, words = np.uint64(1), (len(middle_a) + 63) // 64
    places = np.zeros((ids, words), np.uint64)
    for i in range(len(middle_a)):
        places[middle_a[i], i >> 6] |= one << np.uint64(i & 63)
    table = np.empty((len(rows) + 1, words), np.uint64)
    table[0] = ~np.uint64(0)
    for row in range(len(rows)):
        place, carry = places[middle_b[rows[row]]], np.uint64(0)
        for w in range(words):
            bits = table[row, w]
            total = bits + (bits & place[w])
            overflow = total < bits
            total += carry
            carry = one if overflow or total < carry else np.uint64(0)
            table[row + 1, w] = total | (bits & ~place[w])

    row, end = len(rows), len(middle_a) - 1
    while end >= 0:
        if (table[row, end >> 6] >> np.uint64(end & 63)) & one == 0:
            size = _unset(table[row], end)  # the first place where a common subsequence of this size can end is a[end] ...
            while _unset(table[row - 1], end) == size:
                row -= 1
            row -= 1  # ... and this token of b
            kept_a[start + end] = kept_b[start + rows[row]] = True
        end -= 1
    return _changed((kept_a, kept_b), hole)


@njit(cache=True)
def _unset(words: np.ndarray, last: int) -> int:
    """Number of unset bits up to bit `last`, inclusive."""
    count = 0
    for w in range((last >> 6) + 1):
        x = ~words[w]
        if w == last >> 6:
            x &= ~np.uint64(0) >> np.uint64(63 - (last & 63))
        x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
        x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        count += (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return count


@njit(cache=True)
def _changed(kept: Kept, hole: int) -> Masks:
    return fill_holes(~kept[0], hole), fill_holes(~kept[1], hole)


@njit(cache=True)
def fill_holes(mask: np.ndarray, hole: int) -> np.ndarray:
    """The mask with the runs of up to `hole` unset positions set that lie between two set ones."""
    filled, last = mask.copy(), -1
    for i in range(len(mask)):
        if mask[i]:
            if last >= 0 and i - last <= hole + 1:
                filled[last:i] = True
            last = i
    return filled
