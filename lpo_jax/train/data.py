"""A run's data: its shards, the tokenizer that they must share with the model, and whether all of it goes together."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from jax.sharding import Mesh

from data_pipeline import tokenizer
from data_pipeline.shards import Manifest
from data_pipeline.tokenizer import Tokenizer
from foundation.errors import DataError
from lpo_jax import objectives
from lpo_jax.config import ConfigError, RunConfig
from lpo_jax.model.decoder import Model
from lpo_jax.train import teacher
from lpo_jax.train.evaluate import Decode
from lpo_jax.train.state import check_length, check_rows

if TYPE_CHECKING:
    from data_pipeline.feed import Feed

log = logging.getLogger(__name__)


def open_data(config: RunConfig) -> tuple["Feed", Decode]:
    """The feed of a run's shards, and a decoder of single ids. Loads TensorFlow.

    Raises:
      DataError: there are no shards, or they are damaged.
      ConfigError: they were built with another tokenizer than the model's, or a teacher's ids mean other tokens.
    """
    from data_pipeline.feed import Feed

    feed = Feed(config.data.path, config.seed)
    # The model's tokenizer: data.tokenizer, else model.path's, else (a new model) the one the shards were built with.
    name = config.data.tokenizer or config.model.path or str(Path(config.data.path) / "tokenizer")
    ours = tokenizer.load(name)
    if ours.sha256 != feed.manifest.tokenizer_sha256:
        raise ConfigError(
            f"{config.data.path} was built with another tokenizer than {name}: "
            f"rebuild it with `lpo-data build ... --tokenizer {name}`, or correct data.tokenizer"
        )
    for stage in config.stages:
        if (objective := teacher.taught(config, stage)) is not None:
            _check_teachers_tokenizer(f"stages.{stage}.objective.kl.teacher", teacher.path_of(objective), ours)
    return feed, lru_cache(lambda token: ours.backend.decode([token], skip_special_tokens=False))


def _check_teachers_tokenizer(key: str, path: str, ours: Tokenizer) -> None:
    """Refuse a teacher whose ids mean other tokens. It may know more of them."""
    if teacher.facts(path) is not None:  # computed before, and checked then
        return
    try:
        theirs = tokenizer.load(path)
    except DataError as error:
        log.warning("%s can't be compared with the shards' tokenizer: %s", key, error)
        return
    unlike, more, _ = tokenizer.compare(ours, theirs)
    if unlike is not None or more:
        index, mine, its = unlike or (theirs.size, "a token", None)
        raise ConfigError(
            f"{key}: the tokenizer of {path} has {its!r} where the shards' has {mine!r} (id {index}): "
            "a teacher shares the student's tokenizer, or one that begins with it"
        )


def check_fit(config: RunConfig, manifest: Manifest, model: Model, mesh: Mesh) -> None:
    """Refuse objectives, data, model and mesh that don't go together.

    Raises:
      ConfigError: with the remedy.
    """
    for stage in config.stages.values():
        objectives.of(stage.objective).check_data(stage.objective, manifest)
    if manifest.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"the shards' tokenizer has {manifest.vocab_size} entries, the model's vocabulary {model.config.vocab_size}: "
            "set model.new.vocab_size, or build the shards with the model's own tokenizer"
        )
    check_length(config, manifest, "the model", model.config.max_positions)
    check_rows(config, mesh)
