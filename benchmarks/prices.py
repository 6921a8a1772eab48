"""What an objective's step costs over SFT on the chosen sides of the same pairs: `python -m benchmarks.step --objectives`.

Each objective gets the trees that it can use, trimmed where they serve it. FLOPs are those of the traced step's matrix products.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks import common, ours
from data_pipeline.trees import Encoded, plant
from lpo_jax import objectives
from lpo_jax.batch import TreeBatch
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives import Options
from lpo_jax.objectives.cpo import Cpo
from lpo_jax.objectives.dpo import Dpo
from lpo_jax.objectives.lpo import Lpo
from lpo_jax.objectives.orpo import Orpo
from lpo_jax.objectives.safecoder import SafeCoder
from lpo_jax.objectives.sft import Sft
from lpo_jax.objectives.simpo import Simpo
from lpo_jax.objectives.target_dpo import TargetDpo
from lpo_jax.plan import flops
from lpo_jax.train.step import Reference

KEPT, IN_STEP = Reference("batch"), Reference("frozen")
OBJECTIVES: dict[str, tuple[Options, Reference | None]] = {
    "sft": (Sft(), None),
    "safecoder": (SafeCoder(), None),
    "lpo": (Lpo(beta=10.0, gamma=5.4, alpha=1.0), None),
    "dpo changed, kept": (Dpo(beta=0.1, tokens="changed"), KEPT),
    "dpo changed, in step": (Dpo(beta=0.1, tokens="changed"), IN_STEP),
    "target_dpo, kept": (TargetDpo(beta=0.1), KEPT),
    "simpo": (Simpo(beta=10.0, gamma=5.4), None),
    "orpo": (Orpo(beta=0.1), None),
    "cpo": (Cpo(beta=0.1), None),
    "dpo, kept": (Dpo(beta=0.1), KEPT),
    "dpo, in step": (Dpo(beta=0.1), IN_STEP),
}


def batch_for(name: str, pairs: list[Encoded], rows_of: Callable[..., TreeBatch]) -> TreeBatch:
    """The pairs as the objective takes them; `rows_of` packs trees."""
    options, beside = OBJECTIVES[name]
    if name == "sft":
        return rows_of([common.chosen_only(pair) for pair in pairs])
    batch = rows_of([plant(pair, trim=objectives.of(options).whole_rejected(options) is None) for pair in pairs])
    return TreeBatch(**vars(batch) | {"reference": jnp.zeros(batch.pair.shape)}) if beside == KEPT else batch


def cost(model: Model, params: Params, batch: TreeBatch, name: str, mesh: Mesh) -> int:
    """FLOPs of an objective's step."""
    step, arguments = ours.prepared(model, params, batch, *OBJECTIVES[name], mesh)
    return counted(step, *arguments)


def counted(f: Any, *arguments: Any) -> int:
    """FLOPs of a jitted function as a TPU computes it: there attention's kernels say what they cost, elsewhere loops end where the data say."""
    with patch("lpo_jax.model.attention.mask.platform", lambda: "tpu"):
        return flops.count(f.trace(*arguments).jaxpr.jaxpr).executed


def compare(model: Model, params: Params, pairs: list[Encoded], mesh: Mesh, rows_of: Callable[..., TreeBatch], repeats: int) -> dict:
    """Print each objective's seconds and FLOPs over those of sft; returns the ratios by name."""
    batches = {name: batch_for(name, pairs, rows_of) for name in OBJECTIVES}
    costs = {name: cost(model, params, batch, name, mesh) for name, batch in batches.items()}
    steps = {name: ours.timed(model, params, batch, OBJECTIVES[name][0], mesh, OBJECTIVES[name][1]) for name, batch in batches.items()}
    rows = common.table(common.interleave(steps, repeats), "sft", dict.fromkeys(steps, len(pairs)), "pairs")
    ratios = {name: {"time": rows[name]["ratio"], "flops": costs[name] / costs["sft"]} for name in steps}
    print(f"\n{'over sft':24} {'time':>6} {'FLOPs':>6}")
    for name, ratio in ratios.items():
        print(f"{name:24} {ratio['time']:6.2f} {ratio['flops']:6.2f}")
    return ratios
