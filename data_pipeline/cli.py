"""`lpo-data`: build shard sets from pairs, and look into them."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greeting isn't ours
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # nothing here needs an accelerator

from data_pipeline.pairs import DataError  # noqa: E402

BUILD_HELP = """\
Turn pairs into a shard set for training: tokenise, mark what differs, lay each pair out as a tree, pack, write.

Inputs are told apart by their columns: our own JSONL (chosen, rejected, instruction, reasoning, ...), the DiSCo CSV (Instruction,
Reasoning, Secure Code, Vulnerable Code), SVEN / SafeCoder JSONL (func_src_before, func_src_after, ...).
The same inputs and options always give the same bytes; a finished build is not repeated.
"""
BUILD_EXAMPLES = """\
examples:
  lpo-data build data_pipeline/seed/pairs.jsonl --train-tokenizer 2048 --out runs/tiny_cpu/data
  lpo-data build disco_train.csv --tokenizer Qwen/Qwen2.5-Coder-7B --row-tokens 4096 --jobs 8 --out data/disco
  lpo-data build sven.jsonl --tokenizer my/tokenizer --masks spans --out data/sven
  lpo-data build disco_train.csv --tokenizer DIR --masks reference --untrimmed --out data/paper    (to repeat the authors' runs)
"""
CHECK_HELP = """\
Read every pair: both sides parse, the fix is small, no other pair is nearly the same, the instruction doesn't give the task away, the
reasoning has its form and the CWE its name. With --tests, run the executable checks: functional(m) passes on both sides, exploit(m)
on the secure side only. Exits with 1 and names the pairs where something is wrong.
"""


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except DataError as error:
        print(f"lpo-data: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `lpo-data show DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lpo-data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter

    build = commands.add_parser("build", help="pairs -> shards", description=BUILD_HELP, epilog=BUILD_EXAMPLES, formatter_class=raw)
    build.add_argument("inputs", nargs="+", metavar="INPUT", help="files of pairs")
    build.add_argument("--out", required=True, help="directory of the shard set")
    which = build.add_mutually_exclusive_group(required=True)
    which.add_argument("--tokenizer", help="tokenizer.json, a directory that holds one, or a hub id")
    which.add_argument("--train-tokenizer", type=int, metavar="SIZE", help="train a byte-level BPE of SIZE entries on the inputs")
    build.add_argument("--row-tokens", type=int, default=2048, help="tokens in a packed row; longer pairs are dropped (default: 2048)")
    build.add_argument("--masks", choices=("clean", "lcs", "reference", "spans"), default="clean", help="how changed tokens are found: a diff of the code's tokens by longest common blocks (clean) or by longest common subsequence, which marks the fewest (lcs), the LPO authors' ndiff over at most 512 tokens (reference), recorded character spans (spans)")  # fmt: skip
    build.add_argument("--hole", type=int, default=1, help="fill runs of up to so many unchanged tokens between changed ones (default: 1)")
    build.add_argument("--untrimmed", action="store_true", help="keep and score the whole rejected branch: simpo and lpo's reference mode need it")  # fmt: skip
    build.add_argument("--score-prompt", action="store_true", help="score the prompt's tokens too, for sft on everything")
    build.add_argument("--heldout", type=float, default=0.05, help="share of the pairs to hold out, by CWE and commit (default: 0.05)")
    build.add_argument("--seed", type=int, default=0, help="order of the rows and choice of the held-out pairs (default: 0)")
    build.add_argument("--jobs", type=int, default=1, help="processes that tokenise (default: 1)")
    build.add_argument("--force", action="store_true", help="replace a shard set of other inputs or options")
    build.set_defaults(run=_build)

    show = commands.add_parser("show", help="print pairs of a shard set with their changed tokens in colour")
    show.add_argument("directory", metavar="DIR", help="a shard set")
    show.add_argument("--split", choices=("train", "heldout"), default="train")
    show.add_argument("-n", type=int, default=3, help="how many pairs (default: 3)")
    show.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    show.add_argument("--drops", action="store_true", help="list the rows that were dropped, and why, instead")
    show.set_defaults(run=_show)

    check = commands.add_parser("check", help="prove what can be proved of a file of pairs", description=CHECK_HELP, formatter_class=raw)
    check.add_argument("pairs", metavar="PAIRS", type=Path, help="our own JSONL")
    check.add_argument(
        "--tests", metavar="DIR", type=Path, help="executable checks, run in the sandbox: one file a pair, named after its id with - as _"
    )
    check.add_argument("--workers", type=int, default=2, help="sandboxes at a time (default: 2)")
    check.set_defaults(run=_check)
    return parser


def _build(args: argparse.Namespace) -> int:
    from data_pipeline.build import BuildOptions, build
    from data_pipeline.encode import MaskOptions

    if not 0 <= args.heldout < 1:
        raise DataError(f"--heldout must lie in [0, 1), not {args.heldout}")
    options = BuildOptions(
        masks=MaskOptions(mode=args.masks, hole=args.hole),
        row_tokens=args.row_tokens,
        trim=not args.untrimmed,
        score_prompt=args.score_prompt,
        heldout=args.heldout,
        seed=args.seed,
    )
    manifest = build(
        args.inputs, args.out, args.tokenizer, options, vocab_size=args.train_tokenizer, jobs=args.jobs, force=args.force
    )  # fmt: skip
    for split, facts in manifest.splits.items():
        fill = facts["tokens"] / (facts["rows"] * manifest.row_tokens) if facts["rows"] else 0
        print(f"{split:8}{facts['pairs']:7} pairs in {facts['rows']:5} rows of {manifest.row_tokens} tokens, {fill:.1%} full")
    for reason, count in manifest.drops.items():
        print(f"dropped {count:7} rows: {reason}")
    if manifest.drops:
        print(f"the dropped rows are listed in {Path(args.out) / 'dropped.tsv'}")
    return 0


def _show(args: argparse.Namespace) -> int:
    if args.drops:
        print((Path(args.directory) / "dropped.tsv").read_text(), end="")
        return 0
    from data_pipeline.show import render_pairs

    colour = args.color == "always" or (args.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    for text in render_pairs(args.directory, args.split, args.n, colour):
        print(text)
    return 0


def _check(args: argparse.Namespace) -> int:
    from data_pipeline.check import check

    faults, count, executed = check(args.pairs, args.tests, workers=args.workers)
    for name, fault in faults:
        print(f"{name:44} {fault}")
    print(f"{'pairs':44} {count:5}\n{'with an executable check':44} {executed:5}\n{'faults':44} {len(faults):5}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
