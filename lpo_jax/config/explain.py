"""A whole config as YAML, each key with its explanation: what `lpo config` prints."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import yaml

from lpo_jax import objectives
from lpo_jax.config.load import Dumper
from lpo_jax.config.optim import OPTIMIZERS, OptimOptions
from lpo_jax.config.schema import RunConfig

_LEFT, _RIGHT = 40, 76
"""Widths of the two columns: keys with values, and explanations."""


def explain(config: RunConfig) -> str:
    """The resolved config, defaults included. What it returns is a config file of its own."""
    return "\n".join(_lines(config)) + "\n"


def _lines(config: Any, margin: str = "") -> Iterator[str]:
    """The lines of a dataclass, or of the stages by name."""
    rows = [(_yaml(name), stage, "") for name, stage in config.items()] if isinstance(config, dict) else _rows(config)
    after_nested = False
    for key, value, text in rows:
        listed = isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value)
        nested = listed or isinstance(value, dict) or dataclasses.is_dataclass(value)
        if (nested or after_nested) and not margin:
            yield ""
        after_nested = nested
        line = f"{margin}{key}:" if nested else f"{margin}{key}: {_yaml(value)}"
        first, *more = textwrap.wrap(text, _RIGHT) or [""]
        yield f"{line:{_LEFT}}  # {first}" if first else line
        yield from (f"{'':{_LEFT}}  # {part}" for part in more)
        for item in value if listed else ():
            head, *rest = _lines(item, margin + "    ")
            yield from (f"{margin}  - {head.removeprefix(f'{margin}    ')}", *rest)
        if nested and not listed:
            yield from _lines(value, margin + "  ")


def _rows(config: Any) -> Iterator[tuple[str, Any, str]]:
    """Key, value and explanation: what the key means, what it can be, and its default where it stands at something else."""
    told, hints = texts(type(config)), typing.get_type_hints(type(config))
    if isinstance(config, objectives.Options):
        told["name"] = objectives.of(config).title
    elif isinstance(config, OptimOptions):
        told["name"] = f"one of {', '.join(OPTIMIZERS)}"
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        several = typing.get_origin(hint) is tuple
        choices = typing.get_args(hint := typing.get_args(hint)[0] if several else hint)
        text = told.get(field.name, "")
        if typing.get_origin(hint) is typing.Literal and len(choices) > 1:
            text += f" [{'any of: ' if several else ''}{' | '.join(choices)}]"
        if field.default not in (dataclasses.MISSING, None, value):
            text += f" (default: {_yaml(field.default)})"
        yield field.name, value, text


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=float("inf")).removesuffix("...\n").strip()


def texts(cls: Any) -> dict[str, str]:
    """The explanation of each field of a dataclass, or of what it is derived from: the text that stands below it."""
    found = {}
    for own in (base for base in reversed(cls.__mro__) if hasattr(base, "__dataclass_fields__")):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(own))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found
