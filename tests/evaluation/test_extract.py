"""From what models write to programs: real shapes of answers, and what must not become code."""

import ast
import json
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
DRAFT = "```python\ndef load(name):\n    return open(name).read()\n```\n"
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
        f"<think>a</think>\nSo <think>\n{DRAFT}</think>\n```python\n{WHOLE}```",
        f"<thinking>\n{DRAFT}</thinking>\n\n```python\n{WHOLE}```<|im_end|>",
        f"{DRAFT}No, it must close.\n</think>```python\n{WHOLE}```",  # the template had opened the thought
        f"[THINK]{DRAFT}[/THINK]{WHOLE}",
        f"```python\n\ufeff{WHOLE}```",
        "> " + f"```python\n{WHOLE}```".replace("\n", "\n> "),
        f"Here:\n```python\n{WHOLE}\nThis works, because `with` closes the file.",  # no closing fence, but prose
        f"~~~python\n{WHOLE}~~~\nAs `load` reads, it's done.",
        f"```python title='load.py'\n{WHOLE}```",
        f"```{{.python .numberLines}}\n{WHOLE}```",
        f"```python\n{WHOLE}```<|endoftext|>{DRAFT}",
    ],
)
@pytest.mark.parametrize("form", ["completion", "instruction"])
def test_every_shape_of_the_same_answer_is_the_same_program(completion, form):
    program = extract(OPEN, completion, form)
    assert ast.unparse(ast.parse(program.code)) == ast.unparse(ast.parse(WHOLE))
    assert program.parses and not program.empty


@pytest.mark.parametrize("line", ["END = '<|endoftext|>'", "TAG = re.compile('<think>.*</think>')", "MARK = '### Response:'", "FORM = \'\'\'\n### Instruction:\n%s\'\'\'", "STOP = '</s>'"])  # fmt: skip
def test_what_code_spells_is_no_mark(line):
    program = f"{line}\n\n{FUNCTION}"
    assert code(OPEN, f"<think>{DRAFT}</think>```python\n{program}```<|im_end|>").endswith(program)
    assert code("", f"```python\n{program}```", "instruction") == program
    assert code(OPEN, f"{BODY}    {line}\n<|endoftext|>x").strip() == f"{OPEN}{BODY}    {line}".strip()


def test_a_thought_that_never_ends_is_no_program():
    for form in ("completion", "instruction"):
        assert extract(OPEN, f"<think>\nPerhaps\n{DRAFT}but then", form).empty


def test_a_helper_may_stand_in_a_block_of_its_own():
    helper, own = "def opened(x):\n    return open(x)\n", "def load(name):\n    return opened(name).read()\n"
    for first, second in ((helper, own), (own, helper)):
        found = code(OPEN, f"Two parts.\n```python\n{first}```\nand\n```python\n{second}```\nUse:\n```python\nprint(load('a'))\n```")
        assert found.endswith(f"{first}\n{second}")


@pytest.mark.parametrize("form", ["completion", "instruction"])
def test_a_function_may_be_assigned(form):
    prompt = 'def add(a, b):\n    """Add."""\n'
    for code in ("add = lambda a, b: a + b\n", "add: object = lambda a, b: a + b\n"):
        for text in (code, f"```python\n{code}```\n", f"```python\nimport operator\n```\n```python\n{code}```\n"):
            assert extract(prompt, text, form).code == code


def test_helpers_of_helpers_stand_in_blocks_of_their_own():
    chain = [f"def f{i}():\n    return f{i + 1}()\n" for i in range(2000)]
    blocks = "".join(f"```python\n{code}```\n" for code in [*chain, "def other():\n    pass\n", "def f2000():\n    return 1\n"])
    assert extract("", blocks, "instruction").code == "\n".join([*chain, "def f2000():\n    return 1\n"])


def test_tabs_become_the_blanks_of_the_prompt():
    assert code(OPEN, BODY.replace("    ", "\t")) == OPEN + BODY


def test_shapes_that_others_have_collected(shared_data):
    """Each gives the program that is expected of it: right or wrong by the task's own test."""
    folder = shared_data.parent / "cases" / "e01_extract"
    if not folder.is_dir():
        pytest.skip("no shapes beside this checkout")
    expected, wrong = json.loads((folder / "expected.json").read_text()), []
    for form in ("instruction", "completion"):
        tasks, shapes = (
            {row["task_id"]: row for row in map(json.loads, (folder / f"{form}.{kind}.jsonl").read_text().splitlines())}
            for kind in ("bench", "answers")
        )
        for name, shape in shapes.items():
            program = extract(tasks[name]["prompt"], shape["completion"], form)
            try:
                exec(f"{program.code}\n{tasks[name]['test']}\ncheck(double_all)", {"__name__": "answer"})
                passed = True
            except (Exception, SystemExit):
                passed = False
            wrong += [name] if expected[name] is not None and bool(expected[name]) != passed else []
    assert len(expected) > 40 and wrong == []


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
