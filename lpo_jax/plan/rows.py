"""The packed rows that a plan is made for, and how many of them a stage reads."""

import math
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.row import RowShape
from data_pipeline.shards import Manifest
from lpo_jax.config import PlanConfig, RunConfig
from lpo_jax.train.preflight import steps_of


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
        found = manifests(config, stage)
        if not found:
            return PlannedRows.assumed(config.plan)
        widest = RowShape(*map(max, zip(*(manifest.row_shape for manifest, _ in found), strict=True)))
        return PlannedRows(*widest, mean_pairs=_of_a_row(found, "pairs"))

    @staticmethod
    def assumed(config: PlanConfig) -> "PlannedRows":
        """Rows of shards that aren't built yet."""
        pairs = config.row_tokens / config.pair_tokens
        return PlannedRows(config.row_tokens, math.ceil(config.row_tokens * config.scored_share), math.ceil(2 * pairs), pairs)


@dataclass(frozen=True)
class Length:
    """How long a stage trains. None: its data isn't there, and nobody said how much there will be."""

    steps: int | None
    tokens: int | None  # as the steps count them: without padding and each tree's first. Exact for whole epochs, else by the mean row

    @staticmethod
    def of(config: RunConfig, name: str) -> "Length":
        """By the manifests of the stage's shards; where one isn't there, by `plan`."""
        stage, found, assumed = config.stages[name], manifests(config, name), config.plan
        if found:
            rows: int | None = sum(manifest.splits["train"]["rows"] for manifest, _ in found)
            each = _of_a_row(found, "tokens") - _of_a_row(found, "pairs")
        else:
            rows = None if assumed.pairs is None else math.ceil(assumed.pairs * assumed.pair_tokens / assumed.row_tokens)
            each = assumed.row_tokens * (1 - 1 / assumed.pair_tokens)
        if rows is None and stage.steps is None:
            return Length(None, None)
        steps = steps_of(stage, rows or 0)
        return Length(steps, round(steps * stage.batch_rows * each))


def missing(config: RunConfig, stage: str) -> dict[str, str]:
    """The stage's shard sets that aren't built yet, by key."""
    sets = config.shard_sets(stage).items()
    return {key: one.path for key, one in sets if not (Path(one.path) / "manifest.json").is_file()}


def manifests(config: RunConfig, stage: str) -> list[tuple[Manifest, float]]:
    """Those of the stage's shard sets, each with its share of the stage's rows; none where one isn't built yet."""
    if missing(config, stage):
        return []
    sets = config.shard_sets(stage).values()
    found = [Manifest.load(one.path) for one in sets]
    shares = [one.weight or manifest.splits["train"]["rows"] or 1 for one, manifest in zip(sets, found, strict=True)]
    return [(manifest, share / sum(shares)) for manifest, share in zip(found, shares, strict=True)]


def _of_a_row(found: list[tuple[Manifest, float]], what: str) -> float:
    """The mean of "pairs" or "tokens" in a training row."""
    trains = [(manifest.splits["train"], share) for manifest, share in found]
    return sum(share * train[what] / (train["rows"] or 1) for train, share in trains)
