"""A plan in words, and plans as a table."""

from collections.abc import Sequence
from pathlib import Path

from lpo_jax.plan.chips import GIB
from lpo_jax.plan.memory import in_words
from lpo_jax.plan.result import Plan

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


_PAGE = """\
# Plans

What the TPU compiler says about the configs in `configs/pods/`: the step of the last stage, compiled for each slice on a machine without
a TPU. `make plan` writes this page anew; `lpo plan CONFIG` says more of each. No TPU has run them yet.

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
    return _PAGE.format(table=table, versions=versions, pair_tokens=first.row.tokens / first.row.mean_pairs)
