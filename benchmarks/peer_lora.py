"""This project's LoRA step, of any checkout of it: a step for every line on standard input. `benchmarks.lora` starts it.

Answers are those of the other peers. What moved between checkouts is looked for where it was, too.
"""

import json
import os
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

SPEC = json.loads(Path(sys.argv[1]).read_text())
sys.path.insert(0, SPEC["code"])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from lpo_jax import batch, config, sharding  # noqa: E402
from lpo_jax.model import decoder, hf  # noqa: E402

ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what is printed goes to the log


def found(name: str, *modules: str) -> Any:
    """The first of these modules' `name`."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"{SPEC['code']}: no {name} in {', '.join(modules)}")


def main() -> None:
    assert Path(batch.__file__).is_relative_to(Path(SPEC["code"]).resolve()), f"{batch.__file__} isn't of {SPEC['code']}"
    state, step_module = "lpo_jax.train.state", "lpo_jax.train.step"
    stage = config.from_dict(config.StageConfig, SPEC["stage"])
    lora = config.LoraConfig(**SPEC["lora"])
    directory, mesh = Path(SPEC["model"]), sharding.make_mesh(config.MeshConfig(), jax.devices()[:1])
    model = decoder.Model(hf.read_config(directory), lora=lora)
    frozen = hf.read_params(directory, model, found("param_shardings", state)(model, mesh))
    with np.load(SPEC["batch"]) as arrays:
        rows: Any = {name: jnp.asarray(arrays[name])[None] for name in arrays}
    optimizer = found("optimizer", "lpo_jax.train.optimizer", state)
    tx = optimizer(*(stage.optim, 100, model)[: len(signature(optimizer).parameters)])
    losses = []
    with jax.set_mesh(mesh):
        adapters = found("init", "lpo_jax.model.adapters", "lpo_jax.model.lora")(jax.random.key(0), model, lora)
        now = found("new_state", state)(adapters, tx)
        step = found("make_train_step", step_module, state)(model, stage.objective, tx, mesh)
        print(json.dumps({"lengths": []}), file=ANSWERS)
        for _ in sys.stdin:
            now, terms = step(now, frozen, batch.TreeBatch(**rows))
            jax.block_until_ready(now.params)
            losses.append(float(terms["loss"][0] / terms["loss"][1]))
            print("{}", file=ANSWERS)
    print(json.dumps({"loss": losses}), file=ANSWERS)


if __name__ == "__main__":
    main()
