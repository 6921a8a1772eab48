"""Tokenizers: loading, training a small one, and the fingerprint that ties shards to a model."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from foundation.errors import DataError
from foundation.files import Json, read_object, read_text, write_json, write_text
from foundation.stores import directory_of

EOS_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
"""End-of-text tokens to look for where a tokenizer doesn't say which one is its own."""


OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Noncharacters: Unicode keeps them for a program's own use, no text holds them. Between the two stands a control token."""

_CONTROL = re.compile(r"[\s\u2581]*(?:<.*>|\[.*\])", re.DOTALL)
"""What added tokens look like that steer a model, whether or not a tokenizer calls them special. Others are runs of blanks, or rare letters."""


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer with the two special ids that training needs, and the chat template that came with it.

    Control tokens (`<|im_end|>`, `</s>`, ...) that a text spells are text: only what stands between `OPEN` and `CLOSE` becomes one.
    """

    backend: tokenizers.Tokenizer
    eos_id: int
    bos_id: int | None  # set only if the tokenizer itself puts it in front of a text
    chat: str | None = None  # Jinja
    specials: Mapping[str, str] = field(default_factory=dict, hash=False)  # by the names that chat templates use: bos_token, eos_token, ...

    def encode(self, text: str, goes_on: bool = False) -> tokenizers.Encoding:
        """A text's tokens. `goes_on`: it follows another text, so that no tokenizer puts a blank in front of it."""
        return self._backends[goes_on].encode(text, add_special_tokens=False)

    def document(self, text: str) -> list[int]:
        """A text that stands alone: BOS in front where the tokenizer asks for it, and no template has; an empty one is at least an end-of-text."""
        ids = self.encode(text).ids
        first = [] if self.bos_id is None or ids[:1] == [self.bos_id] else [self.bos_id]
        return [*first, *ids] or [self.eos_id]

    @cached_property
    def control(self) -> re.Pattern[str] | None:
        """Finds control tokens in a text."""
        names = sorted(map(re.escape, _control(json.loads(self.backend.to_str()))), key=len, reverse=True)
        return re.compile("|".join(names)) if names else None

    @cached_property
    def _backends(self) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        content = json.loads(self.backend.to_str())
        wrapped = {name: OPEN + name + CLOSE for name in _control(content)}
        for token in content["added_tokens"]:
            token["content"] = wrapped.get(token["content"], token["content"])
        model = content["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {wrapped.get(name, name): index for name, index in model["vocab"].items()}
        else:  # Unigram's: [name, score]
            model["vocab"] = [[wrapped.get(name, name), *rest] for name, *rest in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = wrapped.get(model["unk_token"], model["unk_token"])
        content["post_processor"] = None  # what it adds, `document` does; it would look for the old names
        alone = tokenizers.Tokenizer.from_str(json.dumps(content))
        for key in ("normalizer", "pre_tokenizer"):
            content[key] = _without_prefix(content[key])
        return alone, tokenizers.Tokenizer.from_str(json.dumps(content))

    @property
    def sha256(self) -> str:
        """Of what the tokenizer does to a text, independent of the file's formatting."""
        content = json.loads(self.backend.to_str())
        content["truncation"] = content["padding"] = None
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def size(self) -> int:
        """How many ids there are; what a model's vocabulary has beyond them is padding."""
        return max(self.backend.get_vocab().values()) + 1

    def save(self, directory: str | Path) -> None:
        """Write the files that `transformers` reads."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(directory / "tokenizer.json"))
        names = dict(self.specials) | {
            "eos_token": self.backend.id_to_token(self.eos_id),
            "bos_token": self.specials.get("bos_token") if self.bos_id is None else self.backend.id_to_token(self.bos_id),
        }
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | names)
        if self.chat is not None:
            write_text(directory / CHAT_FILE, self.chat)


CHAT_FILE = "chat_template.jinja"


def load(name: str | Path) -> Tokenizer:
    """Load a `tokenizer.json`, a directory that holds one, or a hub id.

    Raises:
      DataError: there is no `tokenizer.json`, it is damaged, or no end-of-text token can be found.
    """
    directory = _local(name)
    file = directory / "tokenizer.json"
    if not file.is_file():
        remedy = "convert it once with transformers.AutoTokenizer.from_pretrained(NAME).save_pretrained(DIR) and pass DIR"
        raise DataError(f"{name}: no tokenizer.json; {remedy}")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
        backend.no_truncation()
        backend.no_padding()
        bos_id = _leading_id(backend)
    except Exception as error:  # its own class is Exception
        raise _unreadable(file, error) from None
    settings = _settings(directory)
    specials = {key: text for key, value in settings.items() if key.endswith("_token") and (text := _content(value))}
    ids = (backend.token_to_id(name) for name in (specials.get("eos_token"), *EOS_NAMES) if name)
    eos_id = next((found for found in ids if found is not None), None)
    if eos_id is None:
        raise DataError(f"{name}: no end-of-text token; name it as `eos_token` in {directory}/tokenizer_config.json")
    found = Tokenizer(backend, eos_id, bos_id, _chat(directory, settings), specials)
    try:
        found.document("x")
    except Exception as error:
        raise _unreadable(file, error) from None
    return found


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"{file}: no tokenizer that can be read ({str(error)[:200]}); copy or download it again")


def compare(ours: Tokenizer, theirs: Tokenizer) -> tuple[tuple[int, str, str] | None, int, int]:
    """Where two tokenizers differ: the first (id, our token, theirs) that isn't the same; how many tokens only we have, and only they have."""
    a, b = ({index: token for token, index in each.backend.get_vocab().items()} for each in (ours, theirs))
    unlike = next(((index, a[index], b[index]) for index in sorted(a.keys() & b.keys()) if a[index] != b[index]), None)
    return unlike, len(a.keys() - b.keys()), len(b.keys() - a.keys())


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` entries, learned from `texts`; deterministic."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_NAMES[0]],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, eos_id=0, bos_id=None)  # special tokens come first


def _local(name: str | Path) -> Path:
    if Path(name).is_file():
        return Path(name).parent
    found = directory_of(name, ["tokenizer*.json", "chat_template*", "special_tokens_map.json", "config.json"])
    if found is None:
        raise DataError(f"{name}: no such tokenizer directory, file or hub id")
    return found


def _settings(directory: Path) -> Json:
    found: Json = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        found |= read_object(directory / file)
    return found


def _content(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _chat(directory: Path, settings: Json) -> str | None:
    """The chat template that a tokenizer came with; of several the one called default."""
    if os.path.lexists(directory / CHAT_FILE):
        found: Any = read_text(directory / CHAT_FILE)
    else:
        found = read_object(directory / "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(found, list):
        found = next((each.get("template") for each in found if isinstance(each, dict) and each.get("name") == "default"), None)
    return found if isinstance(found, str) and found.strip() else None


def _control(content: Json) -> list[str]:
    """The control tokens of a tokenizer.json."""
    return [token["content"] for token in content["added_tokens"] if token["special"] or _CONTROL.fullmatch(token["content"])]


def _without_prefix(step: Json | None) -> Json | None:
    """A normalizer or pre-tokenizer that puts nothing in front of a text."""
    if step is None or step["type"] == "Prepend":
        return None
    for several in ("normalizers", "pretokenizers"):
        if several in step:
            return step | {several: [kept for part in step[several] if (kept := _without_prefix(part)) is not None]}
    if step["type"] == "Metaspace":
        return step | {"prepend_scheme": "never"}
    return step | {"add_prefix_space": False} if "add_prefix_space" in step else step


def _leading_id(backend: tokenizers.Tokenizer) -> int | None:
    with_special, plain = backend.encode("x").ids, backend.encode("x", add_special_tokens=False).ids
    return with_special[0] if with_special[0] != plain[0] else None
