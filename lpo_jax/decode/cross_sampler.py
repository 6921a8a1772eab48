"""Requests to completions by a target and an expert of another tokenizer: the host's part of CroSec (`rules.crosec`)."""

import codecs
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.tokenizer import Tokenizer
from lpo_jax.config import ConfigError
from lpo_jax.decode.engine import programs
from lpo_jax.decode.reader import Reader
from lpo_jax.decode.request import Completion, LoadedModel, Request, SamplingConfig, check_finite, resolve
from lpo_jax.decode.rules.crosec import CroSec, mix
from lpo_jax.decode.rules.own_tokens import OwnTokens, boundary
from lpo_jax.decode.rules.vocab_map import Alignment, spell
from lpo_jax.decode.rules.warp import Site, Warp, draw, logp_of
from lpo_jax.decode.sample import unstopped
from lpo_jax.decode.session import Progress, completions
from lpo_jax.sharding import named
from lpo_jax.tensors import on_host

_EXPERT_READS = 4  # tokens a call; more new ones take several: with one shape a row's numbers don't depend on its company


class CrossSampler:
    """Completions by a target and an expert of another tokenizer, `rows` at a time. The host looks at every token. One `generate` at a time.

    Compiles a few programs, and one for each width of a prompt's chunks by either tokenizer; afterwards nothing, whatever is asked.
    What a request gets depends on nothing but itself, as with `Sampler`; with weight 0 it is what `Sampler` gives.

    Args:
      alignment: of these two models, see `vocab_map.align`.
      config: what a request gets that doesn't ask otherwise. Temperature and filters apply to the mixture.
      rows: sequences in work at once, a multiple of either mesh's data * fsdp * expert.
      max_len_tokens: the longest prompt and completion together, in the target's tokens.
      rule: how the two are mixed; default: the preset `crosec`.
      expert_len_tokens: the longest text in the expert's tokens; one that gets longer ends. Default: twice the target's, or the model's limit.

    Raises:
      ConfigError: rows don't divide, a model is too short, or tokenizers, models and alignment don't fit; with the numbers.
    """

    def __init__(
        self,
        target: LoadedModel,
        expert: LoadedModel,
        tokenizer: Tokenizer,
        expert_tokenizer: Tokenizer,
        alignment: Alignment,
        config: SamplingConfig,
        rows: int,
        max_len_tokens: int,
        *,
        rule: CroSec | None = None,
        expert_len_tokens: int | None = None,
    ):
        V, E = tokenizer.size, expert_tokenizer.size
        if (len(alignment.nearest), len(alignment.votes_for)) != (V, E):
            raise ConfigError(
                f"the tokenizers have {V} and {E} entries, the alignment "
                f"{len(alignment.nearest)} and {len(alignment.votes_for)}: it was made for others"
            )
        self.tokenizer, self.config, self.max_len_tokens = tokenizer, config, max_len_tokens
        self._expert_tokenizer, self._alignment, self.rule = expert_tokenizer, alignment, rule or CroSec()
        self._expert_len = expert_len_tokens or min(2 * max_len_tokens, expert.model.config.max_positions)
        self._target = Reader("model", target, V, rows, max_len_tokens, 1)
        self._expert = Reader("expert", expert, E, rows, self._expert_len, _EXPERT_READS)
        self.vocab, self.rows, self._mesh = V, rows, target.mesh
        self._params = {"model": target.params, "expert": expert.params}
        self.ends = tuple(sorted({tokenizer.eos_id, *target.eos_ids, *config.stop_tokens}))
        self._spelling = spell(tokenizer, self.ends)
        self._boundary = boundary(expert_tokenizer)
        self._bare_start = _spaces_start(tokenizer, self._spelling)
        self._choose = jax.jit(self._choose_tokens)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each sample's completion when it is done. Requests are read as rows become free.

        Raises:
          ConfigError: a prompt is empty or too long, or a seed out of range; the request's id is named.
        """
        return completions(self.session(), requests)

    def session(self, streams: bool = False) -> "CrossSession":
        """See `CrossSession`."""
        return CrossSession(self, streams)

    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return self._target.compilations() + self._expert.compilations() + programs(self._choose)

    def warm_up_readers(self) -> None:
        """Compile what reads prompts of any length."""
        for reader in (self._target, self._expert):
            reader.warm_up()

    # --- A token more.

    def begin(self, row: int, sample: "_Sample") -> None:
        """Put a sample at work in a row."""
        self._target.begin(row, sample.ids)
        self._expert.begin(row, sample.own.ids)

    def extend(self, work: Mapping[int, "_Sample"]) -> dict[int, Completion | None]:
        """Add a token to each sample at work, by row; the completions of those that are done with it."""
        if not work:
            return {}
        tokens, facts = self._next_tokens(work)
        found = {}
        for row, sample in work.items():
            check_finite({name: x[row] for name, x in facts.items()}, self._params, sample.request.id)
            found[row] = self._append(sample, int(tokens[row]), {name: float(x[row]) for name, x in facts.items()})
        return found

    def _next_tokens(self, work: Mapping[int, "_Sample"]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        R = self.rows
        keys, positions, weight = np.zeros((R, 2), np.uint32), np.zeros(R, np.int32), np.zeros(R, np.float32)
        temperature, top_k, top_p = np.zeros(R, np.float32), np.zeros(R, np.int32), np.ones(R, np.float32)
        for row, sample in work.items():
            keys[row], positions[row] = (sample.request.seed, sample.number), len(sample.ids)
            weight[row] = 0 if sample.within_character and not self.rule.published else self.rule.weight
            temperature[row], top_k[row], top_p[row] = sample.sampling.temperature, sample.sampling.top_k, sample.sampling.top_p
        z_t = self._target.read({row: sample.ids for row, sample in work.items()})
        z_s = self._expert.read({row: sample.own.ids for row, sample in work.items()})
        with jax.set_mesh(self._mesh):
            z_s = jax.device_put(z_s, named(self._mesh, ("batch", "vocab"), z_s.shape))
            site = Site(jnp.asarray(keys), jnp.asarray(positions), Warp(temperature, top_k, top_p))
            return on_host(self._choose(z_t, z_s, weight, site))

    def _choose_tokens(self, z_t: jax.Array, z_s: jax.Array, weight: jax.Array, site: Site) -> tuple[jax.Array, dict[str, jax.Array]]:
        e, m = mix(jax.nn.softmax(z_t), jax.nn.softmax(z_s), self._alignment, weight.astype(z_t.dtype), self.rule.published)
        token = draw(jnp.log(e), site)
        logp = logp_of(z_t, token)
        return token, {"logp": logp, "p": jnp.exp(logp), "q": jnp.take_along_axis(m, token[:, None], axis=-1)[:, 0]}

    def _append(self, sample: "_Sample", token: int, facts: Mapping[str, float]) -> Completion | None:
        """Add a token to a sample, with its text; the completion, if it was the last."""
        sample.ids.append(token)
        sample.facts.append(facts)
        if token in self.ends:
            return sample.completion(sample.text + sample.decoder.decode(b"", final=True), "stop")
        new = self._text(sample, token)
        sample.text += new
        # A stop string that has been completed ends in what is new.
        found = [sample.text.find(stop, max(0, len(sample.text) - len(new) - len(stop) + 1)) for stop in sample.sampling.stop if new]
        if any(at >= 0 for at in found):
            return sample.completion(sample.text[: min(at for at in found if at >= 0)], "stop")
        if self.rule.published:
            sample.own.ids.append(int(self._alignment.nearest[token]))
        elif new:
            sample.own.add(new)
        if len(sample.ids) == sample.full_at or len(sample.own.ids) > self._expert_len:
            return sample.completion(sample.text + sample.decoder.decode(b"", final=True), "length")
        return None

    def _text(self, sample: "_Sample", token: int) -> str:
        """What a token adds to a text: whole characters only."""
        spelling = self._spelling.get(token, b"")
        if sample.bare and spelling:
            sample.bare, spelling = False, spelling.removeprefix(b" ")
        return sample.decoder.decode(spelling)

    # --- Samples.

    def samples(self, request: Request) -> Iterator["_Sample"]:
        """A request's samples, to be put at work.

        Raises:
          ConfigError: as `generate`.
        """
        if request.adapter is not None:
            raise ConfigError(f"request {request.id}: there is no adapter {request.adapter!r} here (there are: none)")
        prompt, sampling = resolve(request, self.tokenizer, self.config, self.vocab, self.max_len_tokens)
        for number in range(request.sample, request.sample + request.n):
            sample = _Sample(request, sampling, number, list(prompt), len(prompt) + sampling.max_new_tokens, self._bare_start)
            text = "".join(self._text(sample, token) for token in prompt)
            if isinstance(request.prompt, str):
                text = request.prompt  # as it was before the target's tokenizer normalised it
            sample.own = OwnTokens(self._expert_tokenizer, self._boundary, text)
            if len(sample.own.ids) > self._expert_len:
                raise ConfigError(
                    f"request {request.id}: its prompt has {len(sample.own.ids)} tokens of the expert, which holds {self._expert_len}"
                )
            yield sample


class CrossSession:
    """Continuous batching, as `sampler.Session` has it, a token at a time. One session of a sampler at a time.

    Args:
      streams: tell of samples that aren't done, too.
    """

    def __init__(self, sampler: CrossSampler, streams: bool = False):
        self._sampler, self._streams = sampler, streams
        self._waiting: deque[_Sample] = deque()
        self._work: dict[int, _Sample] = {}  # by row

    @property
    def busy(self) -> bool:
        """Is anything at work or waiting?"""
        return bool(self._work or self._waiting)

    @property
    def room(self) -> int:
        """Rows that nothing waits for."""
        return self._sampler.rows - len(self._work) - len(self._waiting)

    def add(self, request: Request) -> None:
        """Let a request's samples wait for rows.

        Raises:
          ConfigError: as `CrossSampler.generate`.
        """
        self._waiting.extend(self._sampler.samples(request))

    def cancel(self, request_id: str) -> None:
        """Forget a request's samples; their rows are free at once."""
        self._waiting = deque(sample for sample in self._waiting if sample.request.id != request_id)
        self._work = {row: sample for row, sample in self._work.items() if sample.request.id != request_id}

    def advance(self) -> list[Progress]:
        """Fill free rows from those that wait, extend all rows by a token, and say what it brought."""
        news = []
        for row in range(self._sampler.rows):
            if self._waiting and row not in self._work:
                self._work[row] = self._waiting.popleft()
                self._sampler.begin(row, self._work[row])
        for row, done in self._sampler.extend(self._work).items():
            sample = self._work[row]
            if done is not None:
                news.append(Progress(done.id, done.sample, done.text, done))
                del self._work[row]
            elif self._streams and (text := unstopped(sample.text, sample.sampling.stop)) != sample.told:
                sample.told = text
                news.append(Progress(sample.request.id, sample.number, text, None))
        return news

    def warm_up(self) -> None:
        """Compile all that requests can need; nothing may be at work."""
        assert not self._work
        self._sampler.warm_up_readers()
        self.add(Request("warm-up", [0], sampling=SamplingConfig(max_new_tokens=1)))
        while self.busy:
            self.advance()


@dataclass
class _Sample:
    """One sample of a request, at work."""

    request: Request
    sampling: SamplingConfig
    number: int
    ids: list[int]  # the target's tokens
    full_at: int  # their number at which it ends
    bare: bool  # the text's first space is to come, and is none
    text: str = ""  # generated so far
    told: str = ""  # of that
    own: "OwnTokens" = field(init=False)  # the expert's tokens
    decoder: codecs.IncrementalDecoder = field(default_factory=partial(codecs.getincrementaldecoder("utf-8"), "replace"))
    facts: list[Mapping[str, float]] = field(default_factory=list)

    @property
    def within_character(self) -> bool:
        return bool(self.decoder.getstate()[0])

    def completion(self, text: str, finish: str) -> Completion:
        tokens = self.ids[len(self.ids) - len(self.facts) :]
        facts = {name: tuple(fact[name] for fact in self.facts) for name in self.facts[0]}
        return Completion(self.request.id, self.number, text, tuple(tokens), finish, facts.pop("logp"), facts)


def _spaces_start(tokenizer: Tokenizer, spelling: Mapping[int, bytes]) -> bool:
    """Does the tokenizer put a space in front of a text, which decoding takes off again?"""
    ids = tokenizer.backend.encode("a", add_special_tokens=False).ids
    return b"".join(spelling.get(token, b"") for token in ids) == b" a" and tokenizer.backend.decode(ids) == "a"
