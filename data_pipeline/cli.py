"""From weaknesses to training data: `rules` lists what a teacher can be asked about, `distill` has it write pairs, `stats` says what a file of
pairs holds, `pivots` finds the tokens that matter in them, `build` turns it into shards for `lpo train`, `show` prints what is in those, `push`
gives pairs to the hub. `lpo-data COMMAND --help` explains each.

examples:
  lpo-data stats data_pipeline/seed/pairs.jsonl
  lpo-data build data_pipeline/seed/pairs.jsonl --train-tokenizer 1024 --out runs/tiny_cpu_data
  lpo-data distill --model gpt-4o-2024-08-06 -n 500 --price-in 2.5 --price-out 10 --budget 20 --out data/mine
"""

import argparse
import os
import sys
from pathlib import Path

from foundation.commands import Program, new_directory, new_file, new_page, number, whole
from foundation.errors import DataError
from foundation.files import read_text, write_text
from foundation.pages import visible


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # nothing here needs an accelerator
    return program().run(argv)


def program() -> Program:
    program = Program("lpo-data", __doc__)
    build = program.command("build", "pairs -> shards", _build.__doc__, _build)
    build.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, directories or data sets of the hub, [hf://]OWNER/NAME[/SUBSET][:SPLIT][?OURS=THEIRS&...], of pairs",
    )
    build.add_argument("--out", type=new_directory, required=True, help="directory of the shard set")
    which = build.add_mutually_exclusive_group(required=True)
    which.add_argument("--tokenizer", help="tokenizer.json, a directory that holds one, or a hub id")
    which.add_argument(
        "--train-tokenizer", type=whole(257, 2**20), metavar="SIZE", help="train a byte-level BPE of SIZE entries on the inputs"
    )
    build.add_argument("--template", metavar="NAME", help="how instructions are put: alpaca, chat (the tokenizer's own chat template), plain, or a Jinja file (default: chat if the tokenizer has a template for it, else alpaca)")  # fmt: skip
    build.add_argument(
        "--system", default="", metavar="TEXT", help="the system text of a chat (default: what its template says without one)"
    )
    build.add_argument("--row-tokens", type=whole(1), default=2048, help="tokens in a packed row; longer pairs are dropped (default: 2048)")
    build.add_argument("--masks", choices=("clean", "lcs", "reference", "spans"), default="clean", help="how changed tokens are found: a diff of the code's tokens by longest common blocks (clean) or by longest common subsequence, which marks the fewest (lcs), the LPO authors' ndiff over at most 512 tokens (reference), recorded character spans (spans)")  # fmt: skip
    build.add_argument(
        "--hole", type=whole(0), default=1, help="fill runs of up to so many unchanged tokens between changed ones (default: 1)"
    )
    build.add_argument("--untrimmed", action="store_true", help="keep and score the whole rejected branch: objectives over whole answers need it")  # fmt: skip
    build.add_argument("--score-prompt", action="store_true", help="score the prompt's tokens too, for sft on everything")
    build.add_argument("--heldout", type=float, default=0.05, help="share of the pairs to hold out, by CWE and commit (default: 0.05)")
    build.add_argument("--heldout-file", action="append", default=[], metavar="INPUT", help="hold out the pairs of this file instead of a share; what is alike them is dropped from the others; repeatable")  # fmt: skip
    build.add_argument("--near", type=number(), default=0.85, help="Jaccard similarity from which pairs are alike, and never lie on both sides of the held-out split; above 1: none are (default: 0.85)")  # fmt: skip
    build.add_argument("--drop-cosmetic", action="store_true", help="drop pairs whose sides differ in blanks and comments only (they are counted anyway)")  # fmt: skip
    build.add_argument("--balance-cwe", type=whole(0), default=0, metavar="N", help="top up a CWE of fewer than N train pairs to N, by seeded draws with replacement; all pairs stay (default: 0, none)")  # fmt: skip
    build.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="order of the rows, choice of the held-out pairs and of draws (default: 0)"
    )
    build.add_argument("--jobs", type=whole(1), default=1, help="processes that tokenise (default: 1)")
    build.add_argument("--force", action="store_true", help="replace a shard set of other inputs or options")

    rules = program.command("rules", "what a teacher can be asked about", _rules.__doc__, _rules)
    _rule_filters(rules)
    rules.add_argument("--every-language", action="store_true", help="also those that no Python program can break")
    rules.add_argument("--libraries", action="store_true", help="list the libraries instead")

    distill = program.command("distill", "rules -> teacher -> pairs", _distill.__doc__, _distill)
    distill.add_argument("--out", required=True, type=new_directory, help="directory of the job; the same command goes on with it")
    distill.add_argument("--model", required=True, help="the teacher's name at its endpoint")
    distill.add_argument("-n", "--prompts", type=whole(1), required=True, help="pairs to ask for")
    _rule_filters(distill)
    distill.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of the plan and the splits (default: 0)")
    distill.add_argument(
        "--answers",
        choices=("json", "sections"),
        default="sections",
        help="json: by schema, where the endpoint supports it; sections: labelled text (default)",
    )
    distill.add_argument("--temperature", type=number(), default=0.7, help="of the teacher (default: 0.7)")
    distill.add_argument("--max-tokens", type=whole(1), default=3000, help="of an answer (default: 3000)")
    distill.add_argument("--rounds", type=whole(0), default=1, help="of refinement by the judges' findings (default: 1)")
    _judges(distill, "who looks at the code")
    distill.add_argument("--split-by", choices=("rule", "cwe", "row"), default="rule", help="what no two splits share (default: rule)")
    distill.add_argument(
        "--near",
        type=number(),
        default=0.85,
        help="Jaccard similarity from which rows are near-duplicates; above 1: none are (default: 0.85)",
    )
    distill.add_argument("--base-url", help="of the endpoint (default: OPENAI_BASE_URL, else OpenAI's)")
    distill.add_argument("--concurrency", type=whole(1), default=16, help="requests under way at once (default: 16)")
    _patience(distill)
    distill.add_argument("--price-in", type=number(), default=0.0, help="dollars for a million tokens asked")
    distill.add_argument("--price-out", type=number(), default=0.0, help="dollars for a million tokens answered")
    distill.add_argument("--budget", type=number(), help="dollars for the job, all its runs together")
    distill.add_argument("--batch", action="store_true", help="use the Batch API: half the price, within a day")
    distill.add_argument("--estimate", action="store_true", help="only say what is left to ask, in requests, tokens and dollars")
    distill.add_argument("--jobs", type=whole(1), default=2, help="processes that judge (default: 2)")

    pivots = program.command("pivots", "pairs -> spans on which success hangs", _pivots.__doc__, _pivots)
    pivots.add_argument("inputs", nargs="+", metavar="PAIRS", help="files, directories or hub ids of pairs, as `lpo-data build` reads them")
    pivots.add_argument("-o", "--out", required=True, type=new_file, help="JSONL to write; the same command goes on with it")
    pivots.add_argument("--tokenizer", required=True, help="that of the model: tokenizer.json, a directory that holds one, or a hub id")
    pivots.add_argument("--model", required=True, help="the model's name at its endpoint")
    pivots.add_argument("--base-url", help="of the endpoint (default: OPENAI_BASE_URL, else OpenAI's)")
    pivots.add_argument("--template", metavar="NAME", help="how instructions are put, as for `lpo-data build`: give both the same")
    pivots.add_argument("--system", default="", metavar="TEXT", help="the system text of a chat, likewise")
    _judges(pivots, "who judges where there is no check")
    pivots.add_argument("--tests", metavar="DIR", type=Path, help="executable checks, as `lpo-data check` runs them: they judge the pairs that have one")  # fmt: skip
    pivots.add_argument("--sides", nargs="+", choices=("chosen", "rejected"), default=["chosen", "rejected"], metavar="SIDE", help="which to search: chosen, rejected (default: both); the other keeps its spans, or gets those of a diff")  # fmt: skip
    pivots.add_argument("--samples", type=whole(1, 128), default=50, help="continuations of each prefix (default: 50)")
    pivots.add_argument("--threshold", type=number(0, 1, above=True), default=0.2, help="least change of the share that succeeds, by which a token is pivotal (default: 0.2)")  # fmt: skip
    pivots.add_argument("--temperature", type=number(0, 2), default=1.0, help="of the continuations (default: 1)")
    pivots.add_argument("--max-tokens", type=whole(1), default=512, help="of a continuation; a longer one fails (default: 512)")
    pivots.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of the continuations (default: 0)")
    pivots.add_argument("--limit", type=whole(1), metavar="N", help="only the first N pairs; a later run may go on with more")
    pivots.add_argument("--dry-run", action="store_true", help="only say which pairs can be judged, and what the search costs")
    pivots.add_argument("--concurrency", type=whole(1), default=4, help="requests under way at once, each of --samples continuations (default: 4)")  # fmt: skip
    _patience(pivots)
    pivots.add_argument("--jobs", type=whole(1), default=2, help="processes that judge (default: 2)")

    stats = program.command("stats", "what a data set holds", _stats.__doc__, _stats)
    stats.add_argument("path", metavar="PATH", type=Path, help="a job of `lpo-data distill`, its data/, or a file of pairs")
    stats.add_argument("--html", type=new_page, metavar="OUT", help="also write all of it as one page that loads nothing")

    show = program.command("show", "print pairs of a shard set", _show.__doc__, _show)
    show.add_argument("directory", metavar="DIR", help="a shard set")
    show.add_argument("--split", choices=("train", "heldout"), default="train")
    show.add_argument("-n", type=whole(0), default=3, help="how many pairs (default: 3)")
    show.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    show.add_argument("--drops", action="store_true", help="list the rows that were dropped, and why, instead")

    push = program.command("push", "pairs -> a data set of the hub", _push.__doc__, _push)
    push.add_argument("source", metavar="DIR", type=Path, help="a job of `lpo-data distill`, or a directory or a file of pairs")
    push.add_argument("name", metavar="OWNER/NAME", help="the data set's repository, which is made if there is none")
    push.add_argument("--private", action="store_true", help="a repository that only its owner sees")
    push.add_argument("--license", metavar="NAME", help="what the pairs are licensed under, e.g. cc-by-4.0; it goes into the card")

    check = program.command("check", "prove what can be proved of a file of pairs", _check.__doc__, _check)
    check.add_argument("pairs", metavar="PAIRS", type=Path, nargs="+", help="our own JSONL")
    check.add_argument(
        "--tests", metavar="DIR", type=Path, help="executable checks, run in the sandbox: one file a pair, named after its id with - as _"
    )
    check.add_argument("--verdicts", metavar="OUT", type=new_file, help="record what Bandit and Semgrep find in each side")
    check.add_argument("--workers", type=whole(1), default=2, help="sandboxes at a time (default: 2)")
    return program


def _build(args: argparse.Namespace) -> int:
    """Turn pairs into a shard set for training: tokenise, mark what differs, lay each pair out as a tree, pack, write.

    Inputs are JSON lines, a JSON array, CSV, TSV or Parquet, also gzipped, or what `datasets` opens. Their columns say what they are: our own rows
    (chosen, rejected, instruction, reasoning, ...), the DiSCo CSV (Instruction, Reasoning, Secure Code, Vulnerable Code), SVEN and SafeCoder,
    SecCodePLT, preference pairs as TRL, Orca, LLaMA-Factory and ShareGPT have them, and plain rows without a second side (instruction or prompt;
    output or response; messages), which serve the objectives sft and kd. docs/data.md lists all columns. Whatever isn't used, rows or columns, is
    named.

    The same inputs and options always give the same bytes; a finished build is not repeated. The template goes with the shards into runs and
    their exports: `lpo generate`, `lpo serve` and `lpo-eval` ask a model as it was trained. data_pipeline/templates/ has ours, to begin with.

    examples:
      lpo-data build data_pipeline/seed/pairs.jsonl --train-tokenizer 2048 --out runs/tiny_cpu/data
      lpo-data build disco_train.csv --tokenizer Qwen/Qwen2.5-Coder-7B --row-tokens 4096 --jobs 8 --out data/disco
      lpo-data build 'hf://OWNER/NAME:train?instruction=question&chosen=good&rejected=bad' --tokenizer DIR --out data/theirs
      lpo-data build sven.jsonl --tokenizer my/tokenizer --masks spans --out data/sven
      lpo-data build sven.jsonl --tokenizer DIR --masks spans --hole 0 --score-prompt --balance-cwe 80 --out data/sven_security
      lpo-data build pairs.parquet --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct --template chat --system "You write secure code." --out data/chat
      lpo-data build disco_train.csv --tokenizer DIR --template alpaca --masks reference --untrimmed --out data/paper    (to repeat the authors' runs)
    """
    from data_pipeline.build import BuildOptions, build
    from data_pipeline.encode import MaskOptions

    if not 0 <= args.heldout < 1:
        raise DataError(f"--heldout must lie in [0, 1), not {args.heldout}")
    masks = MaskOptions(args.masks, args.hole)
    same = ("row_tokens", "score_prompt", "heldout", "balance_cwe", "near", "drop_cosmetic", "seed", "template", "system")
    options = BuildOptions(masks=masks, trim=not args.untrimmed, **{name: getattr(args, name) for name in same})
    manifest = build(
        args.inputs,
        args.out,
        args.tokenizer,
        options,
        vocab_size=args.train_tokenizer,
        jobs=args.jobs,
        force=args.force,
        heldout=args.heldout_file,
    )
    for split, facts in manifest.splits.items():
        fill = facts["tokens"] / (facts["rows"] * manifest.row_tokens) if facts["rows"] else 0
        print(f"{split:8}{facts['pairs']:7} pairs in {facts['rows']:5} rows of {manifest.row_tokens} tokens, {fill:.1%} full")
    if manifest.plain:
        print(f"{manifest.plain} of them are plain: an instruction and a response, for the objectives sft and kd")
    if manifest.balanced:
        count, cwes = sum(manifest.balanced.values()), len(manifest.balanced)
        print(f"{count} of the train split's pairs are drawn once more, of {cwes} CWEs; manifest.json says which")
    for remark, count in manifest.notes.items():
        print(f"{count:7} pairs: {remark}")
    for reason, count in manifest.drops.items():
        print(f"dropped {count:7} rows: {reason}")
    if manifest.drops:
        print(f"the dropped rows are listed in {args.out / 'dropped.tsv'}")
    return 0


def _judges(parser: argparse.ArgumentParser, who: str) -> None:
    parser.add_argument(
        "--judges",
        nargs="*",
        default=["bandit", "semgrep"],
        metavar="JUDGE",
        help=f"{who}: bandit, semgrep, codeql (default: bandit semgrep); the option without a name: nobody",
    )


def _patience(parser: argparse.ArgumentParser) -> None:
    """How long an endpoint is waited for, and how often it is asked again."""
    parser.add_argument("--timeout", type=number(above=True), default=180, help="seconds for an answer (default: 180)")
    parser.add_argument("--tries", type=whole(1), default=8, help="of a request in a run (default: 8)")
    parser.add_argument("--backoff", type=number(), default=1.0, help="seconds of the first wait after a failure; it doubles (default: 1)")


def _rule_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cwe", default="", help="only rules of this CWE, e.g. 89")
    parser.add_argument("--source", choices=("cwe", "bandit", "topic"), default="", help="only rules of this source")
    parser.add_argument("--text", default="", help="only rules with this text in their title or description")


def _rules(args: argparse.Namespace) -> int:
    """List the rules that `lpo-data distill` asks a teacher about, one a line: its id, its CWE, its title.

    Three sources: MITRE's list of weaknesses (cwe), the checks of the installed Bandit (bandit), and topics of static queries (topic).
    The filters are those of `lpo-data distill`: try them here first.

    examples:
      lpo-data rules --cwe 89
      lpo-data rules --source bandit --text xml
      lpo-data rules --libraries                (what the rules are combined with)
    """
    from data_pipeline.distill import knowledge

    if args.libraries:
        print(*knowledge.libraries(), sep="\n")
        return 0
    found = knowledge.select(args.text, args.cwe, args.source, args.every_language)
    for rule in found:
        print(f"{rule.id:14} {rule.cwe:9} {rule.title}")
    print(f"{len(found)} rules, {len({rule.cwe for rule in found})} CWEs", file=sys.stderr)
    return 0


def _distill(args: argparse.Namespace) -> int:
    """Have a teacher model write pairs of a vulnerable and a secure program, and finish them as a data set:

      1. plan     rules (`lpo-data rules`) x libraries, every CWE and library equally often;
      2. ask      the teacher, any endpoint that speaks OpenAI's chat completions; failures are tried again, a budget is kept;
      3. check    both programs parse and differ, the fix is small, lengths are sane, the instruction gives nothing away; comments are removed;
      4. judge    static analysers (--judges) look for weaknesses in both programs;
      5. refine   secure programs that they object to go back to the teacher (--rounds); what remains is recorded with the row;
      6. finish   duplicates and near-duplicates go (--near), so do rows with a real credential; splits that share nothing (--split-by).

    The scan of step 6 is for credentials that a teacher may have memorised: keys in the formats of their issuers (AWS, GitHub, Slack, ...), in
    any field. Passwords written into programs are no such thing: CWE-798 is about them, and the judges report them.

    The key is read from OPENAI_API_KEY. Every answer is on disk, in journal.jsonl, before anything else happens: kill the job whenever you like,
    and repeat the command to go on, also with a larger -n: what is answered isn't asked again, and the splits are drawn anew. Ends with summary.json, rejected.jsonl (every reason) and data/ (JSONL, Parquet, a card).
    Exit code: 0 if every prompt ended as a pair or a rejection, 3 if some wait for another run (budget spent, endpoint unreachable).

    examples:
      lpo-data distill --model gpt-4o-2024-08-06 -n 500 --price-in 2.5 --price-out 10 --answers json --out data/mine --estimate
      lpo-data distill --model gpt-4o-2024-08-06 -n 500 --price-in 2.5 --price-out 10 --budget 20 --answers json --out data/mine
      lpo-data distill --model qwen --base-url http://localhost:8000/v1 -n 200 --cwe 89 --out data/sql
      lpo-data build data/mine/data/train.jsonl --tokenizer DIR --out data/shards
    """
    from data_pipeline.distill import knowledge
    from data_pipeline.distill.cost import Prices
    from data_pipeline.distill.prompts import Job
    from data_pipeline.distill.run import distill, estimate, judge_with
    from data_pipeline.distill.writer import WriterOptions

    job = Job(
        args.model, args.prompts, args.seed, args.answers, args.temperature, args.max_tokens, args.rounds, args.split_by, near=args.near
    )  # fmt: skip
    prices = Prices(args.price_in, args.price_out, args.budget)
    options = WriterOptions(args.base_url, args.concurrency, args.timeout, args.tries, args.backoff, prices, args.batch)
    rules = knowledge.select(args.text, args.cwe, args.source)
    if args.estimate:
        known, *parts = estimate(job, rules, knowledge.libraries(), args.out, options, judged=bool(args.judges))
        print(
            f"{job.prompts} prompts, of which {known} are answered\n{'':20}{'requests':>9}{'tokens asked':>14}{'answered':>11}{'dollars':>10}{'at most':>10}"
        )
        for name, part in zip(("pairs", "repairs, at most"), parts, strict=True):
            dollars = f"{part.dollars:10.2f}{part.at_most:10.2f}" if prices.known else f"{'?':>10}{'?':>10}"
            print(f"{name:20}{part.requests:9}{part.tokens_in:14}{part.tokens_out:11}{dollars}")
        if not prices.known:
            print("dollars take the teacher's prices: --price-in and --price-out")
        return 0
    judge = judge_with(args.judges, args.jobs, args.out / "verdicts") if args.judges else None
    summary = distill(job, rules, knowledge.libraries(), args.out, options, judge)
    print(f"{summary['prompts']} prompts: {summary['pairs']} pairs")
    for kind in ("rejected", "pending"):
        for reason, count in summary[kind].items():
            print(f"{kind} {count:7}: {reason}")
    cost = summary["cost"]
    paid = f", ${cost['dollars']:.2f}" if prices.known else ""
    print(f"{cost['answers']} answers, {cost['tokens_in']} tokens asked, {cost['tokens_out']} answered{paid}")
    return 3 if summary["pending"] else 0


def _pivots(args: argparse.Namespace) -> int:
    """Find the tokens of both sides on which it hangs whether a model's program ends well (Pivotal Token Search, arXiv 2412.08905), and write the
    pairs with these as their spans, for `lpo-data build --masks spans`.

    A model goes on with a side's code from several places, --samples times from each; the share of programs that succeed is p. A token is
    pivotal where p differs by --threshold or more in front of it and behind it. They are searched by halves: the middle of a piece is looked at
    only if p differs between its ends. Spans are, in the chosen side, the tokens with which p rises, in the rejected one those with which it falls.
    Estimates have noise: with n samples, a difference has a standard error of up to sqrt(1 / (2 n)), 0.1 with 50.

    A program succeeds if it passes the pair's check of --tests, functional and exploit; without a check, if it parses and the analyzers find no
    weakness of the pair's CWE in it (without a CWE: none at all). One that --max-tokens cuts off has failed. A pair that its judge can't tell
    apart, chosen passing and rejected failing, is left out, and so is one without a pivotal token: OUT.dropped.tsv names them all.

    The endpoint speaks OpenAI's /completions and takes prompts of token ids, as `lpo serve` and vLLM do: they are those of training. A key is read
    from OPENAI_API_KEY. Every answer is on disk, in OUT.journal.jsonl, before anything else happens: kill the job whenever you like, and repeat
    the command to go on. The field `pivots` of a written pair has all that was measured.

    examples:
      lpo serve --model runs/sft --port 8000
      lpo-data pivots pairs.jsonl --tokenizer MODEL --model sft --base-url http://localhost:8000/v1 -o pivots.jsonl --dry-run
      lpo-data pivots pairs.jsonl --tokenizer MODEL --model sft --base-url http://localhost:8000/v1 -o pivots.jsonl --tests checks/
      lpo-data build pivots.jsonl --tokenizer MODEL --masks spans --hole 0 --out data/pivots
    """
    from data_pipeline.pivots import run as pivots
    from data_pipeline.pivots.estimates import Asking, Search

    same = ("model", "samples", "temperature", "max_tokens", "threshold", "seed")
    what = Search(sides=tuple(sorted({*args.sides})), **{name: getattr(args, name) for name in same})
    asking = Asking(args.base_url, args.concurrency, args.timeout, args.tries, args.backoff)
    more = {"template_name": args.template, "system": args.system, "limit": args.limit, "jobs": args.jobs, "dry_run": args.dry_run}
    found = pivots.search(args.inputs, args.out, args.tokenizer, what, asking, args.judges, args.tests, **more)
    if args.dry_run:
        cost, each = found.cost, args.samples * args.max_tokens / 1e6
        print(f"{cost.pairs} pairs can be judged; with no pivotal token in them {cost.least} requests, with one on each side {cost.likely}")
        print(
            f"of {args.samples} continuations each: at most {cost.least * each:.1f} or {cost.likely * each:.1f} million tokens to generate"
        )
    else:
        print(f"{found.pairs} pairs in {args.out}, {found.tokens} pivotal tokens; {found.requests} requests in this run")
    for reason, count in found.drops.counts().items():
        print(f"dropped {count:7} rows: {reason}")
    if args.dry_run:
        for name, reason in found.drops.rows:
            print(visible(f"{name:44} {' '.join(reason.split())}"))
    elif found.drops.rows:
        print(f"the dropped rows are listed in {pivots.beside(args.out, 'dropped.tsv')}")
    return 0


def _stats(args: argparse.Namespace) -> int:
    """Say what a data set holds: pairs by split, CWE and library, the size of the fixes, lengths; of a distilled one also what the judges found
    in both programs, before and after refinement, why answers were rejected, and what it cost. Long tables are cut; --html shows them whole.

    examples:
      lpo-data stats data/mine --html data/mine/stats.html     (a job of `lpo-data distill`)
      lpo-data stats data_pipeline/seed/pairs.jsonl            (any file that `lpo-data build` reads)
    """
    from data_pipeline.distill import stats

    found = stats.stats(args.path)
    print(stats.text(found))
    if args.html:
        write_text(args.html, stats.page(found))
        print(f"\nall of it: {args.html}")
    return 0


def _show(args: argparse.Namespace) -> int:
    """Print pairs of a shard set as the model will see them: decoded from their tokens, the ones marked as changed in green (secure) and red
    (vulnerable), or between «angle quotes» where there is no colour. Look at a few before you train on a new data set.

    examples:
      lpo-data show runs/tiny_cpu_data -n 5
      lpo-data show data/disco --split heldout --color always | less -R
      lpo-data show data/disco --drops                          (rows that the build left out, and why)
    """
    if args.drops:
        dropped = Path(args.directory) / "dropped.tsv"
        print(visible(read_text(dropped, "build the set again with `lpo-data build`")), end="")
        return 0
    from data_pipeline.show import render_pairs

    colour = args.color == "always" or (args.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    for text in render_pairs(args.directory, args.split, args.n, colour):
        print(text)
    return 0


def _push(args: argparse.Namespace) -> int:
    """Upload pairs to the hub, as one commit, with a card. Every row is read first, and one that can't be a pair is an error. The key is that of
    `hf auth login`, or HF_TOKEN. What is there is then read as `lpo-data build hf://OWNER/NAME`.

    examples:
      lpo-data push data/mine OWNER/NAME --private --license cc-by-4.0
    """
    from data_pipeline.push import push

    url, count = push(args.source, args.name, args.license, args.private)
    print(f"{url}: {count} pairs")
    return 0


def _check(args: argparse.Namespace) -> int:
    """Read every pair: both sides parse, the fix is small, no other pair is nearly the same, the instruction doesn't give the task away, the
    reasoning has its form and the CWE its name. Run the executable checks, those of --tests and what pairs have as `tests`: functional(m) passes
    on both sides, exploit(m) on the secure side only. Exits with 1 and names the pairs where something is wrong.
    """
    from data_pipeline import pairs
    from data_pipeline.check import check, write_verdicts

    if args.verdicts and any(path.exists() and args.verdicts.exists() and path.samefile(args.verdicts) for path in args.pairs):
        raise DataError(f"--verdicts {args.verdicts}: the pairs themselves; name another file")
    faults, count, executed = check(args.pairs, args.tests, workers=args.workers)
    for name, fault in faults:
        print(visible(f"{name:44} {' '.join(fault.split())}"))
    print(f"{'pairs':44} {count:5}\n{'with an executable check':44} {executed:5}\n{'faults':44} {len(faults):5}")
    if args.verdicts:
        write_verdicts([pair for path in args.pairs for pair in pairs.read(path, pairs.Drops())], args.verdicts, args.workers)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
