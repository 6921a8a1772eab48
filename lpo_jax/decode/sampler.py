"""Requests to completions, by one model or by a target that a security model steers.

A request's completions follow from the weights, its prompt, its seed, a sample's number and the settings. They don't depend on the other rows, on
the row that a sample is in, or on when it is let in. (Up to rounding: the same number of rows, and of tokens a block, gives the same bits.)

Where several processes share the mesh, each of them does all of this with the same requests in the same order. What it decides follows from these
and from what the devices say, so that all decide the same.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import jax
import numpy as np

from data_pipeline.tokenizer import Tokenizer
from lpo_jax.config import ConfigError
from lpo_jax.decode.engine import DecodeState, Engine
from lpo_jax.decode.request import Completion, LoadedModel, Request, SamplingConfig, check_finite, check_model, resolve
from lpo_jax.decode.rules.codecode import CoDecoding
from lpo_jax.decode.rules.warp import Warp
from lpo_jax.decode.sample import Sample
from lpo_jax.decode.session import Progress, completions
from lpo_jax.decode.tables import Tables, chunk_widths, page_slots, pages_of
from lpo_jax.tensors import on_host

BLOCKS = (1, 2, 4, 8)
"""Sizes of a block that are chosen among where none is given."""

PAGE = 128
"""Tokens whose keys and values lie on one page, at most."""

READS = 4
"""Calls that read prompts between two segments, while others wait for theirs."""


class Sampler:
    """Completions, `rows` at a time.

    Compiles a program for each width of a prompt's chunks (`tables.chunk_widths`), and one loop (co-decoding: one for each size of a block);
    afterwards nothing, whatever is asked.

    A row's memory is taken as its text grows. Where it runs out, samples wait, and the latest to begin goes back and begins again later: its text
    will be the same.

    Args:
      config: what a request gets that doesn't ask otherwise.
      rows: sequences at work at once, a multiple of the mesh's data * fsdp * expert.
      max_len_tokens: the longest prompt and completion together.
      security: a model of the same tokenizer that proposes tokens. It lies on the target's devices, on a mesh of its own if need be.
      rule: how a proposal is judged; default: the preset `aligned`.
      block: tokens that it proposes at a time. The completions don't depend on it (up to rounding). None: 1 to 8, by the share taken so far.
      segment_steps: tokens between looks at which rows are done; a row that is done idles until then.
      cache_gib: memory for keys and values, of all devices together. None: what all rows' longest texts need.
      page: tokens whose keys and values lie on one page.

    Raises:
      ConfigError: rows don't divide, a model is too short, or tokenizer and models don't fit; with the numbers.
    """

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        config: SamplingConfig,
        rows: int,
        max_len_tokens: int,
        *,
        security: LoadedModel | None = None,
        rule: CoDecoding | None = None,
        block: int | None = None,
        segment_steps: int = 16,
        cache_gib: float | None = None,
        page: int = PAGE,
    ):
        models = {"model": model} | ({} if security is None else {"security model": replace(security, mesh=model.mesh)})
        self.tokenizer, self.config, self.max_len_tokens, self.vocab = tokenizer, config, max_len_tokens, tokenizer.size
        self.block, self.segment_steps = block, segment_steps
        self.mesh, self.by_name = model.mesh, {name: m.params for name, m in models.items()}
        self.params, self.adapters = tuple(self.by_name.values()), model.adapters
        self.numbers = {None: 0} | {name: number for number, name in enumerate(model.names, 1)}  # of the adapters, as the engine counts
        self.parts = model.cuts
        for name, m in models.items():
            check_model(m, name, self.vocab, rows, max_len_tokens, f"max_len_tokens is {max_len_tokens}")
        if block is not None and block < 1:
            raise ConfigError(f"block is {block}: it must be positive")
        sizes = [sum(x.size for x in jax.tree.leaves(params)) for params in self.params]
        self.draft_cost = sizes[-1] / sizes[0]  # of a token proposed, in tokens of the target
        self.ends = tuple(sorted({tokenizer.eos_id, *model.eos_ids, *config.stop_tokens}))
        rule = None if security is None else rule or CoDecoding()
        slots, each = page_slots(page, max_len_tokens), [m.model for m in models.values()]
        pages = pages_of(each, rows, self.parts, slots, max_len_tokens, cache_gib)
        self.engine = Engine(each, model.mesh, rule, self.vocab, self.ends, rows, max_len_tokens, pages, slots)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each sample's completion when it is done. Requests are read as rows become free.

        Raises:
          ConfigError: a prompt is empty or too long, or a seed out of range; the request's id is named.
        """
        return completions(self.session(), requests)

    @property
    def rows(self) -> int:
        """Sequences at work at once."""
        return self.engine.rows

    def session(self, streams: bool = False) -> "Session":
        """See `Session`."""
        return Session(self, streams)

    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return self.engine.compilations()


class Session:
    """Continuous batching: the samples at work in a sampler's rows, and those that wait for a row. Not for several threads at once.

    A sample that is done leaves its row to the next that waits, while the other rows go on.

    Args:
      streams: tell of samples that aren't done, too. Their text is decoded anew after every segment.
    """

    def __init__(self, sampler: Sampler, streams: bool = False):
        self._streams = streams
        self._sampler, self._engine = sampler, sampler.engine
        self._waiting: deque[Sample] = deque()
        self._reading: dict[int, Sample] = {}  # by row: their prompts are being read
        self._work: dict[int, Sample] = {}  # by row
        e = self._engine
        self._tables = Tables(e.rows, sampler.parts, e.pages // sampler.parts, e.slots, e.longest)
        self._proposed, self._taken = 0.0, 0.0  # tokens by the security model, and those of them that were taken; old ones fade
        with jax.set_mesh(sampler.mesh):
            self._state: DecodeState = self._engine.empty()

    @property
    def busy(self) -> bool:
        """Is anything at work or waiting?"""
        return bool(self._work or self._reading or self._waiting)

    @property
    def room(self) -> int:
        """Rows that nothing waits for."""
        return self._engine.rows - len(self._work) - len(self._reading) - len(self._waiting)

    def add(self, request: Request) -> None:
        """Let a request's samples wait for rows.

        Raises:
          ConfigError: its prompt is empty or too long, its seed out of range, or its adapter unknown; the request's id is named.
        """
        s = self._sampler
        if request.adapter not in s.numbers:
            there = ", ".join(name for name in s.numbers if name) or "none"
            raise ConfigError(f"request {request.id}: there is no adapter {request.adapter!r} here (there are: {there})")
        prompt, sampling = resolve(request, s.tokenizer, s.config, s.vocab, s.max_len_tokens)
        numbers = range(request.sample, request.sample + request.n)
        self._waiting.extend(Sample(request, sampling, number, prompt, s.tokenizer, s.ends) for number in numbers)

    def cancel(self, request_id: str) -> None:
        """Forget a request's samples; their rows are free at once."""
        self._waiting = deque(sample for sample in self._waiting if sample.request.id != request_id)
        for row, sample in [*self._reading.items(), *self._work.items()]:
            if sample.request.id == request_id:
                self._take_out(row)

    def advance(self) -> list[Progress]:
        """Fill free rows from those that wait, extend all rows by a segment, and say what it brought."""
        s = self._sampler
        with jax.set_mesh(s.mesh):
            self._admit()
            self._read_prompts()
            block = self._block()
            steps = max(1, s.segment_steps // block)
            self._make_room(steps * block)
            if not self._work:
                return []
            self._state = self._engine.extend(s.params, s.adapters, self._state, self._tables.table, steps, block=block)
        return self._collect()

    def warm_up(self) -> None:
        """Compile all that requests can need; nothing may be at work."""
        assert not self._work
        s = self._sampler
        longest, one = s.max_len_tokens - 1, SamplingConfig(max_new_tokens=1)
        for length in sorted({min(width + 1, longest) for width in chunk_widths(s.engine.slots)}):
            self.add(Request(f"warm-up {length}", [0] * length, sampling=one))
            while self.busy:
                self.advance()
        with jax.set_mesh(s.mesh):
            for block in BLOCKS if s.engine.rule is not None and s.block is None else ():
                self._state = s.engine.extend(s.params, s.adapters, self._state, self._tables.table, 1, block=block)

    # --- In.

    def _admit(self) -> None:
        """Give rows to those that wait, in their order, as long as there are pages."""
        full = set[int]()  # parts
        for row in range(self._engine.rows):
            if not self._waiting or row in self._work or row in self._reading or self._tables.part(row) in full:
                continue
            sample = self._waiting[0]
            adapter = self._sampler.numbers[sample.request.adapter]
            if self._tables.admit(row, sample.prompt, adapter, len(sample.prompt) + 1):
                self._reading[row] = self._waiting.popleft()
            else:
                full.add(self._tables.part(row))

    def _read_prompts(self) -> None:
        """Read prompts, and begin rows whose prompt has been read. Of those who stream none waits long for others' prompts."""
        s, calls = self._sampler, 0
        self._begin_ready()
        while not (self._streams and self._work and calls >= READS) and (chunks := self._tables.next_chunks(1)) is not None:
            caches = self._engine.prefill(s.params, s.adapters, self._state.caches, chunks)
            self._state, calls = replace(self._state, caches=caches), calls + 1
            self._begin_ready()

    def _begin_ready(self) -> None:
        for row in self._tables.ready():
            sample = self._work[row] = self._reading.pop(row)
            c, length = sample.sampling, len(sample.prompt)
            prompt = np.zeros(self._engine.longest, np.int32)
            prompt[:length] = sample.prompt
            noise = np.array([sample.request.seed, sample.number], np.uint32)
            lengths = np.array([length, length + c.max_new_tokens], np.int32)
            by = Warp(np.float32(c.temperature), np.int32(c.top_k), np.float32(c.top_p))
            adapter = self._sampler.numbers[sample.request.adapter]
            self._state = self._engine.begin(self._state, row, prompt, lengths, noise, by, adapter, self._tables.begin(row))

    def _make_room(self, tokens: int) -> None:
        """Give each row at work pages for so many tokens more. Where there are too few, the latest sample goes back to those that wait."""
        for row in self._tables.in_order():
            sample = self._work.get(row)
            if sample is None:
                continue
            length = len(sample.prompt) + min(sample.seen + tokens, sample.sampling.max_new_tokens)
            while row in self._work and not self._tables.grow(row, length):
                put_back = self._take_out(self._tables.latest(self._tables.part(row)))
                put_back.restart()
                self._waiting.appendleft(put_back)

    def _take_out(self, row: int) -> Sample:
        """Free a row."""
        self._tables.leave(row)
        if row in self._reading:
            return self._reading.pop(row)
        active = np.array(on_host(self._state.active))
        active[row] = False
        self._set_active(active)
        return self._work.pop(row)

    def _block(self) -> int:
        """How many tokens to propose at a time: the size that appends the most for its cost.

        A proposal is taken with the share a seen so far; of real pairs that is more than three in four. Then a block of k appends
        1 + a + ... + a^(k - 1) tokens, and costs a token of the target and k of the security model.
        """
        if self._engine.rule is None:
            return 1
        if self._sampler.block is not None:
            return self._sampler.block
        share = self._taken / self._proposed if self._proposed else 0.75
        return max(BLOCKS, key=lambda k: sum(share**i for i in range(k)) / (1 + k * self._sampler.draft_cost))

    # --- Out.

    def _collect(self) -> list[Progress]:
        """What the segment brought. Samples that are done leave, and the devices are told of rows that a stop string has ended."""
        state = self._state
        active, length, tokens, facts = on_host((state.active, state.length, state.tokens, state.facts))
        active, news = active.copy(), []
        beside = {} if self._sampler.adapters is None else {"adapters": self._sampler.adapters}
        self._proposed, self._taken = self._proposed / 2, self._taken / 2
        for row, sample in sorted(self._work.items()):
            start, end = len(sample.prompt), length[row]
            new = tokens[row, start:end].tolist()
            latest = {name: x[row, start + sample.seen : end] for name, x in facts.items()}
            check_finite(latest, self._sampler.by_name | beside, sample.request.id)
            if self._engine.rule is not None:
                accepted = facts["accepted"][row, start + sample.seen : end]
                self._proposed, self._taken = self._proposed + len(accepted), self._taken + accepted.sum()
            sample.seen = len(new)
            done = sample.finish(new, not active[row])
            if done is None:
                if self._streams and (text := sample.settled(new)).startswith(sample.told):
                    sample.told = text
                    news.append(Progress(sample.request.id, sample.number, text, None))
                continue
            active[row] = False
            kept = {name: tuple(x[row, start : start + len(done.tokens)].tolist()) for name, x in facts.items()}
            done = replace(done, logprobs=kept.pop("logp"), facts=kept)
            news.append(Progress(done.id, done.sample, done.text, done))
            del self._work[row]
            self._tables.leave(row)
        self._set_active(active)
        return news

    def _set_active(self, active: np.ndarray) -> None:
        place = self._engine.row_sharding
        self._state = replace(self._state, active=jax.make_array_from_callback(active.shape, place, active.__getitem__))
