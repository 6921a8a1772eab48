"""Who succeeds: by Bandit for the pair's CWE, by the pair's check; and which pairs nobody can judge."""

import asyncio
from dataclasses import replace

import pytest

from data_pipeline.pairs import Pair
from data_pipeline.pivots.success import Judges, Together
from foundation.errors import DataError
from judges import sandbox
from tests.helpers.automaton import pair

MD5, SHA = "import hashlib\nx = hashlib.md5(b'')\n", "import hashlib\nx = hashlib.sha256(b'')\n"
SHELL = SHA + "import os\nos.system('ls ' + input())\n"


def test_analyzers_look_for_the_weakness_of_the_pair():
    hashes, any_kind = pair(), replace(pair(), id="any", cwe="")
    judges = Judges([hashes, any_kind], ["bandit"], None, 1)
    asked = [(hashes, MD5), (hashes, SHA), (hashes, SHELL), (any_kind, SHELL), (hashes, "def f(:"), (any_kind, SHA)]
    assert judges.passed(asked) == [False, True, True, False, False, True]


def test_pairs_that_nobody_can_judge_are_told_why():
    pairs = [pair(), Pair("blind", "x = 1\n", "x = 2\n", cwe="CWE-89"), Pair("wrong", MD5, SHA, cwe="CWE-327"), Pair("plain", SHA, SHA)]
    assert Judges(pairs, ["bandit"], None, 1).unfit(pairs) == [
        "",
        "no judge: bandit let the rejected side pass (CWE-89)",
        "no judge: bandit let the chosen side fail (CWE-327)",
        "no judge: it has no second side",
    ]
    assert Judges(pairs, [], None, 1).unfit(pairs[:1]) == ["no judge: it has no check, and no analyzer is asked"]


@pytest.mark.skipif(not sandbox.backends(), reason="no sandbox works here")
def test_a_check_goes_before_the_analyzers(tmp_path):
    (tmp_path / "sum_up.py").write_text("def functional(m):\n    assert m.f(1) == 2\n\n\ndef exploit(m):\n    assert m.f(-1) == 0\n")
    checked = Pair("sum-up", "def f(x):\n    return x + 1", "def f(x):\n    return abs(x) + 1")
    judges = Judges([checked], [], tmp_path, 2)
    assert judges.unfit([checked]) == [""]
    assert judges.passed([(checked, code) for code in (checked.chosen, checked.rejected, "def f(x):\n    return 0", "def f(")]) == [
        True
    ] + 3 * [False]
    with pytest.raises(DataError, match="no pair for sum_up.py"):
        Judges([pair()], [], tmp_path, 2)


def test_judging_is_done_together_and_everyone_gets_his_own():
    class Counting:
        batches: list[int] = []

        def passed(self, asked):
            self.batches.append(len(asked))
            if any(code == "broken" for _, code in asked):
                raise DataError("broke down")
            return [code == "good" for _, code in asked]

    async def many():
        together = Together(Counting())
        found = await asyncio.gather(*(together.passed(pair(), ["good"] * n + ["bad"]) for n in range(20)))
        assert found == [[True] * n + [False] for n in range(20)]
        with pytest.raises(DataError):
            await together.passed(pair(), ["broken"])
        return await together.passed(pair(), ["good"])

    assert asyncio.run(many()) == [True]
    assert sum(Counting.batches[:-2]) == 210 and len(Counting.batches) <= 4
