"""The shipped pairs: enough of them, both sides parse, the fix is small, the task doesn't give it away."""

import ast
import difflib
import re

from data_pipeline import pairs
from data_pipeline.pairs import Drops
from tests.conftest import SEED_PAIRS

DROPS = Drops()
PAIRS = list(pairs.read(SEED_PAIRS, DROPS))


def test_counts():
    assert DROPS.rows == []
    assert len(PAIRS) >= 60
    assert len({p.cwe for p in PAIRS}) >= 30
    assert len({p.id for p in PAIRS}) == len(PAIRS)
    assert len({code for p in PAIRS for code in (p.chosen, p.rejected)}) == 2 * len(PAIRS)


def test_every_pair():
    for p in PAIRS:
        assert re.fullmatch(r"CWE-[1-9]\d*", p.cwe), p.id
        assert p.reasoning.startswith(f"The code may have the vulnerability {p.cwe}: '"), p.id
        for code in (p.chosen, p.rejected):
            ast.parse(code)
            assert 5 <= len(code.splitlines()) <= 32, p.id
        assert difflib.SequenceMatcher(None, p.rejected, p.chosen, autojunk=False).ratio() >= 0.7, p.id
        assert 10 <= len(p.instruction.split()) <= 60, p.id
        assert not re.search(r"\b(secur|vulnerab|attack|inject|malicious|exploit|sanitiz|CWE)", p.instruction, re.IGNORECASE), p.id
