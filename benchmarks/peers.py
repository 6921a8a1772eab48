"""An LPO step as trees against other projects' trainers: the same weights, the same pairs, whole optimizer steps.

  tree         our training step (AdamW, objective lpo, mode clean)
  trl          TRL's CPOTrainer with SimPO's loss (https://pypi.org/project/trl): like LPO, it needs no reference model
  tunix orpo   Tunix' DPOTrainer (https://pypi.org/project/google-tunix) with ORPO's loss, which needs none either
  tunix dpo    the same with DPO's loss: one forward pass of a reference model more

Each trainer is installed into an environment of its own, once, from the pinned benchmarks/peers_*.txt, and runs in a process of its own that
does a step when it's told to, so that all take turns. Nothing is cut, gradient checkpointing is off, and each trainer pads as it does by
default: TRL to the longest sequence of a microbatch (--trl-batch), Tunix to the longest prompt and answer of all pairs. At identical weights the
log-probabilities of the chosen and rejected answers are held against ours, so that a trainer that saw anything else doesn't count.

float32 on CPUs; on a GPU bfloat16, which for Tunix includes the weights.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, ours
from benchmarks.step import LPO, fullest
from data_pipeline.template import Text
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.trees import Encoded, plant
from foundation.files import Json
from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives import simpo
from lpo_jax.sharding import make_mesh
from lpo_jax.train.step import forward

SIMPO = simpo.Simpo(beta=LPO.beta, gamma=LPO.gamma)
HERE = Path(__file__).parent


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # on a GPU, leave room for the others
    on_gpu = jax.default_backend() == "gpu"

    # --- The same pairs and weights for all.
    tok = common.load_tokenizer(args.tokenizer)
    usable = [(t, p) for t, p in common.load_texts(args.data, tok) if max(len(p.chosen), len(p.rejected)) <= args.max_tokens]
    if len(usable) < args.pairs:
        raise SystemExit(
            f"{len(usable)} pairs have at most {args.max_tokens} tokens a side: ask for fewer with --pairs, or give more --data"
        )
    pairs = [pair for _, pair in usable[: args.pairs]]
    model, mesh = Model(model_config(tok, args), compute_dtype="bfloat16" if on_gpu else "float32"), make_mesh(MeshConfig())
    params = model.init(jax.random.key(0))
    print(
        f"{len(pairs)} pairs, {args.layers} layers of {args.d_model}, vocabulary {model.config.vocab_size}, {jax.devices()[0].device_kind}"
    )

    peers: dict[str, Peer] = {}
    not_run: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running, jax.set_mesh(mesh):
        # --- The peers' first steps.
        write_inputs(Path(scratch), model, params, tok, usable[: args.pairs])
        inputs = {"model": scratch, "data": f"{scratch}/pairs.jsonl", "scratch": scratch}
        sizes = {"pairs": args.pairs, "max_tokens": args.max_tokens, "bf16": on_gpu}
        shared = inputs | sizes | {"beta": SIMPO.beta, "gamma": SIMPO.gamma, "lr": ours.OPTIM.lr}
        for name, own in ways(args).items():
            print(f"  {name}: starts, makes its first step", flush=True)
            try:
                python = environment(project(name), Path(args.venv), on_gpu)
                peer = running.enter_context(Peer(python, HERE / f"peer_{project(name)}.py", shared | own))
                peer.step()  # compiles, or fails for want of memory
                peers[name] = peer
            except PeerError as error:
                not_run[name] = str(error)
                print(f"  {name} is not run: {error}")

        # --- All in turn.
        expected, lengths = first_step(model, params, pairs), [[len(p.chosen), len(p.rejected)] for p in pairs]
        batch = fullest([plant(p) for p in pairs])
        tree = ours.timed(model, params, batch, LPO, mesh)
        tree()
        seconds = common.interleave({"tree": tree} | {name: peer.step for name, peer in peers.items()}, args.repeats, warm_up=False)
        logged = {name: peer.finish() for name, peer in peers.items()}

    # --- Did they compute the same?
    print(f"\n{'':14} {'tokens given':>12} {'computed':>9}   mean log-probability of chosen, rejected at the first step; losses")
    print(
        f"{'tree':14} {np.sum(lengths):12} {batch.tokens.size:9}   per token {spell(*expected.mean)}, per answer {spell(*expected.total)}"
    )
    for name, log in logged.items():
        values, losses = spell(log["chosen"][0], log["rejected"][0]), " ".join(f"{loss:.4f}" for loss in log["loss"])
        print(f"{name:14} {np.sum(peers[name].lengths):12} {log['tokens']:9.0f}   {values}; {losses}")
        if peers[name].lengths == lengths:
            check(name, log, expected, tolerance=1e-2 if on_gpu else 1e-4)
        else:
            print(f"{name}: its tokenisation differs from ours, so its log-probabilities are not compared")
    print(f"SimPO's loss at the first step, by our objective on whole answers: {expected.simpo:.4f}")

    rows = common.table(seconds, "tree", dict.fromkeys(seconds, len(pairs)), "pairs")
    ratios: dict[str, float] = {}
    for name in peers:  # a project's ratio is that of its fastest way
        key = f"{project(name)}_over_tree"
        ratios[key] = min(ratios.get(key, np.inf), rows[name]["ratio"])
    print()
    for key, ratio in ratios.items():
        print(f"{key:24} {ratio:6.2f}   (its fastest way)")
    for name, reason in not_run.items():
        print(f"{name:24} not run: {reason}")
    result = {"ratios": ratios, "rows": rows, "not_run": not_run, "logged": logged, "expected": vars(expected), "model": vars(model.config)}
    common.write_json(args.json, result)
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_arguments(parser)
    parser.add_argument("--peers", nargs="+", choices=["trl", "tunix"], default=["trl", "tunix"])
    parser.add_argument("--venv", default=".venv-peers", help="where their environments lie or are made (default: .venv-peers)")
    parser.add_argument("--trl-batch", nargs="+", type=int, default=[2, 4], help="pairs in TRL's microbatch; each is a way (default: 2 4)")
    parser.add_argument("--tunix-batch", type=int, default=2, help="pairs in Tunix' microbatch; it pads all alike (default: 2)")
    parser.add_argument("--tunix-loss", nargs="+", choices=["orpo", "dpo"], default=["orpo", "dpo"])
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a step (default: 16)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest sequence that is used (default: 1024)")
    parser.add_argument("--d-model", type=int, default=512, help="width; head dim 64, MLP 2.75 times as wide (default: 512)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3, help="turns that count, after a warm-up (default: 3)")
    args = parser.parse_args(argv)
    for batch in (*args.trl_batch, args.tunix_batch):
        if args.pairs % batch:
            parser.error(f"a microbatch of {batch} pairs doesn't divide a step of {args.pairs}")
    return args


def ways(args: argparse.Namespace) -> dict[str, Json]:
    """The peers' names, which begin with their project's, and what sets each apart."""
    trl = {f"trl, batch {batch}": {"batch": batch} for batch in args.trl_batch}
    tunix = {f"tunix {loss}": {"batch": args.tunix_batch, "algorithm": loss} for loss in args.tunix_loss}
    return {name: own for name, own in (trl | tunix).items() if project(name) in args.peers}


def project(name: str) -> str:
    return name.replace(",", " ").split()[0]


def model_config(tok: Tokenizer, args: argparse.Namespace) -> ModelConfig:
    """A llama that all of them compute alike: Tunix' turns positions with base 1e6, whatever its config says."""
    vocab = -(-tok.backend.get_vocab_size() // 1024) * 1024
    return dataclasses.replace(common.llama(vocab, args.d_model, args.layers, args.max_tokens), rope_theta=1e6)


def write_inputs(directory: Path, model: Model, params: Params, tok: Tokenizer, pairs: Sequence[tuple[Text, Encoded]]) -> None:
    """The exported model with its tokenizer, and the pairs: as text for who tokenises, as ids for who doesn't."""
    hf.write_params(directory, model, params, {"bos_token_id": tok.bos_id, "eos_token_id": tok.eos_id})
    tok.save(directory)
    with (directory / "pairs.jsonl").open("w") as file:
        for text, pair in pairs:
            row = {
                "prompt": text.prompt.text,
                "chosen": text.answer(text.chosen),
                "rejected": text.answer(text.rejected),
                "chosen_ids": pair.chosen.tolist(),
                "rejected_ids": pair.rejected.tolist(),
                "answer_start": pair.answer_start,
            }
            file.write(json.dumps(row) + "\n")


def environment(name: str, root: Path, on_gpu: bool) -> Path:
    """The Python of a project's environment, which is made where it doesn't exist or was made of other requirements.

    Raises:
      PeerError: its packages can't be installed.
    """
    home, requirements = root.resolve() / name, HERE / f"peers_{name}.txt"
    extra = ["jax[cuda13]"] if name == "tunix" and on_gpu else []
    python, stamp, made_of = home / "bin" / "python", home / "made_of.txt", "\n".join([requirements.read_text(), *extra])
    if not stamp.is_file() or stamp.read_text() != made_of:
        print(f"installing {requirements.name} into {home} (once)", flush=True)
        venv.create(home, clear=True, with_pip=True)
        if subprocess.run([python, "-m", "pip", "install", "-r", requirements, *extra]).returncode:
            raise PeerError(f"pip can't install {requirements.name}, see above")
        stamp.write_text(made_of)
    return python


class PeerError(RuntimeError):
    """A trainer can't be installed or has died; the message says why."""


class Peer:
    """A trainer in a process of its own, which the context manager ends.

    Raises:
      PeerError: it has died; here and in every method.
    """

    def __init__(self, python: str | Path, script: Path, spec: Json):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long-lived as the process)
        with tempfile.NamedTemporaryFile("w", suffix=".json", dir=spec["scratch"], delete=False) as file:
            json.dump(spec, file)
        self._process = subprocess.Popen(
            [python, "-I", script, file.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            text=True,
        )
        self.lengths: list[list[int]] = self._answer()["lengths"]  # tokens of each pair's chosen and rejected sequence, as it sees them

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def step(self) -> None:
        """One whole optimizer step."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer will say why
            print("step", file=self._process.stdin, flush=True)
        self._answer()

    def finish(self) -> Json:
        """What it has logged: "tokens" computed in a step; for every step its "loss" and the log-probabilities "chosen" and "rejected"."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._answer()

    def _answer(self) -> Json:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            print("\n".join(said[-20:]), file=sys.stderr)
            raise PeerError(f"its process ended with status {self._process.wait()}: {said[-1] if said else 'it said nothing'}")
        return json.loads(line)


@dataclass(frozen=True)
class FirstStep:
    """What a trainer should log at its first step: means over the pairs, of (chosen, rejected)."""

    mean: tuple[float, float]  # log-probability of an answer, over its tokens
    total: tuple[float, float]  # log-probability of an answer
    simpo: float  # SimPO's loss


def first_step(model: Model, params: Params, pairs: list[Encoded]) -> FirstStep:
    """Our own computation of it, on untrimmed trees."""
    batch = fullest([plant(p, trim=False) for p in pairs])

    @jax.jit
    def compute(params: Params) -> tuple[jax.Array, ...]:
        logps = forward(model, params, {}, batch)
        weights, (loss, count) = simpo.coefficients(batch, SIMPO), simpo.terms(logps, batch, SIMPO)["loss"]
        sides = weights.chosen, weights.rejected, jnp.sign(weights.chosen), jnp.sign(weights.rejected)
        return *(jnp.sum(w * logps) / len(pairs) for w in sides), loss / count

    mean_chosen, mean_rejected, chosen, rejected, loss = (float(x) for x in compute(params))
    return FirstStep((mean_chosen, mean_rejected), (chosen, rejected), loss)


def check(name: str, log: Json, expected: FirstStep, tolerance: float) -> None:
    """Hold what a trainer logged against our own numbers.

    Raises:
      AssertionError: it computes something else, or a loss is not finite.
    """
    found, wanted = [log["chosen"][0], log["rejected"][0]], list(expected.total)
    if project(name) == "trl":
        found, wanted = [*found, log["loss"][0]], [*expected.mean, expected.simpo]
    np.testing.assert_allclose(found, wanted, rtol=tolerance, err_msg=f"{name} computes something else at the same weights")
    assert np.isfinite(log["loss"]).all(), f"{name}: its losses are {log['loss']}"


def spell(*numbers: float) -> str:
    return ", ".join(f"{x:.5f}" for x in numbers)


if __name__ == "__main__":
    sys.exit(main())
