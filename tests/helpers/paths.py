"""Where things lie."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SEED_PAIRS = REPO / "data_pipeline" / "seed" / "pairs.jsonl"
TINY = REPO / "configs" / "tiny_cpu.yaml"
