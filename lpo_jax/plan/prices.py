"""What a chip costs: a dated table of list prices, which anyone can replace."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from foundation.files import read_text
from foundation.settings import NonEmpty, PositiveNumber, Settings
from lpo_jax.config import ConfigError, from_dict

SHIPPED = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class Price(Settings):
    """US dollars a chip and hour. None: not known."""

    region: NonEmpty
    on_demand: PositiveNumber | None = None
    spot: PositiveNumber | None = None


@dataclass(frozen=True)
class Prices(Settings):
    """A table of prices, by the chips' generation in JAX's names."""

    date: NonEmpty
    source: NonEmpty
    chips: dict[str, Price]

    @staticmethod
    def load(file: Path) -> "Prices":
        """Read a table.

        Raises:
          DataError: it can't be read.
          ConfigError: it isn't of the form of `prices.yaml`.
        """
        remedy = f"write a table like {SHIPPED}"
        try:
            raw = yaml.safe_load(read_text(file, remedy))
        except yaml.YAMLError as error:
            raise ConfigError(f"{file}: not valid YAML ({' '.join(str(error).split())[:200]}); {remedy}") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{file}: it holds no mapping; {remedy}")
        found: Prices = from_dict(Prices, raw, str(file))
        return found
