"""Whether a program does anything of what was asked for, as far as a parser can see: code that is gone has no findings either.

Nothing here runs a program. A fault is something that a reader would see at once: a body of `pass`, a text that repeats itself without end.
"""

import ast
import builtins
import copy
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
    "hollow": "the function is there, and nothing in it works: `pass`, texts, comments, a `raise`, code behind a `return`, inner functions that nobody calls, a constant whatever it is given (of a function without arguments a text is none)",
}
"""What can be wrong with a sample by itself, and what each means."""

_DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
_IDLE = ast.Pass | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal | ast.Raise | ast.Break | ast.Continue
_DOES = ast.Call | ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr  # what else an expression says is forgotten
_END = ast.Return | ast.Raise | ast.Break | ast.Continue
_PLAIN = frozenset(dir(builtins)) - {
    "open",
    "input",
    "super",
    "eval",
    "exec",
    "__import__",
    "globals",
    "locals",
    "vars",
}  # of constants, they give a constant
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
    own, given = _parts(sample)
    added = own - given
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
        "copied": not added
        and (
            (tree is not None and bool(code) and (code in said or given.total() > 0 == (given - own).total()))
            or (said in prompt and len(said) * 2 >= len(prompt))
        ),
        "missing": tree is not None and any(_definition(tree, name) is None for name in names),
        "hollow": tree is not None and any(_is_hollow(_definition(tree, name)) for name in names),
    }
    if faults := [name for name in FAULTS if found[name]]:
        sample["faults"] = faults


def statements(sample: Json) -> Counter[str]:
    """The text of every statement of a sample that can be reached and does something, of one with a body its head; without those of its task's text."""
    own, given = _parts(sample)
    return own - given


def _parts(sample: Json) -> tuple[Counter[str], Counter[str]]:
    """The statements of a sample's program, and those of its task's code."""
    code, task = sample["code"], _code(sample["prompt"])
    own, given = (_statements(text, tree) if tree else Counter[str]() for text, tree in ((code, parse(code)), (task, _parsed(task))))
    return own, given


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
        head = copy.copy(statement)
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            if hasattr(head, name):
                setattr(head, name, [])
        try:
            text = ast.unparse(head)  # whatever its quotes, blanks and brackets
        except RecursionError:  # a sum of a thousand parts
            text = lines[statement.lineno - 1]
        found[text] += 1
    return found


def _working(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a body, at any depth, that can be reached and do something; one with blocks does what stands in them."""
    reached: list[tuple[ast.stmt, int]] = []  # each with its place of the one around it
    waiting, ends, unused = [(body, -1)], _ending(body), _unused(body)
    while waiting:  # no recursion: a model may write a thousand `elif`
        block, around = waiting.pop()
        for statement in block:
            if id(statement) in unused:
                continue
            waiting += [(inner, len(reached)) for inner in _blocks(statement)]
            reached.append((statement, around))
            if id(statement) in ends:
                break
    does = [not _blocks(statement) and not _is_filler(statement) for statement, _ in reached]
    for at, (_, around) in reversed(list(enumerate(reached))):
        if around >= 0 and does[at]:
            does[around] = True
    return [
        each for (each, _), done in zip(reached, does, strict=True) if done and not isinstance(each, _DEFINITION) and not _is_idle(each)
    ]


def _ending(body: list[ast.stmt]) -> set[int]:
    """The ids of statements behind which nothing of their block is reached."""
    found: set[int] = set()
    order, waiting = list[ast.stmt](), [body]
    while waiting:
        for statement in waiting.pop():
            order.append(statement)
            waiting += _blocks(statement)

    def ends(block: list[ast.stmt]) -> bool:
        return any(id(statement) in found for statement in block)

    for statement in reversed(order):  # what stands within first
        match statement:
            case ast.If(test=test, body=then, orelse=other):
                over = any(map(ends, _blocks(statement))) if _truth(test) is not None else ends(then) and ends(other)
            case ast.While(test=test) if _truth(test):
                over = not any(isinstance(node, ast.Break) for node in ast.walk(statement))
            case ast.Try(body=tried, handlers=handlers, orelse=other, finalbody=last):
                over = ends(last) or ((ends(tried) or ends(other)) and all(ends(handler.body) for handler in handlers))
            case _:
                over = isinstance(statement, _END)
        if over:
            found.add(id(statement))
    return found


def _unused(body: list[ast.stmt]) -> set[int]:
    """The ids of functions and classes within functions that nothing there names, and no decorator takes."""
    found: set[int] = set()
    for function in (node for top in body for node in ast.walk(top) if isinstance(node, _FUNCTION)):
        inner, waiting = list[ast.stmt](), [function.body]
        while waiting:
            for statement in waiting.pop():
                if isinstance(statement, _DEFINITION):
                    inner.append(statement)
                else:
                    waiting += _blocks(statement)
        read = Counter(_reads(function)) if inner else Counter[str]()
        for each in inner:
            assert isinstance(each, _DEFINITION)
            if not each.decorator_list and read[each.name] <= Counter(_reads(each))[each.name]:
                found.add(id(each))
    return found


def _reads(tree: ast.AST) -> Iterator[str]:
    return (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))


def _blocks(statement: ast.stmt) -> list[list[ast.stmt]]:
    """The blocks of a statement that can be reached."""
    parts = [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")] + [part.body for part in parts]
    if isinstance(statement, ast.If | ast.While) and (truth := _truth(statement.test)) is not None:
        blocks = [statement.body] if truth else [statement.orelse]
    return [block for block in blocks if block]


def _truth(test: ast.expr) -> bool | None:
    """What a condition always is; None where a parser doesn't see it."""
    match test:
        case ast.Constant(value=value):
            return bool(value)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            truth = _truth(operand)
            return None if truth is None else not truth
        case ast.BoolOp(op=op, values=values):
            truths, decides = [_truth(value) for value in values], isinstance(op, ast.Or)
            return decides if decides in truths else None if None in truths else not decides
        case ast.Compare(left=ast.Constant(value=a), ops=[ast.Eq() | ast.NotEq() as op], comparators=[ast.Constant(value=b)]):
            return (a == b) == isinstance(op, ast.Eq)
    return None


def _is_filler(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return not any(isinstance(node, _DOES) for node in _walk(statement.value))
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Delete) and all(isinstance(each, ast.Name) for each in statement.targets)
    )


def _walk(value: ast.AST) -> Iterator[ast.AST]:
    """The nodes of an expression that are computed with it: not what a lambda will do."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [] if isinstance(node, ast.Lambda) else ast.iter_child_nodes(node)


def _is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Return):
        return statement.value is None or _is_bare(statement.value)
    if isinstance(statement, ast.Assert):
        return _truth(statement.test) is not None
    switch = isinstance(statement, ast.If | ast.While) and _truth(statement.test) is not None  # if 0: ...
    return switch or isinstance(statement, _IDLE) or _is_filler(statement)


def _is_bare(value: ast.expr) -> bool:
    """None, a truth value, a number, or what is empty: a text may be the page that was asked for."""
    match value:
        case ast.UnaryOp(operand=ast.Constant()) | ast.Name(id="NotImplemented"):
            return True
        case ast.Constant(value=constant):
            return not isinstance(constant, str | bytes) or not constant
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Dict(keys=parts):
            return not parts
    return False


def _definition(tree: ast.Module, name: str) -> ast.stmt | None:
    """The last statement of the module's own scope that gives it the name, else the first method, or inner function, of that name; of those that are
    reached."""
    found: ast.stmt | None = None
    inner: ast.stmt | None = None
    waiting, ends, unused = [(tree.body, False)], _ending(tree.body), _unused(tree.body)
    while waiting:
        block, within = waiting.pop()
        for statement in block:
            if id(statement) in unused:
                continue
            waiting += [(each, within or isinstance(statement, _DEFINITION)) for each in _blocks(statement)]
            if isinstance(statement, _DEFINITION) and statement.name == name and within:
                inner = inner or statement
            elif not within and _gives(statement, name):
                found = statement
            if id(statement) in ends:
                break
    return found or inner


def _gives(statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, _DEFINITION):
        return statement.name == name
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return any((alias.asname or alias.name) == name for alias in statement.names)
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign) and statement.value:
        targets = [statement.target]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _is_hollow(definition: ast.stmt | None) -> bool:
    match definition:
        case ast.ClassDef():
            return not _working([definition])
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            working = _working([definition])
            return not working or (_takes(definition.args) and _is_constant(definition, working))
        case ast.Assign(value=ast.Lambda(args=args, body=value)) | ast.AnnAssign(value=ast.Lambda(args=args, body=value)):
            return _is_bare(value) or (_takes(args) and not set(_reads(value)) - _PLAIN)
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            return _is_bare(value) or isinstance(value, ast.Constant)
    return False


def _is_constant(function: ast.FunctionDef | ast.AsyncFunctionDef, working: list[ast.stmt]) -> bool:
    """It does the same whatever it is given, and all of it within itself: its statements read no name but those that it sets, and plain ones of Python's."""
    nodes = [node for part in function.body for node in ast.walk(part)]
    if any(isinstance(node, ast.Global | ast.Nonlocal | ast.Import | ast.ImportFrom) for node in nodes):
        return False
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)} | {node.name for node in nodes if isinstance(node, _DEFINITION)}
    given = {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)}
    heads = (part for statement in working for part in ast.iter_child_nodes(statement) if not isinstance(part, ast.stmt))
    return not {name for head in heads for name in _reads(head)} - ((own | _PLAIN) - given)


def _takes(args: ast.arguments) -> bool:
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return bool(args.vararg or args.kwarg or [name for name in names if name not in ("self", "cls")])
