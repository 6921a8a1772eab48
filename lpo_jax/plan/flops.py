"""Floating-point operations of a traced program, counted from its jaxpr.

The compiler's own `cost_analysis` counts the body of a loop once, and nothing of a Pallas kernel without a cost estimate.
"""

import math
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, Literal, jaxprs_in_params


class Flops(NamedTuple):
    """Operations of the matrix products, over all devices; what is done element by element isn't counted."""

    executed: int
    recomputed: int  # of these, what the backward pass computes a second time (rematerialisation)


def count(jaxpr: Jaxpr, recomputed: bool = False, sharers: int = 1) -> Flops:
    """Walk a jaxpr. A scan's body counts times its length, and a program for one device (shard_map) times the devices.

    A while loop counts as often as it may run at most. For that its condition must compare the counter with a number, as it does in
    `lpo_jax.losses.logps`. A Pallas kernel counts as its cost estimate says; one without counts as its body times its grid, the blocks that
    it skips included.

    A `jax.lax.ragged_dot` counts each row once, with the one matrix that it meets. `sharers` are the devices that look at the same rows and
    compute their own experts' ones of them: those along the mesh's `expert` axis, inside of a shard_map (`lpo_jax.model.moe`).

    Raises:
      ValueError: a while loop without such a bound holds matrix products.
    """
    executed = again = 0
    for eqn in jaxpr.eqns:
        name, params, times = eqn.primitive.name, eqn.params, 1
        redo = recomputed or "rematted_computation" in str(eqn.source_info.name_stack)
        if name == "dot_general":
            ((contracted, _), _) = params["dimension_numbers"]
            left: Any = eqn.invars[0].aval
            out: Any = eqn.outvars[0].aval
            product = 2 * math.prod(out.shape) * math.prod(left.shape[d] for d in contracted)
            parts = [Flops(product, product * redo)]
        elif name == "ragged_dot_general":
            numbers = params["ragged_dot_dimension_numbers"]
            ((contracted, _), _) = numbers.dot_dimension_numbers
            left = eqn.invars[0].aval
            out = eqn.outvars[0].aval
            # Where rows are contracted, the result has a dim of groups: each row adds to one of them.
            groups = 1 if numbers.rhs_group_dimensions else out.shape[0]
            product = 2 * math.prod(out.shape) // groups * math.prod(left.shape[d] for d in contracted) // sharers
            parts = [Flops(product, product * redo)]
        elif name == "pallas_call" and params["cost_estimate"] is not None:
            parts = [Flops(params["cost_estimate"].flops, params["cost_estimate"].flops * redo)]
        else:
            among = params["mesh"].shape.get("expert", 1) if name == "shard_map" else sharers
            parts = [count(inner, redo, among) for inner in jaxprs_in_params(params)]
        if name == "scan":
            times = params["length"]
        elif name == "shard_map":
            times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        elif name == "pallas_call" and params["cost_estimate"] is None:
            times = math.prod(params["grid_mapping"].grid)
        elif name == "cond":
            platforms = params.get("branches_platforms")  # of `jax.lax.platform_dependent`; the default branch names none
            tpu = (part for part, names in zip(parts, platforms or (), strict=False) if not names or "tpu" in names)
            parts = [max(parts) if platforms is None else next(tpu)]
        elif name == "while" and any(part.executed for part in parts):
            times = _most_turns(params["cond_jaxpr"].jaxpr)
        executed += times * sum(part.executed for part in parts)
        again += times * sum(part.recomputed for part in parts)
    return Flops(executed, again)


def _most_turns(condition: Jaxpr) -> int:
    """How often a loop runs at most: the smallest number that its condition compares something with."""
    bounds = [int(e.invars[1].val) for e in condition.eqns if e.primitive.name == "lt" and isinstance(e.invars[1], Literal)]
    if not bounds:
        raise ValueError("a while loop holds matrix products, of unknown number: use scan, or give its Pallas kernel a cost_estimate")
    return min(bounds)
