"""Floating-point operations of a traced program, counted from its jaxpr.

The compiler's own `cost_analysis` counts the body of a loop once, and nothing of a Pallas kernel without a cost estimate.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, Literal, jaxprs_in_params


class Flops(NamedTuple):
    """Operations of the matrix products, over all devices; what is done element by element isn't counted."""

    executed: int
    recomputed: int  # of these, what the backward pass computes a second time (rematerialisation)


def count(jaxpr: Jaxpr, recomputed: bool = False) -> Flops:
    """Walk a jaxpr. A scan's body counts times its length, and a program for one device (shard_map) times the devices.

    A while loop counts as often as it may run at most. For that its condition must compare the counter with a number, as it does in
    `lpo_jax.losses.logps`. A Pallas kernel counts as its cost estimate says; one without counts as its body times its grid, the blocks that
    it skips included.

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
            parts = [_all(2 * math.prod(out.shape) * math.prod(left.shape[d] for d in contracted), redo)]
        elif name == "pallas_call" and params["cost_estimate"] is not None:
            parts = [_all(params["cost_estimate"].flops, redo)]
        else:
            parts = [count(inner, redo) for inner in jaxprs_in_params(params)]
        if name == "scan":
            times = params["length"]
        elif name == "shard_map":
            times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        elif name == "pallas_call" and params["cost_estimate"] is None:
            times = math.prod(params["grid_mapping"].grid)
        elif name == "cond":
            platforms = params.get("branches_platforms")
            parts = [max(parts) if platforms is None else parts[_tpu_branch(platforms)]]
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


def _all(flops: int, redo: bool) -> Flops:
    return Flops(flops, flops if redo else 0)


def _tpu_branch(platforms: Sequence[Sequence[str] | None]) -> int:
    """The branch of `jax.lax.platform_dependent` that a TPU takes. The default branch names no platforms."""
    return next(i for i, names in enumerate(platforms) if not names or "tpu" in names)
