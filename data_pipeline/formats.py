"""Rows of the formats that pairs come in, as the fields of a `Pair`.

| format | columns |
|---|---|
| our own | chosen, rejected; instruction, history, reasoning, id, cwe, language, group, code, setup, tests, |
|         | chosen_spans, rejected_spans |
| DiSCo | Instruction, Reasoning, Secure Code, Vulnerable Code |
| SVEN, SafeCoder | func_src_before, func_src_after, file_name, vul_type; description, commit_link, char_changes |
| SecCodePLT | prompt, ground_truth (code_before, patched_code, vulnerable_code, code_after); task (security_policy, function_name), setup, testcases; |
|            | or, as published, CWE_ID, task_description and unittest (setup, testcases) |
| TRL | chosen, rejected, prompt: texts or messages (role, content); or the prompt as the messages that both sides begin with |
| Orca | chosen, rejected, question; system |
| LLaMA-Factory | chosen, rejected, instruction; input, history, system |
| ShareGPT | conversations (from, value), with chosen and rejected, or with the answer as its last turn; system |
| plain | instruction, prompt or question, and output, response or completion; input, history, system; or messages (role, content) |

All but the first three may also have id, cwe, group, reasoning and language.

The sides of chats are whole answers. Where both have one fenced block of code, and nothing else differs, the code is taken out of its fence, and
what stands in front of it is the reasoning. Where both are Python as they stand, they are taken as code. Anything else stays as it is.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import seccodeplt
from foundation.files import Json
from judges.prepare import parse

NOTE = "its code is taken out of a fence"
"""A key that is no field of a pair: what was done to the row, for whoever counts it."""


class RowError(ValueError):
    """A row that can't be a pair; the message says which field, and why."""


@dataclass(frozen=True)
class Format:
    """Which columns make it, which more it reads, and how they become the fields of a pair."""

    name: str
    columns: frozenset[str]
    more: frozenset[str]
    fields: Callable[[Json], Json]

    @property
    def plain(self) -> bool:
        """Instructions with a response, and nothing to compare that with."""
        return self.name in ("plain", "messages")


# --- Values.


def text_of(value: Any, column: str) -> str:
    """A field that is text; a list of texts becomes lines, OpenAI's parts are joined, nothing is empty.

    Raises:
      RowError: it is anything else, or holds what is no character.
    """
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        value = value["text"]
    elif isinstance(value, list | tuple):
        parts = [text_of(part, column) for part in value]
        value = ("" if any(isinstance(part, Mapping) for part in value) else "\n").join(parts)
    if value is None:
        return ""
    if not isinstance(value, str):
        kinds = {bool: "a truth value", int: "a number", float: "a number", Mapping: "an object"}
        raise RowError(f"{column}: {next((kind for of, kind in kinds.items() if isinstance(value, of)), 'a value')}, not text")
    if wrong := re.search("[\ud800-\udfff\ufdd0-\ufdef]", value):
        what = "half a surrogate" if wrong[0] < "\ue000" else "a noncharacter"
        raise RowError(f"{column}: {what} (U+{ord(wrong[0]):04X}), which no text may hold")
    return value


_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def messages_of(value: Any, column: str) -> list[dict[str, str]]:
    """Messages in either spelling (role, content; from, value) as (role, content); a text is the user's.

    Raises:
      RowError: it is anything else.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": text_of(value, column)}]
    found = []
    for message in [value] if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [None]:
        role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
        if not isinstance(message, Mapping) or not isinstance(role, str):
            raise RowError(f"{column}: neither text nor a list of messages (role, content)")
        found.append({"role": _ROLES.get(role, role), "content": text_of(message.get("content", message.get("value")), column)})
    return found


# --- Parts of a row.


def _asked(messages: list[dict[str, str]], row: Json) -> Json:
    """Messages up to the answer: the last is the instruction, the others are its history; a system column goes first."""
    system = text_of(row.get("system"), "system")
    if system.strip():
        messages = [{"role": "system", "content": system}, *messages]
    if not messages or messages[-1]["role"] != "user":
        raise RowError("prompt: it doesn't end with what the user asks")
    return {"instruction": messages[-1]["content"].strip(), "history": messages[:-1]}


def _task(row: Json, column: str) -> Json:
    """An instruction with Alpaca's input, and earlier turns as LLaMA-Factory has them."""
    instruction, more = (text_of(row.get(name), name).strip() for name in (column, "input"))
    text = f"{instruction}\n\n### Input:\n{more}" if instruction and more else instruction or more
    if not text:
        raise RowError(f"{column}: empty")
    turns = row.get("history") or []
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns):
        raise RowError("history: no list of [question, answer]")
    said = [
        {"role": role, "content": text_of(part, "history")}
        for turn in turns
        for role, part in zip(("user", "assistant"), turn, strict=True)
    ]
    return _asked([*said, {"role": "user", "content": text}], row)


_FENCED = re.compile(
    r"(?P<before>.*?)^(?P<fence>```+|~~~+)(?P<language>[\w+#-]*)[^\n`]*\n(?P<code>.*?)\n?^(?P=fence)[ \t]*$(?P<after>.*)",
    re.DOTALL | re.MULTILINE,
)


def _sides(chosen: str, rejected: str) -> Json:
    """Two answers as the sides of a pair: their code, where that is all that differs."""
    a, b = (None if answer.count("```") + answer.count("~~~") != 2 else _FENCED.fullmatch(answer) for answer in (chosen, rejected))
    if a and b and a["before"] == b["before"] and a["language"] == b["language"] and not (a["after"] + b["after"]).strip():
        code = {"chosen": a["code"], "rejected": b["code"], "reasoning": a["before"].strip(), NOTE: True}
        return code | ({"language": a["language"]} if a["language"] else {})
    return {"chosen": chosen, "rejected": rejected, "code": _is_python(chosen) and _is_python(rejected)}


def _is_python(text: str) -> bool:
    tree = parse(text)
    return tree is not None and bool(tree.body)


def _answer(value: Any, column: str) -> str:
    messages = messages_of(value, column)
    if len(messages) != 1:
        raise RowError(f"{column}: {len(messages)} messages, not one answer")
    return messages[0]["content"]


def _named(row: Json, *names: str) -> Json:
    return {key: row[key] for key in (*names, "id", "cwe", "group", "reasoning", "language") if row.get(key) not in (None, "")}


# --- The formats.


def _own(row: Json) -> Json:
    return {key: row[key] for key in _OWN | _SIDES if row.get(key) is not None}


def _disco(row: Json) -> Json:
    instruction, reasoning = (text_of(row[name], name).strip() for name in ("Instruction", "Reasoning"))
    return {"chosen": row["Secure Code"], "rejected": row["Vulnerable Code"], "instruction": instruction, "reasoning": reasoning}


_LANGUAGES = {".py": "python", ".js": "javascript", ".jsx": "javascript", ".rb": "ruby", ".cc": "cpp"}


def _sven(row: Json) -> Json:
    suffix, changes = Path(text_of(row["file_name"], "file_name")).suffix, row.get("char_changes") or {}
    sides = {"chosen_spans": "added", "rejected_spans": "deleted"} if changes else {}
    try:
        spans: Json = {key: [(c["char_start"], c["char_end"]) for c in changes[side]] for key, side in sides.items()}
    except (KeyError, TypeError):
        raise RowError("char_changes: no lists `added` and `deleted` of char_start and char_end") from None
    return {
        "instruction": text_of(row.get("description"), "description").strip(),
        "chosen": row["func_src_after"],
        "rejected": row["func_src_before"],
        "cwe": row["vul_type"],
        "language": _LANGUAGES.get(suffix, suffix.lstrip(".")),
        "group": row.get("commit_link") or "",
        **spans,
    }


def _seccodeplt(row: Json) -> Json:
    parts, task, tests = row["ground_truth"], row.get("task") or row.get("task_description") or {}, row.get("unittest") or row
    for name, value in (("ground_truth", parts), ("task", task), ("unittest", tests)):
        if not isinstance(value, Mapping):
            raise RowError(f"{name}: no object")
    before, patched, vulnerable, after = (
        text_of(parts.get(key), f"ground_truth.{key}") for key in ("code_before", "patched_code", "vulnerable_code", "code_after")
    )
    more: Json = {"cwe": row.get("CWE_ID"), "reasoning": text_of(task.get("security_policy"), "task.security_policy").strip()}
    if text_of(tests.get("testcases"), "testcases").strip():
        function = text_of(task.get("function_name"), "task.function_name")
        if not function.isidentifier():
            raise RowError(f"task.function_name: {function!r} is no name of a function")
        more |= {"setup": tests.get("setup"), "tests": seccodeplt.tests(text_of(tests["testcases"], "testcases"), function)}
    sides = {"chosen": before + patched + after, "rejected": before + vulnerable + after}
    return _asked(messages_of(row["prompt"], "prompt"), row) | sides | {k: v for k, v in more.items() if v} | _named(row)


def _preference(column: str) -> Callable[[Json], Json]:
    def fields(row: Json) -> Json:
        asked = _asked(messages_of(row[column], column), row) if column in ("prompt", "conversations") else _task(row, column)
        return asked | _sides(_answer(row["chosen"], "chosen"), _answer(row["rejected"], "rejected")) | _named(row)

    return fields


def _implicit(row: Json) -> Json:
    chosen, rejected = (messages_of(row[side], side) for side in ("chosen", "rejected"))
    if not chosen or not rejected or chosen[:-1] != rejected[:-1]:
        raise RowError("chosen, rejected: the conversations differ before their last messages")
    return _asked(chosen[:-1], row) | _sides(chosen[-1]["content"], rejected[-1]["content"]) | _named(row)


def _said(asked: Json, response: str, row: Json) -> Json:
    """An instruction with its response, and nothing to compare that with."""
    return _named(row) | asked | {"chosen": response, "rejected": response, "language": "", "code": False}


def _plain(question: str, response: str) -> Callable[[Json], Json]:
    return lambda row: _said(_task(row, question), text_of(row[response], response), row)


def _conversation(column: str) -> Callable[[Json], Json]:
    def fields(row: Json) -> Json:
        messages = messages_of(row[column], column)
        if not messages or messages[-1]["role"] != "assistant":
            raise RowError(f"{column}: the last message isn't the assistant's")
        return _said(_asked(messages[:-1], row), messages[-1]["content"], row)

    return fields


_SIDES, _ALPACA, _NAMED = {"chosen", "rejected"}, {"input", "history", "system"}, {"id", "cwe", "group", "reasoning", "language"}
_OF_DISTILLATION = {"rule", "library", "model", "template", "rounds", "findings", "findings_before", "vulnerable_findings"} | {
    "judges_failed",
    "vulnerable_judges_failed",
}  # facts for `lpo-data stats`
_OF_PIVOTS = {"pivots"}  # what `lpo-data pivots` has measured
_OWN = {"instruction", "history", "reasoning", "id", "cwe", "language", "group", "code", "setup", "tests", "chosen_spans", "rejected_spans"}
_OF_SECCODEPLT = {"task", "setup", "testcases", "install_requires", "task_description", "unittest", "CWE_ID"}


def _format(name: str, columns: Iterable[str], more: Iterable[str], fields: Callable[[Json], Json]) -> Format:
    return Format(name, frozenset(columns), frozenset(more), fields)


_IMPLICIT = _format("TRL", _SIDES, _NAMED | {"system"}, _implicit)
_FACTORY = _format("LLaMA-Factory", _SIDES | {"instruction"}, _ALPACA | _NAMED, _preference("instruction"))
FORMATS = (
    _format("SecCodePLT", {"prompt", "ground_truth"}, _NAMED | _OF_SECCODEPLT, _seccodeplt),
    _format("DiSCo", {"Instruction", "Reasoning", "Secure Code", "Vulnerable Code"}, (), _disco),
    _format("SVEN", {"func_src_before", "func_src_after", "file_name", "vul_type"}, {"description", "commit_link", "char_changes"}, _sven),
    _format("ShareGPT", _SIDES | {"conversations"}, _NAMED | {"system"}, _preference("conversations")),
    _format("TRL", _SIDES | {"prompt"}, _NAMED | {"system"}, _preference("prompt")),
    _format("Orca", _SIDES | {"question"}, _NAMED | {"system"}, _preference("question")),
    _format("our own", _SIDES, _OWN | _OF_DISTILLATION | _OF_PIVOTS, _own),
    *(
        _format("plain", {question, response}, _ALPACA | _NAMED, _plain(question, response))
        for question in ("instruction", "prompt", "question")
        for response in ("output", "response", "completion")
    ),
    _format("messages", {"messages"}, _NAMED | {"system"}, _conversation("messages")),
    _format("messages", {"conversations"}, _NAMED | {"system"}, _conversation("conversations")),
)


def of(row: Json) -> Format | None:
    """The format that a row is in; None: in none. What has one name in two formats, its values tell apart."""
    found = next((form for form in FORMATS if form.columns <= row.keys()), None)
    if found is None or found.name != "our own":
        return found
    if all(isinstance(row[side], list) for side in _SIDES):
        return _IMPLICIT
    turns = row.get("history")
    theirs = isinstance(turns, list) and any(isinstance(turn, list) for turn in turns)
    return _FACTORY if "instruction" in row and (theirs or {"input", "system"} & row.keys()) else found
