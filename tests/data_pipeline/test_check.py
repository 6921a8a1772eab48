"""`lpo-data check`: the shipped pairs pass, and each kind of fault is found and named."""

from dataclasses import replace

import pytest

from data_pipeline import check, pairs
from data_pipeline.cli import main
from data_pipeline.pairs import DataError, Drops, Pair
from tests.helpers.marks import needs_sandbox
from tests.helpers.paths import SEED_PAIRS

NAMES = check.titles()
SAFE = "import re\n\n\ndef valid(code):\n    return re.fullmatch(r'[a-z]{3}', code) is not None\n"
GOOD = Pair(
    id="cwe020-code",
    chosen=SAFE,
    rejected=SAFE.replace("fullmatch", "match"),
    instruction="Write `valid(code)`, which tells whether a code consists of exactly three lower-case letters.",
    reasoning="The code may have the vulnerability CWE-20: 'Improper Input Validation'. A prefix is not the whole.",
    cwe="CWE-20",
)
CHECK = "def functional(m):\n    assert m.valid('abc')\n\n\ndef exploit(m):\n    assert not m.valid('abc; rm')\n"


def test_shipped_pairs_have_no_fault():
    assert check.check([SEED_PAIRS, SEED_PAIRS.with_name("broad.jsonl")], None, progress=False)[0] == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"chosen": SAFE + "def"}, "doesn't parse"),
        ({"rejected": "\n".join(f"x{i} = {i}" for i in range(20))}, "the fix is large"),
        ({"rejected": "x = 1\n"}, "rejected has 1 lines"),
        ({"instruction": GOOD.instruction + " Prevent an attack."}, "gives the task away: 'attack'"),
        ({"instruction": "Too short"}, "10 to 60 words"),
        ({"cwe": "CWE-999999"}, "no such CWE"),
        ({"reasoning": GOOD.reasoning.replace("Improper", "Bad")}, "calls CWE-20 'Bad Input Validation'"),
        ({"reasoning": "Because."}, "should begin with"),
    ],
)
def test_faults_of_the_text(change, fault):
    assert list(check.text_faults(GOOD, NAMES)) == []
    assert any(fault in found for found in check.text_faults(replace(GOOD, **change), NAMES))


def test_duplicates():
    other = replace(GOOD, id="other", chosen="def area(width, height):\n    return width * height\n")
    near = replace(GOOD, id="near", chosen=SAFE + "\n")
    assert [(p.id, fault) for p, fault in check.duplicates([GOOD, other, near, GOOD])] == [
        ("near", "nearly the code of cwe020-code"),
        ("cwe020-code", "an earlier pair has this id"),
        ("cwe020-code", "nearly the code of near"),
    ]


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (CHECK, ""),
        (CHECK.replace("assert not", "assert"), "exploit on chosen"),
        (CHECK.replace("abc; rm", "ABC"), "exploit on rejected: pass instead of"),
        (CHECK.replace("not m.valid('abc; rm')", "m.chosen_only"), "exploit on chosen"),
        (CHECK.replace("m.valid('abc')", "not m.valid('abc')"), "functional on chosen"),
        (CHECK.replace("    assert m.valid('abc')", "    raise SystemExit(0)"), "functional on chosen"),
        (CHECK.replace("assert not m.valid('abc; rm')", "while m.valid('abc; rm'): pass"), ""),
        (CHECK.replace("assert not m.valid('abc; rm')", "1 / (not m.valid('abc; rm'))"), "exploit on rejected: fail instead of"),
    ],
)
def test_executions(source, fault, tmp_path):
    (tmp_path / "cwe020_code.py").write_text(source)
    [(pair, found)] = check.executions([GOOD], tmp_path)
    assert pair is GOOD and (found.startswith(fault) if fault else found == "")


def test_check_of_no_pair_is_refused(tmp_path):
    (tmp_path / "stranger.py").write_text(CHECK)
    with pytest.raises(DataError, match="no pair for stranger.py"):
        list(check.executions([GOOD], tmp_path))


def test_command_names_the_pair_and_fails(tmp_path, capsys):
    pairs.write([replace(GOOD, instruction="Too short")], tmp_path / "p.jsonl")
    assert main(["check", str(tmp_path / "p.jsonl")]) == 1
    assert "cwe020-code" in capsys.readouterr().out
    assert list(pairs.read(tmp_path / "p.jsonl", Drops()))


def test_verdicts_never_take_the_place_of_pairs(tmp_path, capsys):
    file = tmp_path / "p.jsonl"
    file.write_text(line := '{"chosen": "a = 1", "rejected": "b = 2"}\n')
    assert main(["check", str(file), "--verdicts", str(file)]) == 2
    assert "the pairs themselves; name another file" in capsys.readouterr().err
    assert file.read_text() == line
