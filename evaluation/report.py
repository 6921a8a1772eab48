"""`lpo-eval report`: runs of benchmarks on one self-contained page. Completions are untrusted: nothing of them is ever markup."""

import base64
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from evaluation import audit, compare
from evaluation.measures import RESAMPLES, Estimate, Measure, by_cwe, estimate, headline, state
from evaluation.runs import ReportError, Run, cautions, load
from foundation.files import Json, read_json, replaced
from foundation.pages import environment
from lpo_jax import report

HERE = Path(__file__).parent
PARTS = Path(report.__file__).parent  # parts.html.j2, how `lpo train` reports a run
BROWSER_CHARS = 8_000_000  # of code that the page carries; beyond, fewer samples a task
MARKED_ROWS = 200  # samples to look at that the page lists; beyond, samples.jsonl has them
MINUS = "\N{MINUS SIGN}"


def write(runs: Sequence[Path], out: Path, training: Sequence[Path] = ()) -> None:
    """Write the page `out` about evaluation run directories, compared with the first of each benchmark.

    Args:
      training: run directories of `lpo train`, whose curves and held-out pairs the page shows.

    Raises:
      ReportError: a run lacks a file or field, or two runs of a benchmark had different data.
    """
    if not runs:
        raise ReportError("no run to report: name at least one directory that `lpo-eval run` wrote")
    loaded = [load(path) for path in runs]
    models = _label(loaded)
    benchmarks: dict[str, list[Run]] = {}
    for run in loaded:
        benchmarks.setdefault(run.info["benchmark"], []).append(run)
    for group in benchmarks.values():
        for run in group[1:]:
            run.gutted = compare.pair(group[0], run)
    script = (HERE / "report.js").read_text()
    env = environment(HERE, PARTS)
    env.filters |= {"percent": _percent, "position": _position}
    page = env.get_template("evaluation.html.j2").render(
        title=" against ".join(reversed(models)) if len(models) <= 2 else f"{len(models)} models",
        models=models,
        benchmarks=[_benchmark(name, group) for name, group in benchmarks.items()],
        matrix=[(model, [_headline(model, group) for group in benchmarks.values()]) for model in models],
        audit_rows=audit.MEANINGS,
        words=compare.WORDS,
        cautions=[text for group in benchmarks.values() for run in group[1:] for text in cautions(group[0], run)],
        scatter=_scatter(models, benchmarks),
        glossary={m.key: m for run in loaded for m in run.measures.values()}.values(),
        marked=[_marked(run) for run in loaded],
        browser=_browser(benchmarks),
        training=[_training(path, index) for index, path in enumerate(training)],
        runs=loaded,
        resamples=RESAMPLES,
        marked_rows=MARKED_ROWS,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with replaced(out) as unfinished:
        unfinished.write_bytes(page.encode("utf-8", "replace"))  # a lone surrogate has no UTF-8


def _label(runs: list[Run]) -> list[str]:
    """Name each run's model, the shortest way that keeps a benchmark's runs apart, and number the models' colours."""

    def unique(names: list[str]) -> bool:
        return len(set(zip([run.info["benchmark"] for run in runs], names, strict=True))) == len(runs)

    full = [str(run.info["model"]) for run in runs]
    short = [name.rstrip("/").split("/")[-1] for name in full]
    own = [str(run.info["name"]) for run in runs]
    fits = len(set(short)) == len(set(full)) and unique(short)
    names = short if fits else full if unique(full) else own if unique(own) else [str(run.path) for run in runs]
    models = list(dict.fromkeys(names))
    for run, name in zip(runs, names, strict=True):
        run.label, run.colour = name, models.index(name)
    return models


def _percent(value: float, unit: str = "%", signed: bool = False) -> str:
    """0.1234 as "12.3", a count with a unit of its own as "12.3"."""
    text = format(value * (100 if unit == "%" else 1), "+.1f" if signed else ".1f")
    return text.replace("-", MINUS) if float(text) else "0.0"


def _position(value: float, low: float = 0.0, high: float = 1.0) -> str:
    """Where a value stands between two ends, in percent of the way, for a style attribute."""
    return f"{100 * min(max((value - low) / (high - low), 0), 1):.2f}"


def _benchmark(name: str, runs: list[Run]) -> Json:
    """A benchmark's table of measures, and every other run's difference to the first one."""
    first, union = runs[0], {m.key: m for run in runs for m in run.measures.values()}
    table = [(m, [estimate(m, run.tasks) if m.key in run.measures else None for run in runs]) for m in union.values()]
    differences = []
    for run in runs[1:]:
        main = first.measures[headline(first.measures.keys() & run.measures.keys())]
        rows = compare.rows([m for m in first.measures.values() if m.key in run.measures], first.tasks, run.tasks)
        rows.sort(key=lambda row: row.measure.key != main.key)
        differences.append({"run": run, "rows": rows, "headline": main, "cwes": compare.by_cwe(main, first.tasks, run.tasks)})
    return {
        "name": name,
        "runs": runs,
        "table": table,
        "differences": differences,
        "audits": [audit.of_run(run.samples) | {"gutted": run.gutted} for run in runs],
        "cwes": _cwes(runs),
        "tasks": len(first.tasks),
        "samples": len(first.samples),
    }


def _cwes(runs: list[Run]) -> list[Json]:
    """Each CWE's insecure share in every judged run, the CWEs with the most insecure samples first."""
    shares = [(run, by_cwe(run.measures["insecure"], run.tasks)) for run in runs if run.judged]
    found = []
    for cwe in {cwe for _, share in shares for cwe in share}:
        bars = [(run, share[cwe], round(share[cwe].value * share[cwe].n)) for run, share in shares if cwe in share]
        found.append({"cwe": cwe, "bars": bars, "weight": sum(count for _, _, count in bars)})
    return sorted(found, key=lambda x: (-x["weight"], int(x["cwe"].removeprefix("CWE-"))))


def _marked(run: Run) -> Json:
    """A run's samples to look at: they reach for what could forge a pass (those first that passed within the test's own process), or are unknown."""

    def forged(sample: Json) -> bool:
        tests = (sample["functional"], sample["security"])
        return "reaches" in sample and any(test and test.get("inside") and test["outcome"] == "pass" for test in tests)

    reaching = sorted((s for s in run.samples if "reaches" in s), key=forged, reverse=True)
    unknown = [s for s in run.samples if run.judged and state(s) == "unknown"]
    rows = [(s, ", ".join(s.get("reaches", [])), forged(s), s in unknown) for s in reaching + [s for s in unknown if "reaches" not in s]]
    return {"run": run, "reaching": len(reaching), "forged": sum(map(forged, reaching)), "unknown": len(unknown), "rows": rows}


def _headline(model: str, runs: list[Run]) -> list[tuple[Measure, Estimate | None]]:
    """The measures that say most of a model's run on a benchmark, the headline first; few insecure samples say nothing where few are code."""
    run = next((run for run in runs if run.label == model), None)
    if run is None:
        return []
    keys = dict.fromkeys((headline(run.measures), "insecure", "secure", "pass@1"))
    return [(run.measures[key], estimate(run.measures[key], run.tasks)) for key in keys if key in run.measures]


def _scatter(models: list[str], benchmarks: dict[str, list[Run]]) -> list[Json]:
    """Secure share against pass@1, one panel a pair of benchmarks: one that tests both, or one of security and one of function."""
    secure = {name: [r for r in group if "secure" in r.measures] for name, group in benchmarks.items()}
    works = {name: [r for r in group if "pass@1" in r.measures] for name, group in benchmarks.items()}
    panels = []
    for s, judged in secure.items():
        for f, tested in works.items():
            if s != f and (works[s] or secure[f]):
                continue  # a benchmark that tests both stands against itself only
            points = [
                {
                    "label": a.label,
                    "colour": a.colour,
                    "x": estimate(b.measures["pass@1"], b.tasks),
                    "y": estimate(a.measures["secure"], a.tasks),
                }
                for a, b in itertools.product(judged, tested)
                if a.label == b.label
            ]
            if points:
                panels.append({"security": s, "function": f, "points": points})
    return panels


def _browser(benchmarks: dict[str, list[Run]]) -> list[Json]:
    """The samples for report.js; `shown` of `per_task` samples a task, as many as BROWSER_CHARS allows."""
    every = (samples for group in benchmarks.values() for run in group for samples in run.tasks.values())
    sizes = [sum(len(sample["code"]) for sample in nth if sample) for nth in itertools.zip_longest(*every)]  # of each task's nth samples
    shown = next((n for n in range(len(sizes), 1, -1) if sum(sizes[:n]) <= BROWSER_CHARS), 1)
    data = []
    for name, group in benchmarks.items():
        tasks: Json = {}
        for run in group:
            for task, samples in run.tasks.items():
                tasks.setdefault(task, {"id": task, "cwe": samples[0]["cwe"] or "", "prompt": samples[0]["prompt"]})
        runs = [
            {
                "label": run.label,
                "colour": run.colour % 6,
                "samples": {task: [_sample(s, run.judged) for s in samples[:shown]] for task, samples in run.tasks.items()},
            }
            for run in group
        ]
        data.append({"name": name, "tasks": list(tasks.values()), "runs": runs, "shown": shown, "per_task": len(sizes)})
    return data


def _sample(sample: Json, judged: bool) -> Json:
    kind = state(sample)
    prompt = sample["prompt"].rstrip()
    return {
        "code": sample["code"],
        "given": prompt.count("\n") + 1 if prompt and sample["code"].startswith(prompt) else 0,  # lines that the task gave
        "state": kind if judged or kind in ("empty", "unparseable") else "",
        "functional": (sample["functional"] or {}).get("outcome", ""),
        "security": (sample["security"] or {}).get("outcome", ""),
        "duplicate": sample["duplicate"],
        "faults": ", ".join([*sample.get("faults", []), *["gutted"][: "gutted" in sample]]),
        "cut": sample.get("finish") == "length",
        "reaches": ", ".join(sample.get("reaches", [])),
        "inside": any(test and test.get("inside") for test in (sample["functional"], sample["security"])),
        "gave_up": ", ".join(sample.get("gave_up", [])),
        "findings": sample["findings"],
    }


def _training(path: Path, index: int) -> Json:
    """A training run as lpo_jax's own report shows it, and the facts of its data."""
    from lpo_jax.report.training import contents  # imports JAX

    if missing := [name for name in ("config", "summary", "data") if not (path / f"{name}.json").is_file()]:
        raise ReportError(f"{path}: no finished run of `lpo train`: it has no {missing[0]}.json; give the run_dir of a trained config")
    config, summary, data = (read_json(path / f"{name}.json") for name in ("config", "summary", "data"))
    summary.pop("names")
    facts = {
        "pairs": {name: split["pairs"] for name, split in data["splits"].items()},
        "build key": data["build_key"],
        "tokenizer": data["tokenizer_sha256"],
        "inputs": [item["sha256"] for item in data["inputs"]],
        "template": data.get("template", {}).get("name", "alpaca"),
        "seed": config.get("seed"),
    }
    return contents(path, config, summary, key=f"training{index}-") | {"facts": facts}
