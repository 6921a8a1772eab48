"""From what models write to programs: real shapes of answers, and what must not become code."""

import ast
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.extract import extract

OPEN = 'import os\n\nLIMIT = 3\n\n\ndef helper(x):\n    return x\n\n\ndef load(name):\n    """Read a file."""\n'
BODY = "    with open(name) as file:\n        return file.read()\n"
WHOLE = OPEN + BODY
TOP = "import os\n\n# a function that reads a file\n"
SENTENCE = '"""\nWrite a function that reads a file.\n"""\n'
FUNCTION = "def load(name):\n    with open(name) as file:\n        return file.read()\n"


def code(prompt, completion, form="completion", suffix=""):
    return extract(prompt, completion, form, suffix).code


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        BODY + "\n\ndef main():\n    print(load('x'))\n\nif __name__ == '__main__':\n    ma",  # goes on until it is stopped
        BODY + "\n# Test\nprint(load('x'))\n",
        BODY + "```\n\nThis function reads a file.",
        BODY + "<|endoftext|>def other(): pass",
        BODY + "</s>",
        BODY.strip(),  # an endpoint that strips the first line's indentation
        textwrap.dedent(BODY),
        f"```python\n{BODY}```",
        f"```python\n{BODY.strip()}\n```",
        f"Here is the rest:\n\n```\n{textwrap.dedent(BODY)}```\nIt closes the file.",
        WHOLE,  # an endpoint that echoes
        f"Sure!\n\n```python\n{WHOLE}```\nNote that ...",
        f"```Python\n{WHOLE}",  # no closing fence
        f"1. The code:\n\n   ```python\n{textwrap.indent(WHOLE, '   ')}   ```\n",
        f"First `pip install x`:\n```bash\npip install x\n```\nThen:\n```python\n{WHOLE}```\nUse it:\n```python\nprint(load('a'))\n```",
        f"```python\nprint(load('a'))\n```\nwhere\n```python\n{WHOLE}```",
        f"<think>\nMaybe ```python\nload = 1\n```?\n</think>\n```python\n{WHOLE}```",
        f"\n### Response:\n```python\n{WHOLE}\n```\n\n### Instruction:\nWrite another ```python\nx = 1\n```",
        WHOLE.replace("\n", "\r\n"),
    ],
)
@pytest.mark.parametrize("form", ["completion", "instruction"])
def test_every_shape_of_the_same_answer_is_the_same_program(completion, form):
    program = extract(OPEN, completion, form)
    assert ast.unparse(ast.parse(program.code)) == ast.unparse(ast.parse(WHOLE))
    assert program.parses and not program.empty


def test_a_string_at_the_margin_does_not_end_a_function():
    body = '    sql = """\nSELECT *\nFROM t\n"""\n    return sql\n'
    assert code(OPEN, body + "\nx = 1\n") == OPEN + body


def test_helpers_behind_a_function_belong_to_it():
    body, helpers = "    return first(name)\n", "\n\ndef first(x):\n    return second(x)\n\n\ndef second(x):\n    return open(x).read()\n"
    assert code(OPEN, body + helpers + "\nprint(load('x'))\n").strip() == (OPEN + body + helpers).strip()
    assert code(OPEN, body + "\ndef other():\n    pass\n").strip() == (OPEN + body).strip()
    assert code(OPEN, body + "\n\ndef first(x):\n    return (").strip() == (OPEN + body).strip()


def test_fences_in_a_docstring_do_not_end_a_block():
    program = FUNCTION.replace("\n", '\n    """Reads.\n\n```\nload("x")\n```\n    """\n', 1)
    assert code(SENTENCE, f"```python\n{program}```\nDone.", "instruction") == program


def test_a_program_gets_what_it_uses_of_the_prompt_and_nothing_else():
    answer = "def load(name):\n    return helper(os.path.join(name, 'x'))\n"
    found = code(OPEN, f"```python\n{answer}```")
    assert found == "import os\ndef helper(x):\n    return x\n" + answer
    own = "import os\n\ndef helper(x):\n    return 2\n\n" + answer
    assert code(OPEN, f"```python\n{own}```") == own
    future = "from __future__ import annotations\n" + answer
    compile(code(OPEN, f"```python\n{future}```"), "x", "exec")


def test_prompts_that_end_at_the_top_level():
    two = FUNCTION + "\n\ndef save(name):\n    open(name, 'w')\n"
    assert code(TOP, two) == TOP + two
    torn = extract(TOP, two + "\n\ndef third(name, ", "completion")
    assert torn.parses and torn.code.strip() == (TOP + two).strip()
    assert not extract(TOP, FUNCTION + "this is no code\nx = 1\nand so on (", "completion").parses
    assert code(SENTENCE, f"Sure:\n```python\n{FUNCTION}```", "instruction") == FUNCTION
    assert code(SENTENCE, f"Here is it:\n\n{FUNCTION}\nThis reads the file.", "instruction").strip() == FUNCTION.strip()
    assert code("", f"```\n{FUNCTION}```", "instruction") == FUNCTION


def test_indentation_is_given_back_to_a_body_of_several_statements():
    body = "    rows = []\n    for line in open(name):\n        rows.append(line)\n    return rows\n"
    for text in (body.strip(), textwrap.dedent(body), f"```python\n{textwrap.dedent(body)}```", body.strip() + "\n\nprint(load('x'))\n"):
        assert code(OPEN, text).strip() == (OPEN + body).strip()
        assert code(OPEN.rstrip(), text).strip() == (OPEN + body).strip()
    nested = "    def first(x):\n        return x\n    return first(name)\n"
    assert code(OPEN, textwrap.dedent(nested)).strip() == (OPEN + nested).strip()


def test_suffix_follows_a_continuation():
    suffix = "\n\ndef safe():\n    return load('x')\n"
    assert code(OPEN, BODY + "\nprint(1)\n", suffix=suffix) == (OPEN + BODY).rstrip() + suffix
    assert extract(OPEN, "    pass\n", "completion", suffix).empty


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "\n\n",
        "    pass\n",
        "    ...\n",
        "    # TODO: write this\n",
        '    """Later."""\n',
        "\n\ndef other():\n    return 1\n",  # another function: the one asked for has no body
        "Sure",
        "```python\n```",
        "```python\nimport os\n\n\ndef load(name):\n    pass\n```",
        "<|endoftext|>    return 1\n",
    ],
)
def test_no_code_is_empty(completion):
    assert extract(OPEN, completion, "completion").empty


@pytest.mark.parametrize(
    "completion",
    [
        "I'm sorry, I can't help with that.",
        "    return (1, \n",
        "    if x:\n    return 1\n",
        "```python\ndef load(name)\n    return 1\n```",
        "    return '\x00'\n",
        "    x = " + "(" * 500,
    ],  # fmt: skip
)
@pytest.mark.parametrize("form", ["completion", "instruction"])
def test_what_is_no_python_stays_so(completion, form):
    program = extract(OPEN, completion, form)
    assert not program.parses and not program.empty and program.code


@given(st.lists(st.sampled_from([*OPEN.split("\n"), *BODY.split("\n"), "```", "```python", "def f(", "}", "'''", "Sure!", "\ud800", "\x0c"]), max_size=12).map("\n".join), st.sampled_from([OPEN, TOP, SENTENCE, "", OPEN.rstrip()]), st.sampled_from(["completion", "instruction"]))  # fmt: skip
def test_any_text_gives_a_program_whose_flags_hold(text, prompt, form):
    program = extract(prompt, text, form)
    assert program == extract(prompt, text, form)
    try:
        ast.parse(program.code)
        assert program.parses
    except (SyntaxError, ValueError):
        assert not program.parses
    assert not (program.parses and not program.empty and not text.strip())
