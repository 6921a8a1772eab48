"""From what a model wrote to the whole program that is judged. The same text always gives the same program; nothing is repaired but indentation.

A completion goes on with the task's prompt, or it is an answer with a program in it. Which of the two is read off the text, so that a chat model may
answer a completion task and a base model an instruction. What doesn't parse stays so: it is counted, never mended into code that would. Only an
answer that the length limit cut off ends with its last whole statement.
"""

import ast
import itertools
import re
import textwrap
from dataclasses import dataclass, replace

from data_pipeline import answers
from evaluation.torn import whole
from judges.prepare import parse

_TOP = re.compile(r"(?:def|class|async def|import|from)\s|@|#|if __name__")
_CODE = re.compile(r"^(?:(?:def|class|async def|import|from)\s+\w|@\w|#!|\w+\s*=\s*\S)", re.MULTILINE)
_NAMED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_TOP_LEVEL = _NAMED | ast.Import | ast.ImportFrom
_MARGIN_LINES = 200  # places where a function may end that are tried


@dataclass(frozen=True)
class Program:
    """`empty`: the model added no code: nothing, or only comments, texts, imports and `pass`."""

    code: str
    parses: bool
    empty: bool


def extract(prompt: str, completion: str, form: str, suffix: str = "", cut: bool = False) -> Program:
    """The program of a completion.

    Args:
      prompt: the code that the task gives.
      form: "completion" (the model saw `prompt`) or "instruction" (it was asked for a program); decides what text without a fence is.
      suffix: code of the task that follows a continuation.
      cut: the completion was longer than it might be.
    """
    text = answers.normalised(completion)
    text = answers.final(text, prompt if form == "completion" and not answers.fences(text) else "")
    if prompt.strip() and text.lstrip("\n").startswith(prompt.strip("\n")):  # a whole program, or an endpoint that echoes
        text = text.lstrip("\n")
        return _program(whole(text) or text if cut else text)
    fences = _blocks(text, cut)
    if _goes_on(prompt, text[: fences[0].start] if fences else text, form, bool(fences)):
        return _continue(prompt, text, suffix, cut)
    names = open_name(prompt)
    block = _choose(fences, names) if fences else _without_prose(text, cut)
    tree = parse(block)
    indented = block.lstrip("\n")[:1].isspace()
    if _inside(prompt) and not _gives(block, names) and (indented or tree is None or not _stands_alone(tree)):
        return _continue(prompt, block, suffix, cut)
    return _program(_with_context(prompt, block, tree) if tree else block)


# --- Programs.


def _program(code: str, given: tuple[int, int] = (0, 0)) -> Program:
    """`given`: line (from 1) and column (in bytes) where the task's part ends."""
    code = code.rstrip() + "\n" if code.strip() else ""
    tree = parse(code)
    if tree is None:
        return Program(code, False, False)
    added = (n for n in ast.walk(tree) if isinstance(n, ast.stmt) and (n.end_lineno or 0, n.end_col_offset or 0) > given)
    idle = (
        isinstance(n.value, ast.Constant | ast.Name) if isinstance(n, ast.Expr) else isinstance(n, _TOP_LEVEL | ast.Pass) for n in added
    )
    return Program(code, True, all(idle))


def _with_context(prompt: str, block: str, tree: ast.Module) -> str:
    """A whole program with what it uses of the prompt's top level and doesn't bring itself: imports, helpers, constants."""
    given = parse(prompt) or parse(f"{prompt.rstrip()}\n{body_indent(prompt)}pass\n")
    own, used, lines, kept = _bound(tree), _uses(tree), prompt.split("\n"), []
    for statement in reversed(given.body[: -1 if _inside(prompt) else None] if given else []):
        if (names := _binds(statement) - own) & used:
            decorators = statement.decorator_list if isinstance(statement, ast.FunctionDef | ast.ClassDef) else []
            first = min([statement.lineno, *(node.lineno for node in decorators)])
            kept.append("\n".join(lines[first - 1 : statement.end_lineno]) + "\n")
            used, own = used | _uses(statement), own | names
    futures = [s.end_lineno or 0 for s in tree.body if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    rows = re.split("(?<=\n)", block)
    at = max(futures, default=0)
    return "".join([*rows[:at], *reversed(kept), *rows[at:]])


def _binds(statement: ast.stmt) -> set[str]:
    """Names that a statement gives to its module."""
    if isinstance(statement, _NAMED):
        return {statement.name}
    nodes = list(ast.walk(statement))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}


def _bound(tree: ast.Module) -> set[str]:
    return set(itertools.chain.from_iterable(map(_binds, tree.body)))


def _uses(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _stands_alone(tree: ast.Module) -> bool:
    """A program of its own, rather than a function's body without its indentation."""
    return not _returns(tree) and any(isinstance(s, _TOP_LEVEL) for s in tree.body)


def _returns(tree: ast.Module) -> bool:
    """A function's body whose indentation was lost."""
    return any(isinstance(node, ast.Return) for node in tree.body)


# --- Continuations.


def _inside(prompt: str) -> bool:
    """The prompt ends within a function or class, so that what follows does too."""
    return bool(body_indent(prompt))


def body_indent(prompt: str) -> str:
    last = (prompt.rstrip().rsplit("\n", 1) or [""])[-1]
    indent = last[: len(last) - len(last.lstrip())]
    return indent + "    " if last.endswith(":") and not last.lstrip().startswith("#") else indent


def open_name(prompt: str) -> str | None:
    """The function or class that the prompt leaves open."""
    found = re.findall(r"^(?:async\s+)?(?:def|class)\s+(\w+)", prompt, re.MULTILINE) if _inside(prompt) else []
    return found[-1] if found else None


def _defines(text: str, name: str | None) -> bool:
    return name is not None and re.search(rf"^(?:async\s+)?(?:def|class)\s+{name}\b", text, re.MULTILINE) is not None


def _gives(text: str, name: str | None) -> bool:
    """Defines it, or assigns it, as `name = lambda ...` does."""
    return _defines(text, name) or (name is not None and re.search(rf"^{name}[ \t]*(?::[^=\n]*)?=(?!=)", text, re.MULTILINE) is not None)


def _goes_on(prompt: str, text: str, form: str, fenced: bool) -> bool:
    """Text in front of the first fence, or all of it, goes on with the prompt."""
    plain = form == "completion" and not fenced
    if not text.strip():
        return plain
    if _inside(prompt):
        if text.lstrip("\n")[0].isspace():
            return plain or _continue(prompt, text, "").parses
        return plain and not _gives(text, open_name(prompt))
    program = _program(text)
    return plain or (form == "completion" and program.parses and not program.empty)


def _continue(prompt: str, text: str, suffix: str, cut_off: bool = False) -> Program:
    """The prompt and what belongs to it of the text: up to the end of the function that the prompt leaves open, else all."""
    inside, indent = _inside(prompt), body_indent(prompt)
    texts = [text] if prompt.endswith("\n") or not prompt else [text, "\n" + text]
    first = text.lstrip("\n")
    tree = parse(first) if _TOP.match(first) else None
    stripped = bool(first) and not first[0].isspace() and (tree is None or _returns(tree))
    if inside and stripped:  # a chat model or an endpoint has taken the indentation away
        start = "" if prompt.endswith("\n") else "\n"
        texts += [start + textwrap.indent(first, indent), start + indent + first]  # of all lines, of the first one
    if "\t" in text and "\t" not in prompt:  # Python refuses the two in one block
        texts += [re.sub(r"^\t+", lambda tabs: "    " * len(tabs[0]), each, flags=re.MULTILINE) for each in texts]
    for candidate in texts:
        own_line = prompt.endswith("\n") or candidate.startswith("\n")
        if inside and own_line and candidate.strip() and not candidate.lstrip("\n")[0].isspace():
            continue  # it would stand behind the function
        cuts = _margins(candidate)
        # A model that isn't asked for one function goes on until it is stopped: its last statement may be torn.
        for cut in [*cuts, len(candidate)] if inside else [len(candidate), *cuts[-1:]]:
            if not candidate[:cut].strip():
                continue
            program = _joined(prompt, candidate[:cut], suffix)
            if program.parses and not (program.empty and cut < len(candidate)):
                return _joined(prompt, candidate[: _with_helpers(prompt, candidate, cut)], suffix) if inside else program
            if cut_off and cut == len(candidate):
                program = _joined(prompt, whole(prompt + candidate)[len(prompt) :], suffix)
                if program.parses and not program.empty:
                    return program
    if not text.strip() or (inside and _TOP.match(first)):
        return replace(_joined(prompt, "", suffix), empty=True)
    cuts = [cut for cut in _margins(text) if text[:cut].strip()]
    return _joined(prompt, text[: cuts[0]] if inside and cuts else text, suffix)


def _with_helpers(prompt: str, text: str, cut: int) -> int:
    """A later end where the functions stand behind that are used in front: some models write helpers last."""
    while True:
        tree = parse(prompt + text[:cut])
        wanted = {name for name in _uses(tree) - _bound(tree) if _defines(text[cut:], name)} if tree else set()
        ends = (end for end in [*_margins(text), len(text)] if end > cut) if wanted else iter(())
        later = next((end for end in ends if (whole := parse(prompt + text[:end])) and wanted <= _bound(whole)), None)
        if later is None:
            return cut
        cut = later


def _joined(prompt: str, text: str, suffix: str) -> Program:
    program = _program(prompt + text, (prompt.count("\n") + 1, len(prompt.rsplit("\n", 1)[-1].encode())))
    if not suffix.strip():
        return program
    code = f"{(prompt + text).rstrip()}{'' if suffix.startswith(chr(10)) else chr(10)}{suffix}"
    return Program(code, parse(code) is not None, program.empty)


def _margins(text: str) -> list[int]:
    """Where lines begin at the margin: there a function may end. The text's first line is the prompt's own last one."""
    found = (m.start() for m in re.finditer(r"^[^\s]", text, re.MULTILINE))
    return list(itertools.islice(found, _MARGIN_LINES))


# --- Answers.


@dataclass(frozen=True)
class _Block:
    start: int
    language: str
    code: str


def _blocks(text: str, cut: bool) -> list[_Block]:
    """Fenced blocks; what nothing closes goes as far as it is code."""
    found = answers.fences(text)
    blocks = [_Block(each.start, each.language, each.code if each.closed else _without_prose(each.code, cut)) for each in found]
    before = text[: blocks[0].start] if blocks else ""
    if len(blocks) == 1 and not blocks[0].language and not blocks[0].code.strip() and before.strip():
        return [_Block(0, "python", before)]  # the opening fence was the prompt's
    return blocks


def _choose(blocks: list[_Block], name: str | None) -> str:
    """The block that defines what was asked for, else the first one of Python, else the first; with the blocks whose functions it uses."""
    python = [b for b in blocks if b.language in answers.PYTHON and b.code.strip()]
    chosen = next(iter([*(b for b in python if _gives(b.code, name)), *python, *blocks]))
    parts, tree = [chosen], parse(chosen.code)
    owners: dict[str, tuple[int, ast.Module]] = {}  # of each name the first block that brings it, and nothing but functions and the like
    for number, block in enumerate(python):
        found = None if block is chosen or _defines(block.code, name) else parse(block.code)
        if found and all(isinstance(s, _TOP_LEVEL) for s in found.body):
            for each in _bound(found):
                owners.setdefault(each, (number, found))
    own, used = (_bound(tree), _uses(tree)) if tree else (set(), set())
    while wanted := (used - own) & owners.keys():
        number, tree = min((owners[each] for each in wanted), key=lambda owner: owner[0])
        parts.append(python[number])
        own |= _bound(tree)
        used |= _uses(tree)
    parts.sort(key=lambda block: block.start)
    return "\n".join(block.code for block in parts) if len(parts) > 1 else chosen.code


def _without_prose(text: str, cut: bool) -> str:
    """An answer without fences: from the first line of code to the last one with which it parses; all of it if there is none."""
    if parse(text) is not None:
        return text
    begin = _CODE.search(text)
    if begin is None:
        return text
    code = text[begin.start() :]
    if cut and parse(kept := whole(code)) is not None and kept:
        return kept
    ends = [len(code), *reversed(_margins(code)[1:])]
    return next((code[:end] for end in ends if parse(code[:end]) is not None), code)
