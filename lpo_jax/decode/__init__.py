"""Text from a model: `Sampler` turns requests into completions."""

from lpo_jax.decode.sampler import Completion, LoadedModel, Request, Sampler, SamplingConfig

__all__ = ["Completion", "LoadedModel", "Request", "Sampler", "SamplingConfig"]
