"""One run, one YAML: the schema, reading it, and telling it."""

from foundation.errors import ConfigError
from lpo_jax.config.explain import explain
from lpo_jax.config.load import from_dict, load, to_dict
from lpo_jax.config.schema import (
    DataConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    ModelSource,
    OptimConfig,
    PlanConfig,
    RopeScaling,
    RunConfig,
    StageConfig,
)

__all__ = [
    "ConfigError",
    "DataConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "ModelSource",
    "OptimConfig",
    "PlanConfig",
    "RopeScaling",
    "RunConfig",
    "StageConfig",
    "explain",
    "from_dict",
    "load",
    "to_dict",
]
