"""Settings that no run can have are refused when a config is read, with their key."""

import pytest

from lpo_jax import config
from lpo_jax.config import ConfigError
from tests.helpers.paths import REPO

CONFIG = REPO / "configs" / "tiny_cpu.yaml"
STAGE = "{objective: {name: sft}, optim: {lr: 1e-3}, batch_rows: 1, steps: 1}"


@pytest.mark.parametrize(
    "override",
    [
        *(f"stages.sft.epochs={value}" for value in (0, -1, ".nan", ".inf", "x", "true", 1e400)),
        *(f"stages.sft={STAGE.replace('steps: 1', f'steps: {value}')}" for value in (0, -1, 1.5, 2**31, ".inf", "[1]")),
        *(f"stages.sft.optim.lr={value}" for value in (0, -1, ".inf", "-.inf", ".nan", "null")),
        *(f"stages.sft.optim.{key}={value}" for key in ("b1", "b2") for value in (-0.1, 1, 2, ".nan")),
        *(f"stages.sft.optim.{key}={value}" for key in ("weight_decay", "clip_norm", "eps") for value in (-1, ".inf", ".nan")),
        *(f"stages.sft.optim.{key}={value}" for key in ("warmup_ratio", "final_lr_ratio") for value in (-0.1, 1.1, ".nan")),
        *(f"stages.sft.{key}={value}" for key in ("batch_rows", "accumulate") for value in (0, -1, 2**31)),
        *(f"seed={value}" for value in (-1, 2**63, 1.5, "true", "null")),
        *(f"mesh.{axis}={value}" for axis in ("data", "fsdp", "expert", "tensor") for value in (0, -2, 2**31)),
        *(f"model.new.{key}={value}" for key in ("vocab_size", "d_model", "n_layers", "n_heads", "head_dim") for value in (0, -1, 2**31)),
        *(f"model.new.{key}={value}" for key in ("norm_eps", "rope_theta") for value in (0, -1, ".inf", ".nan")),
        *(f"{key}={value}" for key in ("checkpoint_every_steps", "log_every_steps", "keep_checkpoints", "eval_rows") for value in (-1, 1.5, 2**31)),
        *(f"model.lora={{rank: {rank}, alpha: {alpha}}}" for rank, alpha in ((0, 1), (-1, 1), (1, 0), (1, ".nan"), (1, ".inf"), (2**31, 1))),
        "stages.lpo.objective.beta=.nan",
        "stages.lpo.objective.gamma=.inf",
    ],
)  # fmt: skip
def test_a_number_out_of_bounds_is_refused_by_its_key(override):
    key = override.partition("=")[0]
    with pytest.raises(ConfigError) as error:
        config.load(CONFIG, [override])
    assert key in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["a/b", "../../x", "..", ".", ".hidden", "-x", "$x$", "1:", "a b", "a\\b", "é", "", "x" * 65, "a\nb", "a\0b", "init"]
)
def test_a_stage_that_cannot_name_files_is_refused_before_it_trains(tmp_path, name):
    """The name stands in paths, in logs and on the page."""
    found = config.to_dict(config.load(CONFIG))
    found["stages"] = {name: found["stages"]["sft"]}
    with pytest.raises(ConfigError, match="stages: "):
        config.from_dict(config.RunConfig, found)
    found["stages"] = {"lpo-2_b.c": found["stages"][name]}
    assert list(config.from_dict(config.RunConfig, found).stages) == ["lpo-2_b.c"]
