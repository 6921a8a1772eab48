"""Objectives: one record, one file each, and the table that names them. docs/adding_an_objective.md adds one, step by step."""

from importlib import import_module

from lpo_jax.objectives.base import KlConfig, Objective, Options, Terms, add, means

TABLE = (  # files of this folder, each with its record, OBJECTIVE
    "sft",
    "lpo",
    "dpo",
    "target_dpo",
    "simpo",
    "cpo",
    "orpo",
    "safecoder",
    "kd",
    "security",
)
OBJECTIVES: dict[str, Objective] = {name: import_module(f"lpo_jax.objectives.{name}").OBJECTIVE for name in TABLE}


def of(options: Options) -> Objective:
    """The record that options belong to."""
    return OBJECTIVES[options.name]


__all__ = ["OBJECTIVES", "KlConfig", "Objective", "Options", "Terms", "add", "means", "of"]
