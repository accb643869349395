"""What all groups of settings share: they are frozen, and an unknown one is refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the lowest must not exceed the highest")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]  # lowest, highest
