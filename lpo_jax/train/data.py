"""A run's data: its shards, the tokenizer that they must share with the model, and whether all of it goes together."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from jax.sharding import Mesh

from data_pipeline import tokenizer
from data_pipeline.shards import Manifest
from data_pipeline.template import of_facts
from data_pipeline.tokenizer import Tokenizer
from foundation.errors import DataError, UserError
from lpo_jax.config import ConfigError, RunConfig, ShardSet
from lpo_jax.model.decoder import Model
from lpo_jax.train import preflight, teacher
from lpo_jax.train.evaluate import Decode

if TYPE_CHECKING:
    from data_pipeline.feed import Feed

log = logging.getLogger(__name__)


def open_data(config: RunConfig) -> tuple["Feed", dict[str, "Feed"], Decode]:
    """The feed of the run's own shards, that of each stage, and a decoder of single ids. Loads TensorFlow.

    Raises:
      DataError: there are no shards, or they are damaged.
      ConfigError: they were built with another tokenizer than the model's, or a teacher's ids mean other tokens.
    """
    log.info("reading %s", " and ".join(config.shard_paths().values()))  # TensorFlow takes seconds to load
    from data_pipeline.feed import Feed

    feed = Feed(config.data.path, seed=config.seed)
    # The model's tokenizer: data.tokenizer, else model.path's, else (a new model) the one the shards were built with.
    name = config.data.tokenizer or config.model.path or str(Path(config.data.path) / "tokenizer")
    ours = tokenizer.load(name)
    if ours.sha256 != feed.manifest.tokenizer_sha256:
        raise ConfigError(preflight.other_tokenizer(config.data.path, name))
    opened: dict[tuple[ShardSet, ...] | None, Feed] = {None: feed}
    for stage, settings in config.stages.items():
        if settings.data is not None and settings.data not in opened:
            opened[settings.data] = _open_own(f"stages.{stage}.data", settings.data, config.seed, ours.sha256, name)
            for path, other in _in_another_template(feed.manifest, opened[settings.data].sets):
                log.warning(
                    "stages.%s.data: %s was built with template %s, %s with %s: the model will be asked in the latter",
                    *(stage, path, other, config.data.path, of_facts(feed.manifest.template).name),
                )
        if (objective := teacher.taught(config, stage)) is not None:
            _check_teachers_tokenizer(f"stages.{stage}.objective.kl.teacher", teacher.path_of(objective), ours)
    feeds = {stage: opened[settings.data] for stage, settings in config.stages.items()}
    return feed, feeds, lru_cache(lambda token: ours.backend.decode([token], skip_special_tokens=False))


def _open_own(key: str, sets: tuple[ShardSet, ...], seed: int, tokenizer_sha256: str, name: str) -> "Feed":
    """The feed of a stage's own sets. `name`: where the tokenizer is that they must share."""
    from data_pipeline.feed import Feed

    weights = [one.weight for one in sets if one.weight is not None] or None
    try:
        for one in sets:
            if Manifest.load(one.path).tokenizer_sha256 != tokenizer_sha256:
                raise ConfigError(preflight.other_tokenizer(one.path, name))
        return Feed(*(one.path for one in sets), seed=seed, weights=weights)
    except UserError as error:
        raise type(error)(f"{key}: {error}") from None


def _in_another_template(run: Manifest, sets: Mapping[str, Manifest]) -> list[tuple[str, str]]:
    """Those sets whose prompts are put otherwise than the run's: path and template. Whether there were thoughts to ask for is no matter."""
    ours = replace(of_facts(run.template), thinks=True)
    found = {path: replace(of_facts(manifest.template), thinks=True) for path, manifest in sets.items()}
    return [(path, theirs.name + " (of other text)" * (theirs.name == ours.name)) for path, theirs in found.items() if theirs != ours]


def own_sets(config: RunConfig, feeds: Mapping[str, "Feed"]) -> dict[str, list[Manifest]]:
    """The sets of each stage that has data of its own."""
    return {name: list(feeds[name].sets.values()) for name, stage in config.stages.items() if stage.data is not None}


def data_key(config: RunConfig, data: "Feed", feeds: Mapping[str, "Feed"]) -> str:
    """A hash of what a run reads, wherever it lies. Where no stage has data of its own it is the shard set's build_key."""
    key, own = data.manifest.build_key, own_sets(config, feeds)
    weights = {name: [one.weight for one in config.stages[name].data or ()] for name in own}
    keys = {name: [manifest.build_key for manifest in sets] for name, sets in own.items()}
    return hashlib.sha256(json.dumps([key, keys, weights]).encode()).hexdigest() if own else key


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


def check_fit(config: RunConfig, data: "Feed", feeds: Mapping[str, "Feed"], model: Model, mesh: Mesh) -> None:
    """Refuse objectives, data, model and mesh that don't go together, and warn of what may not be meant.

    Raises:
      ConfigError: with the remedy.
    """
    sets = {config.data.path: data.manifest} | {path: one for feed in feeds.values() for path, one in feed.sets.items()}
    found = preflight.check(config, mesh.size, sets, model.config)
    found.raise_first()
    for warning in found.warnings:
        log.warning("%s", warning)
