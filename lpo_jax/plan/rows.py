"""The packed rows that a plan is made for."""

import math
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.shards import Manifest
from lpo_jax.config import PlanConfig, RunConfig


@dataclass(frozen=True)
class PlannedRows:
    """How wide rows are padded (as `data_pipeline.row.RowShape` says of rows that exist), and how full they are."""

    tokens: int  # T
    scored: int  # N
    pairs: int  # P, the most in any row
    mean_pairs: float

    @staticmethod
    def of(config: RunConfig) -> "PlannedRows":
        """Those of the run's shards, or what it assumes of shards that aren't built yet."""
        if not (Path(config.data.path) / "manifest.json").is_file():
            return PlannedRows.assumed(config.plan)
        manifest = Manifest.load(config.data.path)
        train = manifest.splits["train"]
        return PlannedRows(*manifest.row_shape, mean_pairs=train["pairs"] / train["rows"])

    @staticmethod
    def assumed(config: PlanConfig) -> "PlannedRows":
        """Rows of shards that aren't built yet."""
        pairs = config.row_tokens / config.pair_tokens
        return PlannedRows(config.row_tokens, math.ceil(config.row_tokens * config.scored_share), math.ceil(2 * pairs), pairs)
