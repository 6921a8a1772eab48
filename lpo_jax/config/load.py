"""Reading a config: YAML and ``key.sub=value`` overrides become a `RunConfig`, or an error that names the key, its file and line."""

import dataclasses
import itertools
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pydantic
import yaml
from yaml.composer import ComposerError

from foundation.errors import ConfigError, nearest
from foundation.files import shipped
from lpo_jax.config.optim import OPTIMIZERS, Optim
from lpo_jax.config.schema import EITHER, ONCE_EVERYWHERE, Objective, RunConfig
from lpo_jax.objectives import OBJECTIVES

Keys = tuple[str, ...]
"""The keys that lead to a value: ("stages", "sft", "optim", "lr"), ("stages", "sft", "data", "0", "path")."""

_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "objective": (Objective, {name: record.options for name, record in OBJECTIVES.items()}),
    "optim": (Optim, OPTIMIZERS),
}
"""By key, what may stand there: one of several dataclasses, told apart by its name."""

_OVERRIDE = "override "

MOST_VALUES = 10_000
"""In a config: anchors within anchors stand for billions, which nobody has written and nobody waits for."""

_WORDS = {
    "int": "int",
    "float": "float",
    "bool": "bool",
    "string": "str",
    "tuple": "a list in brackets",
    **dict.fromkeys(("dict", "dataclass", "model"), "a mapping"),
}
"""pydantic's names of types begin with the left word; we say the right one."""


class Loader(yaml.SafeLoader):
    """YAML as a reader of configs takes it: 1e-5 is a number, 2026-01-31 is text, and a key is a word that stands once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ComposerError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise ComposerError(None, None, f"{key.value} stands here a second time", key.start_mark)
            seen.add(key.value)
        return node


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads: the text 1e-5 gets quotes."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _dialect in (Loader, Dumper):
    _dialect.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML and apply ``key.sub=value`` overrides.

    Raises:
      ConfigError: the file can't be read or is no mapping, a key is unknown, or a value is of the wrong type or out of range.
    """
    try:
        text = shipped(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config; the shipped ones are in configs/") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; a config is a YAML file, see configs/") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text in UTF-8; a config is a YAML file, see configs/") from None
    try:
        raw, places = _parse(text, str(path))
    except yaml.YAMLError as error:
        line, problem = _problem(error)
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, not {'an empty file' if raw is None else repr(raw)}")
    places[()] = str(path)
    for override in overrides:
        keys, gone = _apply(raw, override, places)
        given = {k: place for k, place in places.items() if not any(k[: len(old)] == old for old in (keys, *gone))}
        places = {keys[:n]: f"{_OVERRIDE}{_short(override)}" for n in range(1, len(keys) + 1)} | given
    return _build(RunConfig, raw, places, tells_all=True)


def from_dict(cls: type, raw: Mapping[str, Any], where: str = "") -> Any:
    """Build dataclass `cls` from a nested dict, e.g. a run's config.json; `where` names it in errors.

    Raises:
      ConfigError: as `load`.
    """
    return _build(cls, raw, {(): where} if where else {})


def to_dict(config: Any) -> dict[str, Any]:
    """The plain nested dict of a config, as it stands in YAML."""
    return dataclasses.asdict(config)


def _parse(text: str, name: str) -> tuple[Any, dict[Keys, str]]:
    """YAML as plain data, with the place of each key, "name:line"; keys are text as written, also 1 and yes."""
    places: dict[Keys, str] = {}
    values = itertools.count()

    def plain(node: yaml.Node | None, above: Keys) -> Any:
        if next(values) > MOST_VALUES:
            raise ComposerError(
                None, None, f"with what its anchors repeat it holds more than {MOST_VALUES} values", node.start_mark if node else None
            )
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                places[*above, str(index)] = f"{name}:{item.start_mark.line + 1}"
            return [plain(item, (*above, str(index))) for index, item in enumerate(node.value)]
        if node is None:
            return None
        if not isinstance(node, yaml.MappingNode):
            try:
                value = loader.construct_object(node)
                return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value
            except (AttributeError, LookupError, ValueError):  # what PyYAML raises of !!timestamp x, !!bool x, !!int '' and !!int x
                raise ComposerError(None, None, f"{node.value!r} is no {node.tag.rpartition(':')[2]}", node.start_mark) from None
        loader.flatten_mapping(node)  # what `<<: *other` brings comes first, so that the mapping's own keys replace it
        found = {}
        for key, value in node.value:
            keys = (*above, key.value)
            places[keys] = f"{name}:{key.start_mark.line + 1}"
            found[key.value] = plain(value, keys)
        return found

    loader = Loader(text)
    try:
        return plain(loader.get_single_node(), ()), places
    except RecursionError:
        raise ComposerError(None, None, "an anchor contains itself, or it is nested too deeply") from None


def _problem(error: yaml.YAMLError) -> tuple[str, Any]:
    """Where YAML is broken (":12"; nothing where that isn't known), and how."""
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else "", getattr(error, "problem", "it has characters that can't be printed")


def _apply(raw: dict[str, Any], override: str, places: Mapping[Keys, str]) -> tuple[Keys, list[Keys]]:
    """Put an override into `raw`; returns its keys, and those that it takes out: what the file has in place of one of them (see `EITHER`)."""
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.split("."))
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r}: write key.sub=value")
    try:
        value, _ = _parse(text, "")
    except yaml.YAMLError as error:
        raise ConfigError(f"override {dotted}: {_short(text)!r} isn't valid YAML: {_problem(error)[1]}") from None
    node, gone = raw, list[Keys]()
    for depth, key in enumerate(keys):
        other = (*keys[:depth], EITHER.get(key, ""))
        if value is not None and node.get(other[-1]) is not None and not places.get(other, _OVERRIDE).startswith(_OVERRIDE):
            del node[other[-1]]
            gone.append(other)
        if depth == len(keys) - 1:
            break
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(keys[: depth + 1])} has no sub-keys")
    node[keys[-1]] = value
    return keys, gone


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + " ..."


_adapter = cache(pydantic.TypeAdapter)
"""pydantic's validator of a dataclass."""


def _build(cls: type, raw: Mapping[str, Any], places: Mapping[Keys, str], tells_all: bool = False) -> Any:
    """`tells_all`: an error has a line for each fault; else it is one line, of the first."""
    try:  # as JSON: of Python's own types strictness would ask for dataclasses instead of dicts
        return _adapter(cls).validate_json(json.dumps(raw, default=str), strict=True)
    except pydantic.ValidationError as error:
        errors = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "unexpected_keyword_argument")
    # A misspelt key is unknown and leaves its right name missing: say the former.
    misspelt = {e["loc"][:-1] for e in errors if e["type"] == "unexpected_keyword_argument"}
    errors = [e for e in errors if e["type"] != "missing" or e["loc"][:-1] not in misspelt]
    unlike = _unlike(errors, places)
    lines = [unlike.get(e["loc"][:2] if e["type"] in _ABSENT else ()) or _told(cls, e, places) for e in errors]
    told = dict.fromkeys(lines if tells_all else lines[:1])
    raise ConfigError("\n  ".join(told if len(told) == 1 else (f"{len(told)} settings are wrong:", *told)))


_ABSENT = ("missing", "union_tag_not_found")


def _unlike(errors: Sequence[Mapping[str, Any]], places: Mapping[Keys, str]) -> dict[tuple[int | str, ...], str]:
    """Stages that overrides alone have made, and not whole, whose names are nearly those of the file's: what is said of each, in place of all that it lacks."""
    stages = {keys: place for keys, place in places.items() if len(keys) == 2 and keys[0] == "stages"}
    there = [name for (_, name), place in stages.items() if not place.startswith(_OVERRIDE)]
    found = dict[tuple[int | str, ...], str]()
    for keys, place in stages.items():
        lacks = [".".join(map(str, e["loc"][2:])) for e in errors if e["type"] in _ABSENT and e["loc"][:2] == keys]
        if lacks and keys[1] not in there and (near := nearest(keys[1], there, 0.5)):
            found[keys] = f"{place}: unknown stage stages.{keys[1]}: did you mean {near!r}? (a new one lacks {', '.join(lacks)})"
    return found


def _told(cls: type, error: Mapping[str, Any], places: Mapping[Keys, str]) -> str:
    """An error, behind the place of what it is about."""
    keys, owner = _located(cls, error["loc"])
    message = _message(keys, owner, error)
    about = (*keys, "name") if error["type"] == "union_tag_invalid" else keys
    place = next((places[about[:n]] for n in range(len(about), -1, -1) if about[:n] in places), None)
    if error["type"] == "value_error":  # about several keys at once, of which an override may have given one
        below = [p for k, p in places.items() if k[: len(keys)] == keys and p.startswith(_OVERRIDE) and p != place]
        place = " with ".join(dict.fromkeys(p for p in (place, *below) if p)) or None
    return f"{place}: {message}" if place else message


def _located(cls: Any, loc: tuple[int | str, ...]) -> tuple[Keys, Any]:
    """An error's keys, and the dataclass (or type of a dict or list) that the last one belongs to. pydantic puts an objective's or optimizer's name behind its key."""
    keys: list[str] = []
    owner = cls
    for key in map(str, loc):
        if kinds := next((kinds for union, kinds in _KINDS.values() if cls == union), None):
            cls = kinds[key]
            continue
        keys.append(key)
        owner = cls
        item = 0 if typing.get_origin(cls) is tuple else 1  # of tuple[X, ...] or dict[str, X]
        hint = typing.get_type_hints(cls, include_extras=True).get(key) if dataclasses.is_dataclass(cls) else typing.get_args(cls)[item]
        optional = isinstance(hint, types.UnionType)
        cls = next(option for option in typing.get_args(hint) if option is not type(None)) if optional else hint
    return tuple(keys), owner


def _message(keys: Keys, owner: Any, error: Mapping[str, Any]) -> str:
    """What is wrong, in our words."""
    dotted, kind, value = ".".join(keys), error["type"], error["input"]
    objective = next((name for name, record in OBJECTIVES.items() if record.options is owner), None)
    if kind == "unexpected_keyword_argument":
        own = [field.name for field in dataclasses.fields(owner)]
        if objective and keys[-1] in ONCE_EVERYWHERE:
            return f"{dotted}: objective {objective} has no such option; take it out. It has {', '.join(own[1:]) or 'none'}"
        return _unknown("key", dotted, keys[-1], own)
    if kind == "missing" or (value is None and kind.endswith("_type")):
        if objective:
            return f"objective {objective}: set {keys[-1]}"
        return f"missing key {dotted}" if kind == "missing" else f"{dotted}: null isn't possible here"
    if kind == "union_tag_not_found":
        return f"missing key {dotted}.name: one of {', '.join(_KINDS[keys[-1]][1])}"
    if kind == "union_tag_invalid":
        return _unknown("value", f"{dotted}.name={value['name']}", str(value["name"]), list(_KINDS[keys[-1]][1]))
    if kind == "literal_error":
        return _unknown("value", f"{dotted}={value}", str(value), re.findall("'(.*?)'", error["ctx"]["expected"]))
    if kind == "value_error":  # said by the dataclass
        return f"{dotted}: {error['ctx']['error']}" if keys else str(error["ctx"]["error"])
    if "should" in error["msg"] and not kind.endswith(("_type", "_parsing", "_from_float")):  # a bound
        return f"{dotted}={value!r}: it {error['msg'].replace('Input should', 'must').replace('String should', 'must')}"
    wanted = _WORDS.get(kind.split("_")[0])
    return f"{dotted}: expected {wanted}, not {value!r}" if wanted else f"{dotted}: {error['msg']}"


def _unknown(what: str, where: str, given: str, valid: list[str]) -> str:
    near = nearest(given, valid, 0.5)
    listed = f"valid {what}s: {', '.join(sorted(valid))}"
    hint = f"did you mean {near!r}?{f' {listed}' if len(valid) < 6 else ''}" if near else listed
    return f"unknown {what} {where}: {hint}"
