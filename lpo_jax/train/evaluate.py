"""Held-out pairs: what a run is judged by, and the few that its report shows."""

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from data_pipeline.row import answer_tokens
from foundation.console import ticking
from foundation.files import Json, read_json, write_text
from lpo_jax.batch import TreeBatch
from lpo_jax.config import RunConfig
from lpo_jax.model.decoder import Params
from lpo_jax.objectives import Terms, add, means
from lpo_jax.tensors import on_host
from lpo_jax.train.placement import my_rows, to_devices

if TYPE_CHECKING:  # it loads TensorFlow
    from data_pipeline.feed import Feed

Decode = Callable[[int], str]
"""A token id's text."""
EvalStep = Callable[[Params, Params, TreeBatch], tuple[Terms, jax.Array]]
log = logging.getLogger(__name__)


def evaluate(
    eval_step: EvalStep, mesh: Mesh, data: "Feed", config: RunConfig, decode: Decode, frozen: Params, params: Params, draw: int = 0
) -> tuple[dict[str, float], list[Json]]:
    """Held-out metrics, and the first `draw` pairs with their tokens' log-probabilities, for the report."""
    total: Terms | None = None
    drawn: list[Json] = []
    bar = tqdm(
        data.heldout(config.eval_rows, my_rows(mesh, config.eval_rows)),
        "held-out",
        -(-data.rows("heldout") // config.eval_rows),
        unit="batch",
        dynamic_ncols=True,
        leave=False,
        disable=jax.process_index() > 0,
    )
    with ticking(bar) as batches:
        for index, rows in enumerate(batches):
            batch = to_devices(rows, mesh, config.eval_rows)
            terms, logps = on_host(eval_step(params, frozen, batch))
            total = add(total, terms)
            if len(drawn) < draw:
                whole: TreeBatch = multihost_utils.process_allgather(batch, tiled=True)
                drawn += _draw(whole, logps, data, index * config.eval_rows, decode)
    if total is None:
        log.warning("the shard set has no held-out split: nothing is evaluated")
        return {}, []
    return means(total), drawn[:draw]


def write_evaluation(run_dir: epath.Path, name: str, metrics: dict[str, float], pairs: list[Json]) -> None:
    """Leave `evaluate`'s result in eval/`name`.json, which `read_summary` and the report read."""
    if jax.process_index() == 0:
        write_text(run_dir / "eval" / f"{name}.json", json.dumps({"metrics": metrics, "pairs": pairs}) + "\n")


def say(name: str, metrics: dict[str, float]) -> None:
    """Tell held-out metrics in one line."""
    if metrics:
        log.info("%s: %s", name, ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))


def read_summary(run_dir: epath.Path, config: RunConfig) -> dict[str, dict[str, float]]:
    """Held-out metrics before training ("init") and after each stage, as far as the run has come."""
    files = {name: run_dir / "eval" / f"{name}.json" for name in ("init", *config.stages)}
    return {name: read_json(file)["metrics"] for name, file in files.items() if file.exists()}


def _draw(rows: TreeBatch, logps: jax.Array, data: "Feed", first_row: int, decode: Decode) -> list[Json]:
    """The answer of every pair in a batch, token by token: text, side, changed or not, log-probability (None: not scored)."""
    drawn = []
    for r in range(min(len(rows.tokens), data.rows("heldout") - first_row)):
        for p, pair_id in enumerate(data.pair_ids("heldout", first_row + r)):
            tokens = [
                [decode(token), side, n is not None and bool(rows.changed[r, n]), None if n is None else float(logps[r, n])]
                for token, side, n in answer_tokens(rows, r, p)
            ]
            drawn.append({"id": pair_id, "tokens": tokens})
    return drawn
