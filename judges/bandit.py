"""Bandit: run as a program on a directory, its CWEs corrected."""

import ast
import hashlib
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from foundation.files import Json
from judges.findings import Finding, JudgeError
from judges.prepare import parse

XML_PARSERS = ("B313", "B314", "B315", "B316", "B317", "B318", "B319", "B320")
CORRECTED_CWE = {
    "B102": 95,  # exec; Bandit says 78 (commands)
    "B105": 798,  # hard-coded passwords; Bandit says 259, a variant of it
    "B106": 798,
    "B107": 798,
    "B201": 489,  # Flask's debug mode; Bandit says 94
    "B307": 95,  # eval; Bandit says 78
    "B310": 918,  # urlopen with any scheme; Bandit says 22
    **dict.fromkeys(XML_PARSERS, 611),  # XML parsers; Bandit says 20
    "B506": 502,  # yaml.load; Bandit says 20
    "B701": 79,  # Jinja2 without autoescape; Bandit says 94
    "B702": 79,  # Mako; Bandit says 80, a variant of it
    "B609": 78,  # wildcards in a shell; Bandit says 155
    "B612": 502,  # logging.config.listen evaluates what it is sent; Bandit says 94
    "B703": 79,  # Django's mark_safe; Bandit says 80
}
"""Rule -> CWE, where Bandit's own is missing, general or of another kind of weakness."""

ONE_CORE = True  # run several side by side
ANY_TEXT = False
TIMEOUT_S = 600


def missing() -> str | None:
    """None: it is a dependency."""
    return None


def version() -> str:
    """Names everything that a verdict depends on besides the source."""
    return f"bandit {metadata.version('bandit')} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"


def run(directory: Path, workers: int) -> tuple[list[tuple[str, Finding]], set[str]]:
    """(file name, finding) of every Python file in `directory`, and the names of the files that Bandit could not read.

    Raises:
      JudgeError: Bandit itself failed.
    """
    command = [sys.executable, "-m", "bandit", "--quiet", "--ignore-nosec", "--exit-zero", "--format", "json", "--recursive", "."]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise JudgeError(f"bandit failed ({done.returncode}): {done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    texts = {r["filename"]: (directory / r["filename"]).read_text(encoding="utf-8") for r in report["results"]}
    trees = {name: tree for name, text in texts.items() if (tree := parse(text))}
    real = [r for r in report["results"] if not (r["filename"] in trees and _harmless(r, trees[r["filename"]]))]
    return [(Path(r["filename"]).name, _finding(r)) for r in real], {Path(e["filename"]).name for e in report["errors"]}


def _harmless(result: Json, tree: ast.Module) -> bool:
    """Whether the code at a finding is of a kind that Bandit doesn't tell from the one it means."""
    line, column = result["line_number"], result["col_offset"]  # the line may be that of an argument
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.lineno <= line <= (n.end_lineno or 0) and n.col_offset == column)
    *_, call = [None, *calls]  # of `popen(c).read()` the inner one
    match result["test_id"], call:
        case (("B105" | "B106" | "B107"), _):  # an empty text is no password
            return result["issue_text"].endswith("''")
        case "B506", ast.Call():  # builds nothing but texts, lists and dicts
            return any(isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).endswith("BaseLoader") for node in ast.walk(call))
        case "B605", ast.Call(args=[ast.Constant(), *_]):  # a command that stands in the program
            return True
        case rule, ast.Call(args=[ast.Constant(), *_]) if rule in XML_PARSERS:  # a document of the program's own
            return True
        case (("B602" | "B604"), ast.Call()):  # `shell=shell` hands on what the caller wants
            return any(k.arg == "shell" and not isinstance(k.value, ast.Constant) for k in call.keywords)
        case "B608", _:
            first, last = result["line_range"][0], result["line_range"][-1]
            texts = [n for n in ast.walk(tree) if isinstance(n, ast.expr) and n.lineno <= last and (n.end_lineno or 0) >= first]
            arguments = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
            return not any(_outside(text, arguments) for text in texts)
    return False


_QUERY = re.compile(r"(?i)\b(select|insert|update|delete)\s")
_TABLE = re.compile(r"""(?i)\b(from|into|join|update|table)\s+[`"\[]?$""")


def _outside(node: ast.expr, arguments: set[str]) -> bool:
    """Whether an expression puts values into an SQL text that could be someone else's.

    Constants (names in capitals that aren't `arguments`) are the program's own. So is the name of a table that comes from the object itself or from
    a setting: no statement takes it as a parameter.
    """
    pieces = _pieces(node)
    if not _QUERY.search("".join(piece for piece in pieces if isinstance(piece, str))):
        return False
    before = ""
    for piece in pieces:
        match piece:
            case str():
                before += piece
                continue
            case ast.Constant():
                own = True
            case ast.Name(id=name) | ast.Attribute(attr=name) if name.isupper():
                own = name not in arguments
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                own = bool(_TABLE.search(before))
            case ast.Call(func=ast.Name(id=name), args=[ast.Constant()], keywords=[]):
                own = name not in ("input", "raw_input") and bool(_TABLE.search(before))
            case _:
                own = False
        if not own:
            return True
        before += "x"
    return False


def _pieces(node: ast.expr) -> list[str | ast.expr]:
    """The texts and values that an expression puts together, in order."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return [p for value in values for p in _pieces(value)]
        case ast.FormattedValue(value=value):
            return _pieces(value)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _pieces(left) + _pieces(right)
        case ast.BinOp(op=ast.Mod(), left=left, right=right):
            return _filled(_pieces(left), r"%(?:\(\w+\))?[-#0 +\d.]*[a-zA-Z]", right.elts if isinstance(right, ast.Tuple) else [right])
        case ast.Call(func=ast.Attribute(value=left, attr="format"), args=args, keywords=keywords):
            return _filled(_pieces(left), r"\{[^{}]*\}", [*args, *(keyword.value for keyword in keywords)])
        case ast.Call(func=ast.Attribute(value=left, attr="replace"), args=[_, right, *_]):
            return _pieces(left) + _pieces(right)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="join"), args=[parts]) if _constant(parts):
            return [text]
    return [node]


def _filled(template: list[str | ast.expr], place: str, values: list[ast.expr]) -> list[str | ast.expr]:
    """A template's pieces with the values where they go, or behind everything where that can't be told."""
    texts = re.split(place, "".join(piece for piece in template if isinstance(piece, str)))
    if len(texts) != len(values) + 1 or not all(isinstance(piece, str) for piece in template):
        return [*template, *values]
    return [piece for text, value in zip(texts, values, strict=False) for piece in (text, *_pieces(value))] + texts[-1:]


def _constant(node: ast.expr) -> bool:
    """Whether it is a text or a list of texts that stand in the program, however often: `["?"] * len(ids)`."""
    match node:
        case ast.Constant(value=str()):
            return True
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return all(map(_constant, parts))
        case ast.BinOp(op=ast.Mult(), left=left, right=right):
            return _constant(left) or _constant(right)
        case ast.ListComp(elt=part) | ast.GeneratorExp(elt=part):
            return _constant(part)
    return False


def _finding(result: Json) -> Finding:
    rule = result["test_id"]
    number = CORRECTED_CWE.get(rule) or result.get("issue_cwe", {}).get("id")
    lines = result["line_range"]
    return Finding(
        judge="bandit",
        rule=rule,
        cwe=f"CWE-{number}" if number else "",
        line=lines[0],
        end_line=lines[-1],
        severity=result["issue_severity"].lower(),
        message=result["issue_text"],
    )
