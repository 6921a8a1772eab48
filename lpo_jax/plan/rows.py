"""The packed rows that a plan is made for."""

import math
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.row import RowShape
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
    def of(config: RunConfig, stage: str) -> "PlannedRows":
        """Those of the stage's shards, or what it assumes where one of the sets isn't built yet."""
        sets = config.shard_sets(stage).values()
        if not all((Path(one.path) / "manifest.json").is_file() for one in sets):
            return PlannedRows.assumed(config.plan)
        found = [Manifest.load(one.path) for one in sets]
        trains = [manifest.splits["train"] for manifest in found]
        shares = [one.weight or train["rows"] or 1 for one, train in zip(sets, trains, strict=True)]
        pairs = sum(share * train["pairs"] / (train["rows"] or 1) for share, train in zip(shares, trains, strict=True)) / sum(shares)
        widest = RowShape(*map(max, zip(*(manifest.row_shape for manifest in found), strict=True)))
        return PlannedRows(*widest, mean_pairs=pairs)

    @staticmethod
    def assumed(config: PlanConfig) -> "PlannedRows":
        """Rows of shards that aren't built yet."""
        pairs = config.row_tokens / config.pair_tokens
        return PlannedRows(config.row_tokens, math.ceil(config.row_tokens * config.scored_share), math.ceil(2 * pairs), pairs)
