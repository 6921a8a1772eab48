"""Loss and gradients of TRL's preference trainers on a tiny llama, recorded as the vectors of tests/whole/test_trl.py.

TRL runs in an environment of its own, so nothing of ours is imported here. To record the vectors again, from the repository's root:

    python -m venv .venv-peers/trl
    .venv-peers/trl/bin/pip install -r benchmarks/peers_trl.txt
    .venv-peers/trl/bin/python -m tests.helpers.trl_vectors

A case is what the trainer itself makes of the pairs' text: its tokenizer calls, its collator, its `compute_loss`. What TRL 1.16 does there:

- Sequences: each side is prompt + completion + EOS, EOS appended where the text doesn't end in it. A completion's tokens, EOS included, are
  what is scored. `DPOTrainer` leaves a BOS to the tokenizer, `CPOTrainer` and `ORPOTrainer` put one in front; ours here has none.
- Pairs are averaged in a batch. With `batch` = 1 a case is the mean over batches of one pair, as gradient accumulation gives it.
- dpo: log-probabilities are summed over a completion, the reference's too; `precompute_ref_log_probs` stores these two sums a pair. "ipo" and
  "sigmoid_norm" take means instead, each side's sum by its own token count; the papers of DPO and IPO have sums. "sigmoid" ignores
  `label_smoothing`; "robust" heeds it, and smoothing in cDPO's sense is a difference of the two (the case "dpo smoothed").
- cpo: log-probabilities are summed over a completion; "simpo" takes means. The NLL, times `cpo_alpha`, is the mean over all chosen completion
  tokens of a batch, so a long answer weighs more than a short one. Ours is a mean over pairs of each pair's mean, which a batch of one pair is.
- orpo: log-probabilities are means over a completion; `beta` is the paper's lambda. The NLL has weight 1. It is a mean over a batch's tokens like
  cpo's, and scores the chosen side's prompt too, all but its first token. Of prompts of one token none is scored, which is the paper's NLL.
"""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import save_file

VECTORS = Path(__file__).parent.parent / "vectors" / "trl"
TRAINED, REFERENCE = 0, 1  # seeds of the two models' weights
EOS, PAD, WORDS = 0, 1, range(2, 48)
CONFIG = {
    "model_type": "llama", "vocab_size": WORDS.stop, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    trainer: str
    options: dict
    batch: int | None = None  # pairs in a batch; None: all
    prompt: int | None = None  # tokens kept of each prompt; None: all


def _dpo(loss, beta=0.1):
    return Case("dpo", {"loss_type": [loss], "beta": beta})


def _smoothed(share):
    """cDPO: (1 - share) softplus(-x) + share softplus(x), from what TRL has: "robust" is the same with - share, over 1 - 2 share."""
    return {"loss_type": ["sigmoid", "robust"], "label_smoothing": share, "loss_weights": [2 * (1 - share), 2 * share - 1], "beta": 0.1}


CASES = {
    "dpo": _dpo("sigmoid"),
    "dpo smoothed": Case("dpo", _smoothed(0.2)),
    "dpo ipo": _dpo("ipo"),
    "dpo hinge": _dpo("hinge", 0.5),  # one pair is beyond the hinge; of "cpo hinge" two
    "dpo length-normalised": _dpo("sigmoid_norm", 2.0),
    "cpo without its NLL": Case("cpo", {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.0, "label_smoothing": 0.2}),
    "cpo": Case("cpo", {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.7}, batch=1),
    "cpo hinge": Case("cpo", {"loss_type": "hinge", "beta": 0.1, "cpo_alpha": 0.7}, batch=1),
    "simpo": Case("cpo", {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.4, "cpo_alpha": 0.0, "label_smoothing": 0.1}),
    "orpo": Case("orpo", {"beta": 0.6}, batch=1),
    "orpo, prompts of one token": Case("orpo", {"beta": 0.6}, batch=1, prompt=1),
}


def weights(seed):
    """A model's tensors under Hugging Face's names, large enough that attention isn't uniform."""
    rng = np.random.default_rng(seed)
    d, mlp, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    q, kv = head * CONFIG["num_attention_heads"], head * CONFIG["num_key_value_heads"]
    block = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, q)}
    block |= {"mlp.gate_proj": (mlp, d), "mlp.up_proj": (mlp, d), "mlp.down_proj": (d, mlp), "input_layernorm": (d,)}
    block |= {"post_attention_layernorm": (d,)}
    layers = range(CONFIG["num_hidden_layers"])
    shapes = {"model.embed_tokens": (CONFIG["vocab_size"], d), "model.norm": (d,), "lm_head": (CONFIG["vocab_size"], d)}
    shapes |= {f"model.layers.{layer}.{name}": shape for layer in layers for name, shape in block.items()}

    def draw(shape):
        values = rng.standard_normal(shape)
        return (1 + values / 8 if len(shape) == 1 else values * 1.6 / np.sqrt(shape[1])).astype(np.float32)

    return {f"{name}.weight": draw(shape) for name, shape in shapes.items()}


def pairs():
    """Prompts and both answers as ids, without EOS: [(prompt, chosen, rejected)]."""
    rng = np.random.default_rng(7)

    def words(n):
        return rng.choice(WORDS, n).tolist()

    a, b, c = words(4), words(7), words(20)
    return [
        (words(5), [*a, *words(2), *b], [*a, *words(4), *b]),
        (words(3), [*a, *words(3), *b], [*a, *b]),  # the chosen side only inserts
        (words(8), [*b, *a], [*b, *words(5), *a]),  # and only deletes
        (words(2), [*c, 2, *b], [*c, 3, *b]),  # much shared code
        (words(4), words(3), words(11)),  # nothing shared
        (words(6), [*words(1), *a, *words(2), *c], [*words(2), *a, *words(1), *c]),  # two places
    ]


def record(case):
    """The loss and every gradient: (loss, {name: array})."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    make_config, make = {"dpo": (DPOConfig, DPOTrainer), "cpo": (CPOConfig, CPOTrainer), "orpo": (ORPOConfig, ORPOTrainer)}[case.trainer]
    kept = slice(0 if case.prompt is None else -case.prompt, None)
    given = [(prompt[kept], chosen, rejected) for prompt, chosen, rejected in pairs()]
    data = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), map(_text, pair), strict=True)) for pair in given])
    reference = {"ref_model": _model(REFERENCE)} if case.trainer == "dpo" else {}
    with TemporaryDirectory() as scratch:
        config = make_config(
            scratch, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", max_length=64, **case.options
        )
        trainer = make(model=_model(TRAINED), args=config, train_dataset=data, processing_class=_tokenizer(), **reference)
    rows = list(trainer.train_dataset)
    size = case.batch or len(rows)
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    trainer.model.train()
    losses, seen = [], list[tuple]()
    for batch in batches:
        inputs = trainer.data_collator(batch)
        seen += _collated(inputs)
        loss = trainer.compute_loss(trainer.model, inputs) / len(batches)
        loss.backward()
        losses.append(loss.item())
    assert seen == [(prompt, [*chosen, EOS], [*rejected, EOS]) for prompt, chosen, rejected in given], "TRL trains on other tokens"
    return sum(losses), {name: p.grad.numpy() for name, p in trainer.model.named_parameters()}


def _text(ids):
    return "".join(f"w{token} " for token in ids)


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {f"w{token}": token for token in WORDS} | {"<eos>": EOS, "<pad>": PAD}
    tokenizer = Tokenizer(models.WordLevel(names, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def _model(seed):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).float()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights(seed).items()})
    return model


def _collated(inputs):
    """[(prompt, chosen, rejected)] as ids, from a collator's batch."""
    if "completion_mask" in inputs:  # dpo: the chosen sides, then the rejected ones
        ids, real, answer = (inputs[name].chunk(2) for name in ("input_ids", "attention_mask", "completion_mask"))
    else:
        names = ("input_ids", "attention_mask", "labels")
        ids, real, answer = ([inputs[f"{side}_{name}"] for side in ("chosen", "rejected")] for name in names)
        answer = [labels != -100 for labels in answer]

    def cut(side, n, of_answer):
        mask = real[side][n].bool() & (answer[side][n].bool() == of_answer)
        return ids[side][n][mask].tolist()

    return [(cut(0, n, False), cut(0, n, True), cut(1, n, True)) for n in range(len(ids[0]))]


def main():
    losses, tensors = {}, {}
    for name, case in CASES.items():
        losses[name], grads = record(case)
        tensors |= {f"{name}/{tensor}": grad for tensor, grad in grads.items()}
        print(f"{name}: {losses[name]:.6f}")
    VECTORS.parent.mkdir(exist_ok=True)
    save_file(tensors, VECTORS.with_suffix(".safetensors"))
    cases = {name: asdict(case) | {"loss": losses[name]} for name, case in CASES.items()}
    versions = {package: version(package) for package in ("trl", "transformers", "torch")}
    VECTORS.with_suffix(".json").write_text(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
