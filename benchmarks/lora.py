"""A LoRA step against the same step of another checkout of this project, and against TRL + PEFT: whole optimizer steps on the same pairs.

  here         this checkout's training step (AdamW, objective lpo, mode clean), trees, rank --rank on every matrix of the blocks
  floor        the same with rank 1 on the queries alone: what the frozen model costs whatever the adapters are
  against      the same of the checkout in --against, e.g. of `git worktree add ../old 004638a`
  trl          TRL's CPOTrainer with SimPO's loss and PEFT's LoRA of the same rank on the same matrices

Each runs in a process of its own that does a step when it's told to, so that all take turns: a drift of the machine hits all alike. The weights
are a real model's (--model, a Hugging Face directory; by default smollm2-135m-instruct in the directory that LPO_REAL_MODELS names) or, without
one, those of a small new llama. The two checkouts' losses are held against one another, and TRL's first log-probabilities against ours.

float32 on CPUs; TRL isn't run without --peers-venv.
"""

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np

from benchmarks import common, peers
from benchmarks.peers import SIMPO, Peer
from benchmarks.step import BETA, GAMMA, fullest
from data_pipeline.trees import plant
from foundation.files import Json
from lpo_jax.config import MeshConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings

HERE = Path(__file__).parent
TARGETS = r"blocks\.(q|k|v|o|gate|up|down)"
LR = 1e-4


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    tok = common.load_tokenizer(args.tokenizer or args.model)
    usable = [(t, p) for t, p in common.load_texts(args.data, tok) if max(len(p.chosen), len(p.rejected)) <= args.max_tokens]
    if len(usable) < args.pairs:
        raise SystemExit(f"{len(usable)} pairs have at most {args.max_tokens} tokens a side: ask for fewer, or give more --data")
    texts, pairs = usable[: args.pairs], [pair for _, pair in usable[: args.pairs]]
    mesh = make_mesh(MeshConfig())
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        # --- The same pairs and weights for all.
        directory = Path(scratch)
        if args.model is None:
            model = Model(peers.model_config(tok, args))
            params = model.init(jax.random.key(0))
        else:
            model = Model(hf.read_config(args.model))
            params = hf.read_params(args.model, model, param_shardings(model, mesh))
        peers.write_inputs(directory, model, params, tok, texts)
        batch = fullest([plant(p) for p in pairs])
        np.savez(directory / "batch.npz", **{name: x for name, x in vars(batch).items() if x is not None})
        print(f"{len(pairs)} pairs, {args.model or 'a new llama'}, {batch.tokens.size} tokens in trees, {jax.devices()[0].device_kind}")
        expected, lengths = peers.first_step(model, params, pairs), [[len(p.chosen), len(p.rejected)] for p in pairs]
        del params

        # --- Their first steps, then all in turn.
        lora = {"rank": args.rank, "alpha": 2.0 * args.rank, "targets": TARGETS, "dropout": args.dropout}
        shared = {"model": scratch, "scratch": scratch, "data": f"{scratch}/pairs.jsonl", "batch": f"{scratch}/batch.npz", "lora": lora}
        ways: dict[str, Peer] = {}
        for name, code in {"here": HERE.parent, "floor": HERE.parent, "against": args.against}.items():
            if code is not None:
                spec = shared | {"code": str(Path(code).resolve()), "stage": stage(batch.tokens.shape[0])}
                if name == "floor":
                    spec |= {"lora": lora | {"rank": 1, "alpha": 2.0, "targets": r"blocks\.q"}}
                ways[name] = running.enter_context(Peer(sys.executable, HERE / "peer_lora.py", spec))
        for size in args.trl_batch if args.peers_venv else ():
            python = (
                peers.environment("trl", Path(args.peers_venv), on_gpu=False) if args.install else Path(args.peers_venv) / "trl/bin/python"
            )
            sizes = {"pairs": args.pairs, "max_tokens": args.max_tokens, "batch": size, "bf16": False}
            spec = shared | sizes | {"beta": SIMPO.beta, "gamma": SIMPO.gamma, "lr": LR}
            ways[f"trl, batch {size}"] = running.enter_context(Peer(python, HERE / "peer_trl.py", spec))
        seconds = common.interleave({name: peer.step for name, peer in ways.items()}, args.repeats)
        logged = {name: peer.finish() for name, peer in ways.items()}

    # --- Did they compute the same?
    for name, log in logged.items():
        print(f"{name:14} losses {' '.join(f'{loss:.4f}' for loss in log['loss'])}")
        if name.startswith("trl") and ways[name].lengths == lengths:
            peers.check(name, log, expected, tolerance=1e-3)
        elif name.startswith("trl"):
            print(f"{name}: its tokenisation differs from ours, so its log-probabilities are not compared")
    if "against" in logged and not args.dropout:
        np.testing.assert_allclose(
            logged["here"]["loss"], logged["against"]["loss"], rtol=1e-3, err_msg="the checkouts compute different losses"
        )
    rows = common.table(seconds, "here", dict.fromkeys(seconds, len(pairs)), "pairs")
    ratios: Json = {}
    for name in ways.keys() - {"here"}:  # TRL's ratio is that of its fastest way
        key = f"{peers.project(name)}_over_here"
        ratios[key] = min(ratios.get(key, np.inf), rows[name]["ratio"])
    if "against" in rows:
        ratios["against_over_floor"] = rows["against"]["ratio"] / rows["floor"]["ratio"]  # no LoRA step can gain more
    print("\n" + "\n".join(f"{key:24} {ratio:6.2f}" for key, ratio in ratios.items()))
    common.write_json(args.json, {"ratios": ratios, "rows": rows, "logged": logged})
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.lora", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_arguments(parser)
    parser.add_argument("--model", help="a Hugging Face directory (default: LPO_REAL_MODELS/smollm2-135m-instruct, else a new small llama)")
    parser.add_argument("--against", metavar="DIR", help="another checkout of this project")
    parser.add_argument(
        "--peers-venv", metavar="DIR", help="where TRL's environment is or, with --install, is made; without it TRL isn't run"
    )
    parser.add_argument("--install", action="store_true", help="make it as `benchmarks.peers` does")
    parser.add_argument("--trl-batch", nargs="+", type=int, default=[2, 4], help="pairs in TRL's microbatch; each is a way (default: 2 4)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--pairs", type=int, default=8, help="pairs in a step (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest sequence that is used (default: 1024)")
    parser.add_argument("--d-model", type=int, default=256, help="of the new llama (default: 256)")
    parser.add_argument("--layers", type=int, default=4, help="of the new llama (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count, after a warm-up (default: 3)")
    args = parser.parse_args(argv)
    real = Path(os.environ.get("LPO_REAL_MODELS", "")) / "smollm2-135m-instruct"
    if args.model is None and "LPO_REAL_MODELS" in os.environ and real.is_dir():
        args.model = str(real)
    return args


def stage(rows: int) -> Json:
    """The stage's config, as every checkout reads it."""
    objective = {"name": "lpo", "beta": BETA, "gamma": GAMMA, "alpha": 1.0}
    return {"objective": objective, "optim": {"lr": LR}, "batch_rows": rows, "steps": 100}


if __name__ == "__main__":
    sys.exit(main())
