"""What a service serves: its arguments, and the runs and models that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actors.resources import needs
from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.run import Run, find_run
from cdiff.errors import ConfigError
from cdiff.service.studio import standing


class Served(BaseModel):
    """What is served, and how: arguments of `serve run`, of a Serve config file, and of jobs/serve.py."""

    model_config = ConfigDict(extra="forbid")
    run: str | list[str] = Field(
        description="Runs whose generators are served: folders, URLs, names under the home, or checkpoints of generators in them."
    )
    data: str | list[str] = Field(description="Photos of the runs, as the loop was given them.")
    groups: str | None = None
    home: str | None = None
    replicas: int = Field(1, ge=1, description="Generator replicas.")
    most_replicas: int = Field(0, ge=0, description="Serve adds replicas up to so many under load; 0: none.")
    models_at_once: int = Field(2, ge=1, description="Models that one replica keeps in memory.")
    max_queued: int = Field(32, ge=1, description="Requests that may wait; more get 429.")
    insecure_loopback: bool = Field(False, description="Serve without a token; on 127.0.0.1 alone.")
    settings: list[str] = Field(
        [], description="resources.key=value, as where the run was made with a GPU and is served without."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if 0 < self.most_replicas < self.replicas:
            raise ValueError(f"most_replicas={self.most_replicas} is under replicas={self.replicas}")
        if other := [setting for setting in self.settings if not setting.startswith("resources.")]:
            raise ValueError(f"{other[0]}: a run is served as it was made, but for resources.key=value")
        return self


def checked(wanted: Served | Mapping[str, Any]) -> Served:
    """The arguments of the service; ConfigError with what is wrong with them."""
    try:
        return Served.model_validate(wanted)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}".lstrip(": ") for e in error.errors())
        raise ConfigError(f"arguments of the service: {told}") from None


def settings_of(run: Run, served: Served) -> Config:
    """A run's configuration, as it is served."""
    return load_config(run.local("config.yaml", anew=True), list(served.settings))


def wanted_by_one(configs: Sequence[Config]) -> dict[str, float]:
    """What a replica reserves: it holds any of the runs, so the most that one wants of each kind.

    Raises:
        ConfigError: the runs compute on unlike devices; some would use a card that nobody reserved.
    """
    if len(devices := sorted({config.resources.device for config in configs})) > 1:
        raise ConfigError(
            f"the runs' configurations name several devices ({', '.join(devices)}): add resources.device={devices[0]}, or serve them apart."
        )
    wanted = [needs(config, "generator") for config in configs]
    return {kind: max(one.get(kind, 0.0) for one in wanted) for kind in ("CPU", "GPU")}


def by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs as requests name them: ConfigError where two have one name, as of different homes."""
    named: dict[str, Run] = {}
    for run in runs:
        if (other := named.setdefault(run.name, run)) is not run:
            raise ConfigError(
                f"two runs are called {run.name}: {other.url} and {run.url}. A request names a model by its run: serve each by a "
                "service of its own, and no run twice."
            )
    return named


def run_of_model(name: str, home: str | None = None) -> Run:
    """The run that a user names, or in which a generator's checkpoint lies (RUN/checkpoints/REVISION): its photos, types and gate belong to it.

    Raises:
        RunError: no such run. ConfigError: a checkpoint that is not the run's generator.
    """
    folder, _, revision = name.rstrip("/").rpartition("/checkpoints/")
    run = find_run(folder or name, home)
    if folder and revision != (own := standing(run)[1].generator):
        raise ConfigError(f"{name} is not the generator of its run: that is {folder}/checkpoints/{own}.")
    return run


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
