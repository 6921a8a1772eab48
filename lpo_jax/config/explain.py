"""A whole config as YAML, each key with its explanation: what `lpo config` prints."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from lpo_jax.config.schema import RunConfig

_WIDTH = 100
_KEY_WIDTH = 40


def explain(config: RunConfig) -> str:
    """The resolved config, defaults included. What it returns is a config file of its own."""
    return "\n".join(_lines(config, 0)) + "\n"


def _lines(config: Any, depth: int) -> Iterator[str]:
    margin = "  " * depth
    told: dict[str, str] = {} if isinstance(config, dict) else texts(type(config))
    values = config.items() if isinstance(config, dict) else ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    for key, value in values:
        nested = isinstance(value, dict) or dataclasses.is_dataclass(value)
        line = f"{margin}{key}:" if nested else f"{margin}{key}: {_scalar(value)}"
        text = told.get(key, "")
        if len(line) < _KEY_WIDTH and len(text) <= _WIDTH - _KEY_WIDTH:
            yield f"{line:{_KEY_WIDTH}}  # {text}" if text else line
        else:
            yield from (f"{margin}# {part}" for part in textwrap.wrap(text, _WIDTH - len(margin)))
            yield line
        if nested:
            yield from _lines(value, depth + 1)


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("...\n").strip()


def texts(cls: Any) -> dict[str, str]:
    """The explanation of each field of a dataclass: the text that stands below it."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found
