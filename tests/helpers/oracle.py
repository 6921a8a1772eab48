"""The slow way: what a pair's loss is when both sequences are computed in full, straight from the formulas.

Shares nothing with `lpo_jax.objectives` or the trees; only the decoder, which is checked against torch by itself.
"""

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline import trees
from data_pipeline.row import RowShape, pad
from data_pipeline.trees import Encoded
from lpo_jax.batch import TreeBatch

P, Q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.1, 0.2, 0.6, 0.1])  # the specification's fixture F


def random_pairs(seed=0, vocabulary=50):
    """Pairs of every kind: replaced, inserted, deleted, equal, one-token rejected diff, changed first code token, all changed."""
    rng = np.random.default_rng(seed)
    word = lambda n: rng.integers(1, vocabulary, n)  # noqa: E731
    kinds = {
        "replace": lambda a, b: ([a, word(3), b], [a, word(5), b]),
        "insert": lambda a, b: ([a, word(4), b], [a, b]),
        "delete": lambda a, b: ([a, b], [a, word(3), b]),
        "one token": lambda a, b: ([a, [48], b], [a, [49], b]),
        "first": lambda a, b: ([[48], a, b], [[49, 47], a, b]),
        "two places": lambda a, b: ([[48], a, [47], b], [[49], a, [46], b]),
        "everything": lambda a, b: ([[48]], [[49]]),
        "equal": lambda a, b: ([a, b], [a, b]),
    }
    pairs = []
    for name, make in kinds.items():
        prompt, reasoning, a, b = word(4), word(int(rng.integers(0, 5))), word(5), word(6)
        chosen, rejected = (np.concatenate([*side, [0]]).astype(np.int32) for side in make(a, b))
        from data_pipeline import masks

        minus, plus = masks.clean(rejected.tolist(), chosen.tolist())
        start = len(prompt) + len(reasoning)
        front = np.concatenate([prompt, reasoning]).astype(np.int32)
        pad = np.zeros(start, bool)
        ids = [np.concatenate([front, side]) for side in (chosen, rejected)]
        pairs.append(Encoded(name, *ids, np.concatenate([pad, plus]), np.concatenate([pad, minus]), len(prompt), start, start))
    return pairs


def batch_of(planted, row_tokens, rows=None, pairs_in_row=None):
    """Packed rows of trees as one TreeBatch."""
    packed = trees.pack([len(t.tokens) for t in planted], row_tokens)
    columns = [trees.join([planted[i] for i in row]) for row in packed]
    scored = max(len(c["source"]) for c in columns) + 3
    shape = RowShape(row_tokens, scored, pairs_in_row or max(len(c["chosen_len"]) for c in columns) + 1)
    return TreeBatch.of(pad(columns + [{}] * ((rows or len(columns)) - len(columns)), shape))


def sequence_logps(model, params, sequences, length):
    """log p(ids[t + 1] | ids[: t + 1]) for whole sequences, each a row of its own, padded to `length`: [sequences, length - 1]."""
    padded = np.zeros((len(sequences), length), np.int32)
    for row, ids in zip(padded, sequences, strict=True):
        row[: len(ids)] = ids
    logits = model.logits(params, jnp.array(padded))
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.take_along_axis(jax.nn.log_softmax(wide[:, :-1]), padded[:, 1:, None], axis=-1)[..., 0]


def loss(model, params, pairs, config, length, reference=None):
    """The mean loss over pairs, each side a sequence of its own; formulas of the specification, one pair at a time.

    `reference` holds the parameters of the model that objectives with a reference compare with.
    """
    sequences = [(pair, *side) for pair in pairs for side in ((pair.chosen, pair.m_plus), (pair.rejected, pair.m_minus))]
    logps, fixed = (None if p is None else sequence_logps(model, p, [ids for _, ids, _ in sequences], length) for p in (params, reference))
    sides = []
    for n, (pair, ids, mask) in enumerate(sequences):
        at = np.arange(1, length)
        answer = (at >= pair.answer_start) & (at < len(ids))
        m = np.zeros(length - 1, bool)
        m[: len(ids) - 1] = mask[1:]
        labels = np.zeros(length - 1, int)
        labels[: len(ids) - 1] = ids[1:]
        if reference is None:
            sides.append((logps[n], answer, m, labels, len(ids) - pair.chosen_code_start))
        else:
            sides.append((logps[n], logps[n] - jax.lax.stop_gradient(fixed[n]), answer, m))
    one = _pair_loss if reference is None else _reference_loss
    return sum(one(config, pair, *sides[2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)) / len(pairs)


def _reference_loss(c, pair, chosen, rejected):
    (lp_c, ratio_c, ans_c, m_c), (_, ratio_r, ans_r, m_r) = chosen, rejected
    log_sigmoid = jax.nn.log_sigmoid
    if c.name == "target_dpo":
        return -log_sigmoid(c.beta * (ratio_c[ans_c].sum() - ratio_r[ans_r & m_r].sum())) - c.alpha * lp_c[ans_c].mean()
    r_c, r_r = (ratio[ans & m if c.tokens == "changed" else ans] for ratio, ans, m in ((ratio_c, ans_c, m_c), (ratio_r, ans_r, m_r)))
    if c.loss == "ipo":
        return (r_c.sum() / max(len(r_c), 1) - r_r.sum() / max(len(r_r), 1) - 1 / (2 * c.beta)) ** 2
    s_c, s_r = (r.sum() / max(len(r), 1) if c.length_normalised else r.sum() for r in (r_c, r_r))
    if c.loss == "hinge":
        return jnp.maximum(0, 1 - c.beta * (s_c - s_r))
    return -(1 - c.label_smoothing) * log_sigmoid(c.beta * (s_c - s_r)) - c.label_smoothing * log_sigmoid(-c.beta * (s_c - s_r))


def _pair_loss(c, pair, chosen, rejected):
    lp_c, ans_c, m_c, lab_c, len_c = chosen
    lp_r, ans_r, m_r, lab_r, len_r = rejected
    if c.name == "sft":
        raise NotImplementedError("sft is a mean over tokens, not pairs")
    if c.name == "simpo":
        return jax.nn.softplus(-(c.beta * (lp_c[ans_c].mean() - lp_r[ans_r].mean()) - c.gamma))
    if c.name == "cpo":
        z = c.beta * (lp_c[ans_c].sum() - lp_r[ans_r].sum())
        prefer = jnp.maximum(0, 1 - z) if c.loss == "hinge" else jnp.log(1 + jnp.exp(-z))
        return prefer - c.alpha * lp_c[ans_c].mean()
    if c.name == "orpo":
        p_c, p_r = jnp.exp(lp_c[ans_c].mean()), jnp.exp(lp_r[ans_r].mean())
        odds_ratio = (p_c / (1 - p_c)) / (p_r / (1 - p_r))
        imitated = np.arange(1, len(lp_c) + 1) < len(pair.chosen) if c.score_prompt else ans_c
        return -lp_c[imitated].mean() - c.beta * jax.nn.log_sigmoid(jnp.log(odds_ratio))
    if c.name == "safecoder":
        likely, unlikely = -lp_c[ans_c & m_c], -jnp.log(1 - jnp.exp(lp_r[ans_r & m_r]))
        return sum(x.sum() / (max(len(x), 1) if c.reduction == "mean" else 1) for x in (likely, unlikely))
    if c.mode == "paper":
        extra = pair.chosen_code_start - pair.answer_start if c.norm_len == "answer" else 0
        delta = c.beta * (lp_c[ans_c & m_c].sum() / (len_c + extra) - lp_r[ans_r & m_r].sum() / (len_r + extra))
        rest = lp_c[ans_c & ~m_c]
        reg = rest.sum() if c.imitation == "sum" else rest.sum() / max(len(rest), 1)
        return jax.nn.softplus(-(delta - c.gamma)) - c.alpha * reg
    if c.mode == "reference":
        s, v = [], 1 - c.off_mask
        for lp, ans, m, lab in ((lp_c, ans_c, m_c, lab_c), (lp_r, ans_r, m_r, lab_r)):
            w = np.where(ans & (lab != 0), np.where(m, v, 1 - v), 0.0)
            s.append((w * lp).sum() / w.sum())
        u = (ans_c & (lab_c != 0) & ~m_c).astype(float)
        return jax.nn.softplus(-(c.beta * (s[0] - s[1]) - c.gamma)) - c.alpha * (u * lp_c).sum() / max(u.sum(), 1)
    has_c, has_r = (ans_c & m_c).any(), (ans_r & m_r).any()
    s_c = lp_c[ans_c & m_c].mean() if has_c else None
    s_r = lp_r[ans_r & m_r].mean() if has_r else None
    rest = lp_c[ans_c & ~m_c]
    imitation = -rest.sum() / max(len(rest), 1)
    if not (has_c or has_r) or (c.empty_side == "skip" and not (has_c and has_r)):
        return c.alpha * imitation
    s_c, s_r = (jax.lax.stop_gradient(s_r) if s_c is None else s_c), (jax.lax.stop_gradient(s_c) if s_r is None else s_r)
    return jax.nn.softplus(-(c.beta * (s_c - s_r) - c.gamma)) + c.alpha * imitation


def flat(pairs, trunk=0):
    """A one-row batch and its logps from [(chosen lps, m+, rejected lps, m-, chosen ids, rejected ids)]; `trunk` leading tokens are shared."""
    rows = {name: [] for name in ("pair", "side", "changed", "target", "logp")}
    for p, (c, mc, r, mr, ids_c, ids_r) in enumerate(pairs):
        for side, lps, mask, ids in ((1, c, mc, ids_c), (-1, r, mr, ids_r)):
            for n, (lp, m, token) in enumerate(zip(lps, mask, ids, strict=True)):
                if side == 1 or n >= trunk:
                    values = (p, 0 if n < trunk else side, m == "1", token, lp)
                    for name, value in zip(rows, values, strict=True):
                        rows[name].append(value)
    n = len(rows["pair"])
    lengths = [np.array([[len(pair[i]) for pair in pairs]]) for i in (0, 2)]
    batch = TreeBatch(
        tokens=np.zeros((1, 1), np.int32), positions=np.zeros((1, 1), np.int32), subtree_end=np.ones((1, 1), np.int32),
        source=np.zeros((1, n), np.int32), answer=np.ones((1, n), bool),
        target=np.array([rows["target"]], np.int32), pair=np.array([rows["pair"]], np.int32),
        side=np.array([rows["side"]], np.int8), changed=np.array([rows["changed"]]),
        chosen_len=lengths[0], rejected_len=lengths[1], reasoning_len=np.zeros_like(lengths[0]),
    )  # fmt: skip
    return batch, jnp.array([rows["logp"]])
