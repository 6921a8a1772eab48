"""`lpo-eval compare`: two runs of a benchmark, task by task."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluation.audit import MEANINGS, mark_gutted, of_run
from evaluation.measures import Estimate, Measure, difference, estimate, headline
from evaluation.runs import ReportError, Run, cautions
from foundation.files import Json

Tasks = dict[str, list[Json]]


@dataclass(frozen=True)
class Row:
    """A measure of two runs over the tasks that both have.

    `higher` and `lower` are tasks on which the second run's own value lies above or below the first's. Of `p`, see `mcnemar`; None of counts.
    """

    measure: Measure
    first: Estimate
    second: Estimate
    difference: Estimate
    higher: int
    lower: int
    p: float | None
    tone: str  # "better", "worse", "unclear"; "less": fewer findings in less code


def mcnemar(higher: int, lower: int) -> float:
    """The exact two-sided p of McNemar's test: how likely so uneven a split of the tasks that changed is if neither way is likelier.

    With one sample a task these are its discordant pairs. With more, a task counts once, by where its share went: the sign test.
    """
    n, term, tail = higher + lower, 1, 0
    for k in range(min(higher, lower) + 1):
        tail += term  # binomial(n, k)
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def pair(first: Run, second: Run) -> int:
    """Mark what the second run lost beside the first, in front of all numbers: `audit.mark_gutted`.

    Raises:
      ReportError: they ran different benchmarks, or on different data.
    """
    for key, what in (
        ("benchmark", "ran different benchmarks"),
        ("data_sha256", f"ran {first.info['benchmark']} on different data (data_sha256)"),
    ):
        if first.info[key] != second.info[key]:
            raise ReportError(f"{first.path} and {second.path} {what}: report them apart")
    return mark_gutted(first.samples, second.samples)


def rows(measures: Sequence[Measure], first: Tasks, second: Tasks) -> list[Row]:
    """Each measure that both runs have over the tasks that both have."""
    shared = [task for task in first if task in second]
    first, second = ({task: run[task] for task in shared} for run in (first, second))
    found = []
    for measure in measures if shared else ():
        a, b, d = estimate(measure, first), estimate(measure, second), difference(measure, first, second)
        if a is None or b is None or d is None:
            continue
        changes = [after - before for before, after in per_task(measure, first, second).values()]
        higher, lower = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        found.append(Row(measure, a, b, d, higher, lower, mcnemar(higher, lower) if measure.unit else None, _tone(measure, d)))
    return _without_credit(found)


def per_task(measure: Measure, first: Tasks, second: Tasks) -> dict[str, tuple[float, float]]:
    """A measure's value on every task on which both runs have one."""
    found = {}
    for task in (task for task in first if task in second):
        (a, of_a), (b, of_b) = measure.sums(first[task]), measure.sums(second[task])
        if of_a and of_b:
            found[task] = a / of_a, b / of_b
    return found


def by_cwe(measure: Measure, first: Tasks, second: Tasks) -> dict[str, Row]:
    """A measure over the tasks about each CWE, in the order of their numbers. With few tasks a bootstrap's interval is too narrow: a verdict needs p < 0.05 too."""
    about = {task: samples[0]["cwe"] for task, samples in first.items() if samples[0]["cwe"]}
    order = sorted(set(about.values()), key=lambda cwe: int(cwe.removeprefix("CWE-")))
    groups = {cwe: rows([measure], {task: first[task] for task in about if about[task] == cwe}, second) for cwe in order}
    return {
        cwe: row if row.p is not None and row.p < 0.05 else replace(row, tone="unclear") for cwe, found in groups.items() for row in found
    }


def _tone(measure: Measure, d: Estimate) -> str:
    if d.low <= 0 <= d.high or not measure.better:
        return "unclear"
    return "better" if (d.value > 0) == (measure.better == "higher") else "worse"


def _without_credit(found: list[Row]) -> list[Row]:
    """Fewer findings are no gain where no more code is secure, and alive."""
    secure = next((row for row in found if row.measure.key == "secure"), None)
    if secure is None or secure.difference.value > 0:
        return found
    of_findings = ("insecure", "insecure_parseable", "issues", "codeql")
    return [Row(**(vars(row) | {"tone": "less"})) if row.tone == "better" and row.measure.key in of_findings else row for row in found]


def compare(first: Run, second: Run) -> Json:
    """Both runs as `lpo-eval compare --json` writes them: measures with their differences, the headline's by CWE and by task, and the audit.

    Raises:
      ReportError: they ran different benchmarks, or on different data, or share no task.
    """
    gutted = pair(first, second)
    shared = [task for task in first.tasks if task in second.tasks]
    if not shared:
        raise ReportError(f"{first.path} and {second.path} share no task: compare runs of the same ones")
    both = [m for m in first.measures.values() if m.key in second.measures]
    main = headline({m.key for m in both})
    measure = first.measures[main]
    return {
        "benchmark": first.info["benchmark"],
        "first": {"path": str(first.path), "model": first.info["model"]},
        "second": {"path": str(second.path), "model": second.info["model"]},
        "tasks": len(shared),
        "cautions": cautions(first, second),
        "headline": main,
        "measures": {row.measure.key: _row(row) for row in rows(both, first.tasks, second.tasks)},
        "by_cwe": {cwe: _row(row) for cwe, row in by_cwe(measure, first.tasks, second.tasks).items()},
        "by_task": per_task(measure, first.tasks, second.tasks),
        "audit": {"first": of_run(first.samples), "second": of_run(second.samples) | {"gutted": gutted}},
    }


def _row(row: Row) -> Json:
    return {
        "name": row.measure.name,
        "better": row.measure.better,
        "unit": row.measure.unit,
        "first": _numbers(row.first),
        "second": _numbers(row.second),
        "difference": _numbers(row.difference),
        "tasks_higher": row.higher,
        "tasks_lower": row.lower,
        "p": row.p,
        "verdict": row.tone,
    }


def _numbers(e: Estimate) -> Json:
    return {"value": e.value, "interval": [e.low, e.high], "n": e.n}


WORDS = {"better": "better", "worse": "worse", "unclear": "no clear difference", "less": "fewer, but no more secure code"}


def text(found: Json) -> str:
    """A comparison for people, the headline first."""
    names = [found[side]["model"] for side in ("first", "second")]
    lines = [f"{found['benchmark']}: {names[1]} (second) minus {names[0]} (first) over {_tasks(found['tasks'])} that both have"]
    lines += [f"mind: {caution}" for caution in found["cautions"]]
    head = f"  {'':26}{'first':>8}{'second':>8}{'difference':>12}{'95 % interval':>18}{'tasks up, down':>16}{'p':>8}"
    lines += ["", head]
    main = found["headline"]
    order = sorted(found["measures"], key=lambda key: key != main)
    lines += [_line(found["measures"][key], "* " if key == main else "  ", found["measures"][key]["name"]) for key in order]
    if found["by_cwe"]:
        lines += ["", f"{found['measures'][main]['name']} by CWE (few tasks each; of so many, some differ by chance)", head]
        lines += [_line(row, "  ", f"{cwe}, {_tasks(row['difference']['n'])}") for cwe, row in found["by_cwe"].items()]
    first, second = (found["audit"][key] for key in ("first", "second"))
    lines += ["", f"audit of {first['samples']} and {second['samples']} samples; what is deleted is credited nowhere"]
    for key in MEANINGS:
        counts = ["-" if each is None else str(each) for each in (first.get(key), second.get(key))]
        lines.append(f"  {key:26}{counts[0]:>8}{counts[1]:>8}")
    lines.append(
        f"of {first['asked']} of {first['tasks']} tasks it is known which function they ask for, of the others only whether there is code"
    )
    lines.append("* the headline; p: McNemar's exact test")
    return "\n".join(lines)


def _tasks(count: int) -> str:
    return f"{count} task{'s'[: count != 1]}"


def _line(row: Json, mark: str, name: str) -> str:
    times = 100 if row["unit"] == "%" else 1
    low, high = (times * end for end in row["difference"]["interval"])
    p = "" if row["p"] is None else "<.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    values = f"{times * row['first']['value']:8.1f}{times * row['second']['value']:8.1f}{times * row['difference']['value']:+12.1f}"
    words = "" if row["verdict"] == "unclear" else f"  {WORDS[row['verdict']]}"
    return f"{mark}{name:26}{values}{f'[{low:+.1f}, {high:+.1f}]':>18}{row['tasks_higher']:>9},{row['tasks_lower']:>6}{p:>8}{words}"
