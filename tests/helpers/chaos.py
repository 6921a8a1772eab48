"""Kill a run again and again, and compare it with an undisturbed one.

    python -m tests.helpers.chaos DATA_DIR --kills 20 --seed 7

A third of the kills are SIGTERM, which saves; a third SIGKILL after some steps or seconds; a third SIGKILL while a checkpoint is being
written. In the end parameters, moments, metrics.jsonl and held-out numbers must be those of a run that nobody touched.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lpo_jax.train.stop import EXIT_CODE
from tests.helpers.paths import REPO
from tests.helpers.training import read_log, start

HOWS = ("term", "kill", "write")
STEPS = 40, 80  # of sft and of lpo
MORE = (f"stages.sft.steps={STEPS[0]}", f"stages.lpo.steps={STEPS[1]}", "checkpoint_every_steps=2", "eval_every_steps=16")
PARTIAL = "*.orbax-checkpoint-tmp*"


def torture(shards, directory, kills, seed):
    """Run, kill and resume `kills` times; returns the run's directory and, for each kill, (how, last logged step, checkpoint half written)."""
    rng, run_dir, done = random.Random(seed), directory / "killed", []
    hows = [HOWS[i % 3] for i in range(kills)]
    rng.shuffle(hows)
    for index, how in enumerate(hows):
        # The i-th kill comes at about i / (kills + 1) of the run: it is neither over too soon nor stuck at its beginning.
        target = round((index + rng.random()) * sum(STEPS) / (kills + 1))
        process, began = start(shards, run_dir, *MORE), time.time()
        impatience = began + rng.uniform(2, 15) if how == "kill" and rng.random() < 0.3 else began + 300  # some never reach a step
        while process.poll() is None and time.time() < impatience and logged_steps(run_dir) < target:
            time.sleep(0.005)
        if how == "write":
            while process.poll() is None and not list((run_dir / "checkpoints").glob(PARTIAL)):
                pass
            time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGTERM if how == "term" else signal.SIGKILL)
        text, _ = process.communicate(timeout=300)
        assert process.returncode == (EXIT_CODE if how == "term" else -signal.SIGKILL), (
            f"kill {index} ({how}): {process.returncode}\n{text}"
        )
        done.append((how, logged_steps(run_dir), bool(list((run_dir / "checkpoints").glob(PARTIAL)))))
        print(f"kill {index + 1}: {how} in step {done[-1][1] + 1} of {sum(STEPS)}{', a checkpoint half written' * done[-1][2]}", flush=True)
    finish(start(shards, run_dir, *MORE))
    return run_dir, done


def undisturbed(shards, directory):
    """The same run in peace."""
    finish(start(shards, directory / "straight", *MORE))
    return directory / "straight"


def finish(process):
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text


def logged_steps(run_dir):
    """How many training steps metrics.jsonl holds."""
    file = run_dir / "metrics.jsonl"
    return file.read_text().count('"train"') if file.is_file() else 0


def compare(killed, straight):
    """Assert that two finished runs are the same, bit for bit, and that each step was trained and logged once."""
    log = read_log(killed)
    assert log == read_log(straight)
    assert [line["total_step"] for line in log if line["group"] == "train"] == list(range(1, sum(STEPS) + 1))
    code = f"""if True:
        import json, sys, jax, numpy as np
        from etils import epath
        from lpo_jax.config import MeshConfig, RunConfig, from_dict
        from lpo_jax.sharding import make_mesh
        from lpo_jax.model import hf
        from lpo_jax.train import checkpoint, weights
        states = []
        for path in map(epath.Path, ({str(killed)!r}, {str(straight)!r})):
            run = from_dict(RunConfig, json.loads((path / "config.json").read_text()))
            targets = weights.checkpoint_targets(run, hf.open_model(run.model), make_mesh(MeshConfig()))
            progress, state = checkpoint.restore(path, targets)
            assert (progress.stage, progress.total_step) == ("lpo", {sum(STEPS)}), progress
            states.append(state)
        jax.tree.map(np.testing.assert_array_equal, *states)
        print(len(jax.tree.leaves(states[0])), "arrays are equal")
    """
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(REPO)}
    print(subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout.strip())
    assert (killed / "summary.json").read_text() == (straight / "summary.json").read_text()
    for name in ("init", "sft", "lpo"):
        assert (killed / "eval" / f"{name}.json").read_text() == (straight / "eval" / f"{name}.json").read_text()
    assert not list((killed / "checkpoints").glob(PARTIAL))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a shard set that `lpo-data build` wrote, with a tokenizer of at most 512 entries")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    args = parser.parse_args()
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as directory:
        straight = undisturbed(args.data, Path(directory))
        killed, done = torture(args.data, Path(directory), args.kills, args.seed)
        compare(killed, straight)
        print(f"{len(done)} kills ({', '.join(f'{sum(how == kind for how, _, _ in done)} {kind}' for kind in HOWS)}), the same in the end")


if __name__ == "__main__":
    main()
