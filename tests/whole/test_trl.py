"""Objectives on trees equal TRL's trainers on the same weights and pairs: the loss, and every tensor's gradient."""

import json
from dataclasses import asdict

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipeline import masks
from data_pipeline.trees import Encoded, plant
from lpo_jax.config import MeshConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.objectives.cpo import Cpo
from lpo_jax.objectives.dpo import Dpo
from lpo_jax.objectives.orpo import Orpo
from lpo_jax.objectives.simpo import Simpo
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from lpo_jax.train.step import objective_terms
from tests.helpers import trl_vectors
from tests.helpers.oracle import batch_of

OURS = {
    "dpo": Dpo(beta=0.1),
    "dpo smoothed": Dpo(beta=0.1, label_smoothing=0.2),
    "dpo ipo": Dpo(beta=0.1, loss="ipo"),
    "dpo hinge": Dpo(beta=0.5, loss="hinge"),
    "dpo length-normalised": Dpo(beta=2.0, length_normalised=True),
    "cpo without its NLL": Cpo(beta=0.1, alpha=0.0, label_smoothing=0.2),
    "cpo": Cpo(beta=0.1, alpha=0.7),
    "cpo hinge": Cpo(beta=0.1, alpha=0.7, loss="hinge"),
    "simpo": Simpo(beta=2.5, gamma=1.4, label_smoothing=0.1),
    "orpo": Orpo(beta=0.6, score_prompt=True),
    "orpo, prompts of one token": Orpo(beta=0.6),
}
RECORDED = json.loads(trl_vectors.VECTORS.with_suffix(".json").read_text())["cases"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The model, and the trained and the reference parameters, read as from any Hugging Face directory."""
    found, alone = [], make_mesh(MeshConfig(), jax.devices()[:1])
    for seed in (trl_vectors.TRAINED, trl_vectors.REFERENCE):
        directory = tmp_path_factory.mktemp("model")
        (directory / "config.json").write_text(json.dumps(trl_vectors.CONFIG))
        save_file(trl_vectors.weights(seed), directory / "model.safetensors")
        model = Model(hf.read_config(directory))
        found.append(hf.read_params(directory, model, param_shardings(model, alone)))
    return model, *found


def encoded(prompt, chosen, rejected):
    """A pair as the data pipeline makes it: EOS behind each side, masks of what differs."""
    sides = [[*side, trl_vectors.EOS] for side in (chosen, rejected)]
    minus, plus = masks.clean(sides[1], sides[0])
    ids = [np.array(prompt + side, np.int32) for side in sides]
    marked = [np.concatenate([np.zeros(len(prompt), bool), mask]) for mask in (plus, minus)]
    return Encoded("pair", *ids, *marked, *[len(prompt)] * 3)


def test_the_vectors_are_of_these_cases():
    assert {name: asdict(case) | {"loss": RECORDED[name]["loss"]} for name, case in trl_vectors.CASES.items()} == RECORDED
    assert OURS.keys() == RECORDED.keys()


@pytest.mark.parametrize("name", OURS)
def test_loss_and_gradients_are_trls(name, models, tmp_path):
    model, params, reference = models
    kept = slice(-(RECORDED[name]["prompt"] or 0), None)
    pairs = [encoded(prompt[kept], *sides) for prompt, *sides in trl_vectors.pairs()]
    batch = batch_of([plant(pair, trim=False, score_prompt=getattr(OURS[name], "score_prompt", False)) for pair in pairs], 96)
    assert batch.pair.max() > 0 and len(batch.pair) > 1, "the test wants several rows of several pairs"

    def loss(params):
        total, weight = objective_terms(model, OURS[name], params, {"reference": reference}, batch)["loss"]
        return total / weight

    found, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert found == pytest.approx(RECORDED[name]["loss"], rel=1e-5)
    hf.write_params(tmp_path, model, grads)
    grads, recorded = load_file(tmp_path / "model.safetensors"), load_file(trl_vectors.VECTORS.with_suffix(".safetensors"))
    for tensor, grad in grads.items():
        expected = recorded[f"{name}/{tensor}"]
        assert np.abs(grad - expected).max() <= 3e-5 * np.abs(expected).max(), tensor
    assert len(recorded) == len(grads) * len(OURS)
