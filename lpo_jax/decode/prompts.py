"""What models are asked: rows of a file, and how their instructions are put."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import records
from data_pipeline import template as templates
from data_pipeline.chat import TemplateError
from data_pipeline.formats import RowError, text_of
from data_pipeline.shards import Manifest
from data_pipeline.template import Template
from data_pipeline.tokenizer import Tokenizer
from foundation.errors import DataError
from foundation.files import read_object
from lpo_jax.config import ConfigError
from lpo_jax.model import hf
from lpo_jax.train.weights import open_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asking:
    """How a model's instructions are put."""

    template: Template
    think: bool  # a thought is asked for

    def prompt(self, instruction: str, tokenizer: Tokenizer) -> templates.Prompt:
        return templates.prompt(self.template, instruction, tokenizer, self.think)

    def conversation(self, messages: list[dict[str, str]], tokenizer: Tokenizer) -> templates.Prompt:
        """Messages (role, content) as a prompt: in the tokenizer's chat template if the model knows it, else the last one as an instruction.

        Raises:
          ValueError: they can't be a prompt.
        """
        if not self.prompt("x", tokenizer).whole:
            if messages[-1]["role"] != "user":
                raise ValueError("the last one must be the user's")
            return self.prompt(messages[-1]["content"], tokenizer)
        if self.template.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.template.system}, *messages]
        return templates.conversation(messages, tokenizer)


def asking(
    model: str, tokenizer: Tokenizer, name: str | None = None, system: str = "", think: bool = True, adapter: str | None = None
) -> Asking:
    """How `model` is asked: in the template that it was trained with here; another's in its chat template, or, without one, plainly.

    Args:
      model: a Hugging Face directory, a hub id, or a run_dir.
      name: a template instead, see `data_pipeline.template.load`; one that isn't the model's own is warned of.
      system: the system text of a chat, instead of the model's own.
      think: ask for a thought, if the model has learned to have one.
      adapter: a PEFT directory; what it was trained with counts.
    """
    own = (adapter and _own(adapter)) or _own(model)
    if name is not None:
        chosen, _ = templates.load(name, tokenizer, system)
        if own is not None and own.source != chosen.source:
            log.warning("%s was trained with the template %s and is asked in %s", adapter or model, own.name, chosen.name)
        if own is not None:
            think &= own.thinks
    elif own is not None:
        chosen = own
        templates.check(own, tokenizer, f"{adapter or model}, the template that it was trained with")
    else:
        try:
            chosen, _ = templates.load("chat" if tokenizer.chat else "plain", tokenizer, system)
        except DataError as error:
            raise DataError(f"{model}, its chat template: {error}; correct it, or choose another way to ask with --template") from None
    if system and chosen.system != system:
        log.warning("%s was trained with the system text %r and is asked with %r", adapter or model, chosen.system, system)
        chosen = Template(chosen.name, chosen.source, system, chosen.thinks)
    return Asking(chosen, think and chosen.thinks)


def _own(path: str) -> Template | None:
    """The template that a run, or an export of one, was trained with."""
    if open_run(path) is not None:
        file = Path(path) / "data.json"
        return templates.of_facts(Manifest.read(file).template, str(file))
    file = hf.locate(path) / templates.FILE
    return templates.of_facts(read_object(file), str(file)) if os.path.lexists(file) else None


@dataclass(frozen=True)
class Prompt:
    """A row of the prompts' file."""

    id: str
    where: str  # file and line, for errors
    text: str  # for people
    ids: tuple[int, ...]  # as the model reads it
    instruction: bool  # a template wrote it

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()[:16]


def read(path: str, tokenizer: Tokenizer, asking: Asking) -> list[Prompt]:
    """The prompts of a JSONL file: rows {"prompt": ...} as they are, rows {"instruction": ...} as the model is asked.

    Raises:
      ConfigError: no such file, or a row is no object, has neither or both, or an id that another row has; file and line are named.
    """
    found: dict[str, Prompt] = {}
    for where, row in records.read(path, records.raising(ConfigError)):
        where = f"{path}:{where.rpartition(':')[2]}"
        key = next((key for key in ("prompt", "instruction") if key in row), None)
        if key is None or {"prompt", "instruction"} <= row.keys():
            raise ConfigError(f'{where}: write {{"id": ..., "prompt": TEXT}} or {{"id": ..., "instruction": TEXT}}')
        try:
            text, name = text_of(row[key], key), str(row.get("id", where.rpartition(":")[2]))
            shown = asking.prompt(text, tokenizer) if key == "instruction" else templates.as_it_stands(text)
        except (RowError, TemplateError) as error:
            raise ConfigError(f"{where}: {error}") from None
        if name in found:
            raise ConfigError(f"{where}: id {name} stands at {found[name].where} already")
        found[name] = Prompt(name, where, shown.shown, tuple(shown.ids(tokenizer)), key == "instruction")
    if not found:
        raise ConfigError(f"{path}: no prompt")
    return list(found.values())
