"""The complete statements of a program whose text was cut off, as EvalPlus keeps them: such an answer is tested by what it got to say."""

import io
import tokenize

from judges.prepare import stumbles_at

_TRIES = 8  # a tail that doesn't parse without its last line either


def whole(code: str) -> str:
    """A text without what is torn at its end: its longest start that parses and ends where a statement does; "" if no statement is whole.

    A fault further in front is no tear: such a text is returned as it is. The text is read a fixed number of times, however long it is.
    """
    lines, start, fault = code.split("\n"), code, stumbles_at(code)
    ends = _ends(code) if fault else []
    for _ in range(_TRIES):
        if fault is None:
            return start
        if fault == 0 or (len(ends) > 1 and fault <= ends[-2]):
            return code
        if ends and ends[-1] >= fault:
            ends.pop()
        if not ends:
            return ""
        start = "\n".join(lines[: ends[-1]]) + "\n"
        fault = stumbles_at(start)
        if fault is not None:
            fault = min(fault, ends[-1])  # the end itself
    return code


def _ends(code: str) -> list[int]:
    """Lines with which a statement ends and no other waits for its end: a head has its body, a `try` its `except`, a decorator its function."""
    ends: list[int] = []
    blocks: list[str] = []  # what opened the blocks that are open
    head, first, last = "", "", ""  # words: the last line's first one, and this line's
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            match token.type:
                case tokenize.INDENT:
                    blocks.append(head)
                case tokenize.DEDENT:
                    blocks.pop()
                case tokenize.NEWLINE:
                    head = first
                    if last != ":" and first != "@" and "try" not in blocks:
                        ends.append(token.start[0])
                    first = ""
                case tokenize.NL | tokenize.COMMENT:
                    pass
                case _:
                    first, last = first or token.string, token.string
    except (
        tokenize.TokenError,
        SyntaxError,
    ):  # a bracket or a text that nothing closes, an indentation that fits nothing: no end behind it
        pass
    return ends
