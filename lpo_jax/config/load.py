"""Reading a config: YAML and ``key.sub=value`` overrides become a `RunConfig`, or an error that names the key, its file and line."""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pydantic
import yaml

from foundation.errors import ConfigError
from lpo_jax import objectives
from lpo_jax.config.schema import Objective, RunConfig

Path_ = tuple[str, ...]
"""The keys that lead to a value."""

_ONCE_EVERYWHERE = {
    "mode": "clean", "beta": None, "gamma": None, "alpha": None, "empty_side": "detach", "norm_len": "code", "imitation": "sum",
    "off_mask": 1e-6, "label_smoothing": 0.0, "score_prompt": False, "kl": None,
}  # fmt: skip
"""Options that every objective once had, with their defaults: an objective that hasn't one drops it where it stands at that or at null."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as text; YAML 1.2, and this, as a number."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), "-+0123456789")


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML and apply ``key.sub=value`` overrides.

    Raises:
      ConfigError: the file is missing or no mapping, a key is unknown, or a value is of the wrong type or out of range.
    """
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config; the shipped ones are in configs/") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected a mapping of settings")
    places = {keys: f"{path}:{line}" for keys, line in _lines(node, str(path))} | {(): str(path)}
    raw = _Loader("").construct_document(node)
    for override in overrides:
        keys = _apply(raw, override)
        places = {k: place for k, place in places.items() if k[: len(keys)] != keys} | {keys: f"override {override}"}
    return _build(RunConfig, raw, (), places)


def from_dict(cls: type, raw: Mapping[str, Any], where: str = "") -> Any:
    """Build dataclass `cls` from a nested dict, e.g. a run's config.json; `where` names it in errors.

    Raises:
      ConfigError: as `load`.
    """
    return _build(cls, json.loads(json.dumps(raw)), (), {(): where} if where else {})


def to_dict(config: Any) -> dict[str, Any]:
    """The plain nested dict of a config, as it stands in YAML."""
    return dataclasses.asdict(config)


@cache
def _adapter(cls: type) -> pydantic.TypeAdapter:
    """pydantic's validator of a dataclass."""
    return pydantic.TypeAdapter(cls)


def _build(cls: type, raw: Any, where: Path_, places: Mapping[Path_, str]) -> Any:
    if isinstance(raw, dict) and isinstance(raw.get("stages"), dict):
        for stage in raw["stages"].values():
            if isinstance(stage, dict) and isinstance(stage.get("objective"), dict):
                _drop_foreign_options(stage["objective"])
    try:  # as JSON: in Python's own types strictness would ask for dataclasses instead of dicts
        return _adapter(cls).validate_json(json.dumps(raw, default=str), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = _without_tags(first["loc"])
        message = _message(cls, raw, keys, first)
        place = next((places[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in places), None)
    raise ConfigError(f"{place}: {message}" if place else message)


def _drop_foreign_options(raw: dict[str, Any]) -> None:
    """Files written before each objective had options of its own list all of them."""
    record = objectives.OBJECTIVES.get(str(raw.get("name")))
    if record is None:
        return
    own = {field.name for field in dataclasses.fields(record.options)}  # type: ignore[arg-type]
    for key in [key for key in raw if key not in own and key in _ONCE_EVERYWHERE]:
        if raw[key] in (None, _ONCE_EVERYWHERE[key]):
            del raw[key]


def _without_tags(loc: tuple[int | str, ...]) -> Path_:
    """pydantic's path to an error without the tag that it puts behind the union of objectives."""
    keys = [str(key) for key in loc]
    at = keys.index("objective") + 1 if "objective" in keys else len(keys)
    return tuple(keys[:at] + keys[at + 1 :])


def _message(cls: type, raw: Any, keys: Path_, error: Mapping[str, Any]) -> str:
    """What is wrong, in our words."""
    dotted, kind, value = ".".join(keys), error["type"], error["input"]
    owner = _class_at(cls, raw, keys[:-1])
    in_objective = len(keys) > 1 and keys[-2] == "objective"
    if kind == "unexpected_keyword_argument" and in_objective and keys[-1] in _ONCE_EVERYWHERE:
        own = ", ".join(field.name for field in dataclasses.fields(owner))  # type: ignore[arg-type]
        return f"{dotted}: objective {_at(raw, keys[:-1])['name']} has no such option, its own are {own}; take it out, or set it to null"
    if kind == "unexpected_keyword_argument":
        return _unknown("key", dotted, keys[-1], [field.name for field in dataclasses.fields(owner)])  # type: ignore[arg-type]
    if kind == "missing" or (value is None and kind.endswith("_type")):
        if in_objective:
            return f"objective {_at(raw, keys[:-1])['name']}: set {keys[-1]}"
        return f"missing key {dotted}" if kind == "missing" else f"{dotted}: null isn't possible here"
    if kind.startswith("union_tag"):
        name = value.get("name") if isinstance(value, dict) else value
        return _unknown("value", f"{dotted}.name={name}", str(name), list(objectives.OBJECTIVES))
    if kind == "literal_error":
        options = typing.get_args(_without_none(typing.get_type_hints(owner)[keys[-1]]))
        return _unknown("value", f"{dotted}={value}", str(value), [str(option) for option in options])
    if kind == "value_error":
        return f"{dotted}: {error['ctx']['error']}" if keys else str(error["ctx"]["error"])
    wanted = {"int": "int", "float": "float", "bool": "bool", "string": "str", "dict": "a mapping", "dataclass": "a mapping"}.get(
        kind.split("_")[0]
    )
    return f"{dotted or 'config'}: expected {wanted}, not {value!r}" if wanted else f"{dotted}: {error['msg']}"


def _class_at(cls: type, raw: Any, keys: Path_) -> Any:
    """The dataclass that stands at a path of a config."""
    for depth, key in enumerate(keys):
        hint = _without_none(typing.get_type_hints(cls)[key]) if dataclasses.is_dataclass(cls) else typing.get_args(cls)[1]
        cls = objectives.OBJECTIVES[_at(raw, keys[: depth + 1])["name"]].options if hint is Objective or key == "objective" else hint
    return cls


def _at(raw: Any, keys: Path_) -> Any:
    for key in keys:
        raw = raw[key]
    return raw


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(option for option in typing.get_args(hint) if option is not type(None))
    return hint


def _lines(node: yaml.MappingNode, file: str, above: Path_ = ()) -> Iterator[tuple[Path_, int]]:
    """Every key's path and line."""
    seen: set[Path_] = set()
    for key, value in node.value:
        keys = (*above, str(key.value))
        line = key.start_mark.line + 1
        if keys in seen:
            raise ConfigError(f"{file}:{line}: {'.'.join(keys)} stands here a second time")
        seen.add(keys)
        yield keys, line
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, file, keys)


def _apply(raw: dict[str, Any], override: str) -> Path_:
    """Put an override into `raw`; returns its path."""
    dotted, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r}: write key.sub=value")
    *parents, last = dotted.split(".")
    node = raw
    for depth, key in enumerate(parents):
        child = node.setdefault(key, {})
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parents[: depth + 1])} has no sub-keys")
        node = child
    try:
        node[last] = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {dotted}: {text!r} isn't valid YAML: {error}") from None
    return (*parents, last)


def _unknown(what: str, where: str, given: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid {what}s: {', '.join(sorted(valid))}"
    return f"unknown {what} {where}: {hint}"
