"""What the writer is asked: a plan that covers rules and libraries evenly, and the versioned templates that turn it into messages."""

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Job:
    """What decides which pairs a job ends with, besides the model that writes them."""

    model: str
    prompts: int
    seed: int = 0
    form: str = "sections"  # of the answers: "json" (by schema) or "sections"
    temperature: float = 0.7
    max_tokens: int = 3000
    rounds: int = 1  # of refinement
    split_by: str = "rule"
    heldout: tuple[float, float] = (0.03, 0.02)  # shares of the validation and test splits
    near: float = 0.85


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


def pair_request(task: Task, job: Job) -> Json:
    """The body of a chat completion that asks for a pair."""
    rule = task.rule
    return _request(
        "pair", PAIR_PARTS, job, cwe=rule.cwe, title=rule.title, description=rule.description, library=f" that uses {task.library}"
    )


def repair_request(parts: Mapping[str, str], findings: Sequence[str], job: Job) -> Json:
    """The body of a chat completion that asks for a repair of what the judges found in a secure side."""
    listed = "\n".join(f"- {finding}" for finding in findings)
    code, vulnerable = parts["secure"], parts["vulnerable"]
    return _request("repair", REPAIR_PARTS, job, instruction=parts["instruction"], code=code, vulnerable=vulnerable, findings=listed)


def label(part: str) -> str:
    """The heading of a part in an answer of sections, e.g. "WHY SECURE:"."""
    return part.replace("_", " ").upper() + ":"


def _layout(parts: Sequence[str], form: str) -> str:
    if form == "json":
        return f"Answer with one JSON object with the keys {', '.join(parts)}; each value is a string, code without a fence around it."
    sections = (f"{label(part)}\n" + ("```python\n...\n```" if part in ("secure", "vulnerable") else "...") for part in parts)
    return "Answer with exactly these sections, each under its label on a line of its own:\n\n" + "\n\n".join(sections)


def _request(template: str, parts: Sequence[str], job: Job, **words: str) -> Json:
    text = Template((TEMPLATES / f"{template}.{VERSION}.txt").read_text(encoding="utf-8").rstrip())
    message = {"role": "user", "content": text.substitute(words, layout=_layout(parts, job.form))}
    body: Json = {"model": job.model, "messages": [message], "temperature": job.temperature, "max_completion_tokens": job.max_tokens}
    if job.form == "json":
        properties = {part: {"type": "string"} for part in parts}
        schema = {"type": "object", "properties": properties, "required": list(parts), "additionalProperties": False}
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return body
