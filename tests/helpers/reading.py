"""A file of pairs, read."""

from pathlib import Path

from data_pipeline import pairs
from data_pipeline.pairs import Drops, Pair


def read_pairs(path: Path) -> tuple[list[Pair], Drops]:
    drops = Drops()
    return list(pairs.read(path, drops)), drops
