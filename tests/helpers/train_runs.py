"""Run directories as `lpo train` leaves them, without training."""

import json
from pathlib import Path
from typing import Any

HOSTILE = "<script>alert(1)</script>"
CONFIG: dict[str, Any] = {
    "run_dir": "runs/fake",
    "model": {"path": None},
    "stages": {"sft": {"objective": {"name": "sft", "mode": "clean"}}, "lpo": {"objective": {"name": "lpo", "mode": "paper"}}},
}
SUMMARY = {
    "init": {"pair_accuracy": 0.5, "margin": -0.0123, "changed_nll": 3.2, "unchanged_nll": 2.1},
    "sft": {"pair_accuracy": 0.625, "margin": 0.25, "changed_nll": 1.5, "unchanged_nll": 0.75},
    "lpo": {"pair_accuracy": 0.875, "margin": 1.25, "changed_nll": 1.2, "unchanged_nll": 0.812},
}
TOKENS = [  # text, side, changed
    ("def f(x):", 0, False),
    ("\n    ", 0, False),
    (HOSTILE, 1, True),
    ('"quoted" & \ufffd\r\n', 1, False),
    ("\n", 1, True),
    ("eval(x)", -1, True),
]


def make_run(run_dir: Path, summary: dict[str, dict[str, float]], tokens: list[tuple[str, int, bool]] = TOKENS, steps: int = 6) -> Path:
    """A run directory with `steps` logged steps a stage and one held-out pair; each stage makes tokens likelier by 0.5 nats."""
    (run_dir / "eval").mkdir(parents=True)
    for index, name in enumerate(summary):
        pairs = [{"id": f"pair-{HOSTILE}", "tokens": [[*token, -3.0 + 0.5 * index] for token in tokens]}] if tokens else []
        (run_dir / "eval" / f"{name}.json").write_text(json.dumps({"metrics": summary[name], "pairs": pairs}))
    lines = []
    for total in range(1, 2 * steps + 1):
        stage = "sft" if total <= steps else "lpo"
        line = {"stage": stage, "group": "train", "step": total, "total_step": total, "loss": 3 / total, "lr": 1e-3, "grad_norm": 1.0}
        if stage == "lpo":
            line |= {"rewards/margins": 0.1 * total, "rewards/accuracies": 0.9, "logps/chosen": -1.0, "logps/rejected": -2.0}
        lines.append(json.dumps(line) + "\n")
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    return run_dir
