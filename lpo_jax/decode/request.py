"""What is asked of a sampler, what it answers, and what it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from data_pipeline.chat import TemplateError
from data_pipeline.template import as_it_stands
from data_pipeline.tokenizer import Tokenizer
from foundation.errors import UserError
from lpo_jax.config import ConfigError, ModelConfig
from lpo_jax.model.decoder import Model, Params
from lpo_jax.sharding import row_cuts


@dataclass(frozen=True)
class LoadedModel:
    """A model with its parameters on a mesh."""

    model: Model
    params: Params
    mesh: Mesh
    eos_ids: tuple[int, ...] = ()  # that its files declare, besides the tokenizer's
    adapters: Params | None = None  # those that work beside it, see `lpo_jax.model.adapters.joined`
    names: tuple[str, ...] = ()  # of these, in their order

    @property
    def cuts(self) -> int:
        """Into how many parts the mesh cuts a batch."""
        return row_cuts(self.mesh.shape)

    def for_decoding(self) -> "LoadedModel":
        """The same with the parameters as decoding is fastest with them here. This one is used up."""
        one_cpu = self.mesh.size == 1 and self.mesh.devices.flat[0].platform == "cpu"
        return replace(self, params=self.model.apart(self.params)) if one_cpu else self


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn, and what ends a completion. The default is the protocol of SVEN, CoSec and their kin."""

    temperature: float = 0.4  # 0: the most probable token
    top_k: int = 0  # keep so many of the most probable tokens; 0: all
    top_p: float = 0.95  # then the fewest of them that hold this share of the probability; 1: all
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()  # texts that end a completion; what begins with them is cut off
    stop_tokens: tuple[int, ...] = ()  # besides end-of-text

    def __post_init__(self) -> None:
        for name, fine, wanted in (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("max_new_tokens", self.max_new_tokens > 0, "positive"),
            ("stop", all(self.stop), "texts of one character at least"),
        ):
            if not fine:
                raise ConfigError(f"sampling: {name} must be {wanted}, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Request:
    """A prompt, and which of its samples are wanted: those numbered `sample`, ..., `sample + n - 1`."""

    id: str
    prompt: str | Sequence[int]  # a text, tokenised as in training, or tokens
    seed: int = 0  # 0 <= seed < 2**32; each sample has noise of its own
    sample: int = 0
    n: int = 1
    sampling: SamplingConfig | None = None  # default: the sampler's; `stop_tokens` are always the sampler's
    adapter: str | None = None  # the name of one of the model's; None: the model itself


@dataclass(frozen=True)
class Completion:
    """What a sample became."""

    id: str
    sample: int
    text: str  # without the prompt, end-of-text and the stop string
    tokens: tuple[int, ...]  # all that were generated, the one that ended it included
    finish: str  # "stop": an end token or a stop string; "length": max_new_tokens
    logprobs: tuple[float, ...]  # of `tokens`, by the model (of two: the target) itself: no temperature, no filter
    facts: dict[str, tuple[float, ...]]  # of `tokens`, from co-decoding: see `codecode.FACTS`


def resolve(
    request: Request, tokenizer: Tokenizer, config: SamplingConfig, vocab: int, max_len_tokens: int
) -> tuple[tuple[int, ...], SamplingConfig]:
    """A request's prompt as tokens, and its sampling; `config` where it has none.

    Raises:
      ConfigError: the prompt is empty or too long, no text, or has a token that isn't there, or the seed is out of range; the request's id is named.
    """
    sampling = request.sampling or config
    try:
        prompt = tuple(as_it_stands(request.prompt).ids(tokenizer) if isinstance(request.prompt, str) else request.prompt)
    except TemplateError as error:
        raise ConfigError(f"request {request.id}: {error}") from None
    if not prompt:
        raise ConfigError(f"request {request.id}: the prompt has no token")
    if len(prompt) + sampling.max_new_tokens > max_len_tokens:
        raise ConfigError(
            f"request {request.id}: its prompt of {len(prompt)} tokens and {sampling.max_new_tokens} new ones don't fit "
            f"max_len_tokens={max_len_tokens}"
        )
    if not 0 <= request.seed < 2**32:
        raise ConfigError(f"request {request.id}: seed {request.seed} must lie in 0 .. {2**32 - 1}")
    if not all(0 <= token < vocab for token in prompt):
        raise ConfigError(f"request {request.id}: a token of the prompt isn't one of the tokenizer's {vocab}")
    return prompt, sampling


class DecodingError(UserError):
    """A model can't decode; the message says what is wrong with it."""


def check_finite(facts: Mapping[str, np.ndarray], params: Mapping[str, Params], request_id: str) -> None:
    """Refuse to go on with numbers that aren't: what would be drawn from them means nothing.

    Args:
      facts: of the latest tokens of a request.
      params: by the models' names, to say which of their tensors are at fault.

    Raises:
      DecodingError: some fact isn't finite.
    """
    if all(np.isfinite(values).all() for values in facts.values()):
        return
    wrong = [
        f"{path} of the {name}"
        for name, tree in params.items()
        for path, leaf in flatten_dict(tree, sep=".").items()
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(leaf))
    ]
    why = f"not finite are {', '.join(wrong[:6])}" if wrong else "its weights are finite; try --dtype float32"
    raise DecodingError(f"request {request_id}: the model's logits aren't finite ({why})")


def check_model(opened: LoadedModel, name: str, vocab: int, rows: int, length: int, asked: str) -> None:
    """Refuse a model that can't decode `rows` sequences of `length` tokens, of a tokenizer with `vocab` entries.

    Args:
      name: of the model, for errors.
      asked: who asks for `length`, for errors: "max_len_tokens is 64".

    Raises:
      ConfigError: rows don't divide, the model is too short, or its vocabulary too small; with the numbers.
    """
    check_rows(rows, opened.cuts)
    if length > opened.model.config.max_positions:
        raise ConfigError(f"{asked}: the {name} was made for {opened.model.config.limit}")
    check_vocab(opened.model.config, f"the {name}", vocab)


def check_rows(rows: int, cuts: int) -> None:
    """Refuse rows that a mesh can't cut into so many parts."""
    if rows < 1 or rows % cuts:
        raise ConfigError(f"rows is {rows}: it must be a positive multiple of data * fsdp * expert = {cuts}")


def check_vocab(shape: ModelConfig, owner: str, vocab: int) -> None:
    """Refuse a tokenizer with more entries than a model's vocabulary."""
    if vocab > shape.vocab_size:
        raise ConfigError(f"the tokenizer has {vocab} entries, {owner}'s vocabulary {shape.vocab_size}: give the model's own tokenizer")
