"""Optimizers and their schedules, all optax's."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from lpo_jax.config import Adafactor, AdamW, Lion, Muon, OptimOptions, Sgd
from lpo_jax.model.decoder import Model, Params


def optimizer(config: OptimOptions, steps: int, model: Model) -> optax.GradientTransformation:
    """Clipping by global norm, and behind it the optimizer that `config` names, for what is trained of `model`."""
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), *_core(config, learning_rate(config, steps), model))


def _core(c: OptimOptions, lr: optax.Schedule, model: Model) -> tuple[optax.GradientTransformation, ...]:
    if isinstance(c, AdamW):
        return (optax.adamw(lr, c.b1, c.b2, c.eps, mu_dtype=c.moments, weight_decay=c.weight_decay, mask=_decayed),)
    if isinstance(c, Lion):
        return (optax.lion(lr, c.b1, c.b2, c.moments, c.weight_decay, _decayed),)
    # The others' own decay isn't multiplied by the learning rate, goes through the moments, or has no mask.
    decay = optax.add_decayed_weights(lambda step: -c.weight_decay * lr(step), _decayed)
    if isinstance(c, Adafactor):
        return (
            optax.adafactor(lr, decay_rate=c.decay, multiply_by_parameter_scale=c.relative, momentum=c.momentum, dtype_momentum=c.moments),
            decay,
        )
    if isinstance(c, Muon):
        return (
            optax.contrib.muon(
                lr,
                beta=c.momentum,
                eps=c.eps,
                mu_dtype=c.moments,
                adam_b1=c.b1,
                adam_b2=c.b2,
                muon_weight_dimension_numbers=lambda params: _matrices(params, model),
                consistent_rms=c.rms,
            ),
            decay,
        )
    assert isinstance(c, Sgd)
    return optax.sgd(lr, c.momentum, accumulator_dtype=c.moments), decay


def learning_rate(config: OptimOptions, steps: int) -> optax.Schedule:
    """Learning rate by step."""
    peak, end = config.lr, config.lr * config.final_lr_ratio
    warmup = round(config.warmup_ratio * steps)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=peak if warmup == 0 else 0.0,
            peak_value=peak,
            warmup_steps=warmup,
            decay_steps=max(steps, warmup + 1),
            end_value=end,
        )
    falling = {"linear": steps - warmup, "constant": 0, "wsd": round(config.cooldown_ratio * steps)}[config.schedule]
    parts = [optax.linear_schedule(0.0, peak, warmup), optax.constant_schedule(peak), optax.linear_schedule(peak, end, falling)]
    return optax.join_schedules(parts, [warmup, steps - falling])


def _decayed(params: Params) -> Params:
    """Which parameters decay: matrices do, norms and biases don't."""
    return jax.tree.map_with_path(lambda path, _: not path[-1].key.endswith(("norm", "bias")), params)


def _matrices(params: Params, model: Model) -> Params:
    """For Muon: which dims of the blocks' matrices, or of all adapters, are inputs and which are outputs; None for what is no matrix.

    Each layer has a matrix of its own.
    """
    inputs = model.inputs()

    def dims(path: tuple[Any, ...], x: jax.Array) -> MuonDimensionNumbers | None:
        *above, last = (key.key for key in path)
        if model.lora is None:
            first, into = 1, inputs.get(".".join((*above, last)), 0)
            matrix = into > 0 and above == ["blocks"]
        else:
            first = int(above[0] == "blocks")
            into = {"a": x.ndim - first - 1, "b": 1}.get(last, 0)
            matrix = into > 0
        split = first + into
        return MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, x.ndim))) if matrix else None

    return jax.tree.map_with_path(dims, params)
