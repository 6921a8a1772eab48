"""The papers' claims, re-run on a real model: base, SFT, LPO and its rivals, from the same pairs, judged on function and security together.

A campaign is a list of pieces of at most 40 minutes, declared in configs/reproduce/. Each is done once and can be stopped at any moment; what it
found is kept under docs/results/, and the page is made from there. docs/reproduce.md says what is compared, and how fairly.

examples:
  python -m reproduce run smoke
  python -m reproduce list small
  python -m reproduce run small --model DIR --pairs train.jsonl --minutes 120
  python -m reproduce report
"""

import argparse
import sys
from pathlib import Path

from foundation.commands import Program, new_directory, number
from reproduce import report
from reproduce.campaign import CONFIGS, SIZES, Campaign, load
from reproduce.results import Results
from reproduce.run import Place, ReproduceError, missing, run, write_config


def main(argv: list[str] | None = None) -> int:
    return program().run(argv)


def program() -> Program:
    """`python -m reproduce` with its commands."""
    program = Program("python -m reproduce", __doc__)
    listing = program.command("list", "the pieces: which are done, what each took, what is next", _list.__doc__, _list)
    running = program.command("run", "do the next pieces", _run.__doc__, _run)
    writing = program.command("configs", "write the trainings' configs, for other machines", _configs.__doc__, _configs)
    for parser in (listing, running, writing):
        parser.add_argument(
            "size",
            choices=SIZES,
            help="smoke: minutes, a model of its own; small: LoRA on a model of half a billion parameters, two cores; full: a 7B on a TPU slice",
        )
        parser.add_argument(
            "--benchmarks",
            type=Path,
            metavar="DIR",
            help="where the other benchmarks' files lie, as configs/reproduce/SIZE.yaml names them; pieces without theirs wait",
        )
        parser.add_argument("--large", metavar="MODEL", help="a larger model of the same tokenizer, which the small one steers; without it these pieces wait (smoke: the small one itself)")  # fmt: skip
        _results(parser)
    for parser in (running, writing):
        parser.add_argument("--model", metavar="MODEL", help="a Hugging Face directory or a hub id (smoke: trains one)")
        parser.add_argument(
            "--work", type=new_directory, metavar="DIR", help="for runs and adapters, which aren't kept (default: runs/reproduce/SIZE)"
        )
    running.add_argument("--pairs", metavar="FILE", help="pairs with tests, as SecCodePLT+ has them (smoke: has some)")
    running.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these pieces, or these systems' pieces, and what they need")
    running.add_argument("--minutes", type=number(above=True), metavar="N", help="stop within so many minutes; the same command goes on")
    _results(program.command("report", "make the page and docs/results.md anew", _report.__doc__, _report))
    return program


def _results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=new_directory,
        metavar="DIR",
        help="where what was found is kept (default: docs/results; smoke: runs/reproduce/smoke_results)",
    )


def _root(args: argparse.Namespace) -> Path:
    default = Path("runs/reproduce/smoke_results") if getattr(args, "size", "") == "smoke" else Path("docs/results")
    return args.results or default


def _list(args: argparse.Namespace) -> int:
    """List the pieces of a size in their order: done, with what it took; open, with what it will take, about; or what it waits for.

    examples:
      python -m reproduce list small
      python -m reproduce list small --benchmarks DIR
    """
    campaign, results = load(args.size), Results(_root(args), args.size)
    page = report.Page(campaign, results, {})
    place, following = Place(results, Path(), benchmarks=args.benchmarks, large=args.large or ("its own" if campaign.new else None)), True
    for piece in page.pieces:
        record, why = results.record(piece.name), missing(piece, place)
        if page.done(piece.name):
            state = f"done   {record['seconds'] / 60:6.1f} min on {record['cores']} cores"
        elif why:
            state = why
        else:
            state = f"{'next' if following else 'open'}   about {page.minutes(piece):.0f} min{', declared otherwise since it was done' if record else ''}"
            following = False
        print(f"{piece.phase:12} {piece.name:34} {state}")
    done = sum(page.done(piece.name) for piece in page.pieces)
    print(f"{done} of {len(page.pieces)} pieces are done; the others will take about {page.left():.1f} hours")
    if campaign.recipe:
        print(campaign.recipe)
    return 0


def _run(args: argparse.Namespace) -> int:
    """Do what is open, in its order, each piece by the product's own commands, which are shown. Stop it when you like: the same command goes on.

    The first run cuts the rows into train, development and test, and records that in RESULTS/split.json; other data is refused from then on.
    The test part is scored once for each final system. What a piece has found is put down when it is finished; at the end the page is made anew.
    Adapters stay in --work: where they aren't, they are trained again before anything is asked of them.

    examples:
      python -m reproduce run smoke
      python -m reproduce run small --model DIR --pairs train.jsonl --benchmarks DIR --minutes 120
      python -m reproduce run small --model DIR --pairs train.jsonl --only lpo simpo
    """
    campaign = load(args.size)
    if campaign.recipe:
        raise ReproduceError(f"{args.size}: {campaign.recipe}")
    work = args.work or Path("runs/reproduce") / args.size
    place = _place(campaign, args, work)
    finished, left = run(campaign, place, args.only, args.minutes)
    print(f"{finished} pieces finished, {left} open; wrote {' and '.join(map(str, report.write(_root(args))))}")
    return 0


def _configs(args: argparse.Namespace) -> int:
    """Write the config of every training whose settings are known by now to WORK/configs/, in the order in which they belong, for `lpo plan`, or for
    `lpo train` and the launchers on machines that run no campaign.

    examples:
      python -m reproduce configs full --model Qwen/Qwen2.5-Coder-7B-Instruct
    """
    campaign, work = load(args.size), args.work or Path("runs/reproduce") / args.size
    place = Place(Results(_root(args), args.size), work, args.model or "MODEL", large=args.large or "LARGE")
    for piece in report.Page(campaign, place.results, {}).pieces:
        if piece.config is not None:
            print(f"{write_config(piece, place)}: {piece.about}{f'; it {missing(piece, place)}' if piece.waits else ''}")
    return 0


def _place(campaign: Campaign, args: argparse.Namespace, work: Path) -> Place:
    pairs = args.pairs or (str(CONFIGS.parents[1] / campaign.pairs) if campaign.pairs else None)
    if campaign.new is None and args.model is None:
        raise ReproduceError(f"{args.size} needs --model (make: MODEL=...): a Hugging Face directory or a hub id")
    if campaign.new is not None and args.model is not None:
        raise ReproduceError(f"{args.size} trains a model of its own: leave --model out")
    if pairs is None:
        raise ReproduceError(f"{args.size} needs --pairs (make: PAIRS=...): a file of SecCodePLT+'s rows")
    model = args.model or str(work / "model")
    return Place(Results(_root(args), args.size), work, model, pairs, args.benchmarks, args.large or (model if campaign.new else None))


def _report(args: argparse.Namespace) -> int:
    """Make RESULTS/index.html, and RESULTS.md beside it, from what pieces have found. Needs no model, no data and no run.

    examples:
      python -m reproduce report
    """
    print(f"wrote {' and '.join(map(str, report.write(_root(args))))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
