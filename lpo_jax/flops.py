"""Floating-point operations of a traced program, counted from its jaxpr.

The compiler's own `cost_analysis` counts the body of a loop once, and nothing of a Pallas kernel without a cost estimate.
"""

import math
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, jaxprs_in_params


class Flops(NamedTuple):
    """Operations of the matrix products, over all devices; what is done element by element isn't counted."""

    executed: int
    recomputed: int  # of these, what the backward pass computes a second time (rematerialisation)


def count(jaxpr: Jaxpr, recomputed: bool = False) -> Flops:
    """Walk a jaxpr: a scan's body counts times its length, a program for one device times the devices.

    A Pallas kernel counts as its cost estimate says; without one as its body times its grid, the blocks that it skips included.

    Raises:
      ValueError: a while loop holds matrix products; how many is known only when it runs.
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
            raise ValueError("a while loop holds matrix products, of unknown number: use scan, or give its Pallas kernel a cost_estimate")
        executed += times * sum(part.executed for part in parts)
        again += times * sum(part.recomputed for part in parts)
    return Flops(executed, again)


def _all(flops: int, redo: bool) -> Flops:
    return Flops(flops, flops if redo else 0)


def _tpu_branch(platforms: Any) -> int:
    """Of `jax.lax.platform_dependent`'s branches the one that a TPU takes; the default names no platforms."""
    return next(i for i, names in enumerate(platforms) if not names or "tpu" in names)
