"""Plans that no compiler made."""

from typing import Any

from lpo_jax.plan.hlo import Traffic
from lpo_jax.plan.result import Plan
from lpo_jax.plan.rows import PlannedRows

GIB = 2**30


def a_plan(stage: str = "lpo", needs: float = 10.0, seconds: float = 2.0, topology: str = "v5e:2x2", **more: Any) -> Plan:
    """A plan that needs so many GiB of each device and whose step takes so long at best."""
    facts = {
        "model": "m", "parameters": 1, "trained": "all", "topology": topology, "devices": 4, "stage": stage, "remat": "block", "rows": 8,
        "mesh": {"data": 1, "fsdp": 4, "expert": 1, "tensor": 1}, "accumulate": 2, "row": PlannedRows(512, 384, 8, 4.0), "verdict": "",
        "memory": {"parameters": int(needs * GIB)}, "checkpoint": 12 * 10**9, "largest": [], "model_flops": 1, "executed_flops": 1,
        "traffic": None, "warnings": [], "compile_seconds": 0.0, "versions": {},
    }  # fmt: skip
    made = Plan(**(facts | more))
    if needs > made.chip.hbm / GIB:
        said = f"RESOURCE_EXHAUSTED: the total memory required ({needs:.2f}G) exceeds available HBM ({made.chip.hbm / GIB:.2f}G)"
        return Plan(**(facts | {"memory": {}, "verdict": said} | more))
    return Plan(**(facts | {"traffic": Traffic(round(seconds * made.chip.hbm_rate), {}, 0)} | more))
