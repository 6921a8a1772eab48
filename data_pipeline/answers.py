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

FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*\{?\.?([\w+#-]*)[^\n`]*$", re.MULTILINE)
_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis"
_OPEN = re.compile(rf"<({_NAMES})>|\[(THINK)\]|<\|begin_of_thought\|>", re.IGNORECASE)
_CLOSE = re.compile(rf"</({_NAMES})>|\[/(THINK)\]|<\|end_of_thought\|>", re.IGNORECASE)
_OURS = re.compile(re.escape("### Response:"))  # ends the thought of our own template
_END = re.compile(
    r"<\|(?:endoftext|im_end|im_start|eot_id|end_of_text|EOT|file_sep|fim_\w+|end|eom_id)\|>|<\uff5cend\u2581of\u2581sentence\uff5c>"
    r"|<(?:fim_\w+|file_sep|filename|end_of_turn|eos)>|</s>\s*\Z|\n### Instruction:"
)
_LITERAL = re.compile(
    r"#[^\n]*|(?:(?<!\w)|(?<=\b[rbfuRBFU])|(?<=\b[rbfRBF]{2}))"  # no apostrophe: a letter in front is a prefix
    r"(?:(\'{3}|\"{3})(?:\\.|.)*?(?:\1|\Z)|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\")",
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
    """The answer of a normalised text: behind its last thought, in front of the first end mark.

    Args:
      before: code that the text goes on with, which may have begun a string.
    """
    return _without_end(_without_thoughts(text, before), before)


def _without_thoughts(text: str, before: str) -> str:
    """Without `<think>` and its kin, closed or not; what stands in front of a closing tag that nobody has opened is a thought as well."""
    kept, at, start = "", 0, 0  # `start`: what stands there begins a program, or prose
    while at < len(text):
        found = (_OPEN.search(text, at), _CLOSE.search(text, at), _OURS.search(text, at), FENCE.search(text, at))
        event = min((match for match in found if match), key=lambda match: match.start(), default=None)
        if event is None:
            return kept + text[at:]
        opening, closing, ours, fence = (event is match for match in found)
        if fence:
            stop, _ = _fence_ends(text, event)
            kept, at, start = kept + text[at:stop], stop, stop
        elif in_string(text, event.start(), start, before):
            kept, at = kept + text[at : event.end()], event.end()
        elif opening:
            end = _CLOSE.search(text, event.end())
            kept += text[at : event.start()]
            at = start = end.end() if end else len(text)
        else:
            assert closing or ours
            kept, at, start = "", event.end(), event.end()
    return kept


def _without_end(text: str, before: str) -> str:
    """Up to the first end mark that no string of the code spells."""
    blocks = fences(text)
    for found in _END.finditer(text):
        begin = max((at for block in blocks for at in (block.start, block.stop) if at <= found.start()), default=0)
        if any(block.start == begin for block in blocks):
            begin = min(begin + len(text[begin:].partition("\n")[0]), found.start())  # behind the fence's own line
        if not in_string(text, found.start(), begin, before):
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


def in_string(text: str, at: int, start: int = 0, before: str = "") -> bool:
    """Whether a place of a program, or of prose with some, lies within a string literal, as far as quotes tell.

    Args:
      start: where the program begins.
      before: code in front of it, if it begins with the text.
    """
    if start == 0 and before:
        text, at = before + text, len(before) + at
    for literal in _LITERAL.finditer(text, start):
        if literal.start() >= at:
            break
        if at < literal.end():
            return not literal[0].startswith("#")
    return False


def _fence_ends(text: str, opening: re.Match[str]) -> tuple[int, int]:
    """Where a block ends with its closing fence, and where that fence begins; both the text's end if nothing closes it."""
    body, mark = min(opening.end() + 1, len(text)), opening[1]
    pattern = re.compile(rf"^[ \t]*{re.escape(mark)}{mark[0]}*[ \t]*$", re.MULTILINE)
    ends = list(islice(pattern.finditer(text, body), _ENDS))
    python = opening[2].lower() in PYTHON
    closing = next((end for end in ends if python and parse(textwrap.dedent(text[body : end.start()])) is not None), next(iter(ends), None))
    return (closing.end(), closing.start()) if closing else (len(text), len(text))
