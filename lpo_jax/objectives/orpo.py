"""Odds ratio preference optimization (ORPO, Hong et al. 2024, arXiv 2403.07691, Eqs. 4 and 7): imitation with a penalty on the rejected side.

    s(y)  = the mean log-probability of a side's answer tokens
    odds  = exp(s) / (1 - exp(s))
    loss  = -s(y+) - beta log sigmoid(log odds(y+) - log odds(y-))

beta is the paper's lambda. The first term may score the prompt as well (`score_prompt`), which is TRL's way.

Dims: B rows, N scored tokens, P pairs in a row.
"""

from dataclasses import dataclass
from typing import Literal

import jax

from foundation.settings import PositiveNumber
from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Objective, Options, Terms, answer_side, log1mexp, pair_mean
from lpo_jax.objectives.preference import Coefficients, answer_sides, pair_terms, side_sums, whole_answers


@dataclass(frozen=True, kw_only=True)
class Orpo(Options):
    """Options of `orpo`."""

    name: Literal["orpo"] = "orpo"
    beta: PositiveNumber
    """weight of the odds ratio's term, the paper's lambda"""
    score_prompt: bool = False
    """imitate the prompt's tokens too, as TRL does; the odds are the answers' either way"""


def log_odds(s: jax.Array) -> jax.Array:
    """log(p / (1 - p)) of p = exp(s), s <= 0; finite also where p is 1."""
    return s - log1mexp(s)


def terms(logps: jax.Array, batch: TreeBatch, options: Orpo) -> Terms:
    plus, minus = (pair_mean(side, batch) for side in answer_sides(batch))
    weights = Coefficients(plus, minus, pair_mean(answer_side(batch, options.score_prompt), batch))
    chosen, rejected = scores = side_sums(logps, weights, batch)
    prefer = options.beta * jax.nn.softplus(log_odds(rejected) - log_odds(chosen))
    return pair_terms(logps, batch, weights, prefer, scores, options.beta, alpha=1.0)


OBJECTIVE = Objective("orpo", "odds ratio preference optimization", Orpo, terms, whole_rejected=whole_answers)
