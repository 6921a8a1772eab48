"""Requests to completions, by one model or by a target that a security model steers.

What a request gets depends on the weights, its prompt, its seed, its sample's number and its settings, and on nothing else: not on the other
rows, the row it is in, nor when it is let in (up to rounding: equal numbers of rows, and of tokens a block, give equal bits).
"""

from collections.abc import Iterable, Iterator

import jax

from lpo_jax.config import ConfigError
from lpo_jax.decode.engine import Loop
from lpo_jax.decode.request import Completion, LoadedModel, Request, SamplingConfig, Tokenizer
from lpo_jax.decode.rules.codecode import CoDecoding
from lpo_jax.decode.session import Session


class Sampler:
    """Completions, `rows` at a time.

    Compiles a program for each power of two of the prompts' lengths, and one loop (co-decoding: one for each size of a block); afterwards
    nothing, whatever is asked.

    Args:
      config: what a request gets that doesn't ask otherwise.
      rows: sequences in work at once, a multiple of the mesh's data * fsdp. Memory for caches is taken for all of them.
      max_len_tokens: the longest prompt and completion together.
      security: a model of the same tokenizer that proposes tokens; it lies on the target's devices, on a mesh of its own if need be.
      rule: how a proposal is judged; default: the preset `aligned`.
      block: tokens that it proposes at a time. The completions don't depend on it (up to rounding). None: 1 to 8, by the share taken so far.
      segment_steps: tokens between looks at which rows are done; a row that is done idles until then.

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
    ):
        models = [model] if security is None else [model, security]
        self.tokenizer, self.config, self.max_len_tokens = tokenizer, config, max_len_tokens
        self.block, self.segment_steps = block, segment_steps
        self.mesh, self.params = model.mesh, tuple(m.params for m in models)
        self.group = model.mesh.shape["data"] * model.mesh.shape["fsdp"]  # prompts of a prefill: one for each cut of the batch
        self.vocab = max(tokenizer.backend.get_vocab().values()) + 1
        if rows < 1 or rows % self.group:
            raise ConfigError(f"rows is {rows}: it must be a positive multiple of data * fsdp = {self.group}")
        if block is not None and block < 1:
            raise ConfigError(f"block is {block}: it must be positive")
        for name, m in zip(("model", "security model"), models, strict=False):
            shape = m.model.config
            if max_len_tokens > shape.max_positions:
                raise ConfigError(f"max_len_tokens is {max_len_tokens}: the {name} was made for {shape.max_positions} tokens")
            if self.vocab > shape.vocab_size:
                raise ConfigError(
                    f"the tokenizer has {self.vocab} entries, the {name}'s vocabulary {shape.vocab_size}: give the model's own tokenizer"
                )
        sizes = [sum(x.size for x in jax.tree.leaves(params)) for params in self.params]
        self.draft_cost = sizes[-1] / sizes[0]  # of a token proposed, in tokens of the target
        self.ends = tuple(sorted({tokenizer.eos_id, *model.eos_ids, *config.stop_tokens}))
        rule = None if security is None else rule or CoDecoding()
        self.loop = Loop([m.model for m in models], model.mesh, rule, self.vocab, self.ends, rows, max_len_tokens)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each sample's completion when it is done. Requests are read as rows become free.

        Raises:
          ConfigError: a prompt is empty or too long, or a seed out of range; the request's id is named.
        """
        session, waiting = Session(self), iter(requests)
        while True:
            while session.room > 0 and (request := next(waiting, None)) is not None:
                session.add(request)
            if not session.busy:
                return
            yield from (progress.done for progress in session.advance() if progress.done)

    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return self.loop.compilations()
