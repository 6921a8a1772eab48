"""lpo-jax: teach code language models to write secure code, on JAX and Flax.

The names in `__all__` are the library's front; README.md has an example. Each is loaded when it is first asked for, so that `import lpo_jax`
loads neither JAX nor TensorFlow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "OBJECTIVES",
    "BuildOptions",
    "CoDecoding",
    "Request",
    "RunConfig",
    "Sampler",
    "SamplingConfig",
    "build_data",
    "export_model",
    "load_config",
    "load_model",
    "load_tokenizer",
    "make_mesh",
    "train_model",
]

if TYPE_CHECKING:
    from data_pipeline.build import BuildOptions
    from data_pipeline.build import build as build_data
    from data_pipeline.tokenizer import load as load_tokenizer
    from lpo_jax.config.load import load as load_config
    from lpo_jax.config.schema import RunConfig
    from lpo_jax.decode.load import load_model
    from lpo_jax.decode.request import Request, SamplingConfig
    from lpo_jax.decode.rules.codecode import CoDecoding
    from lpo_jax.decode.sampler import Sampler
    from lpo_jax.export import export as export_model
    from lpo_jax.objectives import OBJECTIVES
    from lpo_jax.sharding import make_mesh
    from lpo_jax.train.loop import train as train_model
else:
    _PLACES = {  # the same for the interpreter
        "OBJECTIVES": "lpo_jax.objectives:OBJECTIVES",
        "BuildOptions": "data_pipeline.build:BuildOptions",
        "CoDecoding": "lpo_jax.decode.rules.codecode:CoDecoding",
        "Request": "lpo_jax.decode.request:Request",
        "RunConfig": "lpo_jax.config.schema:RunConfig",
        "Sampler": "lpo_jax.decode.sampler:Sampler",
        "SamplingConfig": "lpo_jax.decode.request:SamplingConfig",
        "build_data": "data_pipeline.build:build",
        "export_model": "lpo_jax.export:export",
        "load_config": "lpo_jax.config.load:load",
        "load_model": "lpo_jax.decode.load:load_model",
        "load_tokenizer": "data_pipeline.tokenizer:load",
        "make_mesh": "lpo_jax.sharding:make_mesh",
        "train_model": "lpo_jax.train.loop:train",
    }

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _PLACES[name].partition(":")
        return getattr(import_module(module), attribute)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
