"""Text from a model, or from two: `Sampler` turns requests into completions."""

from lpo_jax.decode.request import Completion, LoadedModel, Request, SamplingConfig
from lpo_jax.decode.rules.codecode import PRESETS, CoDecoding
from lpo_jax.decode.sampler import Sampler

__all__ = ["PRESETS", "CoDecoding", "Completion", "LoadedModel", "Request", "Sampler", "SamplingConfig"]
