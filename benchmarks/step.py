"""An LPO step computed as trees, against the ways to compute it that a user could pick instead.

  tree         our training step: trees, trimmed, packed; log-probabilities where there is loss
  packed       our step, nothing shared: each side a whole sequence, both answers scored, packed into rows as full as the trees'
  packed, lean the same, without scoring the rejected tokens that no LPO loss reads
  padded       both sides of a few pairs in one batch, padded to the longest, full logits and log-softmax: what TRL runs, in JAX
  torch        the same in PyTorch with the authors' loss, on the same weights and pairs
  sft          our step on the chosen sides alone, objective sft: what the tree is compared with from below

The padded ways waste the less, the fewer pairs share a batch (--microbatch).

With --objectives the ways are the objectives, each as trees, and sft on the chosen sides is what they are compared with (`benchmarks.prices`).

Every way makes one AdamW step on the same pairs. First the losses and gradient norms are held against one another.

Model FLOPs count what the tree needs, each multiplication and addition: 6 for every weight of a layer and tree token, 6 D V for every scored
token, 12 N H for every layer and pair of tokens of which one sees the other. MFU is their rate over the chip's peak.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import common, ours, prices
from data_pipeline.trees import Encoded, Tree, pack, plant
from lpo_jax.batch import TreeBatch
from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives import Options
from lpo_jax.objectives.lpo import Lpo
from lpo_jax.objectives.sft import Sft
from lpo_jax.plan.chips import peak_of
from lpo_jax.sharding import make_mesh
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.step import objective_terms

BETA, GAMMA = 10.0, 5.4  # the authors'
LPO = Lpo(beta=BETA, gamma=GAMMA, alpha=1.0)
REFERENCE = Lpo(mode="reference", beta=BETA, gamma=GAMMA, alpha=1.0)
SFT = Sft()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_arguments(parser)
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a step (default: 16)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest sequence that is used (default: 1024)")
    parser.add_argument("--d-model", type=int, default=512, help="width; head dim 64, MLP 2.75 times as wide (default: 512)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the matrix products (default: float32)")
    parser.add_argument(
        "--microbatch", type=int, default=4, help="pairs in a batch of the padded ways; TRL's own default is 8, the authors' 1 (default: 4)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns that count, after a warm-up (default: 3)")
    parser.add_argument("--ways", nargs="+", default=["tree", "packed", "packed, lean", "padded", "torch", "sft"])
    parser.add_argument("--objectives", action="store_true", help="compare objectives, not ways to compute one")
    args = parser.parse_args(argv)

    tok = common.load_tokenizer(args.tokenizer)
    usable = [p for p in common.load_pairs(args.data, tok) if max(len(p.chosen), len(p.rejected)) <= args.max_tokens]
    pairs = usable[: args.pairs]
    vocab = -(-tok.backend.get_vocab_size() // 1024) * 1024
    config = common.llama(vocab, args.d_model, args.layers, args.max_tokens)
    model, mesh = Model(config, args.dtype), make_mesh(MeshConfig())
    params = model.init(jax.random.key(0))
    print(f"{len(pairs)} pairs, {config.n_layers} layers of {config.d_model}, vocabulary {vocab}, {jax.devices()[0].device_kind}")

    if args.objectives:
        with jax.set_mesh(mesh):
            common.write_json(args.json, prices.compare(model, params, pairs, mesh, fullest, args.repeats))
        return 0

    planted = {
        "tree": [plant(p) for p in pairs],
        "packed": [common.two_sequences(p) for p in pairs],
        "packed, lean": [common.two_sequences(p, lean=True) for p in pairs],
        "sft": [common.chosen_only(p) for p in pairs],
    }
    batches = {name: fullest(trees) for name, trees in planted.items()}
    tokens = {name: sum(len(t.tokens) for t in trees) for name, trees in planted.items()}
    padded = Padded(pairs, args.microbatch)
    for name, batch in batches.items():
        print(
            f"  {name:13} {tokens[name]:7} tokens in {batch.tokens.shape[0]} rows of {batch.tokens.shape[1]}, {int((batch.pair >= 0).sum())} scored"
        )
    print(f"  {'padded':13} {padded.tokens.size:7} tokens")

    with jax.set_mesh(mesh):
        if args.dtype == "float32":
            check(model, params, batches, padded, pairs)
        ways: dict[str, Callable[[], object]] = {}
        for name, objective in (("tree", LPO), ("packed", LPO), ("packed, lean", LPO), ("sft", SFT)):
            ways[name] = ours.timed(model, params, batches[name], objective, mesh)
        ways["padded"] = padded_step(model, params, padded)
        if "torch" in args.ways:
            ways["torch"] = torch_step(model, params, padded)
        seconds = common.interleave({name: ways[name] for name in args.ways}, args.repeats)
    rows = common.table(seconds, "tree", dict.fromkeys(seconds, len(pairs)), "pairs")
    ratios = {f"{name.replace(', ', '_')}_over_tree": rows[name]["ratio"] for name in rows if name not in ("tree", "sft")}
    if "sft" in rows:
        ratios["tree_over_sft"] = 1 / rows["sft"]["ratio"]
    print("\n" + "\n".join(f"{name:24} {ratio:6.2f}" for name, ratio in ratios.items()))
    rate = model_flops(config, batches["tree"]) / rows["tree"]["median_s"]
    peak = peak_of(jax.devices()[0].device_kind)
    mfu = None if peak is None else rate / (peak.flops * jax.device_count())
    print(f"{'tree, model FLOP/s':24} {rate:.3g}" + ("" if peak is None else f", MFU {mfu:.1%} of {peak.flops:.3g}"))
    common.write_json(
        args.json, {"ratios": ratios, "rows": rows, "tokens": tokens, "model_flops_per_s": rate, "mfu": mfu, "model": vars(config)}
    )
    return 0


def fullest(trees: list[Tree]) -> TreeBatch:
    """The trees in rows of whichever length leaves least room empty: no way is to suffer from its packing."""
    sizes = [len(t.tokens) for t in trees]
    lengths = range(-(-max(sizes) // 64) * 64, 2 * max(sizes) + 64, 64)
    return common.pack(trees, min(lengths, key=lambda length: len(pack(sizes, length)) * length))


def model_flops(c: ModelConfig, batch: TreeBatch) -> int:
    """Of one training step, as the module's docstring counts them; padding is no use."""
    index = np.arange(batch.tokens.shape[1])
    ends, positions = np.asarray(batch.subtree_end), np.asarray(batch.positions)
    real = (positions > 0) | (ends > index + 1)
    seen = int(np.where(real, positions + 1, 0).sum())  # a token at position p sees p ancestors and itself
    layer = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + (3 if c.gated_mlp else 2) * c.d_model * c.d_mlp
    scored = int((np.asarray(batch.pair) >= 0).sum())
    return (
        6 * c.n_layers * layer * int(real.sum()) + 6 * c.d_model * c.vocab_size * scored + 12 * c.n_layers * c.n_heads * c.head_dim * seen
    )


class Padded:
    """Pairs as [2 * pairs, L] arrays, chosen sides first in each microbatch; labels and masks as the authors' collator makes them."""

    def __init__(self, pairs: list[Encoded], microbatch: int):
        count = -(-len(pairs) // microbatch)
        longest = max(max(len(p.chosen), len(p.rejected)) for p in pairs)
        self.tokens = np.zeros((count, 2 * microbatch, longest), np.int32)
        self.answer, self.changed = (np.zeros(self.tokens.shape, bool) for _ in range(2))
        self.widths = []
        for m in range(count):
            mine = pairs[m * microbatch : (m + 1) * microbatch]
            sides = {i: (p, p.chosen, p.m_plus) for i, p in enumerate(mine)}
            sides |= {microbatch + i: (p, p.rejected, p.m_minus) for i, p in enumerate(mine)}
            self.widths.append(max(len(ids) for _, ids, _ in sides.values()))
            for row, (pair, ids, mask) in sides.items():
                self.tokens[m, row, : len(ids)] = ids
                self.answer[m, row, pair.answer_start : len(ids)] = True
                self.changed[m, row, : len(ids)] = mask


def padded_loss(model: Model, params: Params, tokens: jax.Array, answer: jax.Array, changed: jax.Array) -> jax.Array:
    """LPO in mode clean over one padded microbatch, the straight way: the sum over its pairs."""
    logps = jax.nn.log_softmax(model.logits(params, tokens)[:, :-1].astype(jnp.float32))
    logps = jnp.take_along_axis(logps, tokens[:, 1:, None], axis=-1)[..., 0]
    answer, changed = answer[:, 1:], changed[:, 1:]
    chosen, rejected = jnp.split(mean(logps, answer & changed), 2)
    (has_chosen, has_rejected) = jnp.split((answer & changed).any(-1), 2)
    chosen, rejected = (
        jnp.where(has_chosen, chosen, jax.lax.stop_gradient(rejected)),
        jnp.where(has_rejected, rejected, jax.lax.stop_gradient(chosen)),
    )
    prefer = jax.nn.softplus(-(BETA * (chosen - rejected) - GAMMA))
    imitate = jnp.split(mean(logps, answer & ~changed), 2)[0]
    real = jnp.split(answer.any(-1), 2)[0]
    return jnp.where(real, prefer - imitate, 0).sum()


def mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, values, 0).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def padded_gradient(model: Model, params: Params, padded: Padded) -> tuple[jax.Array, Params]:
    """Mean loss over all pairs and its gradient, microbatch by microbatch, each cut to its own longest sequence."""
    gradient = jax.jit(jax.value_and_grad(partial(padded_loss, model)))
    pairs = int(padded.answer.any(-1).sum()) // 2
    total, grads = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    for m, width in enumerate(padded.widths):
        loss, new = gradient(params, *(x[m, :, :width] for x in (padded.tokens, padded.answer, padded.changed)))
        total, grads = total + loss, jax.tree.map(jnp.add, grads, new)
    return total / pairs, jax.tree.map(lambda x: x / pairs, grads)


def padded_step(model: Model, params: Params, padded: Padded) -> Callable[[], object]:
    tx = optimizer(ours.OPTIM, 100, model)
    held = [(params, tx.init(params))]

    @jax.jit
    def update(params: Params, opt_state: Any, grads: Params) -> tuple[Params, Any]:
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def run() -> None:
        held[0] = jax.block_until_ready(update(*held[0], padded_gradient(model, held[0][0], padded)[1]))

    return run


def torch_model(model: Model, params: Params) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        hf.write_params(directory, model, params)
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def torch_loss(network: Any, padded: Padded, m: int) -> Any:
    """The authors' loss ("simpo-kl") over one microbatch: the sum over its pairs."""
    import torch

    width = padded.widths[m]
    tokens, answer, changed = (torch.from_numpy(x[m, :, :width]) for x in (padded.tokens, padded.answer, padded.changed))
    attention = (torch.arange(width) < answer.shape[1]) & (answer.flip(1).cumsum(1).flip(1) > 0)  # padding follows the answer
    logits = network(input_ids=tokens.long(), attention_mask=attention.long()).logits
    labels = torch.where(answer[:, 1:], tokens[:, 1:], 0).long()
    logps = torch.gather(logits[:, :-1].log_softmax(-1), 2, labels[..., None])[..., 0]
    keep = labels != 0
    weight = torch.where(changed[:, 1:], 1 - REFERENCE.off_mask, REFERENCE.off_mask) * keep
    chosen, rejected = ((weight * logps).sum(1) / weight.sum(1).clamp(min=1e-30)).chunk(2)
    rest = (keep & ~changed[:, 1:]).float()
    imitate = ((rest * logps).sum(1) / rest.sum(1).clamp(min=1)).chunk(2)[0]
    prefer = torch.nn.functional.softplus(-(BETA * (chosen - rejected) - GAMMA))
    return torch.where(keep.any(1).chunk(2)[0], prefer - imitate, 0.0).sum()


def torch_step(model: Model, params: Params, padded: Padded) -> Callable[[], object]:
    import torch

    network = torch_model(model, params)
    optimizer = torch.optim.AdamW(network.parameters(), lr=ours.OPTIM.lr, weight_decay=0.0)

    def run() -> None:
        optimizer.zero_grad()
        for m in range(len(padded.widths)):
            torch_loss(network, padded, m).backward()
        optimizer.step()

    return run


def check(model: Model, params: Params, batches: dict[str, TreeBatch], padded: Padded, pairs: list[Encoded]) -> None:
    """Equal losses and gradients first: of all ways with LPO's clean mode, and of torch with our reference mode."""

    @partial(jax.jit, static_argnums=2)
    def gradient(params: Params, batch: TreeBatch, objective: Options) -> tuple[jax.Array, jax.Array]:
        def loss(params: Params) -> jax.Array:
            total, weight = objective_terms(model, objective, params, {}, batch)["loss"]
            return total / weight

        value, grads = jax.value_and_grad(loss)(params)
        return value, optax.tree.norm(grads)

    found = {name: gradient(params, batches[name], LPO) for name in ("tree", "packed", "packed, lean")}
    loss, grads = padded_gradient(model, params, padded)
    found["padded"] = loss, optax.tree.norm(grads)
    for name, (value, norm) in found.items():
        print(f"  {name:13} loss {float(value):.6f}, gradient norm {float(norm):.6f}")
        np.testing.assert_allclose((value, norm), found["tree"], rtol=1e-4, err_msg=f"{name} computes another loss than tree")
    try:
        network = torch_model(model, params)
    except ImportError:
        return
    ours = gradient(params, fullest([plant(p, trim=False) for p in pairs]), REFERENCE)[0]
    theirs = sum(torch_loss(network, padded, m).item() for m in range(len(padded.widths))) / len(pairs)
    print(f"  {'torch':13} loss {theirs:.6f} (the authors'), ours in mode reference {float(ours):.6f}")
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, err_msg="torch computes another loss than mode reference")


if __name__ == "__main__":
    sys.exit(main())
