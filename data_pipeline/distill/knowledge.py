"""What the writer is asked about: rules on weaknesses, and libraries in whose use they occur.

Sources: MITRE's CWE list (`knowledge/cwe.jsonl`, version 4.14, terms in `knowledge/cwe.LICENSE`), the installed Bandit's plugins and
blacklists, and topics of static queries in our own words (`knowledge/topics.yaml`).
"""

import ast
import inspect
import json
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

DATA = Path(__file__).parent / "knowledge"


@dataclass(frozen=True)
class Rule:
    """One weakness to write a pair about."""

    id: str  # "cwe-89", "bandit-B608", "topic-12"
    cwe: str  # "CWE-89"
    title: str
    description: str
    source: str  # "cwe", "bandit", "topic"
    language: str  # "python", "any", "hardware" or the names of the languages that it is limited to


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule, of every language."""
    return (*_cwe(), *_bandit(), *_topics())


def python_rules() -> list[Rule]:
    """The rules that a Python program can break."""
    return [rule for rule in rules() if rule.language in ("python", "any")]


@cache
def titles() -> dict[str, str]:
    """CWE -> its name in MITRE's list."""
    return {rule.cwe: rule.title for rule in _cwe()}


@cache
def libraries() -> tuple[str, ...]:
    return tuple((DATA / "libraries.txt").read_text().split())


def select(text: str = "", cwe: str = "", source: str = "", every_language: bool = False) -> list[Rule]:
    """The rules with `text` in their title or description, of one CWE ("89" or "CWE-89") and of one source; empty means any."""
    number = cwe.upper().removeprefix("CWE-").lstrip("0")
    return [
        rule
        for rule in (rules() if every_language else python_rules())
        if text.lower() in f"{rule.title} {rule.description}".lower()
        and (not cwe or rule.cwe == f"CWE-{number}")
        and (not source or rule.source == source)
    ]


@cache
def _cwe() -> tuple[Rule, ...]:
    rows = map(json.loads, (DATA / "cwe.jsonl").read_text(encoding="utf-8").splitlines())
    return tuple(Rule(id=row["cwe"].lower(), source="cwe", **row) for row in rows)


def _topics() -> list[Rule]:
    rows = yaml.safe_load((DATA / "topics.yaml").read_text(encoding="utf-8"))
    return [Rule(f"topic-{n}", f"CWE-{cwe}", title, text, "topic", "python") for n, (cwe, title, text) in enumerate(rows, 1)]


def _bandit() -> list[Rule]:
    """Bandit's plugins, whose CWE stands in their source and whose description in their docstrings, and its blacklists' entries."""
    from bandit.core.extension_loader import MANAGER  # a quarter of a second that only users of the rules pay

    found = []
    for extension in MANAGER.plugins:
        check = extension.plugin
        if number := _plugin_cwe(check):
            docs = check.__doc__ or inspect.getmodule(check).__doc__ or ""  # type: ignore[union-attr]
            text = " ".join(inspect.cleandoc(docs).partition("\n\n")[2].partition("\n\n")[0].split())
            found.append((check._test_id, number, extension.name.replace("_", " "), text))
    entries = {entry["id"]: entry for kind in MANAGER.blacklist.values() for entry in kind}
    for e in entries.values():
        found.append((e["id"], e["cwe"], e["name"].replace("_", " "), f"{e['message']} ({', '.join(e['qualnames'][:6])})"))
    return [Rule(f"bandit-{key}", f"CWE-{cwe}", title, text or title, "bandit", "python") for key, cwe, title, text in sorted(found)]


def _plugin_cwe(check: object) -> int:
    """The CWE that a plugin's issues carry, or that of a helper in its module; 0 if there is none."""
    from bandit.core.issue import Cwe

    for source in (inspect.getsource(check), inspect.getsource(inspect.getmodule(check))):  # type: ignore[arg-type]
        for node in ast.walk(ast.parse(textwrap.dedent(source))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "Cwe":
                return int(vars(Cwe)[node.attr])
    return 0
