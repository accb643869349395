"""Settings of photos: which are read, how they are split, what is refused."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cdiff.settings.base import Settings


class DataConfig(Settings):
    demo: bool = Field(False, description="Use the procedural demo data set instead of --data.")
    demo_images: int = Field(60, ge=12, le=2000, description="Photos with targets per demo domain.")
    demo_side: int = Field(128, ge=64, le=1024, description="Side of a demo photo, pixels.")
    train_share: float = Field(0.4, gt=0, lt=1, description="Share of each type's groups that trains.")
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="Share that accepts or rejects rounds; the rest tests."
    )
    normal_share: float = Field(
        0, ge=0, lt=1, description="Share of the groups without targets that trains; 0: `train_share`."
    )
    calibration_share: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="Share of a type's training groups that the generator never sees: gate thresholds.",
    )
    split_seed: int = Field(0, ge=0, description="Seed of the split, and of the draw of `train_images`.")
    train_images: int = Field(
        0, ge=0, description="Train on this many photos with targets, drawn by seed; 0: on all."
    )
    rest: Literal["unused", "validation", "test"] = Field(
        "unused",
        description="Where the photos go that `train_images` leaves out, if nothing of their object trains.",
    )
    pool_below: int = Field(3, ge=1, description="Types with fewer training targets are pooled into one.")
    leaks: Literal["drop", "stop"] = Field(
        "drop", description="Near-identical photos across given splits: drop the train copy, or stop."
    )
    duplicate_distance: float = Field(
        0.02, ge=0, le=1, description="Mean absolute pixel difference under which two aligned photos are one."
    )
    skip_unpaired: bool = Field(False, description="Leave photos without a mask out instead of stopping.")
    max_pixels: int = Field(50_000_000, ge=1024, description="Refuse larger images before decoding: bombs.")
    max_bytes: int = Field(100_000_000, ge=1024, description="Refuse larger files.")
    cache_megabytes: int = Field(1500, ge=0, description="Decoded photos kept in memory per process.")

    @model_validator(mode="after")
    def _split(self) -> DataConfig:
        if self.train_share + self.validation_share >= 1:
            raise ValueError(
                f"data.train_share={self.train_share:g} + data.validation_share={self.validation_share:g} must be under 1: the rest tests"
            )
        return self
