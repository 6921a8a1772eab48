"""The judges: their schema, our rules on code that each must find and must leave alone, where findings lie, the cache, and CodeQL's stand-in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import judges
from benchmarks import judges as benchmark
from judges import bandit, codeql, findings, judge, semgrep
from judges.findings import family, same_family
from judges.prepare import prepare
from tests.helpers.judge_examples import EXAMPLES, FURTHER
from tests.helpers.paths import REPO

RULES = {rule["id"]: rule for file in sorted(semgrep.RULES.glob("*.yaml")) for rule in yaml.safe_load(file.read_text())["rules"]}
needs_semgrep = pytest.mark.skipif(semgrep.missing() is not None, reason="Semgrep is not installed")


@needs_semgrep
def test_every_rule_finds_the_fault_and_leaves_the_fix_alone():
    assert set(EXAMPLES) == set(RULES)
    assert all(findings.normal(rule["metadata"]["cwe"]) == rule["metadata"]["cwe"] for rule in RULES.values())
    cases = [(rule, code, at == 0) for rule, example in EXAMPLES.items() for at, code in enumerate(example)] + FURTHER
    verdicts = judge([code for _, code, _ in cases], ("semgrep",))
    assert all(v.parses and not v.failed for v in verdicts)
    wrong = [case for case, v in zip(cases, verdicts, strict=True) if (case[0] in {f.rule for f in v.findings}) != case[2]]
    assert wrong == []


@needs_semgrep
def test_where_a_fixed_beginning_decides_the_host_a_request_does_not():
    free = ['redirect("%s" % request.args["x"])', 'requests.get("http://" + request.args["x"])']
    fixed = ['redirect("/user/%s" % request.args["x"])', 'requests.get("https://example.org/" + request.args["x"])']
    found = [{f.rule for f in v.findings} & {"open-redirect", "ssrf"} for v in judge(free + fixed, ("semgrep",))]
    assert found == [{"open-redirect"}, {"ssrf"}, set(), set()]


def test_positions_are_those_of_the_source_as_given():
    whole = "import yaml\n\n\ndef f(x):\n    return yaml.load(x)\n"
    method = "    def f(self, x):\r\n        return yaml.load(\r\n            x)\r\n"
    ragged = '    def f(self, x):\n        """Text\nat the margin."""\n        return yaml.load(x)\n'
    for source, lines in ((whole, (5, 5)), (method, (2, 3)), (ragged, (4, 4))):
        (found,) = judge([source], ("bandit",))[0].findings
        assert (found.rule, found.cwe, found.line, found.end_line) == ("B506", "CWE-502", *lines)


def test_imports_are_only_put_in_front_for_free_names():
    assert prepare("import os\nos.getcwd()").shift == 0
    assert prepare("def f(yaml):\n    return yaml.load(1)").shift == 0
    assert prepare("def f(x):\n    return yaml.load(x), os.getcwd()").text.startswith("import os; import yaml\ndef f")
    assert prepare("def f(:\n") is None
    assert prepare("x = '\0'") is None
    assert prepare("(" * 10000) is None


def test_what_does_not_parse_is_no_verdict_on_security():
    good, bad, empty = judge(["eval(x)", "eval(x", ""], ("bandit",))
    assert good.parses and [f.rule for f in good.findings] == ["B307"]
    assert not bad.parses and not bad.findings
    assert empty.parses and not empty.findings


def test_noise_is_left_out_unless_asked_for():
    source = "import subprocess\nassert x\nsubprocess.run(['ls'])\n"
    (quiet,), (loud,) = judge([source], ("bandit",)), judge([source], ("bandit",), noise=True)
    assert quiet.findings == ()
    assert {"B101", "B404", "B603", "B607"} == {f.rule for f in loud.findings} <= set(findings.NOISE)


def test_comments_do_not_silence_the_judges():
    assert judge(["eval(x)  # nosec"], ("bandit",))[0].findings


BOUND = [
    'db.execute(f"select a from t where x = %s", (x,))',
    'db.execute("select a from t where x in (" + ",".join("?" * len(ids)) + ")", ids)',
    'db.execute("select a from t where x in (%s)" % ",".join(["?"] * len(ids)), ids)',
    'db.execute("select a from t where x in (%s)" % ",".join("?" for _ in ids), ids)',
    'db.execute(f"select a from {TABLE} where x = ?", (x,))',
    'def f(self, x):\n    db.execute("select a from " + self.table + " where x = ?", (x,))',
    'db.execute("select a from %s where x = ?" % setting("table"), (x,))',
    'db.execute("select a from t " + "where x like ?", (f"%{x}%",))',
]
BUILT = [
    'db.execute(f"select a from t where x = {x}")',
    "def f(self, x):\n    db.execute(f\"select a from {self.table} where x = '{x}'\")",
    "def f(self):\n    db.execute(f\"select a from t where x = '{self.x}'\")",
    'db.execute("select a from %s where x = 1" % input("t"))',
    'def f(ID):\n    db.execute("select a from t where x = %s" % ID)',
    'db.execute("select a from t where x in (%s)" % ",".join(ids * 2))',
    'db.execute("select a from t where x = X".replace("X", x))',
    'db.execute("select a from t where x = {x}".format(**locals()))',
    'db.execute("select a from t where x = %(x)s" % values)',
]


def test_sql_is_built_where_values_from_outside_are_put_in():
    flags = [{f.rule for f in v.findings} for v in judge(BOUND + BUILT, ("bandit",))]
    assert flags == [set()] * len(BOUND) + [{"B608"}] * len(BUILT)


def test_what_bandit_does_not_tell_from_a_fault():
    harmless = [
        'if password == "":\n    pass',
        "yaml.load(x, Loader=yaml.BaseLoader)",
        "def f(c, shell):\n    subprocess.run(\n        c,\n        shell=shell,\n    )",
        "os.popen('ls -l').read()",
        "t = ET.parse('settings.xml')",
    ]
    faults = ['if password == "hunter2":\n    pass', "yaml.load(x, Loader=yaml.Loader)", "def f(c):\n    subprocess.run(c, shell=True)"]
    faults += ["def f(c):\n    return os.popen(c).read()", "def f(p):\n    return ET.parse(p)"]
    assert [bool(v.findings) for v in judge(harmless + faults, ("bandit",))] == [False] * len(harmless) + [True] * len(faults)


def test_families():
    assert same_family("CWE-089", "cwe-89") and same_family("CWE-77", "CWE-78") and same_family("CWE-23", "22")
    assert not same_family("CWE-79", "CWE-78") and not same_family("", "")
    assert family("CWE-123456") == {"CWE-123456"}
    for cwe in findings._FAMILY_OF:
        assert all(family(other) == family(cwe) for other in family(cwe))  # a partition
    with pytest.raises(ValueError, match="CWE-89"):
        findings.normal("sql injection")


def test_the_cache_answers_without_the_tool(tmp_path, monkeypatch):
    sources = ["eval(x)", "pass", "eval(x)"]
    first = judge(sources, ("bandit",), cache=tmp_path)
    assert first[0] == first[2] and len(list(tmp_path.rglob("*.json"))) == 2
    monkeypatch.setattr(bandit, "run", lambda *_: pytest.fail("asked again"))
    assert judge(sources, ("bandit",), cache=tmp_path) == first
    monkeypatch.setattr(bandit, "run", lambda *_: ([], set()))
    monkeypatch.setattr(bandit, "version", lambda: "another")
    assert judge(sources, ("bandit",), cache=tmp_path)[0].findings == ()


def test_what_a_tool_gave_up_on_is_said_and_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(bandit, "run", lambda *_: ([], {"0.py"}))
    assert judge(["eval(x)"], ("bandit",), cache=tmp_path)[0].failed == ("bandit",)
    monkeypatch.undo()
    assert judge(["eval(x)"], ("bandit",), cache=tmp_path)[0].failed == ()


def test_an_unknown_or_missing_tool_names_the_remedy(monkeypatch):
    with pytest.raises(ValueError, match="bandit, semgrep, codeql"):
        judge(["pass"], ("pylint",))
    monkeypatch.setenv("PATH", "")
    assert "codeql" not in judges.available()
    with pytest.raises(RuntimeError, match="PATH"):
        judge(["pass"], ("codeql",))


FAKE_CODEQL = """\
import json, os, sys
from pathlib import Path
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv if a.startswith("--") and "=" in a)
if sys.argv[1] == "version":
    print("2.20.1")
if sys.argv[2] == "create":
    Path(sys.argv[3]).mkdir()
    (Path(sys.argv[3]) / "files").write_text("\\n".join(sorted(p.name for p in Path(options["source-root"]).iterdir())))
if sys.argv[2] == "analyze":
    assert (Path(sys.argv[3]) / "files").read_text() == "0.py\\n1.py"
    rule = {"id": "py/sql-injection", "properties": {"security-severity": "8.8", "tags": ["security", "external/cwe/cwe-089", "external/cwe/cwe-564"]}}
    place = {"artifactLocation": {"uri": "1.py"}, "region": {"startLine": 3}}
    result = {"ruleId": rule["id"], "message": {"text": "built"}, "locations": [{"physicalLocation": place}]}
    run = {"tool": {"driver": {"name": "CodeQL"}, "extensions": [{"rules": [rule]}]}, "results": [result]}
    Path(options["output"]).write_text(json.dumps({"runs": [run]}))
"""


def test_codeql_by_a_stand_in(tmp_path, monkeypatch):
    """No CodeQL has run here: this checks what we ask of its CLI and how we read SARIF."""
    (tmp_path / "fake.py").write_text(FAKE_CODEQL)
    program = tmp_path / "codeql"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "fake.py"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    codeql.version.cache_clear()
    clean, flagged = judge(["pass", "def f(x):\n    return os.path.join(x)\n"], ("codeql",))
    assert clean.findings == ()
    assert flagged.findings == (findings.Finding("codeql", "py/sql-injection", "CWE-89", 2, 2, "high", "built"),)
    calls = [json.loads(line) for line in Path(tmp_path / "calls").read_text().splitlines()]
    assert [call[:2] for call in calls] == [["version", "--format=terse"], ["database", "create"], ["database", "analyze"]]
    assert "--language=python" in calls[1] and codeql.SUITE in calls[2]
    codeql.version.cache_clear()


def test_the_command_prints_findings(tmp_path):
    (tmp_path / "a.py").write_text("eval(x)\n")
    (tmp_path / "b.py").write_text("eval(x\n")
    command = [sys.executable, "-m", "judges", "--tools", "bandit", "--", str(tmp_path / "a.py"), str(tmp_path / "b.py")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1
    assert "a.py:1: medium CWE-95 [bandit B307]" in done.stdout and "b.py: not Python" in done.stdout


@pytest.mark.slow
@needs_semgrep
def test_real_pairs(shared_data):
    files = ("sven/train.python.jsonl", "safecoder/sec-new-desc.train.jsonl", "safecoder/sec-new-desc.val.jsonl")
    found = benchmark.measure_pairs([shared_data / file for file in files])
    ours, alone = found["both"], found["bandit"]
    assert ours["all"]["matched"]["pairs"] == 481
    assert ours["all"]["matched"]["secure_flagged"] <= 0.06 * 481
    assert ours["all"]["any"]["secure_flagged"] <= 0.1 * 481
    for cwe, more in (("CWE-22", 12), ("CWE-78", 40), ("CWE-79", 8)):
        assert ours[cwe]["matched"]["right_order"] >= alone[cwe]["matched"]["right_order"] + more
    insecure = benchmark.measure_insecure(shared_data / "securityeval" / "dataset.first81.jsonl")
    assert insecure["both"]["matched"] >= 1.8 * insecure["bandit"]["matched"]
