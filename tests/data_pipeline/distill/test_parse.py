"""Knowledge, plan, parser, journal, budget: each by its own claims."""

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.distill import knowledge, parse, prompts
from demos.standin import Standin
from tests.helpers.seed_pairs import PAIRS


@pytest.mark.parametrize("form", ["json", "sections"])
def test_every_seed_pair_survives_its_journey(form):
    standin = Standin(PAIRS, 0, 0, None)
    for i, pair in enumerate(PAIRS):
        rule = knowledge.Rule("r", pair.cwe, str(i), "d", "cwe", "any")
        body = prompts.pair_request(prompts.Task("t", rule, "flask"), prompts.Job("m", 1, form=form))
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


FENCED = 'def doc():\n    """Use it:\n\n```python\ndoc()\n```\n"""\n    return {}'


@pytest.mark.parametrize("form", ["json", "sections"])
def test_only_the_final_answer_counts_and_code_may_hold_a_fence(form):
    sides = {"vulnerable": FENCED.format("find(eval('<think>'))"), "secure": FENCED.format("find('<|im_end|>')")}
    found = {"instruction": "Find a doc.", "why_vulnerable": "It's evaluated.", "why_secure": "It isn't."} | sides
    parts = prompts.PAIR_PARTS
    answer = json.dumps(found) if form == "json" else "\n".join(f"{prompts.label(p)}\n" + (f"```python\n{found[p]}\n```" if p in sides else found[p]) for p in parts)  # fmt: skip
    draft = answer.replace("find(", "lose(")
    for text in (answer, f"<think>\n{draft}\n</think>\n{answer}", f"{draft}</think>{answer}<|im_end|>\nINSTRUCTION: x", "\ufeff" + answer):
        for ending in ("\n", "\r\n"):
            assert parse.read_answer({"text": text.replace("\n", ending)}, parts) == found
    with pytest.raises(parse.RejectedError, match="no instruction part"):
        parse.read_answer({"text": f"<think>{answer}"}, parts)


def test_only_line_breaks_part_lines():
    code = "x = 'a\u2028b\x0cc\x85d'\n\x0c\ny = 1"
    text = f"INSTRUCTION: Do\nVULNERABLE:\n```\n{code}\n```\nWHY VULNERABLE: so\nSECURE:\n{code}\nWHY SECURE: ok"
    found = parse.read_answer({"text": text}, prompts.PAIR_PARTS)
    assert found["vulnerable"] == found["secure"] == code


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


@settings(max_examples=400)
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
