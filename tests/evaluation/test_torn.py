"""A text that was cut off is tested by its whole statements: the longest start that parses, found without reading the text again and again."""

import ast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evaluation import torn
from evaluation.extract import extract
from evaluation.torn import whole
from judges.prepare import parse
from tests.helpers.evaluations import pairs

CODE = [pair[side] + "\n" for pair in pairs(60) for side in ("chosen", "rejected")]


def longest(text):
    """The start of whole lines that parses and is longest, by trying all."""
    lines = text.split("\n")
    return next((start for end in range(len(lines), 0, -1) if parse(start := "\n".join(lines[:end]) + "\n")), "")


@given(st.sampled_from(CODE), st.integers(0, 10**6))
def test_a_program_that_is_cut_anywhere(code, at):
    text = code[: at % len(code)]
    kept = whole(text)
    if parse(text) is not None:
        assert kept == text
    else:
        assert text.startswith(kept.rstrip("\n")) and ast.dump(ast.parse(kept)) == ast.dump(ast.parse(longest(text)))
    assert whole(kept) == kept


@given(st.sampled_from(CODE), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_fault_in_front_is_no_tear(code, at, where):
    lines = code.split("\n")
    row = where % (len(lines) - 1)
    lines[row] += " = = "
    text = "\n".join(lines)
    text = text[: at % len(text)]
    assume(text.count("\n") > row + 1 and parse(text) is None)
    if whole(text) != text:  # the fault stands in the statement that is torn, or within a text or brackets that nothing closes
        assert longest(text).strip() == whole(text).strip()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x = 1\ny = (", "x = 1\n"),
        ("def f(x):\n    y = x\n    if y:\n", "def f(x):\n    y = x\n"),
        ("def f(x):\n    y = x\n    try:\n        z = 1\n        y = 2\n    exc", "def f(x):\n    y = x\n"),
        ("x = 1\n@cache\ndef f(a):", "x = 1\n"),
        ("x = '''\nabc\n", ""),
        ("x = 1\ny = 'abc", "x = 1\n"),
        ("x = 1\nif x:\n    y = 2\nelse:\n    z = [1,\n  2", "x = 1\nif x:\n    y = 2\n"),
        ("x = 1\n  y = 2", "x = 1\n"),
        ("    x = 1\n    y = (", ""),
        ("x = = 1\ny = 2\nz = (", "x = = 1\ny = 2\nz = ("),
        ("", ""),
        ("x = 1\nmatch x:\n    case 1:\n        y = 2\n    case", "x = 1\nmatch x:\n    case 1:\n        y = 2\n"),
        ("x = 1\n\0", "x = 1\n\0"),
    ],
)
def test_tears(text, kept):
    assert whole(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "try:\n" + "    x = 1\n" * 2000,
        "x = (\n" + "y = 1\n" * 2000,
        "'''\n" + "y = 1\n" * 2000,
        "x = 1\n" * 2000 + "y = (",
        "def f():\n" * 2000,
        "@a\n" * 2000,
        "try: x\n" * 2000,
        "if x:\n    pass\nelif y:\n" * 1000,
        "x = 1\n" + "(" * 5000,
        "x = 1\n" + "for a in b: " * 500,
    ],
)
def test_a_long_text_is_parsed_a_few_times(text, monkeypatch):
    count = []
    plain = torn.stumbles_at
    monkeypatch.setattr(torn, "stumbles_at", lambda code: count.append(1) or plain(code))
    whole(text)
    assert len(count) <= 10


PROMPT = 'def double(xs):\n    """Each of xs twice."""\n'
BODY = "    found = []\n    for x in xs:\n        found += [x, x]\n    return found\n"


@pytest.mark.parametrize("form", ["completion", "instruction"])
@pytest.mark.parametrize("torn_text", ["\n\ndef test():\n    assert double([", "\n\nprint(double([1, 2", "\n\n# Example:\nif __name__ =="])
def test_an_answer_that_was_complete_before_it_was_cut(form, torn_text):
    answers = {
        "fence": f"Here it is:\n```python\n{PROMPT}{BODY}{torn_text}",
        "whole": f"{PROMPT}{BODY}{torn_text}",
        "body": BODY + torn_text,
    }
    for name, text in answers.items():
        program = extract(PROMPT, text, form, cut=True)
        scope = {}
        exec(program.code, scope)
        assert program.parses and scope["double"]([1, 2]) == [1, 1, 2, 2], name


@given(st.integers(0, 10**6), st.sampled_from(["completion", "instruction"]), st.booleans())
def test_an_answer_that_was_cut_within_its_function(at, form, fenced):
    """It is what EvalPlus would test: the longest start that parses, where any statement of the answer is whole; not cut, it stays what it is."""
    assume(fenced or form == "completion")
    body = BODY[: at % len(BODY)]
    text = f"```python\n{PROMPT}{body}" if fenced else body
    program, plain = extract(PROMPT, text, form, cut=True), extract(PROMPT, text, form)
    best = longest(PROMPT + body)
    if parse(PROMPT + body) is not None:
        assert program == plain
    elif "found = []" in best:
        assert program.parses and ast.dump(ast.parse(program.code)) == ast.dump(ast.parse(best))
    else:
        assert program.empty or not program.parses


def test_a_cut_program_goes_in_front_of_the_task_s_suffix():
    program = extract("x = 1\n", "y = 2\nz = (", "completion", suffix="print(x, y)\n", cut=True)
    assert program.code == "x = 1\ny = 2\nprint(x, y)\n" and program.parses and not program.empty
    assert not extract("x = 1\ndef f():\n", "    y = (", "completion", suffix="print(x)\n", cut=True).parses
