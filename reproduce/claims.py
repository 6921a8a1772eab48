"""What the papers claim, decided by their rules from what the pieces have found. Nothing here knows what came out."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from evaluation import compare
from evaluation.measures import Estimate, Measure, by_task, estimate
from evaluation.runs import Run
from foundation.files import Json
from reproduce.campaign import Claim

Find = Callable[[str, str], Run | None]
"""(system, benchmark) -> its run of seed 1; None: that piece is open."""

WORDS = {"confirmed", "not confirmed", "not testable here", "open"}


def by_group(run: Run, groups: dict[str, str]) -> dict[str, list[Json]]:
    """A run's samples by the group of alike tasks that their task is in."""
    found: dict[str, list[Json]] = {}
    for sample in run.samples:
        found.setdefault(groups.get(task := str(sample["task_id"]), task), []).append(sample)
    return found


def of_groups(measure: Measure) -> Measure:
    """The measure over groups: the same value, a sum over the group's tasks. Alike tasks are drawn together, so that they don't count as independent."""

    def sums(samples: list[Json]) -> tuple[float, float]:
        each = [measure.sums(task) for task in by_task(samples).values()]
        return sum(a for a, _ in each), sum(b for _, b in each)

    return replace(measure, sums=sums)


def values(run: Run, keys: Iterable[str], groups: dict[str, str]) -> dict[str, Estimate | None]:
    """Measures of a run; None where it hasn't got one."""
    tasks = by_group(run, groups)
    return {key: estimate(of_groups(run.measures[key]), tasks) if key in run.measures else None for key in keys}


def differences(first: Run, second: Run, keys: Iterable[str], groups: dict[str, str]) -> dict[str, compare.Row]:
    """Measures that both runs have, the second minus the first, paired; up and down are counted in groups."""
    measures = [of_groups(first.measures[key]) for key in keys if key in first.measures and key in second.measures]
    return {row.measure.key: row for row in compare.rows(measures, by_group(first, groups), by_group(second, groups))}


def decide(claim: Claim, find: Find, groups: dict[str, str]) -> tuple[str, str]:
    """One of `WORDS`, and the numbers or the reason."""
    if claim.untestable:
        return "not testable here", claim.untestable
    if claim.open:
        return "open", claim.open
    runs = [find(name, claim.benchmark) for name in claim.systems]
    if any(run is None for run in runs):
        return (
            "open",
            f"{' and '.join(n for n, run in zip(claim.systems, runs, strict=True) if run is None)} on {claim.benchmark}: not run yet",
        )
    *before, after = [run for run in runs if run is not None]
    fewer = ""
    if not before:
        found = values(after, [claim.measure], groups)[claim.measure]
        said = claim.measure
    else:
        row = differences(before[0], after, [claim.measure], groups).get(claim.measure)
        found, said = row.difference if row else None, f"{claim.measure}, {claim.systems[1]} minus {claim.systems[0]}"
        was, is_ = (values(run, [claim.measure], groups).get(claim.measure) for run in (before[0], after))
        if claim.want == "below" and was and is_ and was.value:
            fewer = f"; {100 * is_.value:.1f} of {100 * was.value:.1f}, {100 * (1 - is_.value / was.value):.0f} % fewer"
    if found is None:
        return "open", f"{claim.benchmark} has no {claim.measure}"
    holds = {"above": found.low > 0, "below": found.high < 0, "at least": found.value >= claim.bound}[claim.want]
    sign = "+" if before else ""
    numbers = f"{100 * found.value:{sign}.1f} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"
    return (
        "confirmed" if holds else "not confirmed",
        f"{said} on {claim.benchmark}: {numbers}{f', asked {100 * claim.bound:{sign}.1f}' if claim.want == 'at least' else fewer}",
    )
