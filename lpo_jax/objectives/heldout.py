"""What every run is judged by on held-out pairs, whatever its objective.

Dims: B rows, N scored tokens.
"""

import jax
import jax.numpy as jnp

from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Terms, pair_mean, pair_sum

ENGLISH = {
    "pair_accuracy": "share of held-out pairs whose secure side is likelier than the vulnerable one on the changed tokens "
    "(mean log-probability); over the pairs that change tokens on both sides",
    "margin": "mean over the same pairs of that difference in log-probability, in nats a token",
    "changed_nll": "mean negative log-likelihood of a changed token of the secure side, in nats",
    "unchanged_nll": "mean negative log-likelihood of every other answer token of the secure side, in nats: what must not get worse",
}
"""The metrics' names in summary.json, in plain English."""

HIGHER_IS_BETTER = {"pair_accuracy": True, "margin": True, "changed_nll": False, "unchanged_nll": False}


def heldout_metrics(logps: jax.Array, batch: TreeBatch) -> Terms:
    """The metrics of `ENGLISH` as (sum, weight) pairs, from the log-probabilities [B, N]."""
    answer = batch.answer & (batch.pair >= 0)
    sides = [answer & batch.changed & (batch.side == side) for side in (1, -1)]
    counts = [pair_sum(side.astype(logps.dtype), batch) for side in sides]
    means = [pair_sum(pair_mean(side, batch) * logps, batch) for side in sides]
    both = (counts[0] > 0) & (counts[1] > 0)
    margin = jnp.where(both, means[0] - means[1], 0)
    compared = both.sum().astype(logps.dtype)
    rest = answer & (batch.side >= 0) & ~batch.changed
    return {
        "pair_accuracy": ((margin > 0).sum().astype(logps.dtype), compared),
        "margin": (margin.sum(), compared),
        "changed_nll": (-jnp.where(sides[0], logps, 0).sum(), counts[0].sum()),
        "unchanged_nll": (-jnp.where(rest, logps, 0).sum(), rest.sum().astype(logps.dtype)),
    }
