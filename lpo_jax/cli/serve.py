"""`lpo serve`: answer OpenAI's API.

Answer OpenAI's HTTP API: /v1/completions, /v1/chat/completions (both also streamed), /v1/models, and /health. One model, or with --security a
pair that co-decodes. Requests share the rows: whoever comes gets the next free one, while the others go on.

A request may set temperature, top_p (OpenAI's defaults: 1), top_k, max_tokens, stop, seed, n, logprobs of the chosen tokens, stream. What would
change the result and isn't computed here is refused by name. An answer tells its seed; the same seed gives the same text again, and is that of
`lpo generate`'s sampler. A chat is put as the model was trained here (--template); another's in its own chat template. Its last message is the
instruction, those before it are the history, as in pairs with a history.

With --adapter NAME=DIR, repeatable, PEFT adapters work beside the model, and a request's `model` says which is meant: an adapter's name, or the
model's (--name). They share rows, batches and the model's weights. What ends a text of one ends those of all.

With --security and --preset crosec the second model may have another tokenizer: the vocabularies are aligned first, which takes minutes on CPUs and
is kept in $XDG_CACHE_HOME/lpo-jax or ~/.cache/lpo-jax.

On several hosts start the same command on each, as for `lpo train`. The mesh lies over all of them; the first answers, and the others decode along.
When one of them is gone the server ends, and says which.

At the start everything is compiled that requests can need. SIGTERM or Ctrl-C lets what is at work finish, for --grace seconds. The exit code is 0
after Ctrl-C; 75 after SIGTERM, as of `lpo train`: a job whose machine was taken isn't done, and is to be started again; and 1 if decoding has failed.

With the environment variable LPO_API_KEY set, clients must show that key. The default --host, 127.0.0.1, is reached from this machine alone (by
all its users). Any other lets in whoever reaches the port: set LPO_API_KEY, and put a proxy that speaks TLS in front.

examples:
  lpo serve --model runs/disco
  lpo serve --model DIR --security runs/security --threshold 0.3 --rows 32 --max-len-tokens 8192
  lpo serve --model DIR --security OTHER_FAMILY --preset crosec --weight 0.3
  lpo serve --model DIR --name base --adapter secure=runs/a_adapter --adapter fast=runs/b_adapter
  LPO_API_KEY=... lpo serve --model DIR --host 0.0.0.0 --port 8080
"""

import argparse
import hashlib
import json
import logging
import os
import signal
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.commands import number, whole
from foundation.console import waiting
from foundation.errors import ConfigError
from foundation.files import cache_directory
from lpo_jax.cli.models import add_asking, add_models, models_of

if TYPE_CHECKING:
    from lpo_jax.decode.load import Models

log = logging.getLogger(__name__)

SERVED_LEN_TOKENS = 4096
"""Of a prompt and its completion, where the model allows more and nothing is said, as memory is taken for all rows' longest texts (or --cache-gib)."""


def add(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    parser.add_argument("--name", help="what clients call the model (default: the last part of --model)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=8000, metavar="N", help="the port; 0: any that is free (default: %(default)s)"
    )
    parser.add_argument(
        "--max-waiting",
        type=whole(0),
        default=256,
        metavar="N",
        help="completions that may wait for a row; more: 429 (default: %(default)s)",
    )
    parser.add_argument(
        "--grace", type=number(), default=30, metavar="S", help="seconds to finish what is at work at the end (default: 30)"
    )
    add_asking(parser)


def api_key() -> str | None:
    """The key that clients must show, from the environment; None: there is none.

    Raises:
      ConfigError: it can't be one.
    """
    key = os.environ.get("LPO_API_KEY")
    key = None if key is None else key.strip()
    if key == "":
        raise ConfigError("LPO_API_KEY is empty: give it a key, or unset it to serve without one")
    if key is not None and not all("!" <= c <= "~" for c in key):
        raise ConfigError(
            "LPO_API_KEY holds what clients can't send in a header: write letters, digits and punctuation of ASCII, without blanks"
        )
    return key


def asked(args: argparse.Namespace) -> "tuple[str, Models]":
    """What clients call the model, and all that decodes.

    Raises:
      ConfigError: flags that don't go together.
    """
    models, name = models_of(args), args.name or Path(args.model).name
    if name in (models.adapters or {}):
        raise ConfigError(f"--adapter {name}=...: the model itself is called so: give another name, or --name")
    return name, models


def run(args: argparse.Namespace) -> int:
    with waiting("loading JAX"):
        from lpo_jax.train import distributed
    return distributed.together(partial(_serve, args), args)


def _serve(args: argparse.Namespace) -> int:
    import jax

    from data_pipeline import template
    from lpo_jax.decode.load import find, open_sampler
    from lpo_jax.decode.prompts import Asking, asking
    from lpo_jax.decode.request import DecodingError, SamplingConfig
    from lpo_jax.serve import server as serve
    from lpo_jax.serve.driver import Driver
    from lpo_jax.serve.protocol import Served
    from lpo_jax.train.distributed import first
    from lpo_jax.train.peers import Line

    key = api_key()
    if args.max_waiting < 0 or args.grace < 0:
        raise ConfigError("--max-waiting and --grace must be 0 or more")
    name, models = asked(args)
    found = find(models)
    longest = found.max_len_tokens
    if args.max_len_tokens is None:
        longest = min(longest, SERVED_LEN_TOKENS)
    if longest < 2:
        raise ConfigError(f"--max-len-tokens {longest}: a prompt and its completion have 2 tokens at least")
    bound = serve.bind(args.host, args.port) if first() else None
    log.info("%s: loading %s", bound and serve.address(bound), " and ".join(filter(None, (args.model, args.security))))
    how, *others = (
        asking(args.model, found.tokenizer, args.template, args.system, not args.no_think, adapter)
        for adapter in (models.adapter, *(models.adapters or {}).values())
    )
    for each in (how, *others):
        each.warn()
    ends = dict.fromkeys(end for each in (how, *others) for end in template.ends(each.template, found.tokenizer))
    sampling = SamplingConfig(stop_tokens=tuple(ends))
    sampler = open_sampler(found, sampling, longest, alignments=cache_directory(), segment_steps=serve.SEGMENT_STEPS)
    driver, ending = Driver(sampler, args.max_waiting), None if jax.process_count() == 1 else Line()
    log.info("compiling, for prompts and completions of up to %d tokens together", longest)
    driver.warm_up()
    if bound is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # which may come to all: process 0 says when it is over
        driver.follow()
        assert ending is not None
        return ending.hear()
    rule, tok = found.models.rule, found.tokenizer
    named = ("model", "security", "security_adapter", "security_tokenizer", "block", "data", "fsdp", "tensor", "expert")
    settings = {k: getattr(args, k) for k in named}
    settings |= {"adapter": models.adapter, "adapters": models.adapters, "asked": [other.facts for other in others]}
    settings |= {
        "rule": rule and asdict(rule),
        "dtype": found.dtype,
        "quantize": models.quantize,
        "rows": driver.rows,
        "tokenizer": tok.sha256,
        "jax": version("jax"),
    }
    settings |= how.facts
    fingerprint = f"fp_{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"
    log.info("a chat is put in the template %s", how.template.name)

    def chat(how: Asking, messages: list[dict[str, str]]) -> list[int]:
        return how.conversation(messages, tok).ids(tok)

    adapters = {adapter: partial(chat, each) for adapter, each in zip(models.adapters or {}, others, strict=True)}
    served = Served(name, tok, sampler.vocab, longest, partial(chat, how), fingerprint, adapters)
    if key is None and args.host not in ("127.0.0.1", "localhost", "::1"):
        log.warning("whoever reaches %s can use the model: LPO_API_KEY is not set", serve.address(bound))
    code = serve.run(bound, driver, served, key, args.grace)
    if ending is not None:
        if driver.failed:
            raise DecodingError("decoding has failed; what went wrong stands above")  # the other processes would wait
        ending.say(code)
    return code
