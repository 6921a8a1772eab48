"""`lpo generate`: complete prompts.

Complete every prompt of a JSONL file. A row is {"id": ..., "prompt": TEXT}, completed as it stands, or {"id": ..., "instruction": TEXT}, put as
the model was trained (--template). PROMPTS may be a data set of the hub, hf://OWNER/NAME:SPLIT?instruction=THEIR_COLUMN. Without an id a row's is its line number. Control tokens that a row spells, such as <|im_end|>, are text.
With --adapter NAME=DIR, repeatable, a row {..., "adapter": NAME} is completed with that PEFT adapter, the others by the model itself. What ends a
text of one ends those of all.

A line of OUT.jsonl is a sample, written when it is done: id, sample, text, finish ("stop" or "length"), tokens, logprob (by the model itself,
of all tokens), and under co-decoding taken: how many of the tokens the second model proposed. The same command goes on where it was stopped; more
--samples may be asked of a finished job. A sample depends on the model, the prompt, --seed, its id and its number: not on --rows, on the other
prompts, or on how often the job was interrupted.

With --security a second model of the same tokenizer, small and trained for security, proposes each token; the model keeps it if it thinks it
likely enough, or draws its own (co-decoding, see lpo_jax/decode/rules/codecode.py). With --preset crosec the two are mixed, and may have different
tokenizers: their vocabularies are aligned first, which takes minutes on CPUs and is kept beside OUT.jsonl (lpo_jax/decode/rules/crosec.py).

On several hosts start the same command on each, as for `lpo train`. The mesh lies over all of them; the first reads the prompts and writes OUT.jsonl.

examples:
  lpo generate tasks.jsonl -o out.jsonl --model runs/disco                      (a run's newest checkpoint)
  lpo generate tasks.jsonl -o out.jsonl --model DIR --samples 25 --temperature 0.4 --top-p 0.95 --stop $'\\ndef ' --stop $'\\nclass '
  lpo generate tasks.jsonl -o out.jsonl --model DIR --adapter old=runs/a_adapter --adapter new=runs/b_adapter
  lpo generate tasks.jsonl -o out.jsonl --model DIR --greedy --data 1 --tensor 4
  lpo generate tasks.jsonl -o out.jsonl --model DIR --security runs/security --threshold 0.3 --html out.html
  lpo generate tasks.jsonl -o out.jsonl --model DIR --security OTHER_FAMILY --preset crosec --weight 0.3
"""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from foundation.commands import new_file, new_page, number, whole
from foundation.console import waiting
from lpo_jax.cli.models import add_asking, add_models, models_of

if TYPE_CHECKING:
    from lpo_jax.decode.job import Job


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", metavar="PROMPTS.jsonl", help="the prompts, a line each")
    parser.add_argument("-o", "--out", type=new_file, required=True, metavar="OUT.jsonl", help="where the completions go")
    add_models(parser)
    parser.add_argument("--samples", type=whole(1), default=1, metavar="N", help="of each prompt (default: 1)")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of all samples (default: 0)")
    draw = parser.add_mutually_exclusive_group()
    draw.add_argument("--temperature", type=number(), default=0.4, help="divides the logits (default: 0.4)")
    draw.add_argument("--greedy", action="store_true", help="always the most probable token, as --temperature 0")
    parser.add_argument(
        "--top-k", type=whole(0), default=0, metavar="K", help="draw among the K most probable tokens; 0: among all (default)"
    )
    parser.add_argument(
        "--top-p",
        type=number(most=1, above=True),
        default=0.95,
        metavar="P",
        help="of these among the fewest that hold P of the probability (default: 0.95)",
    )
    parser.add_argument("--max-new-tokens", type=whole(1), default=256, metavar="N", help="a completion's length at most (default: 256)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end a completion in front of this text; repeatable")
    add_asking(parser)
    parser.add_argument("--trace", action="store_true", help="write what each model thought of each token, too")
    parser.add_argument(
        "--html",
        type=new_page,
        metavar="PAGE.html",
        help="co-decoding: a page that shows which model decided each token; implies --trace",
    )


def run(args: argparse.Namespace) -> int:
    with waiting("loading JAX"):
        from lpo_jax.train import distributed

        job = asked(args)
    return distributed.together(partial(_generate, args, job), args)


def asked(args: argparse.Namespace) -> "Job":
    """What is asked for.

    Raises:
      ConfigError: flags that don't go together.
    """
    from lpo_jax.config import ConfigError
    from lpo_jax.decode import job
    from lpo_jax.decode.request import SamplingConfig
    from lpo_jax.decode.rules import crosec

    if args.html and (not args.security or args.preset in crosec.PRESETS):
        raise ConfigError(
            "--html shows which of two models decided each token: give the other with --security, and a preset that replaces tokens"
        )
    if args.html and args.html.resolve() == args.out.resolve():
        raise ConfigError(f"--html {args.html}: the completions go there; name another file")
    temperature = 0.0 if args.greedy else args.temperature
    return job.Job(
        prompts=args.prompts,
        out=str(args.out),
        models=models_of(args),
        trace=args.trace or args.html is not None,
        samples=args.samples,
        seed=args.seed,
        think=not args.no_think,
        template=args.template,
        system=args.system,
        sampling=SamplingConfig(temperature, args.top_k, args.top_p, args.max_new_tokens, tuple(args.stop)),
    )


def _generate(args: argparse.Namespace, asked: "Job") -> int:
    from lpo_jax.decode import job
    from lpo_jax.report import codecode as page
    from lpo_jax.train.distributed import first

    written = job.run(asked)
    if not first():
        return 0
    print(f"wrote {written} samples to {args.out}")
    if args.html:
        page.write(args.html, args.out, {prompt.id: prompt.text for prompt in job.read_prompts(asked)})
        print(f"token by token: {args.html}")
    return 0
