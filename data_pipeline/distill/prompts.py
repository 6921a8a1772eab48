"""What the writer is asked: a plan that covers rules and libraries evenly, and the versioned templates that turn it into messages."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from data_pipeline.distill.knowledge import Rule
from foundation.errors import DataError
from foundation.files import Json

VERSION = "v1"
TEMPLATES = Path(__file__).parent / "templates"
PAIR_PARTS = ("instruction", "vulnerable", "why_vulnerable", "secure", "why_secure")
REPAIR_PARTS = ("secure", "why_vulnerable", "why_secure")
FORMS = ("json", "sections")


@dataclass(frozen=True)
class Task:
    """One pair to ask for."""

    id: str  # "00017-cwe-89-flask"
    rule: Rule
    library: str


def plan(rules: Sequence[Rule], libraries: Sequence[str], count: int, seed: int) -> list[Task]:
    """`count` tasks in which every CWE and every library occurs equally often (to within one), and no two of them together twice.

    A CWE's rules take turns. With C CWEs and L libraries, task i takes CWE i mod C and library (i + i // lcm(C, L)) mod L, both shuffled:
    that runs through all C L combinations before one returns.

    Raises:
      DataError: there are no rules or libraries, or fewer combinations than tasks.
    """
    by_cwe: dict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        by_cwe[rule.cwe].append(rule)
    C, L = len(by_cwe), len(libraries)
    if not C * L:
        raise DataError("no rule or no library is left to ask about; widen the selection (`lpo-data rules` lists them)")
    if count > C * L:
        raise DataError(f"{count} prompts asked for, but {C} CWEs and {L} libraries make {C * L} combinations; ask for fewer")
    draw = random.Random(seed)
    cwes, names = draw.sample(sorted(by_cwe), C), draw.sample(list(libraries), L)
    tasks = []
    for i in range(count):
        turns = by_cwe[cwes[i % C]]
        rule, library = turns[i // C % len(turns)], names[(i + i // math.lcm(C, L)) % L]
        tasks.append(Task(f"{i:05}-{rule.id}-{library}", rule, library))
    return tasks


def pair_request(task: Task, model: str, form: str, temperature: float, max_tokens: int) -> Json:
    """The body of a chat completion that asks for a pair."""
    rule = task.rule
    text = _template("pair").substitute(
        cwe=rule.cwe, title=rule.title, description=rule.description, library=f" that uses {task.library}", layout=_layout(PAIR_PARTS, form)
    )
    return _request(text, PAIR_PARTS, model, form, temperature, max_tokens)


def repair_request(
    instruction: str, secure: str, vulnerable: str, findings: Sequence[str], model: str, form: str, temperature: float, max_tokens: int
) -> Json:
    """The body of a chat completion that asks for a repair of what the judges found in a secure side."""
    listed = "\n".join(f"- {finding}" for finding in findings)
    text = _template("repair").substitute(
        instruction=instruction, code=secure, vulnerable=vulnerable, findings=listed, layout=_layout(REPAIR_PARTS, form)
    )
    return _request(text, REPAIR_PARTS, model, form, temperature, max_tokens)


def label(part: str) -> str:
    """The heading of a part in an answer of sections, e.g. "WHY SECURE:"."""
    return part.replace("_", " ").upper() + ":"


def _template(name: str) -> Template:
    return Template((TEMPLATES / f"{name}.{VERSION}.txt").read_text(encoding="utf-8").rstrip())


def _layout(parts: Sequence[str], form: str) -> str:
    if form == "json":
        return f"Answer with one JSON object with the keys {', '.join(parts)}; each value is a string, code without a fence around it."
    sections = (f"{label(part)}\n" + ("```python\n...\n```" if part in ("secure", "vulnerable") else "...") for part in parts)
    return "Answer with exactly these sections, each under its label on a line of its own:\n\n" + "\n\n".join(sections)


def _request(text: str, parts: Sequence[str], model: str, form: str, temperature: float, max_tokens: int) -> Json:
    body: Json = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": temperature,
        "max_completion_tokens": max_tokens,
    }
    if form == "json":
        schema = {
            "type": "object",
            "properties": {part: {"type": "string"} for part in parts},
            "required": list(parts),
            "additionalProperties": False,
        }
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return body
