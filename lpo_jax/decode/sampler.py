"""Requests to completions: rows that finish make room for the next request while the others go on.

What a request gets depends on the weights, its prompt, its seed and its sample's number, and on nothing else: not on the other rows, the row
it is in, nor when it is let in (up to rounding: equal numbers of rows give equal bits).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lpo_jax.config import ConfigError
from lpo_jax.decode.loop import Loop, Rows
from lpo_jax.decode.warp import draw, logp_of, only, warp
from lpo_jax.model.decoder import KVCache, Model, Params

MIN_BUCKET = 32
_CONTEXT = 8  # of the prompt's last tokens that are decoded with a completion: what stands in front decides a first token's space


class Tokenizer(Protocol):
    """What the sampler needs of a tokenizer; `data_pipeline.tokenizer.Tokenizer` has it."""

    @property
    def backend(self) -> Any: ...  # a tokenizers.Tokenizer
    @property
    def eos_id(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class LoadedModel:
    """A model with its parameters on a mesh."""

    model: Model
    params: Params
    mesh: Mesh
    eos_ids: tuple[int, ...] = ()  # that its files declare, besides the tokenizer's


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
    max_new_tokens: int | None = None  # default: the config's


@dataclass(frozen=True)
class Completion:
    """What a sample became."""

    id: str
    sample: int
    text: str  # without the prompt, end-of-text and the stop string
    tokens: tuple[int, ...]  # all that were generated, the one that ended it included
    finish: str  # "stop": an end token or a stop string; "length": max_new_tokens
    logprobs: tuple[float, ...]  # of `tokens`, by the model itself: no temperature, no filter


def encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's tokens, as training reads it: BOS where the tokenizer asks for it; an empty prompt is at least an end-of-text."""
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [*first, *tokenizer.backend.encode(prompt, add_special_tokens=False).ids] or [tokenizer.eos_id]


class Sampler:
    """Completions by one model, `rows` at a time.

    Compiles a program for each power of two of the prompts' lengths, and one loop; afterwards nothing, whatever is asked.

    Args:
      rows: sequences in work at once, a multiple of the mesh's data * fsdp. Memory for caches is taken for all of them.
      max_len_tokens: the longest prompt and completion together.
      segment_steps: tokens between looks at which rows are done; a row that is done idles until then.

    Raises:
      ConfigError: rows don't divide, the model is too short, or tokenizer and model don't fit; with the numbers.
    """

    def __init__(
        self, model: LoadedModel, tokenizer: Tokenizer, config: SamplingConfig, rows: int, max_len_tokens: int, *, segment_steps: int = 16
    ):
        self.tokenizer, self.config, self.max_len_tokens, self.segment_steps = tokenizer, config, max_len_tokens, segment_steps
        self._mesh, self._params = model.mesh, (model.params,)
        self._group = model.mesh.shape["data"] * model.mesh.shape["fsdp"]  # prompts of a prefill: one for each cut of the batch
        shape = model.model.config
        self._vocab = max(tokenizer.backend.get_vocab().values()) + 1
        if rows < 1 or rows % self._group:
            raise ConfigError(f"rows is {rows}: it must be a positive multiple of data * fsdp = {self._group}")
        if max_len_tokens > shape.max_positions:
            raise ConfigError(f"max_len_tokens is {max_len_tokens}: the model was made for {shape.max_positions} tokens")
        if self._vocab > shape.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self._vocab} entries, the model's vocabulary {shape.vocab_size}: give the model's own tokenizer"
            )
        self.ends = tuple(sorted({tokenizer.eos_id, *model.eos_ids, *config.stop_tokens}))
        self._loop = Loop([model.model], model.mesh, self._choose, ("logp",), self.ends, rows, max_len_tokens)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each sample's completion when it is done. Requests are read as rows become free.

        Raises:
          ConfigError: a prompt is empty or too long, or a seed out of range; the request's id is named.
        """
        waiting = self._samples(requests)
        work: dict[int, _Sample] = {}
        latest: _Prefilled | None = None
        with jax.set_mesh(self._mesh):
            rows = self._loop.empty()
        while True:
            free = (slot for slot in range(self._loop.rows) if slot not in work)
            new = dict(zip(free, waiting, strict=False))
            rows, latest = self._admit(rows, new, latest)
            work |= new
            if not work:
                return
            with jax.set_mesh(self._mesh):
                rows = self._loop.extend(self._params, rows, self.segment_steps)
            done, rows = self._collect(rows, work)
            yield from done

    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return self._loop.compilations()

    # --- What is drawn.

    def _choose(self, logits: Sequence[jax.Array], keys: jax.Array, positions: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        c = self.config
        z = only(logits[0], self._vocab)
        greedy = c.temperature == 0
        token = jnp.argmax(z, axis=-1) if greedy else draw(warp(z, c.temperature, c.top_k, c.top_p), keys, positions)
        return token.astype(jnp.int32), {"logp": logp_of(z, token)}

    # --- Rows come and go.

    def _samples(self, requests: Iterable[Request]) -> Iterator["_Sample"]:
        for request in requests:
            prompt = tuple(encode(self.tokenizer, request.prompt) if isinstance(request.prompt, str) else request.prompt)
            full_at = len(prompt) + (request.max_new_tokens or self.config.max_new_tokens)
            self._check(request, prompt, full_at)
            for sample in range(request.sample, request.sample + request.n):
                yield _Sample(request, sample, prompt, full_at)

    def _check(self, request: Request, prompt: tuple[int, ...], full_at: int) -> None:
        if not prompt:
            raise ConfigError(f"request {request.id}: the prompt has no token")
        if full_at > self.max_len_tokens:
            raise ConfigError(
                f"request {request.id}: its prompt of {len(prompt)} tokens and {full_at - len(prompt)} new ones don't fit "
                f"max_len_tokens={self.max_len_tokens}: shorten the prompt, lower max_new_tokens or raise max_len_tokens"
            )
        if not 0 <= request.seed < 2**32:
            raise ConfigError(f"request {request.id}: seed {request.seed} must lie in [0, 2**32)")
        if not all(0 <= token < self._vocab for token in prompt):
            raise ConfigError(f"request {request.id}: a token of the prompt isn't one of the tokenizer's {self._vocab}")

    def _admit(self, rows: Rows, new: Mapping[int, "_Sample"], latest: "_Prefilled | None") -> tuple[Rows, "_Prefilled | None"]:
        """Place new samples in their slots, each prompt prefilled once; the `latest` prefill may have it already.

        A prefill's shape is a function of its prompts' own lengths, so that a prompt's numbers don't depend on its company.
        """
        slots: dict[tuple[int, ...], list[int]] = {}
        for slot, sample in new.items():
            slots.setdefault(sample.prompt, []).append(slot)
        buckets: dict[int, list[tuple[int, ...]]] = {}
        for prompt in slots:
            if latest is None or prompt not in latest.prompts:
                buckets.setdefault(self._bucket(len(prompt)), []).append(prompt)
        groups = [
            (bucket, missing[i : i + self._group]) for bucket, missing in buckets.items() for i in range(0, len(missing), self._group)
        ]
        with jax.set_mesh(self._mesh):
            if latest is not None:
                rows = self._place(rows, latest, slots, new)
            for bucket, prompts in groups:
                tokens = np.zeros((self._group, bucket), np.int32)
                for i, prompt in enumerate(prompts):
                    tokens[i, : len(prompt)] = prompt
                latest = _Prefilled(prompts, tokens, self._loop.prefill(self._params, tokens))
                rows = self._place(rows, latest, slots, new)
        return rows, latest

    def _place(self, rows: Rows, prefilled: "_Prefilled", slots: Mapping[tuple[int, ...], list[int]], new: Mapping[int, "_Sample"]) -> Rows:
        for source, prompt in enumerate(prefilled.prompts):
            for slot in slots.get(prompt, ()):
                noise = np.array([new[slot].request.seed, new[slot].number], np.uint32)
                lengths = np.array([len(prompt), new[slot].full_at], np.int32)
                rows = self._loop.place(rows, prefilled.caches, prefilled.tokens, source, slot, lengths, noise)
        return rows

    def _bucket(self, length: int) -> int:
        """The least power of two that holds a prompt, or all slots."""
        return min(max(MIN_BUCKET, 1 << (length - 1).bit_length()), self.max_len_tokens)

    def _collect(self, rows: Rows, work: dict[int, "_Sample"]) -> tuple[list[Completion], Rows]:
        """Take what is done out of `work`; a row that a stop string has ended is told so."""
        active, length, tokens, logps = jax.device_get((rows.active, rows.length, rows.tokens, rows.facts["logp"]))
        active, done = active.copy(), []
        for slot, sample in sorted(work.items()):
            start = len(sample.prompt)
            new = tokens[slot, start : length[slot]].tolist()
            text = self._stopped(sample, new)
            if text is None and active[slot]:
                continue
            if text is not None:
                new, finish = new[: sample.seen], "stop"
            else:
                ended = new[-1] in self.ends
                text, finish = self._text(sample.prompt, new[:-1] if ended else new), "stop" if ended else "length"
            active[slot] = False
            logprobs = logps[slot, start : start + len(new)].tolist()
            done.append(Completion(sample.request.id, sample.number, text, tuple(new), finish, tuple(logprobs)))
            del work[slot]
        return done, replace(rows, active=jax.device_put(active, self._loop.row_sharding))

    def _stopped(self, sample: "_Sample", new: list[int]) -> str | None:
        """The text in front of the first stop string, if one has been completed; then `seen` is the tokens that it took.

        What a segment's tokens bring is looked at token by token, so the result doesn't depend on where segments end.
        """
        upto = len(new) - (bool(new) and new[-1] in self.ends)
        if self.config.stop and self._cut(sample, new[:upto]) is not None:
            for n in range(sample.seen + 1, upto + 1):
                text = self._cut(sample, new[:n])
                if text is not None:
                    sample.seen = n
                    return text
        sample.seen = upto
        return None

    def _cut(self, sample: "_Sample", new: list[int]) -> str | None:
        text = self._text(sample.prompt, new)
        found = [at for at in (text.find(stop) for stop in self.config.stop) if at >= 0]
        return text[: min(found)] if found else None

    def _text(self, prompt: tuple[int, ...], new: list[int]) -> str:
        context = list(prompt[-_CONTEXT:])
        return self.tokenizer.backend.decode(context + new)[len(self.tokenizer.backend.decode(context)) :]


@dataclass
class _Sample:
    """One sample of a request, waiting or at work."""

    request: Request
    number: int
    prompt: tuple[int, ...]
    full_at: int
    seen: int = 0  # generated tokens that hold no stop string


@dataclass(frozen=True)
class _Prefilled:
    """Prompts whose keys and values are known: prompt i stands in row i."""

    prompts: list[tuple[int, ...]]
    tokens: np.ndarray
    caches: tuple[KVCache, ...]
