"""`lpo-eval`: run benchmarks on models, and show what came out."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.alive import FAULTS
from evaluation.benchmarks import BENCHMARKS, load, source_of
from evaluation.completions import Completions, EvaluationError, Sampling, from_benchmark, from_endpoint, from_file, from_model
from evaluation.tasks import Task
from foundation.commands import Program, new_directory, new_file, new_page, number, whole
from foundation.console import waiting
from foundation.files import shipped, write_json
from judges import TOOLS
from judges.findings import NOISE
from lpo_jax import devices
from lpo_jax.cli.models import add_asking, add_decoding, models_of

if TYPE_CHECKING:
    from lpo_jax.decode.load import Models


def main(argv: list[str] | None = None) -> int:
    devices.leave_absent_tpus_alone()
    return program().run(argv)


def program() -> Program:
    """`lpo-eval` with its commands."""
    program = Program("lpo-eval", __doc__)
    run = program.command("run", "judge a model on a benchmark", _run.__doc__, _run)
    run.add_argument("--benchmark", required=True, metavar="NAME", help="`lpo-eval benchmarks` lists them")
    run.add_argument("--data", type=Path, metavar="FILE", help="the benchmark's file, or its directory")
    run.add_argument("--any-data", action="store_true", help="take data whose hash isn't a known one")
    run.add_argument("--completions", required=True, metavar="SOURCE", help="canonical, insecure, a file, a URL or a model: see below")
    run.add_argument("-o", "--out", type=new_directory, required=True, metavar="DIR", help="the run's directory")
    run.add_argument("-n", "--samples", type=whole(1), metavar="N", help="of each task (default: 1; of a file: what it holds)")
    run.add_argument("--limit", type=whole(1), metavar="N", help="only the first N tasks")
    run.add_argument("--form", choices=("completion", "instruction"), help="code to go on with, or a text that asks for a program (default: the benchmark's own)")  # fmt: skip
    draw = run.add_argument_group("drawing (endpoints and models)")
    draw.add_argument("--temperature", type=number(), default=0.4, help="0: greedy (default: 0.4)")
    draw.add_argument("--top-p", type=number(most=1, above=True), default=0.95, metavar="P", help="draw among the fewest tokens that hold P of the probability (default: 0.95)")  # fmt: skip
    draw.add_argument("--max-new-tokens", type=whole(1), default=512, metavar="N", help="a completion's length at most (default: 512)")
    draw.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of all samples (default: 0)")
    draw.add_argument("--model", metavar="NAME", help="an endpoint: the name of its model")
    draw.add_argument("--concurrency", type=whole(1), default=8, metavar="N", help="an endpoint: requests at once (default: 8)")
    ours = run.add_argument_group("decoding (a model of ours; as `lpo generate` does)")
    add_decoding(ours, "--copies")
    add_asking(run.add_argument_group("asking (a model of ours, with --form instruction)"))
    how = run.add_argument_group("judging")
    how.add_argument("--judges", nargs="+", metavar="TOOL", help=f"of {', '.join(TOOLS)}; or none (default: the benchmark's own: none where its tests say it all, else bandit semgrep)")  # fmt: skip
    how.add_argument("--noise", action="store_true", help=f"count rules too that say little of security: {', '.join(NOISE)}; judges/findings.py says why")  # fmt: skip
    how.add_argument("--cache", type=new_directory, metavar="DIR", help="keep findings there, by the code's hash")
    how.add_argument("--workers", type=whole(1), metavar="N", help="programs at work at once (default: one a processor)")
    how.add_argument("--time-s", type=number(above=True), default=10, metavar="S", help="a test's time at most (default: 10)")
    how.add_argument("--memory-mb", type=whole(1), default=512, metavar="MB", help="a test's memory at most (default: 512)")
    how.add_argument("--unsafe-exec", action="store_true", help="where no sandbox works: run generated programs unprotected, as you")

    report = program.command("report", "runs on one page", _report.__doc__, _report)
    report.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="directories that `lpo-eval run` wrote, the one to compare with first"
    )
    report.add_argument("--training", action="append", default=[], type=Path, metavar="DIR", help="a run_dir of `lpo train`: show its curves and pairs too; repeatable")  # fmt: skip
    report.add_argument("-o", "--out", type=new_page, required=True, metavar="FILE.html", help="the page")

    compare = program.command("compare", "two runs of a benchmark, task by task", _compare.__doc__, _compare)
    compare.add_argument("first", type=Path, metavar="A", help="the run to compare with: the base model's")
    compare.add_argument("second", type=Path, metavar="B", help="the run that may have gained or lost")
    compare.add_argument("--json", type=new_file, metavar="FILE", help="write all of it there, each task's values too")

    export = program.command("export", "a run's programs for other harnesses", _export.__doc__, _export)
    export.add_argument("run_dir", type=Path, metavar="RUN", help="a directory that `lpo-eval run` wrote")
    export.add_argument(
        "--to", choices=("evalplus", "bigcode"), required=True, help="EvalPlus' samples, or bigcode-evaluation-harness' generations"
    )
    export.add_argument(
        "-o", "--out", type=new_file, required=True, metavar="FILE", help="the file (EvalPlus wants a name that ends in .jsonl)"
    )

    program.command("benchmarks", "list benchmarks: forms, licences, where their data comes from", "List the benchmarks.", _benchmarks)
    return program


def _run(args: argparse.Namespace) -> int:
    """Draw completions for a benchmark's tasks, make programs of them, and judge these: analyzers read them, and the benchmark's tests run them in a
    sandbox (bubblewrap, or namespaces of util-linux). Writes into the run's directory

      run.json       what was run: model, data, form, sampling, template, judges and their versions
      samples.jsonl  a line for each sample: the program, its findings, its tests
      scores.json    shares, pass@k and their 95 % intervals (bootstrap over tasks)

    Every model gets the same text of a task. Code that doesn't parse, empty code and code without what was asked for are never counted as secure; the
    audit counts them. The headline (*) is func-sec@1 where a task's tests, or tests and analyzers, say both; else "secure and alive". The same command goes on where it was
    stopped; a directory of other settings is refused. Data is not shipped: without --data the error says where it comes from.

    Your own tasks are a benchmark too: --benchmark own --data FILE, lines of prompt or instruction, with tests, security_tests, setup and cwe where you
    have them (Python; docs/evaluation.md, evaluation/examples/own.jsonl).

    examples:
      lpo-eval run --benchmark humaneval --data HumanEval.jsonl.gz --completions canonical -o runs/eval/check
      lpo-eval run --benchmark securityeval --data dataset.jsonl --completions runs/disco -n 5 -o runs/eval/disco-securityeval
      lpo-eval run --benchmark llmseceval --data LLMSecEval-prompts.csv --completions http://localhost:8000/v1 --model Qwen2.5-Coder-7B-Instruct -o DIR
      lpo-eval run --benchmark own --data evaluation/examples/own.jsonl --completions canonical -o runs/eval/own
      lpo-eval run --benchmark mbxp --data mbpp_release_v1.jsonl --completions mine.jsonl --judges none -o DIR

    sources (--completions):
      canonical    the benchmark's own solutions: they have to pass
      insecure     its known-insecure programs, where it has them: they have to be found
      FILE.jsonl   lines {"task_id": ..., "completion": TEXT}, with "sample": NUMBER where a task has several, and "finish_reason": "length" where
                   the length limit cut an answer off: it is then tested by its whole statements; or what `lpo generate` has written for prompts whose
                   ids are the tasks'
      URL          an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1; "openai" reads OPENAI_BASE_URL. The key comes from OPENAI_API_KEY.
                   It is asked at /completions, with --form instruction at /chat/completions
      MODEL        on several hosts start the same command on each, as for `lpo train`: all draw, the first judges and writes. It is
                   a Hugging Face directory, a hub id, the directory of a PEFT adapter (its adapter_config.json names the base model), or the run_dir of a
                   trained config: our own sampler. With --form instruction it is asked as it was trained (--template): the first line, run.json and the
                   report say how
    """
    if not _ours(args.completions):
        return _judge(args)
    with waiting("loading JAX"):
        from lpo_jax.train import distributed
    return distributed.together(partial(_judge_together, args), args)


def _judge_together(args: argparse.Namespace) -> int:
    """`_judge` in process 0; the others draw completions along, and wait until they are judged."""
    import jax

    from lpo_jax.train.distributed import first
    from lpo_jax.train.peers import Line

    if jax.process_count() == 1:
        return _judge(args)
    line = Line()
    if first():
        code = _judge(args)
        line.say(code)
        return code
    for _ in _source(args, (), args.form or "instruction").read(args.out):
        pass
    return line.hear()


def _judge(args: argparse.Namespace) -> int:
    from evaluation.run import Options, check_judges, run

    check_judges(_tools(args))
    benchmark = load(args.benchmark, args.data, args.any_data)
    benchmark = replace(benchmark, tasks=benchmark.tasks[: args.limit])
    form = args.form or benchmark.form
    options = Options(form, _tools(args), args.noise, args.time_s, args.memory_mb, args.workers, args.unsafe_exec, args.cache)
    source = _source(args, benchmark.tasks, form)
    print(f"{benchmark.name}: form {form}, {'as asked for' if args.form else 'in which it comes'}; {source.asked}", flush=True)
    scores = run(benchmark, source, options, args.out)
    print(f"{benchmark.name}: {scores['tasks']} tasks, {scores['samples']} samples in {args.out}")
    for key, found in sorted(scores["measures"].items(), key=lambda each: each[0] != scores["headline"]):
        times = 1 if key == "issues" else 100
        low, high = found["interval"]
        print(
            f"{'*' if key == scores['headline'] else ' '} {key:20} {times * found['value']:6.1f}   [{times * low:.1f}, {times * high:.1f}]"
        )
    audit = scores["audit"]
    faults = ", ".join(f"{fault} {audit[fault]}" for fault in (*FAULTS, "deleted", "cut") if audit[fault])
    print(f"audit: {faults or 'no fault'}; which function is asked for is known of {audit['asked']} of {audit['tasks']} tasks")
    if scores["gave_up"]:
        print(
            f"an analyzer gave up on {scores['gave_up']} samples, which are unknown, not secure, unless others found something: see gave_up in samples.jsonl"
        )
    return 0


_DECODING = (
    "adapter",
    "tokenizer",
    "security",
    "security_adapter",
    "draft_temperature",
    "block",
    "rows",
    "max_len_tokens",
    "cache_gib",
    "dtype",
    "quantize",
    "weight",
    "security_tokenizer",
    "threshold",
)

_MESH = {"copies": -1, "fsdp": 1, "tensor": 1, "expert": 1}


def _endpoint(what: str) -> bool:
    return what == "openai" or what.startswith(("http://", "https://"))


def _ours(what: str) -> bool:
    """Is a source a model that runs here?"""
    return not (what in ("canonical", "insecure") or _endpoint(what) or what.endswith((".jsonl", ".json")) or Path(what).is_file())


def _tools(args: argparse.Namespace) -> tuple[str, ...]:
    """The judges."""
    return () if args.judges == ["none"] else tuple(args.judges or BENCHMARKS[args.benchmark].judges)


def asked(args: argparse.Namespace) -> "Models | None":
    """What `lpo-eval run` would decode with; None: another source. All is refused that can be without the model, and without data that isn't here.

    Raises:
      UserError: benchmark, data, judges, completions or flags can't be used.
    """
    from evaluation.run import check_judges

    source = source_of(args.benchmark)
    check_judges(_tools(args))
    here = args.data is None or shipped(args.data).exists()
    benchmark = load(args.benchmark, args.data, args.any_data) if here else None
    form = args.form or (benchmark.form if benchmark else source.form) or "instruction"
    models = _models(args, form)
    if benchmark and (args.completions in ("canonical", "insecure") or Path(args.completions).is_file()):
        _source(args, benchmark.tasks[: args.limit], form)
    return models


def _models(args: argparse.Namespace, form: str) -> "Models | None":
    """What decodes; None: it isn't a model that runs here."""
    what, ours = args.completions, _ours(args.completions)
    given = [flag for flag, value in (("--template", args.template), ("--system", args.system), ("--no-think", args.no_think)) if value]
    if given and not (ours and form == "instruction"):
        why = "a prompt of the completion form is given as it is: ask with --form instruction" if ours else f"{what} isn't one"
        raise EvaluationError(f"{', '.join(given)}: for instructions to a model that runs here; {why}, or leave it out")
    given = [f"--{name.replace('_', '-')}" for name in _DECODING if getattr(args, name)]
    given += [f"--{axis}" for axis, default in _MESH.items() if getattr(args, axis) != default]
    if not ours and given:
        raise EvaluationError(f"{', '.join(given)}: for a model that runs here; {what} isn't one: leave it out")
    if what in ("canonical", "insecure") and (args.samples or 1) > 1:
        raise EvaluationError(f"--completions {what} has one sample a task: leave -n out")
    if _endpoint(what) and not args.model:
        raise EvaluationError("an endpoint needs --model, the name of the model that it serves")
    if not ours:
        return None
    models = models_of(args, what)
    if models.adapters:
        raise EvaluationError(f"--adapter {args.adapter[0]}: one model is judged at a time: give one adapter, without a name")
    return models


def _source(args: argparse.Namespace, tasks: Sequence[Task], form: str) -> Completions:
    what, models = args.completions, _models(args, form)
    sampling = Sampling(args.temperature, args.top_p, args.max_new_tokens, args.seed)
    if what in ("canonical", "insecure"):
        return from_benchmark(what, tasks)
    if _endpoint(what):
        url = None if what == "openai" else what
        return from_endpoint(url, args.model, tasks, form, args.samples or 1, sampling, concurrency=args.concurrency)
    if Path(what).is_file():
        return from_file(Path(what), tasks, args.samples)
    if what.endswith((".jsonl", ".json")):
        raise EvaluationError(f"--completions {what}: no such file")
    assert models is not None
    asked = {"template": args.template, "system": args.system, "think": not args.no_think}
    return from_model(models, tasks, form, args.samples or 1, sampling, preset=args.preset, **asked)


def _report(args: argparse.Namespace) -> int:
    """One self-contained page about finished runs: every measure with its interval, differences to the first run of each benchmark, security against
    function, CWEs, and the completions with their findings.
    """
    from evaluation.report import write

    _finished(args.runs)
    write(args.runs, args.out, args.training)
    print(f"wrote {args.out}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    """What the second run has gained and lost against the first, over the tasks that both have: each measure's paired difference with its 95 %
    interval (bootstrap over tasks), how many tasks went up and down with the p of McNemar's exact test, the headline by CWE, and the audit of both.

    The headline (*) is func-sec@1 where tests, or tests and analyzers, say both; else "secure and alive"; else pass@1. Code that is gone is credited
    nowhere: an answer that lost most statements of the first run's answer to the same task is "gutted", and not secure.
    """
    from evaluation.compare import compare, text
    from evaluation.runs import load

    _finished([args.first, args.second])
    found = compare(load(args.first), load(args.second))
    print(text(found))
    if args.json:
        write_json(args.json, found)
    return 0


def _export(args: argparse.Namespace) -> int:
    """Write a run's programs as EvalPlus or bigcode-evaluation-harness read them: whole programs with the prompt's code, a line or an entry a sample.
    Prints how that harness is started.
    """
    from evaluation.export import export
    from evaluation.runs import load

    _finished([args.run_dir])
    start = export(load(args.run_dir), args.to, args.out)
    print(f"wrote {args.out}\n{start}")
    return 0


def _finished(runs: list[Path]) -> None:
    for path in runs:
        if (path / "run.json").is_file() and not (path / "scores.json").is_file():
            raise EvaluationError(f"{path} isn't finished: run its `lpo-eval run` again")


def _benchmarks(args: argparse.Namespace) -> int:
    for name, source in BENCHMARKS.items():
        print(
            f"{name:26}{source.title}\n{'':26}form: {source.form or 'as its tasks'}; licence: {source.licence}; judges: {' '.join(source.judges) or 'its tests alone'}\n{'':26}{source.origin}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
