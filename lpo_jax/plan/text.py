"""A plan in words, and plans as a table."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from lpo_jax.plan.chips import GIB
from lpo_jax.plan.memory import in_words
from lpo_jax.plan.result import Plan
from lpo_jax.plan.rows import missing
from lpo_jax.plan.run import NOTICE, PESSIMISTIC, Range, Run, hours
from lpo_jax.plan.search import Near
from lpo_jax.train.run_dir import checkpoints_at_once

_LIMITED = {"compute": "arithmetic", "memory": "memory traffic", "network": "traffic between chips"}


def describe(plan: Plan) -> str:
    """What `lpo plan` prints."""
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    pieces = f" in {plan.accumulate} microbatches" if plan.accumulate > 1 else ""
    hbm = in_words(plan.chip.hbm)
    lines = [
        f"{plan.model}, {plan.parameters / 1e9:.2f} B parameters, trained: {plan.trained}; a step of stage {plan.stage}",
        f"{plan.topology} ({plan.devices} devices), mesh {mesh}, remat {plan.remat}, {plan.rows} rows of {plan.row.tokens} tokens{pieces}",
        "",
    ]
    if plan.fits:
        lines.append(f"FITS: {in_words(plan.used)} of {hbm} on every device")
    else:
        lines += [
            f"DOES NOT {'FIT' if plan.too_large else 'COMPILE'}. The compiler says:",
            f"  {plan.verdict}",
            f"Of {hbm} on every device, the run needs before it computes anything:",
        ]
    lines += [f"  {kind:12}{in_words(size):>11}" for kind, size in plan.memory.items()]
    if plan.largest:
        lines.append(f"  largest temporaries, side by side: {'; '.join(plan.largest)}")
    again = 1 - plan.model_flops / plan.executed_flops
    lines += ["", f"a step: {plan.executed_flops:.3g} FLOPs, {plan.model_flops:.3g} without what rematerialisation repeats ({again:.0%})"]
    if plan.traffic is not None:
        sent = ", ".join(f"{kind} {in_words(size)}" for kind, size in sorted(plan.traffic.sent.items(), key=lambda x: -x[1]))
        lines += [
            f"every device reads and writes {in_words(plan.traffic.memory)}, and sends {in_words(sum(plan.traffic.sent.values()))} ({sent})",
            "at the chip's peak rates: " + ", ".join(f"{_LIMITED[kind]} {seconds:.3g} s" for kind, seconds in plan.seconds.items()),
            f"no faster than {plan.step_seconds:.3g} s a step: at most {plan.mfu:.0%} MFU, {plan.tokens_per_s:,.0f} tokens/s, "
            f"{plan.pairs_per_s:.1f} pairs/s, {1e4 / plan.pairs_per_s / 3600:.2f} hours per 10,000 pairs",
        ]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    return "\n".join([*lines, "", f"compiled in {plan.compile_seconds:.0f} s by {versions}"])


def describe_run(run: Run) -> str:
    """What `lpo plan` prints of a run as a whole, below its stages."""
    rows = [("the run", "steps", "tokens", "s a step", "hours", "of a device's memory", "")]
    for plan, length in zip(run.plans, run.lengths, strict=True):
        worst = "worst" if plan is run.worst and len(run.plans) > 1 else ""
        known = "?" if length.steps is None else f"{length.steps:,}", "?" if length.tokens is None else f"{length.tokens:,}"
        memory = f"{in_words(plan.used)} of {in_words(plan.chip.hbm)}" if plan.fits else "doesn't fit" if plan.too_large else "?"
        rows.append((plan.stage, *known, f"{plan.step_seconds:.3g}" if plan.fits else "?", _between(hours(plan, length)), memory, worst))
    if len(run.plans) > 1:
        unknown = any(length.steps is None for length in run.lengths)
        sums = sum(length.steps or 0 for length in run.lengths), sum(length.tokens or 0 for length in run.lengths)
        known = ("?", "?") if unknown else (f"{sums[0]:,}", f"{sums[1]:,}")
        rows.append(("together", *known, "", _between(run.hours), "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:6], widths[1:6]), row[6]]).rstrip() for row in rows]
    notes = [*_lengths(run), _HOURS, _dollars(run), *_checkpoint(run)]
    return "\n".join([*table, "", *(textwrap.fill(note, 120, subsequent_indent="  ", break_on_hyphens=False) for note in notes)])


def _lengths(run: Run) -> list[str]:
    """Where steps and tokens come from."""
    unbuilt = {plan.stage: gaps for plan in run.plans if (gaps := missing(run.config, plan.stage))}
    built = [plan.stage for plan in run.plans if plan.stage not in unbuilt]
    lines = [f"no data yet: {path} ({key})" for path, key in {path: key for gaps in unbuilt.values() for key, path in gaps.items()}.items()]
    assumed, stages = run.config.plan, ", ".join(unbuilt)
    pair = f"plan.pair_tokens={assumed.pair_tokens} tokens, in rows of plan.row_tokens={assumed.row_tokens}"
    if built:
        lines.append(f"steps and tokens of {', '.join(built)}: by the shards' manifests; tokens as a run counts them, without padding")
    if unbuilt and assumed.pairs is not None:
        lines.append(f"steps and tokens of {stages}: for plan.pairs={assumed.pairs} of {pair}")
    elif unbuilt and all(run.config.stages[stage].steps for stage in unbuilt):
        lines.append(f"tokens of {stages}: for rows full of pairs of {pair}")
    elif unbuilt:
        lines.append(
            f"steps and hours of {stages}: unknown. Build the shards with `lpo-data build`, or say how many pairs there will be, e.g. "
            f"plan.pairs=10000 (of {pair})"
        )
    return lines


_HOURS = (
    f"hours: from the steps' bounds, which no run beats, to {PESSIMISTIC:.0%} of that speed. Public runs reach 45 to 72% of a TPU's peak; this "
    "program has met none yet. Compiling, evaluations, a reference's pass and checkpoints come on top"
)


def _dollars(run: Run) -> str:
    table, price = f"list prices of {run.prices.date}", run.price
    if price is None or (price.on_demand is None and price.spot is None):
        generation = run.worst.topology.partition(":")[0]
        return f"dollars: unknown, the {table} have no {generation}; give a table that has, with --prices FILE"
    parts = []
    for kind, each in (("on demand", price.on_demand), ("spot", price.spot)):
        if each is None:
            parts.append(f"{kind} unknown")
            continue
        total = run.dollars(each)
        hourly = f"{each * run.chips:,.2f} an hour"
        parts.append(f"{kind} {_between(total)} ({hourly})" if total else f"{kind} {hourly}")
    return f"dollars: {', '.join(parts)}; {run.chips} chips, {table} in {price.region}. Spot prices may change daily"


def _checkpoint(run: Run) -> list[str]:
    hosts = f"each of {run.hosts} hosts writes" if run.hosts > 1 else "the host writes"
    lines = [
        f"checkpoint: {in_words(run.checkpoint)}, what is trained and what the optimizer keeps of it; {checkpoints_at_once(run.config)} of them at "
        f"most at once. Written in {_short(run.writing)} s if {hosts} {run.write_rate:g} GB/s (--write-rate)"
    ]
    if run.at_notice is None or run.slowest is None:
        return lines
    there = f"spot: a machine goes {NOTICE} s after its notice; the step under way and a checkpoint take {_between(run.at_notice)} s"
    if run.at_notice[1] <= NOTICE:
        return [*lines, f"{there}, in time"]
    every = run.config.checkpoint_every_steps
    low, high = (every * seconds / 60 for seconds in run.slowest)
    return [*lines, f"{there}: if that is too long, up to {every} steps (checkpoint_every_steps) are lost, {_between((low, high))} minutes"]


def describe_near(near: Near) -> str:
    """A change with which a run fits that didn't."""
    used = max(near.plans, key=lambda plan: plan.used)
    slowest = max(plan.step_seconds for plan in near.plans)
    return f"fits with {' '.join(near.settings)}: {in_words(used.used)} of {in_words(used.chip.hbm)}, at best {slowest:.3g} s a step"


def _between(found: Range | None) -> str:
    """A range in words."""
    return "?" if found is None else " to ".join(map(_short, found))


def _short(x: float) -> str:
    """To two digits, or the whole ones."""
    return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"


_PAGE = """\
# Plans

What the TPU compiler says about the configs in `configs/pods/`: the step of stage `{stages}`, compiled for each slice on a machine without
a TPU. `make plan` writes this page anew; `lpo plan CONFIG` says more of each, and what a run takes: [planning.md](planning.md). No TPU has
run them yet.

{table}

- Bytes are those of one device, in GiB. *Activations* are all temporaries at their peak besides the gradients; gathered weights are among
  them, and buffers that never exist together share bytes. The sum counts the batch and the program's code too: the compiler refuses by it.
- FLOPs are those of the matrix products of all devices, counted by walking the step's jaxpr; *executed* includes what rematerialisation
  repeats.
- Seconds a step: its arithmetic, its memory traffic and its traffic between chips, each at the chip's peak rate, as if the others took no
  time. The traffic is counted in the compiled program: every operation reads its operands and writes its results once; collectives
  send as on a ring over all of a chip's links. No run can be faster than the longest of the three, in bold, which gives the bounds on MFU
  (of model FLOPs) and on pairs, of {pair_tokens:.0f} tokens each.

Compiled by {versions}.
"""


def page(plans: Sequence[tuple[Path, Plan]]) -> str:
    """docs/plans.md: a table with one row a config."""
    rows = []
    for config, plan in plans:
        cells = {
            "model": f"[{plan.model.rpartition('/')[2]}](../{config})",
            "trained": plan.trained,
            "slice": plan.topology,
            "data x fsdp x expert x tensor": " x ".join(str(size) for size in plan.mesh.values()),
            "remat": plan.remat,
            "rows x tokens": f"{plan.rows} x {plan.row.tokens}",
        }
        for kind in ("parameters", "optimizer", "gradients", "activations"):
            cells[kind] = f"{plan.memory[kind] / GIB:.2f}" if kind in plan.memory else "-"
        cells |= {
            "all, of what a chip has": f"{plan.used / GIB:.2f} of {plan.chip.hbm / GIB:.2f}" if plan.fits else f"**no**: {plan.verdict}",
            "PFLOPs: model / executed": f"{plan.model_flops / 1e15:.2f} / {plan.executed_flops / 1e15:.2f}",
            "s: arithmetic / memory / network": " / ".join(
                f"**{seconds:.2f}**" if seconds == plan.step_seconds else f"{seconds:.2f}" for seconds in plan.seconds.values()
            ),
            "MFU at most": f"{plan.mfu:.0%}",
            "pairs/s at most": f"{plan.pairs_per_s:.0f}",
            "compiled in s": f"{plan.compile_seconds:.0f}",
        }
        rows.append(cells)
    _, first = plans[0]
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    stages = "`, `".join(dict.fromkeys(plan.stage for _, plan in plans))
    return _PAGE.format(table=table, stages=stages, versions=versions, pair_tokens=first.row.tokens / first.row.mean_pairs)
