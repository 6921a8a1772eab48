"""Near-duplicates: programs that share most of their runs of tokens."""

import re
from typing import Any

SHINGLE = 4  # tokens
PERMUTATIONS = 128
_TOKEN = re.compile(r"\w+|[^\w\s]")


def shingles(*texts: str) -> frozenset[str]:
    """Runs of `SHINGLE` tokens of each text."""
    found = set()
    for text in texts:
        words = _TOKEN.findall(text)
        found |= {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
    return frozenset(found)


class Index:
    """What was seen, to find what is alike.

    Args:
      near: Jaccard similarity of two sets of shingles from which they count as alike; above 1 none do.
    """

    def __init__(self, near: float):
        from datasketch import MinHashLSH  # scipy comes with it

        # The index only proposes; similarity is computed exactly. Above 0.95 it would have one band, which it refuses.
        self._near, self._index = near, MinHashLSH(threshold=min(near, 0.95), num_perm=PERMUTATIONS)
        self._seen: dict[int, frozenset[str]] = {}

    def like(self, found: frozenset[str]) -> list[int]:
        """The keys of what was added and is alike."""
        return sorted(
            key
            for key in self._index.query(self._sketch(found))
            if len(found & self._seen[key]) >= self._near * len(found | self._seen[key])
        )

    def add(self, key: int, found: frozenset[str]) -> None:
        self._index.insert(key, self._sketch(found))
        self._seen[key] = found

    def _sketch(self, found: frozenset[str]) -> Any:
        from datasketch import MinHash

        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in found])
        return sketch
