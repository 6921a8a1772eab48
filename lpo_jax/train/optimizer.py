"""AdamW and its schedule."""

import jax
import optax

from lpo_jax.config import OptimConfig
from lpo_jax.model.decoder import Params


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW; clipping by global norm in front, linear warm-up then cosine decay behind."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate(config, steps), config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=_decayed),
    )


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step."""
    warmup = round(config.warmup_ratio * steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=config.lr if warmup == 0 else 0.0,
        peak_value=config.lr,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.lr * config.final_lr_ratio,
    )


def _decayed(params: Params) -> Params:
    """Which parameters decay: matrices do, norms and biases don't."""
    return jax.tree.map_with_path(lambda path, _: not path[-1].key.endswith(("norm", "bias")), params)
