"""What all groups of settings share: they are frozen, and an unknown one is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the lowest must not exceed the highest")
    return pair


def within(low: float, high: float = math.inf) -> Callable[[tuple[float, float]], tuple[float, float]]:
    """Refuses a range that leaves these bounds, which belong to it."""

    def check(pair: tuple[float, float]) -> tuple[float, float]:
        if pair[0] < low or pair[1] > high:
            raise ValueError(
                f"both ends must lie {f'between {low:g} and {high:g}' if high < math.inf else f'at {low:g} or above'}"
            )
        return pair

    return check


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]  # lowest, highest
ShareRange = Annotated[Range, AfterValidator(within(0, 1))]
