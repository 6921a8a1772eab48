"""What decays, and the schedule."""

import jax

from lpo_jax.config import OptimConfig
from lpo_jax.model.decoder import Model
from lpo_jax.train.optimizer import _decayed, learning_rate
from tests.helpers.training import MODEL


def test_decay_spares_norms_and_biases():
    decayed = _decayed(Model(MODEL).shapes())
    flags = {jax.tree_util.keystr(path, simple=True, separator="."): flag for path, flag in jax.tree.leaves_with_path(decayed)}
    assert {name for name, flag in flags.items() if not flag} == {
        "blocks.attn_norm", "blocks.mlp_norm", "final_norm", "blocks.q_bias", "blocks.k_bias", "blocks.v_bias"
    }  # fmt: skip


def test_schedule():
    lr = learning_rate(OptimConfig(lr=1.0, warmup_ratio=0.1, final_lr_ratio=0.1), 100)
    assert [round(float(lr(s)), 3) for s in (0, 5, 10, 55, 100)] == [0.0, 0.5, 1.0, 0.55, 0.1]
    assert float(learning_rate(OptimConfig(lr=1.0, warmup_ratio=0.0), 10)(0)) == 1.0
