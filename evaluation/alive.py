"""Whether a program does anything of what was asked for, as far as a parser can see: code that is gone has no findings either.

Nothing here runs a program. A fault is something that a reader would see at once: a body of `pass`, a text that repeats itself without end.
"""

import ast
import builtins
import functools
import re
from collections import Counter
from collections.abc import Iterator

from data_pipeline import answers
from evaluation.extract import body_indent, open_name
from foundation.files import Json
from judges.prepare import parse

FAULTS = {
    "empty": "no code: nothing, or only comments, texts, imports and `pass`",
    "unparseable": "no Python",
    "looping": "repeats itself to its end; an answer to an instruction is looked at whole, a continuation as far as the prompt's function goes",
    "copied": "gives the task's text back and adds no statement",
    "missing": "the function that the task asks for isn't there",
    "hollow": "the function is there, and nothing in it works: `pass`, texts, comments, a `raise`, code behind a `return`, a constant that is returned (of a function without arguments a text is none)",
}
"""What can be wrong with a sample by itself, and what each means."""

_DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_IDLE = ast.Pass | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal | ast.Raise | ast.Break | ast.Continue
_END = ast.Return | ast.Raise | ast.Break | ast.Continue
_TAIL = 4000  # characters of a text in which a loop is looked for
_NAME = r"([A-Za-z_]\w*)"
_NAMED = (
    re.compile(rf"\bdef\s+{_NAME}\s*\("),  # of sentences only: a definition in the task's code is there already
    re.compile(rf"\bfunction(?:'s)? name is\s+[`'\"]?{_NAME}"),
    re.compile(
        rf"\b(?:write|implement|create|define|develop|complete|add|build)\b(?:(?!\bus(?:es?|ing)\b)[^.`\n]){{0,60}}`{_NAME}\([^`\n]*\)`",
        re.IGNORECASE,
    ),
    re.compile(rf"\b(?:function|method|class)\s+(?:called|named)\s+[`'\"]?{_NAME}"),
    re.compile(rf"\b(?:function|method|class)\s+[`'\"]{_NAME}[`'\"(]"),
)


def asked(prompt: str) -> list[str]:
    """The function or class that a task's text asks for: the one that its code leaves open, else the first that its sentences name; [] if none does."""
    code = _code(prompt)
    if name := open_name(code):
        return [name]
    text = prompt if code else re.sub(r"^(```|~~~).*?^\1", "", prompt, flags=re.DOTALL | re.MULTILINE)
    found = (match for pattern in _NAMED[bool(code) :] if (match := pattern.search(text)))
    return [match[1] for match in found if not hasattr(builtins, match[1])][:1]


def audit(sample: Json) -> None:
    """Add to a sample what it is made of: `statements` (that work, and that its task's text doesn't have), and its `faults`, if there are any.

    Args:
      sample: a line of samples.jsonl; `asked` stands in it unless an earlier version wrote it.
    """
    if "asked" not in sample:
        sample["asked"] = asked(sample["prompt"])
    names = sample["asked"]
    tree = parse(sample["code"]) if sample["parses"] else None
    added = statements(sample)
    sample["statements"] = added.total()
    prompt, said = (
        " ".join(sample["prompt"].split()),
        " ".join(re.sub(r"^(```|~~~).*$", "", sample["completion"], flags=re.MULTILINE).split()),
    )
    code = " ".join(_code(sample["prompt"]).split())
    continues = bool(code) and sample["code"].startswith(sample["prompt"].rstrip())
    found = {
        "empty": sample["empty"],
        "unparseable": not sample["parses"],
        "looping": loops(sample["code"] if continues else sample["completion"]),
        "copied": not added and ((tree is not None and bool(code) and code in said) or (said in prompt and len(said) * 2 >= len(prompt))),
        "missing": tree is not None and any(_definition(tree, name) is None for name in names),
        "hollow": tree is not None and any(_is_hollow(_definition(tree, name)) for name in names),
    }
    if faults := [name for name in FAULTS if found[name]]:
        sample["faults"] = faults


def statements(sample: Json) -> Counter[str]:
    """The text of every statement of a sample that can be reached and does something, of one with a body its head; without those of its task's text."""
    tree, code = parse(sample["code"]), _code(sample["prompt"])
    given = _parsed(code)
    return (_statements(sample["code"], tree) if tree else Counter[str]()) - (_statements(code, given) if given else Counter[str]())


def gutted(left: Counter[str], base: Counter[str]) -> bool:
    """Whether an answer is another one with its work taken out: at most half of its statements are left, most of them its own, or hardly any are left.

    Two models that solve a task in different words seldom share statements. An answer of fewer than 3 has nothing to lose.
    """
    kept = (left & base).total()
    hardly = left.total() <= 1 or (left.total() == 2 and base.total() >= 12)
    return base.total() >= 3 and left.total() * 2 <= base.total() and (kept * 2 >= left.total() or hardly)


def loops(text: str) -> bool:
    """Whether a text repeats itself: its end is one piece over and over (8 times and 100 characters, or 4 times and 400), or hardly a line is new."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) >= 40 and len(set(lines)) * 5 <= len(lines):
        return True
    end = text.rstrip()[-_TAIL:][::-1]
    for period, length in enumerate(_repeats(end)):
        reach = period + length
        if reach >= 100 and period and (reach >= 8 * period or (reach >= 400 and reach >= 4 * period)) and end[:period].strip():
            return True
    return False


def _repeats(text: str) -> Iterator[int]:
    """For each place how many letters from there equal the text's first ones (the Z function), in linear time."""
    found, left, right = [0] * len(text), 0, 0
    yield from found[:1]
    for at in range(1, len(text)):
        length = min(right - at, found[at - left]) if at < right else 0
        while at + length < len(text) and text[length] == text[at + length]:
            length += 1
        if at + length > right:
            left, right = at, at + length
        found[at] = length
        yield length


@functools.lru_cache(4096)
def _code(prompt: str) -> str:
    """The code of a task's text: the text itself, or what it holds in a fence; "" if there is none."""
    if not prompt.strip():
        return ""
    for text in (prompt, *(block.code for block in answers.fences(prompt) if block.language in answers.PYTHON)):
        if _parsed(text):
            return text
    return ""


def _parsed(code: str) -> ast.Module | None:
    return parse(code) or parse(f"{code.rstrip()}\n{body_indent(code)}pass\n")


def _statements(code: str, tree: ast.Module) -> Counter[str]:
    lines = code.split("\n")
    found: Counter[str] = Counter()
    for statement in _working(tree.body):
        blocks = _blocks(statement)
        last = max(min(block[0].lineno for block in blocks) - 1, statement.lineno) if blocks else statement.end_lineno or statement.lineno
        found[" ".join(" ".join(lines[statement.lineno - 1 : last]).split())] += 1
    return found


def _working(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a body, at any depth, that can be reached and do something; one with blocks does what stands in them."""
    reached: list[tuple[ast.stmt, int]] = []  # each with its place of the one around it
    waiting = [(body, -1)]
    while waiting:  # no recursion: a model may write a thousand `elif`
        block, around = waiting.pop()
        for statement in block:
            waiting += [(inner, len(reached)) for inner in _blocks(statement)]
            reached.append((statement, around))
            if isinstance(statement, _END):
                break
    does = [not _blocks(statement) and not _is_filler(statement) for statement, _ in reached]
    for at, (_, around) in reversed(list(enumerate(reached))):
        if around >= 0 and does[at]:
            does[around] = True
    return [
        each for (each, _), done in zip(reached, does, strict=True) if done and not isinstance(each, _DEFINITION) and not _is_idle(each)
    ]


def _blocks(statement: ast.stmt) -> list[list[ast.stmt]]:
    """The blocks of a statement that can be reached."""
    parts = [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")] + [part.body for part in parts]
    if isinstance(statement, ast.If | ast.While) and isinstance(statement.test, ast.Constant):
        blocks = [statement.body] if statement.test.value else [statement.orelse]
    return [block for block in blocks if block]


def _is_filler(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant | ast.Name))


def _is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Return):
        return statement.value is None or _is_bare(statement.value)
    switch = isinstance(statement, ast.If | ast.While) and isinstance(statement.test, ast.Constant)  # if 0: ...
    return switch or isinstance(statement, _IDLE) or _is_filler(statement)


def _is_bare(value: ast.expr) -> bool:
    """None, a truth value, a number, or what is empty: a text may be the page that was asked for."""
    match value:
        case ast.UnaryOp(operand=ast.Constant()):
            return True
        case ast.Constant(value=constant):
            return not isinstance(constant, str | bytes) or not constant
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Dict(keys=parts):
            return not parts
    return False


def _definition(tree: ast.Module, name: str) -> ast.stmt | None:
    """The last statement of the module's own scope that gives it the name, else the first method, or inner function, of that name."""
    found: ast.stmt | None = None
    waiting = [tree.body]
    while waiting:
        for statement in waiting.pop():
            if isinstance(statement, _DEFINITION):
                found = statement if statement.name == name else found
                continue
            waiting += _blocks(statement)
            if _gives(statement, name):
                found = statement
    inner = (node for node in ast.walk(tree) if isinstance(node, _DEFINITION) and node.name == name)
    return found or next(inner, None)


def _gives(statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return any((alias.asname or alias.name) == name for alias in statement.names)
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target] if isinstance(statement, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _is_hollow(definition: ast.stmt | None) -> bool:
    if not isinstance(definition, _DEFINITION):
        return False
    takes = not isinstance(definition, ast.ClassDef) and _takes(definition.args)
    return all(takes and _is_constant(statement) for statement in _working(definition.body))


def _is_constant(statement: ast.stmt) -> bool:
    """It returns a text, or the like, whatever it was given."""
    return isinstance(statement, ast.Return) and not any(isinstance(node, ast.Name | ast.Call) for node in ast.walk(statement))


def _takes(args: ast.arguments) -> bool:
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return bool(args.vararg or args.kwarg or [name for name in names if name not in ("self", "cls")])
