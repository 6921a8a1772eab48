"""What of a model's text is its answer: thoughts and what follows an end mark are not, wherever code doesn't spell them.

Only the final answer counts. A draft within a thought is no answer, nor is what a model that wasn't stopped goes on with.
"""

import re
import textwrap
from dataclasses import dataclass
from itertools import islice

from judges.prepare import parse

PYTHON = ("", "python", "python3", "py", "py3", "python2")
"""What fences call it."""
_ENDS = 16  # places where a block may end that are tried

# `*+`: what it took it keeps, so that a line of a million letters that is no fence is read once.
FENCE = re.compile(r"^[ \t]*+(```+|~~~+)[ \t]*+\{?\.?([\w+#-]*+)[^\n`]*+$", re.MULTILINE)
_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis"
# A turn that an endpoint repeats in front of the answer.
_BEGIN = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>"
    r"|(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|start\|>)(?:assistant|model)(?:<\|end_header_id\|>)?\n*)"
)
_CLOSE = re.compile(rf"</(?:{_NAMES})>|\[/THINK\]|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_EVENT = re.compile(  # the last one of `close` ends the thought of our own template
    rf"(?P<open>(?i:<(?:{_NAMES})>|\[THINK\]|<\|begin_of_thought\|>|<\|channel\|>analysis<\|message\|>))|(?P<close>(?i:{_CLOSE.pattern})|\#\#\#\ Response:)"
    rf"|(?P<fence>{FENCE.pattern})",
    re.MULTILINE,
)
_END = re.compile(
    r"<\|(?:endoftext|im_end|im_start|eot_id|end_of_text|EOT|file_sep|fim_\w+|end|return|eom_id)\|>|<\uff5cend\u2581of\u2581sentence\uff5c>"
    r"|<(?:fim_\w+|file_sep|filename|end_of_turn|eos)>|</s>\s*\Z|\n### Instruction:"
)
_LITERAL = re.compile(  # or where a comment begins
    r"#|(?:(?<![\w\\])|(?<=\b[rbfuRBFU])|(?<=\b[rbfRBF]{2}))"  # no apostrophe: a letter in front is a prefix
    r"(?:(\'{3}|\"{3})(?:\\.|.)*?(?:\1|\Z)|'(?:\\.|[^'\\\n])*+'|\"(?:\\.|[^\"\\\n])*+\")",
    re.DOTALL,
)
_QUOTED = re.compile(r"^[ \t]*>[ \t]?(```|~~~)", re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """A fenced block: where it begins and ends in the text, and what stands in it."""

    start: int
    stop: int
    language: str
    code: str
    closed: bool


def normalised(text: str) -> str:
    """One kind of line break, no byte order mark; a quoted block without its marks."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
    if _QUOTED.search(text) and not re.search(r"^[ \t]*(```|~~~)", text, re.MULTILINE):
        text = re.sub(r"^[ \t]*>[ \t]?", "", text, flags=re.MULTILINE)
    return text


def final(text: str, before: str = "") -> str:
    """The answer of a normalised text: behind its own turn's marks and its last thought, in front of the first end mark.

    Args:
      before: code that the text goes on with, which may have begun a string.
    """
    while begin := _BEGIN.match(text):
        text = text[begin.end() :]
    return _without_end(_without_thoughts(text, before), before)


def _without_thoughts(text: str, before: str) -> str:
    """Without `<think>` and its kin, closed or not; what stands in front of a closing tag that nobody has opened is a thought as well."""
    kept: list[str] = []
    at, strings = 0, Strings(text, before)
    while event := _EVENT.search(text, at):
        if opening := FENCE.match(text, event.start()):
            stop, _ = _fence_ends(text, opening)
            kept.append(text[at:stop])
        elif event.start() in strings:
            kept.append(text[at : event.end()])
            at = event.end()
            continue
        elif event["open"]:
            end = _CLOSE.search(text, event.end())
            kept.append(text[at : event.start()])
            stop = end.end() if end else len(text)
        else:
            kept.clear()
            stop = event.end()
        at = stop
        strings.begin(at)
    return "".join([*kept, text[at:]])


def _without_end(text: str, before: str) -> str:
    """Up to the first end mark that no string of the code spells."""
    edges = [(at, block) for block in fences(text) for at in (block.start, block.stop)]
    passed, strings = 0, Strings(text, before)
    for found in _END.finditer(text):
        reached = passed
        while reached < len(edges) and edges[reached][0] <= found.start():
            reached += 1
        if reached > passed:
            begin, block = edges[reached - 1]
            if begin == block.start:
                begin = min(begin + len(text[begin : block.stop].partition("\n")[0]), found.start())  # behind the fence's own line
            passed = reached
            strings.begin(begin)
        if found.start() not in strings:
            return text[: found.start()]
    return text


def fences(text: str) -> list[Fence]:
    """The fenced blocks of a text. A fence may stand in the code itself (a docstring's example): a block ends at the first where it is Python."""
    found, at = [], 0
    while opening := FENCE.search(text, at):
        stop, closing = _fence_ends(text, opening)
        code = text[opening.end() + 1 : closing]
        if opening[0][:1].isspace():  # in a list
            code = textwrap.dedent(code)
        found.append(Fence(opening.start(), stop, opening[2].lower(), code, closing < stop))
        at = stop
    return found


class Strings:
    """The string literals of a program, or of prose with some, as far as quotes tell. Places are asked for in their order: the text is read once.

    Args:
      before: code in front of the text.
    """

    def __init__(self, text: str, before: str = ""):
        self._text, self._shift = before + text, len(before)
        self._seek(0)

    def begin(self, start: int) -> None:
        """A program, or prose, begins there: no literal reaches into it."""
        if self._start < start + self._shift:
            self._seek(start + self._shift)

    def __contains__(self, at: int) -> bool:
        at += self._shift
        while self._end <= at and self._literal:
            self._seek(self._end)
        return self._start < at < self._end and self._literal != "#"

    def _seek(self, at: int) -> None:
        found = _LITERAL.search(self._text, at)
        self._literal = found[0] if found else ""
        self._start, self._end = found.span() if found else (len(self._text), len(self._text))
        if self._literal == "#":
            line_end = self._text.find("\n", self._end)
            self._end = line_end if line_end >= 0 else len(self._text)


def _fence_ends(text: str, opening: re.Match[str]) -> tuple[int, int]:
    """Where a block ends with its closing fence, and where that fence begins; both the text's end if nothing closes it."""
    body, mark = min(opening.end() + 1, len(text)), opening[1]
    pattern = re.compile(rf"^[ \t]*{re.escape(mark)}{mark[0]}*[ \t]*$", re.MULTILINE)
    ends = list(islice(pattern.finditer(text, body), _ENDS))
    python = opening[2].lower() in PYTHON
    closing = next((end for end in ends if python and parse(textwrap.dedent(text[body : end.start()])) is not None), next(iter(ends), None))
    return (closing.end(), closing.start()) if closing else (len(text), len(text))
