"""Tunix' DPO trainer, with DPO's or ORPO's loss: an optimizer step for every line on standard input. `benchmarks.peers` starts it.

It runs in an environment of its own (peers_tunix.txt), so it imports nothing of ours. Answers are lines of JSON: the token counts that the
trainer sees, an empty object after each step, and at the end what it logged.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama3
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainingInput

ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what the libraries print goes to the log


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    pairs = [json.loads(line) for line in Path(spec["data"]).read_text().splitlines()]
    batches = [training_input(pairs[i : i + spec["batch"]], pairs) for i in range(0, len(pairs), spec["batch"])]
    trainer = DPOTrainer(
        load(spec),
        load(spec) if spec["algorithm"] == "dpo" else None,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(spec["lr"], weight_decay=0.0)),
        DPOTrainingConfig(
            algorithm=spec["algorithm"], beta=spec["beta"], eval_every_n_steps=10**6, gradient_accumulation_steps=len(batches)
        ),
    )

    def feed() -> Iterator[TrainingInput]:
        for _ in sys.stdin:
            yield from batches
            jax.block_until_ready(nnx.state(trainer.model))
            print("{}", file=ANSWERS)

    lengths = [[len(pair["chosen_ids"]), len(pair["rejected_ids"])] for pair in pairs]
    print(json.dumps({"lengths": lengths}), file=ANSWERS)
    trainer.train(feed())
    seen = {"loss": "loss", "chosen": "log_probs/chosen", "rejected": "log_probs/rejected"}
    logged = {ours: trainer.metrics_logger.get_metric_history("", theirs, "train").tolist() for ours, theirs in seen.items()}
    tokens = sum(2 * (batch.prompt_ids.size + batch.chosen_ids.size) for batch in batches)
    print(json.dumps({"tokens": tokens} | logged), file=ANSWERS)


def load(spec: dict[str, Any]) -> nnx.Module:
    """The exported model, in Tunix' own llama."""
    raw = json.loads((Path(spec["model"]) / "config.json").read_text())
    config = llama3.ModelConfig(
        num_layers=raw["num_hidden_layers"],
        vocab_size=raw["vocab_size"],
        embed_dim=raw["hidden_size"],
        hidden_dim=raw["intermediate_size"],
        num_heads=raw["num_attention_heads"],
        head_dim=raw["head_dim"],
        num_kv_heads=raw["num_key_value_heads"],
        rope_theta=int(raw["rope_theta"]),
        norm_eps=raw["rms_norm_eps"],
    )
    return create_model_from_safe_tensors(spec["model"], config, dtype=jnp.bfloat16 if spec["bf16"] else jnp.float32)


def training_input(mine: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> TrainingInput:
    """A microbatch as the trainer wants it: prompts padded on the left, answers on the right, to the longest of all `pairs`."""
    prompt = max(pair["answer_start"] for pair in pairs)
    answer = max(len(pair[side]) - pair["answer_start"] for pair in pairs for side in ("chosen_ids", "rejected_ids"))
    arrays = {f"{part}_{kind}": np.zeros((len(mine), size), np.int32)
              for part, size in (("prompt", prompt), ("chosen", answer), ("rejected", answer)) for kind in ("ids", "mask")}  # fmt: skip
    for row, pair in enumerate(mine):
        start = pair["answer_start"]
        arrays["prompt_ids"][row, prompt - start :] = pair["chosen_ids"][:start]
        arrays["prompt_mask"][row, prompt - start :] = 1
        for side in ("chosen", "rejected"):
            ids = pair[f"{side}_ids"][start:]
            arrays[f"{side}_ids"][row, : len(ids)] = ids
            arrays[f"{side}_mask"][row, : len(ids)] = 1
    return TrainingInput(**arrays)


if __name__ == "__main__":
    main()
