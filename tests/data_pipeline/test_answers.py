"""What counts of a model's text: thoughts and what follows an end mark don't, and code that spells either is code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import answers

CODE = "def area(w, h):\n    return w * h\n"
DRAFT = "```python\ndef area(w, h):\n    return w + h\n```\n"
BLOCK = f"```python\n{CODE}```\n"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"<think>\nFirst {DRAFT}no.\n</think>\n{BLOCK}", f"\n{BLOCK}"),
        (f"<think>one</think>So\n<think>\n{DRAFT}</think>\n{BLOCK}", f"So\n\n{BLOCK}"),
        (f"<Thinking>\n{DRAFT}</THINKING>{BLOCK}", BLOCK),
        (f"[THINK]{DRAFT}[/THINK]{BLOCK}", BLOCK),
        (f"<|begin_of_thought|>{DRAFT}<|end_of_thought|>{BLOCK}", BLOCK),
        (f"<reasoning>{DRAFT}</reasoning>{BLOCK}", BLOCK),
        (f"Let me see.\n{DRAFT}</think>\n{BLOCK}", f"\n{BLOCK}"),  # the opening tag was the template's
        (f"It adds.\n{DRAFT}\n### Response:\n{BLOCK}", f"\n{BLOCK}"),  # our own template's thought
        (f"<think>\nPerhaps\n{BLOCK}and then", ""),  # stopped while it thought
        (f"{BLOCK}<think>was that right?", BLOCK),
        (f"<|im_start|>assistant\n{BLOCK}<|im_end|>", BLOCK),
        (f"<s> <|start_header_id|>assistant<|end_header_id|>\n\n{BLOCK}<|eot_id|>", BLOCK),
        (f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{BLOCK}<|return|>", BLOCK),
        ("<think></think>", ""),
        ("", ""),
    ],
)
def test_a_thought_is_no_answer(text, kept):
    assert answers.final(text) == kept


@pytest.mark.parametrize(
    "mark", ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|fim_middle|>", "<file_sep>", "<end_of_turn>", "\n### Instruction:"]
)
def test_what_follows_an_end_mark_is_none_either(mark):
    for answer in (BLOCK, CODE, "Here it is: it's short."):
        assert answers.final(f"{answer}{mark}{DRAFT}") == answer
    assert answers.final(f"{BLOCK}<|im_end|>\n<|im_start|>user\nNow in C.<|im_end|>") == BLOCK
    assert answers.final(f"{CODE}</s>") == CODE


SPELT = [
    "END = '<|endoftext|>'\n",
    'STOPS = ["<|im_end|>", "</s>"]\n',
    "import re\nTAG = re.compile(r'<think>.*?</think>')\n",
    "MARK = '### Response:'\n",
    'FORM = """\n### Instruction:\n%s\n\n### Response:\n"""\n',
    'text = f"{user}\'s turn<|im_start|>"\n',
    "open_tag = b'<thinking>'\n",
]


@pytest.mark.parametrize("line", SPELT)
def test_code_may_spell_each_of_them(line):
    for text in (f"```python\n{line}{CODE}```\n", f"Sure, that's it:\n```\n{line}{CODE}```\nDone."):
        assert answers.final(text) == text
        assert answers.final(f"<think>{DRAFT}</think>{text}<|endoftext|>x") == text
    assert answers.final(line + CODE) == line + CODE
    assert answers.final(f"{line}{CODE}<|im_end|>{DRAFT}") == line + CODE


def test_a_string_may_have_begun_in_the_prompt():
    before = 'def split(text):\n    """Cut at <|endoftext|>.\n'
    text = '    Not behind <think>.\n    """\n    return text\n'
    assert answers.final(text, before) == text
    assert answers.final(text + "<|endoftext|>x", before) == text


def test_fences():
    text = f"a\n```py\n{CODE}```\nb\n~~~~\nx = '''\n```\n'''\n~~~~\n   ```{{.python}}\nlast\n"
    found = [(block.language, block.code, block.closed) for block in answers.fences(text)]
    assert found == [("py", CODE, True), ("", "x = '''\n```\n'''\n", True), ("python", "last\n", False)]
    assert [text[block.start : block.stop][:3] for block in answers.fences(text)] == ["```", "~~~", "   "]


def test_line_breaks_marks_and_quotes_are_made_one():
    assert answers.normalised(f"\ufeff> ```python\n> {CODE.strip()}\n> ```".replace("\n", "\r\n")) == f"```python\n{CODE.strip()}\n```"
    kept = f"> They said\n{BLOCK}"
    assert answers.normalised(kept) == kept


@pytest.mark.parametrize(
    ("code", "inside"),
    [
        ("x = '|'", True),
        ("x = 'a' |", False),
        ("x = '''\n|\n'''", True),
        ("x = 1  # it's |\n", False),
        ("x = 'it\\'s |'", True),
        ("it's a | and it's b", False),
        ('f"{a}|"', True),
        ("b'|'", True),
        ("x = '\n|'", False),
        ('x = "#" + "|"', True),
    ],
)
def test_strings(code, inside):
    assert (code.index("|") in answers.Strings(code.replace("|", ""))) == inside


PIECES = st.sampled_from(["<think>", "</think>", "[THINK]", "### Response:", "\n### Instruction:", "<|im_end|>", "</s>", "```", "```python\n", "~~~", "\n", "> ", "'", '"""', "it's", "\\", "#", "x = 1", "\ud800", "\u2028"])  # fmt: skip


@given(st.lists(PIECES, max_size=16).map("".join), st.sampled_from(["", "def f():\n", '    """']))
def test_of_any_text_some_is_the_answer_and_that_has_no_more_to_take(text, before):
    text = answers.normalised(text)
    final = answers.final(text, before)
    left = iter(text)
    assert all(letter in left for letter in final)  # letters go, none come, none move
    assert answers.final(f"<think>\n{DRAFT}</think>{BLOCK}<|endoftext|>{text}") == BLOCK


LONG = {
    "a line of letters that is no fence": f"```{'a' * 300_000}`",
    "a line of blanks that is no fence": f"```{' ' * 300_000}`",
    "escaped quotes that nothing closes": '"' + '\\"' * 150_000 + "(",
    "marks in strings": '"<think>"\n' * 30_000,
    "marks in a comment": "### Response:" * 30_000,
    "blocks": "```python\n```\n" * 4_000,
    "end marks in blocks": '```\n"<|im_end|>"\n```\n' * 3_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_text_is_read_once(text):
    """Whoever goes back over it for each of its marks isn't done within hours, or minutes."""
    kept = answers.final(text + "<|endoftext|>x")
    assert kept in (text, "")


def test_a_quote_behind_a_backslash_opens_no_string():
    assert answers.final('say \\"hi<|im_end|>"') == 'say \\"hi'
