"""Continuous batching: samples that finish make room for the next ones while the others go on."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import numpy as np

from lpo_jax.decode.engine import Rows
from lpo_jax.decode.request import Completion, Request, SamplingConfig, check, encode
from lpo_jax.decode.rules.warp import Warp
from lpo_jax.model.decoder import KVCache

if TYPE_CHECKING:  # the sampler imports this module
    from lpo_jax.decode.sampler import Sampler

MIN_BUCKET = 32
BLOCKS = (1, 2, 4, 8)
_CONTEXT = 8  # of the prompt's last tokens that are decoded with a completion: what stands in front decides a first token's space


@dataclass(frozen=True)
class Progress:
    """News of a sample."""

    id: str
    sample: int
    text: str  # so far: characters that nothing to come can change
    done: Completion | None


class Session:
    """Samples at work and waiting, in the rows of a sampler. Not for several threads at once.

    Args:
      streams: tell of samples that aren't done, too. Their text is decoded anew after every segment.
    """

    def __init__(self, sampler: "Sampler", streams: bool = False):
        self._streams = streams
        self._sampler, self._loop = sampler, sampler.loop
        self._waiting: deque[_Sample] = deque()
        self._work: dict[int, _Sample] = {}
        self._latest: _Prefilled | None = None
        self._seen, self._taken = 0.0, 0.0  # tokens that the security model proposed, and those that were taken; old ones fade
        with jax.set_mesh(sampler.mesh):
            self._rows: Rows = self._loop.empty()

    @property
    def busy(self) -> bool:
        """Is anything at work or waiting?"""
        return bool(self._work or self._waiting)

    @property
    def room(self) -> int:
        """Rows that nothing waits for."""
        return self._loop.rows - len(self._work) - len(self._waiting)

    def add(self, request: Request) -> None:
        """Let a request's samples wait for rows.

        Raises:
          ConfigError: its prompt is empty or too long, or its seed out of range; the request's id is named.
        """
        sampling = request.sampling or self._sampler.config
        prompt = tuple(encode(self._sampler.tokenizer, request.prompt) if isinstance(request.prompt, str) else request.prompt)
        check(request, prompt, sampling, self._sampler.vocab, self._sampler.max_len_tokens)
        self._waiting.extend(_Sample(request, sampling, number, prompt) for number in range(request.sample, request.sample + request.n))

    def cancel(self, request_id: str) -> None:
        """Forget a request's samples; their rows are free at once."""
        self._waiting = deque(sample for sample in self._waiting if sample.request.id != request_id)
        slots = [slot for slot, sample in self._work.items() if sample.request.id == request_id]
        for slot in slots:
            del self._work[slot]
        if slots:
            active = np.array(self._rows.active)
            active[slots] = False
            self._set_active(active)

    def advance(self) -> list[Progress]:
        """Fill free rows from those that wait, extend all rows by a segment, and say what it brought."""
        free = [slot for slot in range(self._loop.rows) if slot not in self._work]
        new = {slot: self._waiting.popleft() for slot in free[: len(self._waiting)]}
        with jax.set_mesh(self._sampler.mesh):
            self._admit(new)
            self._work |= new
            if not self._work:
                return []
            block = self._block()
            steps = max(1, self._sampler.segment_steps // block)
            self._rows = self._loop.extend(self._sampler.params, self._rows, steps, block=block)
        return self._collect()

    # --- In.

    def _admit(self, new: Mapping[int, "_Sample"]) -> None:
        """Place new samples in their slots, each prompt prefilled once; the latest prefill may have it already.

        A prefill's shape is a function of its prompts' own lengths, so that a prompt's numbers don't depend on its company.
        """
        slots: dict[tuple[int, ...], list[int]] = {}
        for slot, sample in new.items():
            slots.setdefault(sample.prompt, []).append(slot)
        buckets: dict[int, list[tuple[int, ...]]] = {}
        for prompt in slots:
            if self._latest is None or prompt not in self._latest.prompts:
                buckets.setdefault(bucket(len(prompt), self._sampler.max_len_tokens), []).append(prompt)
        size = self._sampler.group
        groups = [(width, missing[i : i + size]) for width, missing in buckets.items() for i in range(0, len(missing), size)]
        if self._latest is not None:
            self._place(self._latest, slots, new)
        for width, prompts in groups:
            tokens = np.zeros((size, width), np.int32)
            for i, prompt in enumerate(prompts):
                tokens[i, : len(prompt)] = prompt
            self._latest = _Prefilled(prompts, tokens, self._loop.prefill(self._sampler.params, tokens))
            self._place(self._latest, slots, new)

    def _place(self, prefilled: "_Prefilled", slots: Mapping[tuple[int, ...], list[int]], new: Mapping[int, "_Sample"]) -> None:
        for source, prompt in enumerate(prefilled.prompts):
            for slot in slots.get(prompt, ()):
                sample = new[slot]
                c = sample.sampling
                noise = np.array([sample.request.seed, sample.number], np.uint32)
                lengths = np.array([len(prompt), len(prompt) + c.max_new_tokens], np.int32)
                by = Warp(np.float32(c.temperature), np.int32(c.top_k), np.float32(c.top_p))
                self._rows = self._loop.place(self._rows, prefilled.caches, prefilled.tokens, source, slot, lengths, noise, by)

    def _block(self) -> int:
        """Tokens to propose at a time: if each is taken with the probability seen, the most appended tokens for the time."""
        if self._loop.rule is None:
            return 1
        if self._sampler.block is not None:
            return self._sampler.block
        share = self._taken / self._seen if self._seen else 0.5
        return max(BLOCKS, key=lambda k: sum(share**i for i in range(k)) / (1 + k * self._sampler.draft_cost))

    # --- Out.

    def _collect(self) -> list[Progress]:
        """What the segment brought. Samples that are done leave; a row that a stop string has ended is told so."""
        active, length, tokens, facts = jax.device_get((self._rows.active, self._rows.length, self._rows.tokens, self._rows.facts))
        active, news = active.copy(), []
        self._seen, self._taken = self._seen / 2, self._taken / 2
        for slot, sample in sorted(self._work.items()):
            start, end = len(sample.prompt), length[slot]
            new = tokens[slot, start:end].tolist()
            if self._loop.rule is not None:
                fresh = facts["accepted"][slot, start + sample.read : end]
                self._seen, self._taken = self._seen + len(fresh), self._taken + fresh.sum()
            sample.read = len(new)
            done = self._finish(sample, new, not active[slot])
            if done is None:
                if self._streams:
                    news.append(Progress(sample.request.id, sample.number, self._settled(sample, new), None))
                continue
            active[slot] = False
            kept = {name: tuple(x[slot, start : start + len(done.tokens)].tolist()) for name, x in facts.items()}
            done = replace(done, logprobs=kept.pop("logp"), facts=kept)
            news.append(Progress(done.id, done.sample, done.text, done))
            del self._work[slot]
        self._set_active(active)
        return news

    def _set_active(self, active: np.ndarray) -> None:
        self._rows = replace(self._rows, active=jax.device_put(active, self._loop.row_sharding))

    def _finish(self, sample: "_Sample", new: list[int], ended: bool) -> Completion | None:
        text = self._stopped(sample, new)
        if text is not None:
            return Completion(sample.request.id, sample.number, text, tuple(new[: sample.searched]), "stop", (), {})
        if not ended:
            return None
        stop = new[-1] in self._sampler.ends
        text = self._text(sample, new[:-1] if stop else new)
        return Completion(sample.request.id, sample.number, text, tuple(new), "stop" if stop else "length", (), {})

    def _stopped(self, sample: "_Sample", new: list[int]) -> str | None:
        """The text in front of the first stop string, if one has been completed; then `searched` is the tokens that it took.

        What a segment's tokens bring is looked at token by token, so the result doesn't depend on where segments end.
        """
        upto = len(new) - (bool(new) and new[-1] in self._sampler.ends)
        if sample.sampling.stop and self._cut(sample, new[:upto]) is not None:
            for n in range(sample.searched + 1, upto + 1):
                text = self._cut(sample, new[:n])
                if text is not None:
                    sample.searched = n
                    return text
        sample.searched = upto
        return None

    def _cut(self, sample: "_Sample", new: list[int]) -> str | None:
        text = self._text(sample, new)
        found = [at for at in (text.find(stop) for stop in sample.sampling.stop) if at >= 0]
        return text[: min(found)] if found else None

    def _settled(self, sample: "_Sample", new: list[int]) -> str:
        """The text of `new` without an end that may be half a character or the beginning of a stop string."""
        text = self._text(sample, new).rstrip("\ufffd")
        longest = max((len(stop) for stop in sample.sampling.stop), default=1)
        for n in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in sample.sampling.stop):
                return text[:-n]
        return text

    def _text(self, sample: "_Sample", new: list[int]) -> str:
        context, backend = list(sample.prompt[-_CONTEXT:]), self._sampler.tokenizer.backend
        return backend.decode(context + new)[len(backend.decode(context)) :]


def bucket(length: int, most: int) -> int:
    """The tokens that a prompt's prefill is padded to: the least power of two that holds it, or all that a row can hold."""
    return min(max(MIN_BUCKET, 1 << (length - 1).bit_length()), most)


@dataclass
class _Sample:
    """One sample of a request, waiting or at work."""

    request: Request
    sampling: SamplingConfig
    number: int
    prompt: tuple[int, ...]
    read: int = 0  # generated tokens that the host has seen
    searched: int = 0  # generated tokens that hold no stop string


@dataclass(frozen=True)
class _Prefilled:
    """Prompts whose keys and values are known: prompt i stands in row i."""

    prompts: list[tuple[int, ...]]
    tokens: np.ndarray
    caches: tuple[KVCache, ...]
