"""Settings of where and how a run computes, and where it is tracked."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cdiff.settings.base import Settings


class ResourceConfig(Settings):
    generators: int = Field(2, ge=1, description="Generator actors.")
    least_generators: int = Field(
        0,
        ge=0,
        description="With room for so few generators a run starts and goes on, and the others join as nodes come; 0: all of them.",
    )
    downstreams: int = Field(2, ge=1, description="Downstream actors: folds are fitted side by side.")
    cpus: float = Field(
        0.4,
        ge=0,
        description="CPUs reserved per generator, extractor and downstream actor; 0.4: five fit two cores.",
    )
    gpus: float = Field(0.0, ge=0, description="GPUs reserved per such actor; fractions share a card.")
    generator_gpus: float | None = Field(
        None, ge=0, description="Of a generator actor, where it wants another share than `gpus`."
    )
    downstream_gpus: float | None = Field(None, ge=0, description="Of a downstream actor, likewise.")
    compile: bool = Field(
        False,
        description="Compile networks for sampling (torch.compile; needs a C compiler on the node): minutes for each size of batch, faster from then on, and other "
        "last bits.",
    )
    threads: int = Field(
        1, ge=1, description="Torch threads per actor: two actors of one thread do more than one of two."
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where actors compute.")
    in_flight: int = Field(2, ge=1, description="Calls queued per actor.")
    retries: int = Field(2, ge=0, description="Further tries of a failed call.")
    wait_seconds: float = Field(
        60.0, gt=0, description="Longest wait for the cluster to offer the resources."
    )
    keep: Literal["all", "needed"] = Field(
        "all",
        description="Checkpoints that stay when a round is committed: all, or those that a kept pair, the best model or a step to come names.",
    )
    stall_timeout_s: float = Field(
        3600.0,
        gt=0,
        description="Seconds without a step or a result after which a run stops; the same command goes on. Above the time of what tells no "
        "steps: a shard of pairs, frames and tokens of all photos.",
    )

    @model_validator(mode="after")
    def _fewer(self) -> ResourceConfig:
        if self.least_generators > self.generators:
            raise ValueError(
                f"resources.least_generators={self.least_generators} is above resources.generators={self.generators}"
            )
        return self


class TrainConfig(Settings):
    workers: int = Field(
        1,
        ge=1,
        description="Processes that train the generator together, as Ray Train places them; 1: one actor. A batch is cut among them.",
    )
    least_workers: int = Field(
        1,
        ge=1,
        description="With fewer nodes left, training goes on with as few as this; the losses stay the same.",
    )
    segmenters: bool = Field(
        False,
        description="Also fits of segmenters, each by all workers; worth it for large networks of your own.",
    )
    cpus: float = Field(1.0, gt=0, description="CPUs reserved per worker.")
    gpus: float = Field(0.0, ge=0, description="GPUs reserved per worker.")
    failures: int = Field(3, ge=0, description="Times that a training starts again from its last checkpoint.")

    @model_validator(mode="after")
    def _fewer(self) -> TrainConfig:
        if self.least_workers > self.workers:
            raise ValueError(
                f"train.least_workers={self.least_workers} is above train.workers={self.workers}"
            )
        return self


class TrackingConfig(Settings):
    experiment: str = Field("cdiff", description="MLflow experiment.")
    name: str = Field("", description="Run name; empty: the run folder's.")
    uri: str = Field("", description="MLflow tracking URI; flag and MLFLOW_TRACKING_URI go before it.")

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, uri: str) -> str:
        """Settings are written to the run folder, MLflow and the report."""
        if re.search(r"(?i)//[^/\s]*:[^/\s]*@|[?&](password|passwd|pwd|token)=", uri):
            raise ValueError(
                "a password does not belong into settings: give the whole URI as MLFLOW_TRACKING_URI"
            )
        return uri
