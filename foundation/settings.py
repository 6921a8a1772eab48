"""The base of dataclasses that are read from files, and the numbers that stand in them."""

from typing import Annotated, ClassVar

from pydantic import Field

LARGEST = 2**31 - 1
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
NonEmpty = Annotated[str, Field(min_length=1)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]


class Settings:
    """A dataclass of settings: pydantic refuses keys that it doesn't have, and numbers out of range."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
