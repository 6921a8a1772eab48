"""Adapters that are damaged: one line that names the file, or the adapter as it was."""

import random
import shutil

import jax
import numpy as np
import pytest

from foundation.errors import UserError
from lpo_jax.config import LoraConfig
from lpo_jax.model import adapters
from lpo_jax.model.decoder import Model
from lpo_jax.model.peft import load_peft, save_peft
from tests.helpers import damage
from tests.helpers.vocabularies import shape

CASES = list(damage.adapters())
random.Random(0).shuffle(CASES)
SOME = 250


@pytest.mark.parametrize("some", [slice(SOME), pytest.param(slice(SOME, None), marks=pytest.mark.slow)], ids=["some", "others"])
def test_a_damaged_adapter_is_refused_or_the_same(tmp_path, some):
    model, config = Model(shape(97)), LoraConfig(rank=2, alpha=4.0, targets="blocks.(q|v)")
    made = jax.tree.map(lambda x: np.random.default_rng(x.size).standard_normal(x.shape, np.float32), adapters.init(jax.random.key(0), model, config))  # fmt: skip
    sound, hurt, wrong = tmp_path / "sound", tmp_path / "hurt", {}
    save_peft(sound, model, made, config, "base")
    base, settings = load_peft(sound, model)
    for name, harm in CASES[some]:
        shutil.rmtree(hurt, ignore_errors=True)
        shutil.copytree(sound, hurt)
        harm(hurt)
        try:
            found, its = load_peft(hurt, model)
        except UserError as error:
            if str(hurt) not in str(error) or "\n" in str(error) or len(str(error)) > 2000:
                wrong[name] = str(error)
            continue
        same = jax.tree.structure(found) == jax.tree.structure(base) and jax.tree.all(jax.tree.map(np.allclose, found, base))
        # Another alpha that an adapter may have is another adapter; so is one with a scale that is computed otherwise.
        if not (same and its.rank == settings.rank) and not any(
            key in name for key in ("lora_alpha", "alpha_pattern", "use_rslora", "flipped")
        ):
            wrong[name] = f"{its} instead of {settings}"
    assert len(CASES) > 350 and wrong == {}
