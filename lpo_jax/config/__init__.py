"""One run, one YAML: the schema, reading it, and telling it."""

from foundation.errors import ConfigError as ConfigError
from lpo_jax.config.explain import explain as explain
from lpo_jax.config.load import from_dict as from_dict
from lpo_jax.config.load import load as load
from lpo_jax.config.load import to_dict as to_dict
from lpo_jax.config.optim import OPTIMIZERS as OPTIMIZERS
from lpo_jax.config.optim import Adafactor as Adafactor
from lpo_jax.config.optim import AdamW as AdamW
from lpo_jax.config.optim import Lion as Lion
from lpo_jax.config.optim import Muon as Muon
from lpo_jax.config.optim import OptimOptions as OptimOptions
from lpo_jax.config.optim import Sgd as Sgd
from lpo_jax.config.schema import DataConfig as DataConfig
from lpo_jax.config.schema import LoraConfig as LoraConfig
from lpo_jax.config.schema import MeshConfig as MeshConfig
from lpo_jax.config.schema import ModelSource as ModelSource
from lpo_jax.config.schema import PlanConfig as PlanConfig
from lpo_jax.config.schema import ProfileConfig as ProfileConfig
from lpo_jax.config.schema import RunConfig as RunConfig
from lpo_jax.config.schema import ShardSet as ShardSet
from lpo_jax.config.schema import StageConfig as StageConfig
from lpo_jax.config.shape import LayerKind as LayerKind
from lpo_jax.config.shape import ModelConfig as ModelConfig
from lpo_jax.config.shape import RopeScaling as RopeScaling
