"""The table of what CodeQL makes of what our judges find: its counts and chances by hand, and on the real answers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import DataError
from judges import Verdict, calibrate, semgrep
from judges.calibrate import Answer, Table, fit, leave_one_out, read_answers, read_by_codeql, shipped
from judges.findings import Finding


def answer(model, ours=(), codeql=(), read=True):
    return Answer(model, read, frozenset(ours), bool(ours), frozenset(codeql))


def test_counts_by_hand():
    answers = [
        answer("a", ["CWE-916"], ["CWE-327"]),  # one family
        answer("a", ["CWE-916"]),
        answer("a", ["CWE-78"], ["CWE-22"]),
        answer("b", [], ["CWE-22"]),
        answer("b", ["CWE-22"], []),
        answer("b", ["CWE-22"], ["CWE-22"], read=False),  # CodeQL was given prose
    ]
    kind = {name: calibrate._kind(name) for name in ("CWE-327", "CWE-22")}
    table = fit(answers)
    assert table.flagged == {"CWE-22": (0, 1), "CWE-78": (0, 1), "CWE-916": (1, 2)}
    assert table.passed == {kind["CWE-22"]: (2, 4), kind["CWE-327"]: (0, 3)}
    assert table.chance(["CWE-916"]) == pytest.approx(1 - (1 - 1 / 2) * (1 - 2 / 4))
    assert table.chance(["CWE-22"]) == 0 and table.chance([]) == pytest.approx(2 / 4)
    assert table.chance(["CWE-12345", ""]) == table.chance([]), "what was never seen says nothing"


CWES = st.frozensets(st.sampled_from(["CWE-22", "CWE-23", "CWE-78", "CWE-327", "CWE-916", ""]))


@given(st.lists(st.tuples(CWES, CWES, st.booleans())), CWES)
def test_a_chance_is_a_chance_and_fits_what_it_was_fitted_on(rows, cwes):
    answers = [Answer("a", read, ours, bool(ours), codeql - {""}) for ours, codeql, read in rows]
    table = fit(answers)
    assert 0 <= table.chance(cwes) <= 1
    alone = [a for a in answers if a.read]
    for name in ("CWE-22", "CWE-78"):  # one family at a time: the chances add up to the answers
        kept = [Answer("a", True, a.ours & {name}, False, a.codeql & {name}) for a in alone]
        assert sum(fit(kept).chance(a.ours) for a in kept) == pytest.approx(sum(bool(a.codeql) for a in kept))


def test_a_model_is_estimated_from_the_others():
    answers = [answer(m, ["CWE-78"], ["CWE-78"] if i < 5 else []) for m in "ab" for i in range(10)] + [
        answer("c", ["CWE-78"]),
        answer("c", read=False),
    ]
    found = leave_one_out(answers)["models"]
    assert found["c"] == {"codeql": 0, "estimate": 0.25, "others": 0.5, "bandit": 0.5, "judges": 0.5}
    assert found["a"]["estimate"] == pytest.approx(5 / 11) and found["a"]["codeql"] == 0.5


def test_what_codeql_was_given():
    assert read_by_codeql("Text\n```python\nx = 1\n```\nmore") == "x = 1"
    assert read_by_codeql("```\nx = 1\n") == "x = 1"
    assert read_by_codeql("```bash\npip install x\n```\nThen write:\n```python\nx = 1\n```") == "Then write:"
    assert read_by_codeql("no code") == ""


def test_reading_answers(tmp_path, monkeypatch):
    rows = [
        {"id": "1", "answer": "```python\nx = eval(y)\n```", "codeql": [{"rule_id": "py/code-injection", "line": 1}]},
        {"id": "2", "answer": "None.", "codeql": []},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    verdicts = {"x = eval(y)": Verdict(True, (Finding("bandit", "B307", "CWE-95", 1, 1, "medium", ""),)), "": Verdict(True, ())}
    monkeypatch.setattr(calibrate, "judge", lambda codes, tools, **_: [verdicts[code] for code in codes])
    assert read_answers(tmp_path) == [answer("m", ["CWE-95"], ["CWE-94"]), answer("m", read=False)]
    (tmp_path / "m.jsonl").write_text(json.dumps(rows[0] | {"codeql": [{"rule_id": "py/new", "line": 1}]}) + "\n")
    with pytest.raises(DataError, match=r"py/new.*CWE_OF"):
        read_answers(tmp_path)
    with pytest.raises(DataError, match="no MODEL.jsonl"):
        read_answers(tmp_path / "nothing")


def test_the_shipped_table():
    table, facts = shipped()
    assert isinstance(table, Table) and facts["error_mean"] <= facts["error_rms"] <= 0.03
    for hits, n in (*table.flagged.values(), *table.passed.values()):
        assert 0 <= hits <= n <= facts["answers"]
    assert table.chance(["CWE-489"]) > 0.9 > 0.1 > table.chance([])
    if semgrep.missing() is None:
        assert facts["judges"]["semgrep"].split()[-1] == semgrep.version().split()[-1], "rules have changed: run python -m judges.calibrate"


@pytest.mark.slow
@pytest.mark.skipif(semgrep.missing() is not None, reason="Semgrep is not installed")
def test_the_real_answers(shared_data, tmp_path, capsys):
    out = tmp_path / "table.json"
    assert calibrate.main([str(shared_data / "vulnbench"), "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == json.loads(calibrate.TABLE.read_text())
    said = capsys.readouterr().out
    errors = [float(value) for value in next(line for line in said.splitlines() if line.startswith("mean absolute")).split()[3:]]
    assert errors[0] <= 3 < errors[1] and np.argmin(errors) == 0
