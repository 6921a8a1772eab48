"""From a writer's answer to its parts, and which of them are kept: tolerant in reading, strict in keeping."""

import ast
import difflib
import io
import json
import re
import tokenize
from collections.abc import Sequence

from data_pipeline import answers
from data_pipeline.distill.prompts import label
from foundation.files import Json
from judges.prepare import parse

MIN_LINES, MAX_LINES = 3, 120
MAX_CHARS = 8000
MIN_WORDS, MAX_WORDS = 4, 120
MIN_SIMILARITY = 0.5
_GIVEAWAY = re.compile(r"\b(in)?secur|vulnerab|\bexploit|\bmalicious|\battack|\bCWE\b", re.IGNORECASE)


class RejectedError(Exception):
    """An answer that isn't kept; the message is the reason, one of few, so that it can be counted."""


def read_answer(answer: Json, parts: Sequence[str]) -> dict[str, str]:
    """The parts of a journalled answer (`text`, `refusal`, `finish_reason`), code without fences.

    Raises:
      RejectedError: the writer refused or was cut off, or a part is missing, empty or no text.
    """
    if answer.get("refusal") or answer.get("finish_reason") == "content_filter":
        raise RejectedError("refused")
    if answer.get("finish_reason") == "length":
        raise RejectedError("cut off at the token limit")
    text = answers.normalised(answer.get("text") or "")
    final = answers.final(text)
    found = _from_json(text, parts) or _from_json(final, parts) or _from_sections(final, parts)
    for part in parts:
        if part not in found:
            raise RejectedError(f"no {label(part)[:-1].lower()} part")
        found[part] = unfenced(found[part]) if part in ("secure", "vulnerable") else " ".join(found[part].split())
        if not found[part].strip():
            raise RejectedError(f"empty {label(part)[:-1].lower()} part")
        if any("\ud800" <= c <= "\udfff" for c in found[part]):  # JSON can escape one alone; no file can hold it
            raise RejectedError("half a character")
    return found


def check(found: dict[str, str]) -> dict[str, str]:
    """The parts of a pair with comments removed from the code, if it is to be kept.

    Raises:
      RejectedError: with the reason.
    """
    words = len(found["instruction"].split())
    if not MIN_WORDS <= words <= MAX_WORDS:
        raise RejectedError("instruction too short" if words < MIN_WORDS else "instruction too long")
    if _GIVEAWAY.search(found["instruction"]):
        raise RejectedError("instruction speaks of security")
    if any(len(found[part].split()) > MAX_WORDS for part in ("why_vulnerable", "why_secure")):
        raise RejectedError("reasoning too long")
    sides = {part: clean_code(found[part], part) for part in ("vulnerable", "secure")}
    if dump(sides["vulnerable"]) == dump(sides["secure"]):
        raise RejectedError("both sides are the same program")
    before, after = sides["vulnerable"].splitlines(), sides["secure"].splitlines()
    if difflib.SequenceMatcher(None, before, after, autojunk=False).ratio() < MIN_SIMILARITY:
        raise RejectedError("rewritten, not fixed")
    return found | sides


def clean_code(code: str, side: str) -> str:
    """Code of bounded length without comments and trailing white space.

    Raises:
      RejectedError: it is no Python, or too short or too long; the reason names the `side`.
    """
    if len(code) > MAX_CHARS:
        raise RejectedError(f"{side} code too long")
    if dump(code) is None:
        raise RejectedError(f"{side} code doesn't parse")
    bare = without_comments(code)
    if dump(bare) != dump(code):
        raise RejectedError(f"{side} code's comments can't be removed")
    lines = len(bare.splitlines())
    if not MIN_LINES <= lines <= MAX_LINES:
        raise RejectedError(f"{side} code too {'short' if lines < MIN_LINES else 'long'}")
    return bare


def dump(code: str) -> str | None:
    """The program without its layout: equal for programs that differ in spaces and comments only. None if it doesn't parse."""
    tree = parse(code)
    try:
        return None if tree is None else ast.dump(tree)
    except RecursionError:  # nested too deeply
        return None


def without_comments(code: str) -> str:
    """Python code without its comments, found by its tokenizer; lines that held nothing else go. What can't be tokenised stays as it is."""
    lines = io.StringIO(code).readlines()
    try:
        comments = [t for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type == tokenize.COMMENT]
    except (tokenize.TokenError, SyntaxError):
        return code
    for row, column in (comment.start for comment in comments):
        before = lines[row - 1][:column].rstrip()
        lines[row - 1] = before + "\n" if before else ""
    return "".join(lines).strip("\n")


def unfenced(text: str) -> str:
    """The inside of the first fence, or all of a text without one around it; an unclosed fence ends with the text."""
    found = [] if parse(text) is not None else answers.fences(text)  # a program may hold a fence in a string
    return found[0].code.removesuffix("\n") if found else text.strip("\n")


def _from_json(text: str, parts: Sequence[str]) -> dict[str, str]:
    for candidate in (text, unfenced(text)):
        try:
            value = json.loads(candidate, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return {part: value[part] for part in parts if isinstance(value.get(part), str)}
    return {}


def _from_sections(text: str, parts: Sequence[str]) -> dict[str, str]:
    """Labelled sections. A label may wear Markdown (`## SECURE:`, `**Secure:**`) and have text behind it; inside of a fence it is code."""
    labels = {label(part)[:-1]: part for part in parts}
    sections: dict[str, list[str]] = {}
    fences, part, at = answers.fences(text), "", 0
    for line in text.split("\n"):
        head, colon, rest = line.partition(":")
        if colon and not any(fence.start <= at < fence.stop for fence in fences):
            name = labels.get(" ".join(re.sub(r"[#*_]|^\s*\d+\.", " ", head).split()).upper())
            if name and name not in sections:
                part, line = name, rest.lstrip("*_ ")
        if part:
            sections.setdefault(part, []).append(line)
        at += len(head) + len(colon) + len(rest) + 1
    return {name: "\n".join(lines) for name, lines in sections.items()}
