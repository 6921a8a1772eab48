"""Knowledge, plan, parser, journal, budget: each by its own claims."""

import ast
import asyncio
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.distill import cost, finish, knowledge, parse, prompts
from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.distill.standin import Standin, serve
from data_pipeline.distill.writer import Writer, WriterOptions
from data_pipeline.endpoint import retry_after
from data_pipeline.pairs import DataError, Drops, read
from tests.conftest import SEED_PAIRS

PAIRS = list(read(SEED_PAIRS, Drops()))


def test_the_knowledge_base_is_wide():
    rules = knowledge.python_rules()
    assert len(rules) >= 500 and len({rule.cwe for rule in rules}) >= 430
    assert len({rule.id for rule in knowledge.rules()}) == len(knowledge.rules())
    assert {rule.cwe for rule in knowledge.rules()} <= knowledge.titles().keys()
    assert all(rule.title and rule.description for rule in knowledge.rules())
    assert len(set(knowledge.libraries())) == len(knowledge.libraries()) >= 75
    assert "MITRE" in (knowledge.DATA / "cwe.LICENSE").read_text(encoding="utf-8")
    assert {rule.source for rule in knowledge.select(cwe="089")} == {"cwe", "bandit", "topic"}


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.data())
def test_the_plan_covers_evenly_and_never_repeats(C, L, seed, data):
    rules = [knowledge.Rule(f"r{i}", f"CWE-{i % C}", "t", "d", "cwe", "any") for i in range(2 * C)]
    count = data.draw(st.integers(0, C * L))
    tasks = prompts.plan(rules, [f"l{i}" for i in range(L)], count, seed)
    assert len({(t.rule.cwe, t.library) for t in tasks}) == len({t.id for t in tasks}) == count
    for counts, kinds in ((Counter(t.rule.cwe for t in tasks), C), (Counter(t.library for t in tasks), L)):
        assert max(counts.values(), default=0) - min(counts.values(), default=0) <= 1
        assert len(counts) == min(count, kinds)
    with pytest.raises(DataError, match="ask for fewer"):
        prompts.plan(rules, [f"l{i}" for i in range(L)], C * L + 1, seed)


@pytest.mark.parametrize("form", prompts.FORMS)
def test_every_seed_pair_survives_its_journey(form):
    standin = Standin(PAIRS, 0, 0, None)
    for i, pair in enumerate(PAIRS):
        rule = knowledge.Rule("r", pair.cwe, str(i), "d", "cwe", "any")
        body = prompts.pair_request(prompts.Task("t", rule, "flask"), "m", form, 0.5, 1000)
        reply = standin.completion(body, "")["choices"][0]["message"]["content"]
        found = parse.read_answer({"text": reply, "finish_reason": "stop"}, prompts.PAIR_PARTS)
        sides = [code.strip("\n") for code in (found["secure"], found["vulnerable"])]  # empty lines around a program aren't its own
        assert sides == [pair.chosen.strip("\n"), pair.rejected.strip("\n")]
        assert found["instruction"] == " ".join(pair.instruction.split())


def test_labels_in_fences_are_code_and_labels_may_wear_markdown():
    text = "## **Instruction:** Do it\n**VULNERABLE:**\n~~~py\nx = '''\nSECURE:\n```\n'''\n~~~\n3. Why vulnerable: so\nSECURE:\ny\n__Why Secure:__ ok"
    found = parse.read_answer({"text": text}, prompts.PAIR_PARTS)
    assert found["vulnerable"] == "x = '''\nSECURE:\n```\n'''"
    assert (found["instruction"], found["why_vulnerable"], found["secure"], found["why_secure"]) == ("Do it", "so", "y", "ok")


def test_comments_go_and_strings_stay():
    code = "x = '# no'  # yes\n# whole line\ny = '''\n# no\n'''\nz = (1,  # yes\n     2)"
    assert parse.without_comments(code) == "x = '# no'\ny = '''\n# no\n'''\nz = (1,\n     2)"


@given(st.lists(st.tuples(st.sampled_from(PAIRS), st.integers(0, 60), st.text("ab#'\" é", max_size=8)), min_size=1, max_size=1))
def test_removing_comments_leaves_the_program(drawn):
    [(pair, line, comment)] = drawn
    lines = pair.chosen.splitlines()
    line = next(n for n in range(line % len(lines), -1, -1) if lines[n])  # a comment on an empty line takes the line with it
    lines[line] += f"  # {comment}"
    code = "\n".join(lines)
    if parse.dump(code) == parse.dump(pair.chosen):  # not inside of a string
        assert ast.dump(ast.parse(parse.without_comments(code))) == ast.dump(ast.parse(pair.chosen))
        assert parse.without_comments(code) == parse.without_comments(pair.chosen)


PIECES = st.sampled_from(["```", "~~~", "```python", "\n", "SECURE:", "WHY SECURE:", "VULNERABLE:", "INSTRUCTION:", "WHY VULNERABLE:", "{", "}", '"', "#", "'''", "\\", "x = 1", "\0", "\r", "\t", "\f", "def f():", "(", "[" * 50])  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES | st.text(max_size=6), max_size=40).map("".join))
def test_no_answer_breaks_the_parser(text):
    """Fuzz: whatever a teacher says is kept or rejected with a reason."""
    try:
        found = parse.check(parse.read_answer({"text": text, "finish_reason": "stop"}, prompts.PAIR_PARTS))
    except parse.RejectedError:
        return  # any other exception fails the test
    ast.parse(found["secure"])
    assert all(part.encode() for part in found.values())


def test_half_a_character_is_no_text():
    parts = dict.fromkeys(prompts.PAIR_PARTS, "x = 1")
    for part in parts:
        with pytest.raises(parse.RejectedError, match="half a character"):
            parse.read_answer({"text": json.dumps(parts | {part: "x = '\ud83d'"})}, prompts.PAIR_PARTS)
    assert parse.read_answer({"text": json.dumps(parts | {"instruction": "\U0001f600"})}, prompts.PAIR_PARTS)["instruction"] == "\U0001f600"


def test_a_torn_last_line_is_cut_off_and_another_damaged_one_named(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path)
    for name in "ab":
        journal.add(name, {"q": name}, {"text": name})
    with pytest.raises(DataError, match="another process"):
        Journal(path)
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    journal = Journal(path)
    assert journal.answers == {"a": {"text": "a"}}
    journal.add("c", {}, {"text": "é"})
    journal.close()
    assert Journal(path).answers.keys() == {"a", "c"}
    path.write_bytes(b"{oops\n" + whole)
    with pytest.raises(DataError, match="line 1 is damaged"):
        Journal(path)


@pytest.mark.parametrize("batch", [False, True])
def test_a_budget_stops_cleanly_and_is_kept(tmp_path, monkeypatch, batch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    bodies = [prompts.pair_request(t, "m", "sections", 0.5, 500) for t in prompts.plan(knowledge.python_rules(), ("flask",), 40, 0)]

    async def run(budget):
        server = await serve(Standin(PAIRS, 0, 0, None))
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        journal = Journal(tmp_path / "j")
        prices = cost.Prices(1, 1, budget)
        writer = Writer(journal, WriterOptions(url, prices=prices, batch=batch, poll_s=0.01))
        try:
            return await writer.ask(bodies, lambda: None), cost.bill(journal.answers.values(), prices), journal.answers
        finally:
            await writer.aclose()
            journal.close()
            server.close()

    failed, bill, answers = asyncio.run(run(0.01))
    assert 0 < len(answers) < 40 and set(failed.values()) == {"budget"} and len(failed) + len(answers) == 40
    assert bill.dollars <= 0.01
    failed, bill, answers = asyncio.run(run(10))
    assert failed == {} and answers.keys() == {content_key(body) for body in bodies}


def test_retry_after_in_each_notation():
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": "2"}) == 2
    assert retry_after({"retry-after": "3600"}) == 60
    assert retry_after({}) == retry_after({"retry-after": "soon"}) == 0


def row(name, pair, **more):
    return {"id": name, "chosen": pair.chosen, "rejected": pair.rejected, "instruction": pair.instruction, "reasoning": pair.reasoning, "cwe": pair.cwe, "rule": pair.cwe.lower(), "library": "os", "model": "m"} | more  # fmt: skip


def test_finishing_drops_duplicates_and_secrets_and_its_files_load(tmp_path, monkeypatch):
    a, b = max(PAIRS, key=lambda pair: len(pair.chosen)), PAIRS[1]
    rows = [
        row("a", a),
        row("spaced", a, chosen=a.chosen + "\n\n"),
        row("near", a, chosen=a.chosen + "\nDEPTH = 1", rejected=a.rejected + "\nDEPTH = 1"),
        row("leak", b, reasoning="AKIA" + "QWERTYUIOPASDFGH"),
    ]
    rows += [row(f"p{i}", pair, findings=[]) for i, pair in enumerate(PAIRS)]
    kept, dropped = finish.finish(rows, 0.85)
    reasons = dict(dropped)
    assert (reasons["spaced"], reasons["near"], reasons["leak"]) == ("duplicate", "near-duplicate", "secret (AWS Access Key)")
    assert len(kept) + len(dropped) == len(rows)
    for by in finish.SPLIT_BY:
        parts = finish.split(kept, by, (0.1, 0.1), 0)
        assert sum(map(len, parts.values())) == len(kept) and all(parts.values())
        keys = [{r["id" if by == "row" else by] for r in part} for part in parts.values()]
        assert sum(map(len, keys)) == len(set.union(*keys))
    counts = finish.write(kept, tmp_path / "data", "rule", (0.1, 0.1), 0)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import datasets

    loaded = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == counts
    first = json.loads((tmp_path / "data" / "train.jsonl").read_text().splitlines()[0])
    assert loaded["train"][0]["chosen"] == first["chosen"]
