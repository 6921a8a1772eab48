"""Tokenizers: loading, training a small one, and the fingerprint that ties shards to a model."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from foundation.errors import DataError
from foundation.files import directory_of, write_json

EOS_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
"""End-of-text tokens to look for where a tokenizer doesn't say which one is its own."""


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer with the two special ids that training needs."""

    backend: tokenizers.Tokenizer
    eos_id: int
    bos_id: int | None  # set only if the tokenizer itself puts it in front of a text

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
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.backend.id_to_token(self.eos_id),
            "bos_token": None if self.bos_id is None else self.backend.id_to_token(self.bos_id),
        }
        write_json(directory / "tokenizer_config.json", settings)


def load(name: str | Path) -> Tokenizer:
    """Load a `tokenizer.json`, a directory that holds one, or a hub id.

    Raises:
      DataError: there is no `tokenizer.json`, or no end-of-text token can be found.
    """
    directory = _local(name)
    file = directory / "tokenizer.json"
    if not file.is_file():
        remedy = "convert it once with transformers.AutoTokenizer.from_pretrained(NAME).save_pretrained(DIR) and pass DIR"
        raise DataError(f"{name}: no tokenizer.json; {remedy}")
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    ids = (backend.token_to_id(name) for name in (_declared_eos(directory), *EOS_NAMES) if name)
    eos_id = next((found for found in ids if found is not None), None)
    if eos_id is None:
        raise DataError(f"{name}: no end-of-text token; name it as `eos_token` in {directory}/tokenizer_config.json")
    return Tokenizer(backend, eos_id, _leading_id(backend))


def chat_template(name: str | Path) -> Callable[[Sequence[Mapping[str, str]]], str] | None:
    """How the template that comes with a tokenizer writes messages (role, content), up to where the assistant goes on; None: none comes with it.

    What it makes raises a ValueError at messages that the template refuses. Templates run in transformers' sandbox.
    """
    import jinja2
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast.from_pretrained(_local(name))
    if fast.chat_template is None:
        return None

    def write(messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise ValueError(f"the model's chat template: {error}") from None

    return write


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


def _declared_eos(directory: Path) -> str | None:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / file).is_file() and (token := json.loads((directory / file).read_text()).get("eos_token")):
            return token["content"] if isinstance(token, dict) else token
    return None


def _leading_id(backend: tokenizers.Tokenizer) -> int | None:
    with_special, plain = backend.encode("x").ids, backend.encode("x", add_special_tokens=False).ids
    return with_special[0] if with_special[0] != plain[0] else None
