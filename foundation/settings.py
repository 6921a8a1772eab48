"""The base of dataclasses that are read from files."""

from typing import ClassVar


class Settings:
    """A dataclass of settings: pydantic refuses keys that it doesn't have."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
