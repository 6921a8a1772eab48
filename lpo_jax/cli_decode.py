"""`lpo generate` and `lpo serve`: what `lpo` decodes with."""

import argparse
import hashlib
import json
import logging
import os
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lpo_jax.config import ConfigError, MeshConfig

if TYPE_CHECKING:
    from data_pipeline.tokenizer import Tokenizer
    from lpo_jax.decode.codecode import CoDecoding
    from lpo_jax.decode.crosec import CroSec
    from lpo_jax.decode.protocol import Chat

log = logging.getLogger(__name__)

GENERATE_HELP = """\
Complete every prompt of a JSONL file. A row is {"id": ..., "prompt": TEXT}, completed as it stands, or {"id": ..., "instruction": TEXT}, put
into the template of training. Without an id a row's is its line number.

A line of OUT.jsonl is a sample, written when it is done: id, sample, text, finish ("stop" or "length"), tokens, logprob (by the model itself,
of all tokens). The same command goes on where it was stopped; more --samples may be asked of a finished job. A sample depends on the model, the
prompt, --seed, its id and its number: not on --rows, on the other prompts, or on how often the job was interrupted.

With --security a second model of the same tokenizer, small and trained for security, proposes each token; the model keeps it if it thinks it
likely enough, or draws its own (co-decoding, see lpo_jax/decode/codecode.py). With --preset crosec the two are mixed, and may have different
tokenizers: their vocabularies are aligned first, which takes minutes on CPUs and is kept beside OUT.jsonl (lpo_jax/decode/crosec.py).
"""
GENERATE_EXAMPLES = """\
examples:
  lpo generate tasks.jsonl -o out.jsonl --model runs/disco                      (a run's newest checkpoint)
  lpo generate tasks.jsonl -o out.jsonl --model DIR --samples 25 --temperature 0.4 --top-p 0.95 --stop $'\\ndef ' --stop $'\\nclass '
  lpo generate tasks.jsonl -o out.jsonl --model DIR --greedy --data 1 --tensor 4
  lpo generate tasks.jsonl -o out.jsonl --model DIR --security runs/security --threshold 0.3 --html out.html
  lpo generate tasks.jsonl -o out.jsonl --model DIR --security OTHER_FAMILY --preset crosec --weight 0.3
"""
SERVE_HELP = """\
Answer OpenAI's HTTP API: /v1/completions, /v1/chat/completions (both also streamed), /v1/models, and /health. One model, or with --security a
pair that co-decodes. Requests share the rows: whoever comes gets the next free one, while the others go on.

A request may set temperature, top_p (OpenAI's defaults: 1), top_k, max_tokens, stop, seed, n, logprobs of the chosen tokens, stream. What would
change the result and isn't computed here is refused by name. An answer tells its seed; the same seed gives the same text again, and is that of
`lpo generate`'s sampler. A chat is written by the model's own chat template; without one, the last message alone goes into the template of
training, as an instruction.

At the start everything is compiled that requests can need. SIGTERM or Ctrl-C lets what is at work finish, for --grace seconds. The exit code is 1
if decoding has failed.

With the environment variable LPO_API_KEY set, clients must show that key. The default --host, 127.0.0.1, is reached from this machine alone (by
all its users). Any other lets in whoever reaches the port: set LPO_API_KEY, and put a proxy that speaks TLS in front.
"""
SERVE_EXAMPLES = """\
examples:
  lpo serve --model runs/disco
  lpo serve --model DIR --security runs/security --threshold 0.3 --rows 32 --max-len-tokens 8192
  LPO_API_KEY=... lpo serve --model DIR --host 0.0.0.0 --port 8080
"""
SERVED_LEN_TOKENS = 4096
"""Of a prompt and its completion, where the model allows more and nothing is said: memory for caches is taken for all rows."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the two to the subcommands of `lpo`."""
    raw = argparse.RawDescriptionHelpFormatter
    generate = commands.add_parser(
        "generate", help="complete prompts", description=GENERATE_HELP, epilog=GENERATE_EXAMPLES, formatter_class=raw
    )
    generate.add_argument("prompts", metavar="PROMPTS.jsonl", help="the prompts, a line each")
    generate.add_argument("-o", "--out", required=True, metavar="OUT.jsonl", help="where the completions go")
    _add_models(generate, ("crosec", "crosec_published"))
    generate.add_argument("--weight", type=float, metavar="W", help="crosec: the security model's share of the mixture (default: 0.3)")
    generate.add_argument("--security-tokenizer", metavar="DIR", help="crosec: default: the security model's own")
    generate.add_argument("--samples", type=int, default=1, metavar="N", help="of each prompt (default: 1)")
    generate.add_argument("--seed", type=int, default=0, help="of all samples (default: 0)")
    generate.add_argument("--temperature", type=float, default=0.4, help="divides the logits (default: 0.4)")
    generate.add_argument("--greedy", action="store_true", help="always the most probable token, as --temperature 0")
    generate.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among the K most probable tokens; 0: among all (default)")
    generate.add_argument(
        "--top-p", type=float, default=0.95, metavar="P", help="of these among the fewest that hold P of the probability (default: 0.95)"
    )
    generate.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="a completion's length at most (default: 256)")
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end a completion in front of this text; repeatable")
    generate.add_argument("--no-think", action="store_true", help="ask an instruction's response directly, without a security thought")
    generate.add_argument("--trace", action="store_true", help="write what each model thought of each token, too")
    generate.add_argument(
        "--html", metavar="PAGE.html", help="co-decoding: a page that shows which model decided each token; implies --trace"
    )
    generate.set_defaults(run=_generate)
    serve = commands.add_parser("serve", help="answer OpenAI's API", description=SERVE_HELP, epilog=SERVE_EXAMPLES, formatter_class=raw)
    _add_models(serve)
    serve.add_argument("--name", help="what clients call the model (default: the last part of --model)")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="the port; 0: any that is free (default: %(default)s)")
    serve.add_argument(
        "--max-waiting", type=int, default=256, metavar="N", help="completions that may wait for a row; more: 429 (default: %(default)s)"
    )
    serve.add_argument("--grace", type=float, default=30, metavar="S", help="seconds to finish what is at work at the end (default: 30)")
    serve.add_argument("--no-think", action="store_true", help="without a chat template: ask a chat's response directly, without a thought")
    serve.set_defaults(run=_serve, weight=None, security_tokenizer=None)


def _add_models(parser: argparse.ArgumentParser, more_presets: tuple[str, ...] = ()) -> None:
    """The flags that say which models decode, how they do it together, and where."""
    parser.add_argument("--model", required=True, help="a Hugging Face directory, a hub id, or the run_dir of a trained config")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT adapter to merge into it")
    parser.add_argument("--tokenizer", metavar="DIR", help="default: the model's own")
    parser.add_argument("--security", metavar="MODEL", help="co-decode with this security model, given as --model is")
    parser.add_argument("--security-adapter", metavar="DIR", help="a PEFT adapter to merge into that")
    parser.add_argument(
        "--preset",
        choices=("aligned", "cosec_plus", "cosec_v1", *more_presets),
        default="aligned",
        help="the rule: as published, or (aligned, the default) with rejected tokens replaced as --temperature, --top-k and --top-p ask"
        + ("; crosec: mix the two, the security model reading the text in its own tokens" if more_presets else ""),
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="TAU",
        help="keep a proposed token if min(1, p / q) exceeds this: 0 keeps all, 1 none (default: 0.3)",
    )
    parser.add_argument(
        "--draft-temperature", type=float, metavar="T", help="of the proposals (default: cosec_v1: 0.4, else --temperature)"
    )
    parser.add_argument(
        "--block",
        type=int,
        metavar="K",
        help="propose K tokens before the model looks; the text is the same (default: by what is accepted, at most 8)",
    )
    parser.add_argument("--rows", type=int, metavar="N", help="sequences at work at once (default: 16 for each device that cuts the batch)")
    parser.add_argument(
        "--max-len-tokens",
        type=int,
        metavar="N",
        help="refuse what is longer, prompt and completion (default: the model's limit; serve: at most 4096)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of weights and matmuls (default: float32 on CPUs, else bfloat16)")
    for axis, default, what in (
        ("data", -1, "copies of the model; -1: all devices left"),
        ("fsdp", 1, "cut batch and weights"),
        ("tensor", 1, "cut heads, mlp, vocabulary"),
    ):
        parser.add_argument(
            f"--{axis}", type=int, default=default, metavar="N", help=f"devices along the mesh's {axis} axis: {what} (default: {default})"
        )


def _rule(args: argparse.Namespace) -> "CoDecoding | CroSec | None":
    """How two models decide; None: there is one."""
    from lpo_jax.decode import codecode, crosec

    given = {"--security-adapter": args.security_adapter, "--threshold": args.threshold, "--draft-temperature": args.draft_temperature, "--block": args.block}  # fmt: skip
    given |= {"--weight": args.weight, "--security-tokenizer": args.security_tokenizer}
    given = {flag: value for flag, value in given.items() if value is not None}
    mixes = args.preset in crosec.PRESETS
    fitting = {"--security-adapter"} | (
        {"--weight", "--security-tokenizer"} if mixes else {"--threshold", "--draft-temperature", "--block"}
    )
    if args.security is None:
        if given or mixes:
            raise ConfigError(f"{', '.join(given) or '--preset ' + args.preset} are for co-decoding: give --security as well")
        return None
    if wrong := sorted(given.keys() - fitting):
        raise ConfigError(f"{', '.join(wrong)}: not for --preset {args.preset}")
    if mixes:
        rule = crosec.PRESETS[args.preset]
        return rule if args.weight is None else replace(rule, weight=args.weight)
    asked = {"threshold": args.threshold, "draft_temperature": args.draft_temperature}
    return replace(codecode.PRESETS[args.preset], **{name: value for name, value in asked.items() if value is not None})


def _generate(args: argparse.Namespace) -> int:
    from data_pipeline import template, tokenizer
    from lpo_jax.decode import crosec, job, page
    from lpo_jax.decode.load import find_tokenizer
    from lpo_jax.decode.request import SamplingConfig

    if args.html and (not args.security or args.preset in crosec.PRESETS):
        raise ConfigError(
            "--html shows which of two models decided each token: give the other with --security, and a preset that replaces tokens"
        )
    temperature = 0.0 if args.greedy else args.temperature
    sampling = SamplingConfig(temperature, args.top_k, args.top_p, args.max_new_tokens, tuple(args.stop))
    mesh = MeshConfig(args.data, args.fsdp, args.tensor)
    what = job.Job(
        prompts=args.prompts,
        out=args.out,
        model=args.model,
        adapter=args.adapter,
        security=args.security,
        security_adapter=args.security_adapter,
        rule=_rule(args),
        block=args.block,
        trace=args.trace or args.html is not None,
        samples=args.samples,
        seed=args.seed,
        think=not args.no_think,
        sampling=sampling,
        dtype=args.dtype,
        rows=args.rows,
        max_len_tokens=args.max_len_tokens,
        mesh=mesh,
    )
    theirs = None
    if args.preset in crosec.PRESETS:
        theirs = tokenizer.load(args.security_tokenizer or find_tokenizer(args.security))
    tok = tokenizer.load(args.tokenizer or find_tokenizer(args.model))
    written = job.run(what, tok, template.task_prompt, theirs)
    print(f"wrote {written} samples to {args.out}")
    if args.html:
        page.write(args.html, args.out, {prompt.id: prompt.text for prompt in job.read_prompts(what, tok, template.task_prompt)})
        print(f"token by token: {args.html}")
    return 0


def _serve(args: argparse.Namespace) -> int:
    from data_pipeline import tokenizer
    from lpo_jax.decode import Sampler, SamplingConfig, load, serve
    from lpo_jax.decode.crosec import CroSec
    from lpo_jax.decode.driver import Driver
    from lpo_jax.decode.job import ROWS_PER_CUT
    from lpo_jax.decode.protocol import Served
    from lpo_jax.sharding import make_mesh

    key = os.environ.get("LPO_API_KEY")
    if key == "":
        raise ConfigError("LPO_API_KEY is empty: give it a key, or unset it to serve without one")
    if args.max_waiting < 0 or args.grace < 0:
        raise ConfigError("--max-waiting and --grace must be 0 or more")
    rule = _rule(args)
    assert not isinstance(rule, CroSec)  # no preset that is offered here
    directory = args.tokenizer or load.find_tokenizer(args.model)
    tok = tokenizer.load(directory)
    models = [args.model] if args.security is None else [args.model, args.security]
    for path in models:
        load.check_tokenizer(path, tok)
    longest = min(load.shape(path).max_positions for path in models)
    longest = min(longest, SERVED_LEN_TOKENS) if args.max_len_tokens is None else args.max_len_tokens
    if longest < 2:
        raise ConfigError(f"--max-len-tokens {longest}: a prompt and its completion have 2 tokens at least")
    bound = serve.bind(args.host, args.port)
    log.info("%s: loading %s", serve.address(bound), " and ".join(models))
    mesh, dtype = make_mesh(MeshConfig(args.data, args.fsdp, args.tensor)), args.dtype or load.default_dtype()
    rows = args.rows or ROWS_PER_CUT * mesh.shape["data"] * mesh.shape["fsdp"]
    target = load.load_model(args.model, mesh, dtype, args.adapter)
    security = None if args.security is None else load.load_model(args.security, mesh, dtype, args.security_adapter)
    sampler = Sampler(
        target, tok, SamplingConfig(), rows, longest, security=security, rule=rule, block=args.block, segment_steps=serve.SEGMENT_STEPS
    )
    driver = Driver(sampler, args.max_waiting)
    log.info("compiling, for prompts and completions of up to %d tokens together", longest)
    driver.warm_up()
    settings = {k: getattr(args, k) for k in ("model", "adapter", "security", "security_adapter", "block", "data", "fsdp", "tensor")}
    settings |= {"rule": rule and asdict(rule), "dtype": dtype, "rows": rows, "tokenizer": tok.sha256, "jax": version("jax")}
    fingerprint = f"fp_{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"
    served = Served(args.name or Path(args.model).name, tok, sampler.vocab, longest, _chat(directory, tok, not args.no_think), fingerprint)
    if key is None and args.host not in ("127.0.0.1", "localhost", "::1"):
        log.warning("whoever reaches %s can use the model: LPO_API_KEY is not set", serve.address(bound))
    return serve.run(bound, driver, served, key, args.grace)


def _chat(directory: str, tok: "Tokenizer", think: bool) -> "Chat":
    """How a chat becomes a prompt: by the model's own template, or else as training writes an instruction."""
    from data_pipeline import template, tokenizer
    from lpo_jax.decode.request import encode_task

    write = tokenizer.chat_template(directory)

    def prompt(messages: list[dict[str, str]]) -> tuple[list[int], str]:
        if write is not None:
            return tok.backend.encode(write(messages), add_special_tokens=False).ids, ""
        if messages[-1]["role"] != "user":
            raise ValueError("the last one must be the user's")
        return encode_task(tok, template.task_prompt(messages[-1]["content"], think))

    if write is None:
        log.info("the model has no chat template: a chat's last message is written as an instruction, those before it aren't read")
    return prompt
