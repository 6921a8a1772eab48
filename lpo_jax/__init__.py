"""lpo-jax: teach code language models to write secure code, on JAX and Flax.

The names in `__all__` are the library's front; README.md has an example. Each is loaded when it is first asked for, so that `import lpo_jax`
loads neither JAX nor TensorFlow.
"""

from importlib.metadata import version
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

_PLACES = {
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
__all__ = list(_PLACES)

if TYPE_CHECKING:  # the same for type checkers; `X as X` and an assignment make a name public; a plain import doesn't
    from data_pipeline import build, tokenizer
    from data_pipeline.build import BuildOptions as BuildOptions
    from lpo_jax import config, export
    from lpo_jax.config.schema import RunConfig as RunConfig
    from lpo_jax.decode.load import load_model as load_model
    from lpo_jax.decode.request import Request as Request
    from lpo_jax.decode.request import SamplingConfig as SamplingConfig
    from lpo_jax.decode.rules.codecode import CoDecoding as CoDecoding
    from lpo_jax.decode.sampler import Sampler as Sampler
    from lpo_jax.objectives import OBJECTIVES as OBJECTIVES
    from lpo_jax.sharding import make_mesh as make_mesh
    from lpo_jax.train import loop

    __version__: str
    build_data, load_tokenizer = build.build, tokenizer.load
    load_config, export_model, train_model = config.load, export.export, loop.train
else:

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return version("lpo-jax")
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return resolve_name(_PLACES[name])

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
