"""What models are asked: rows of a file, and how their instructions are put."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_pipeline import records
from data_pipeline import template as templates
from data_pipeline.chat import TemplateError
from data_pipeline.formats import RowError, text_of
from data_pipeline.shards import Manifest
from data_pipeline.template import Template
from data_pipeline.tokenizer import Tokenizer
from foundation.errors import DataError
from foundation.files import Json, read_object
from lpo_jax.config import ConfigError
from lpo_jax.model import hf
from lpo_jax.train.weights import open_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asking:
    """How a model's instructions are put."""

    template: Template
    think: bool  # a thought is asked for
    remarks: tuple[str, ...] = ()  # what the user should know of it
    why: str = field(default="", compare=False)  # it is this template, for people

    def prompt(self, instruction: str, tokenizer: Tokenizer, history: templates.History = ()) -> templates.Prompt:
        return templates.prompt(self.template, instruction, tokenizer, self.think, history)

    def conversation(self, messages: list[dict[str, str]], tokenizer: Tokenizer) -> templates.Prompt:
        """Messages (role, content) as a prompt: the last is the instruction, the others are its history.

        Raises:
          ValueError: they can't be a prompt.
        """
        *before, (role, text) = said = [(message["role"], message["content"]) for message in messages]
        if role == "user":
            return self.prompt(text, tokenizer, before)
        if not self.prompt("x", tokenizer).whole:
            raise ValueError("the last one must be the user's")
        return templates.conversation(self.template, said, tokenizer)

    def warn(self) -> None:
        for remark in self.remarks:
            log.warning("%s", remark)

    @property
    def facts(self) -> Json:
        """What tells one way of asking from another, for records."""
        content = self.template.source + (self.template.chat or "")
        return {
            "template": self.template.name,
            "template_sha256": hashlib.sha256(content.encode()).hexdigest()[:16],
            "system": self.template.system,
            "think": self.think,
        }


def asking(
    model: str, tokenizer: Tokenizer, name: str | None = None, system: str = "", think: bool = True, adapter: str | None = None
) -> Asking:
    """How `model` is asked: in the template that it was trained with here; another's in its chat template, or, without one, plainly.

    Args:
      model: a Hugging Face directory, a hub id, or a run_dir.
      name: a template instead, see `data_pipeline.template.load`; one that isn't the model's own is remarked on.
      system: the system text of a chat, instead of the model's own.
      think: ask for a thought, if the model has learned to have one.
      adapter: a PEFT directory; what it was trained with counts.

    Raises:
      DataError: there is no such template, or it has no place for the system text.
    """
    own, who, remarks = (adapter and _own(adapter, tokenizer)) or _own(model, tokenizer), adapter or model, []
    if name is not None:
        chosen, why = templates.load(name, tokenizer)
        if own is not None and own.source == chosen.source:
            chosen = own  # with its system text, and the chat template as it was then
        elif own is not None:
            remarks.append(f"{who} was trained with the template {own.name} and is asked in {chosen.name}")
            chosen = replace(chosen, thinks=own.thinks)
    else:
        chosen = own or _default(model, tokenizer)
        why = "the model was trained in it" if own else f"its tokenizer has {'a' if tokenizer.chat else 'no'} chat template"
    if system and system != chosen.system:
        if own is not None:
            remarks.append(f"{who} was trained with the system text {own.system!r} and is asked with {system!r}")
        chosen = templates.with_system(chosen, system, tokenizer)
    if not think and chosen.thinks:
        thinking, direct = (templates.prompt(chosen, "x", tokenizer, each) for each in (True, False))
        if thinking == direct:
            remarks.append(f"--no-think changes nothing: the template {chosen.name} asks for a thought and for none alike")
    return Asking(chosen, think and chosen.thinks, tuple(remarks), why)


def _default(model: str, tokenizer: Tokenizer) -> Template:
    """A foreign model's template: its chat template, or none at all."""
    try:
        return templates.load("chat" if tokenizer.chat else "plain", tokenizer)[0]
    except DataError as error:
        raise DataError(f"{model}, its chat template: {error}") from None


def _own(path: str, tokenizer: Tokenizer) -> Template | None:
    """The template that a run, or an export of one, was trained with."""
    if open_run(path) is not None:
        file = Path(path) / "data.json"
        found = templates.of_facts(Manifest.read(file).template, file)
    elif os.path.lexists(file := hf.locate(path) / templates.FILE):
        found = templates.of_facts(read_object(file), file)
    else:
        return None
    return templates.checked(found, tokenizer, f"{file}: its template")


@dataclass(frozen=True)
class Prompt:
    """A row of the prompts' file."""

    id: str
    where: str  # file and line, for errors
    text: str  # for people
    ids: tuple[int, ...]  # as the model reads it
    adapter: str | None = None  # the name of the one that completes it; None: the model itself

    @property
    def sha256(self) -> str:
        content = self.ids if self.adapter is None else [self.adapter, self.ids]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """A row before any tokenizer reads it."""

    where: str  # file and line, for errors
    id: str
    key: str  # "prompt" or "instruction"
    text: str
    adapter: str | None
    columns: tuple[str, ...]  # others that hold something


def rows(path: str, adapters: Iterable[str] = ()) -> Iterator[Row]:
    """The rows of a JSONL file of prompts.

    Raises:
      ConfigError: as `read`.
    """
    wanted = 'write {"id": ..., "prompt": TEXT} or {"id": ..., "instruction": TEXT}'

    def refuse(where: str, reason: str) -> None:
        raise ConfigError(f"{where}: {reason}; {wanted}")

    seen, named = dict[str, str](), False
    for where, row in records.read(path, refuse):
        where = f"{path}:{where.rpartition(':')[2]}"
        key = next((key for key in ("prompt", "instruction") if key in row), None)
        if key is None or {"prompt", "instruction"} <= row.keys():
            raise ConfigError(f"{where}: {wanted}")
        given = row.get("id")
        try:
            text, name = text_of(row[key], key), text_of(where.rpartition(":")[2] if given is None else str(given), "id")
            adapter = str(row["adapter"]) if row.get("adapter") else None
            if adapter is not None and not adapters:
                raise RowError(
                    f"adapter {adapter[:80]!r}: there are none to choose from: give it, --adapter NAME=DIR, or take this out of the row"
                )
            if adapter is not None and adapter not in adapters:
                raise RowError(f"adapter {adapter[:80]!r} isn't one of those given: {', '.join(adapters)}")
        except RowError as error:
            raise ConfigError(f"{where}: {error}") from None
        if name in seen:
            raise ConfigError(f"{where}: id {name} stands at {seen[name]} already")
        seen[name], named = where, named or adapter is not None
        known = {"id", key, "adapter"}
        yield Row(where, name, key, text, adapter, tuple(column for column in row.keys() - known if row[column] not in (None, "", [], {})))
    if not seen:
        raise ConfigError(f"{path}: no prompt")
    if adapters and not named:
        some = next(iter(adapters))
        raise ConfigError(
            f'{path}: no row names an adapter: write "adapter": "{some}" into those that it shall complete, or give one --adapter DIR'
        )


def read(path: str, tokenizer: Tokenizer, asking: Asking, adapters: Mapping[str, Asking] | None = None) -> list[Prompt]:
    """The prompts of a JSONL file: rows {"prompt": ...} as they are, rows {"instruction": ...} as the model is asked.

    Args:
      adapters: how those beside the model are asked, by name. A row {"adapter": NAME, ...} is for one of them.

    Raises:
      ConfigError: no such file, or a row is no object, has neither or both, an id that another row has, or an adapter that there isn't; or no
        row has an adapter, where there are some; file and line are named.
    """
    adapters = adapters or {}
    found: list[Prompt] = []
    unused = Counter[str]()
    for row in rows(path, adapters):
        how = asking if row.adapter is None else adapters[row.adapter]
        try:
            shown = how.prompt(row.text, tokenizer) if row.key == "instruction" else templates.as_it_stands(row.text)
            ids = tuple(shown.ids(tokenizer))
        except TemplateError as error:
            raise ConfigError(f"{row.where}: {error}") from None
        found.append(Prompt(row.id, row.where, shown.shown, ids, row.adapter))
        unused.update(row.columns)
    if unused:
        log.warning("%s: nothing reads the columns %s", path, ", ".join(f"{name} ({count} rows)" for name, count in sorted(unused.items())))
    return found
