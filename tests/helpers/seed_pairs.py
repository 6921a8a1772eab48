"""The shipped pairs, read once."""

from data_pipeline.pairs import Drops, read
from tests.helpers.paths import SEED_PAIRS

PAIRS = list(read(SEED_PAIRS, Drops()))
