"""Near-duplicates: programs that share most of their runs of tokens, as they stand or without their names."""

import builtins
import keyword
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

SHINGLE = 4  # tokens
LEAST = 12  # tokens; shorter code says too little without its names
_TOKEN = re.compile(r"\w+|[^\w\s]")
_PYTHON = re.compile(
    r"""(?P<comment>\#[^\n]*)
    |(?P<text>[rbfu]{0,2}(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<number>\d[\w.]*)
    |(?P<attribute>\.\s*[^\W\d]\w*)
    |(?P<name>[^\W\d]\w*)
    |(?P<sign>\S)""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_KNOWN = frozenset(keyword.kwlist) | frozenset(dir(builtins))


def shingles(*texts: str) -> frozenset[str]:
    """Runs of `SHINGLE` tokens of each text."""
    found = set()
    for text in texts:
        words = _TOKEN.findall(text)
        found |= {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
    return frozenset(found)


def skeleton(code: str) -> str:
    """Python code without comments, its own names, texts and numbers: what stays of it when it is told in other words.

    Attributes, keywords and built-in names stay. Empty: there is too little of it.
    """
    parts = [
        found[0] if found.lastgroup in ("attribute", "sign") or found[0] in _KNOWN else str(found.lastgroup)
        for found in _PYTHON.finditer(code)
        if found.lastgroup != "comment"
    ]
    return " ".join(parts) if len(parts) >= LEAST else ""


def alike(a: frozenset[str], b: frozenset[str], near: float) -> bool:
    """Whether two sets of shingles have a Jaccard similarity of at least `near`."""
    return len(a & b) >= near * len(a | b)


def candidates(sets: Sequence[frozenset[str]], near: float) -> Iterator[list[int]]:
    """For each set of shingles the numbers of those before it that may be alike, of equal ones the first: whatever is alike is among them.

    Two sets of a Jaccard similarity of at least `near` share at least `near` of each. So they also share one of the few that are left of
    each without `near` of it, if both leave out what comes last in one order. The rarest come first, so that few sets are compared.

    Args:
      near: Jaccard similarity from which sets count as alike; above 1 none do.
    """
    often = Counter(shingle for found in sets for shingle in found)
    holders: dict[str, list[int]] = defaultdict(list)
    known = set[frozenset[str]]()
    for number, found in enumerate(sets):
        if near > 1:
            yield []
            continue
        first = sorted(found, key=lambda shingle: (often[shingle], shingle))[: len(found) - math.ceil(near * len(found)) + 1]
        yield sorted({other for shingle in first for other in holders[shingle]})
        if found not in known:
            known.add(found)
            for shingle in first:
                holders[shingle].append(number)
