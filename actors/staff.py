"""The actors of one run: made, ended, and made anew where others need their places meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import ray

from actors.coordinator import CoordinatorActor
from actors.downstream import DownstreamActor
from actors.extractor import ExtractorActor
from actors.generator import GeneratorActor
from actors.group import ActorGroup, Watch
from actors.places import NOWHERE, reserve, stay_reserved
from actors.resources import actor_options
from actors.together import Training, train_together
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.store import Run


class Staff:
    """Generators, extractor, downstream actors, and the coordinator once it has what it is made of.

    Args:
        local: Ray was started for this run alone: nobody else can free a place.
    Raises:
        ResourceError, ConfigError: as `actors.places.reserve`.
    """

    def __init__(self, run: Run, config: Config, dataset: Dataset, local: bool) -> None:
        self.run, self.config, self.dataset, self._local = run, config, dataset, local
        self.shared = ray.put(dataset)
        self.coordinator: ActorGroup | None = None
        self.coordinates: tuple[Any, ...] = ()  # what a coordinator is made of, once the thresholds are known
        self._grown = False  # the cluster had its time to grow for a training
        self.wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.rest()

    def wake(self) -> None:
        """Make the actors, once there is room for them; after `rest`, anew. Errors as of the class: meanwhile others may have taken the room."""
        self._places = reserve(self.config, wait=not self._local)
        resources = self.config.resources
        if not stay_reserved(self.config):
            self._places.give_back()
            self._places = NOWHERE
        self.downstream = self._group("downstream", DownstreamActor, resources.downstreams)
        self.extractor = self._group("extractor", ExtractorActor, 1)
        self.generators = self._group("generator", GeneratorActor, resources.generators)
        if self.coordinates:
            self.coordinate(self.coordinates)

    def rest(self) -> None:
        """End the actors: their places are free for others."""
        for group in (self.generators, self.downstream, self.extractor, self.coordinator):
            if group is not None:
                group.close()
        self._places.give_back()

    def coordinate(self, made_of: tuple[Any, ...]) -> None:
        """Make the coordinator, of its arguments."""
        self.coordinates, options = made_of, actor_options(self.config, "coordinator")

        def make(_: int) -> Any:
            return CoordinatorActor.options(**options).remote(*made_of)  # type: ignore[attr-defined]

        self.coordinator = ActorGroup("coordinator", make, 1, self.config.resources)

    @property
    def planner(self) -> ActorGroup:
        """The coordinator, once there is one."""
        assert self.coordinator is not None, "prepare() comes first"
        return self.coordinator

    def together(
        self,
        batch: int,
        work: Training,
        watch: Watch,
        keep: Callable[[Any], None] = lambda result: None,
        joined: Callable[[int], None] = lambda workers: None,
    ) -> Any:
        """A training by several workers (`actors.together`), which meanwhile have the places of the actors.

        Args:
            keep: what to do with the result before the actors come back, for which there may be no room by now.
            joined: as of `actors.together.train_together`.
        """
        self.rest()
        grow, self._grown = not self._grown, True
        result = train_together(
            self.run, self.config, self.shared, batch, work, watch, self._local, grow, joined
        )
        keep(result)
        self.wake()
        return result

    def _group(self, role: Any, actor: Any, count: int) -> ActorGroup:
        options, places = actor_options(self.config, role), self._places

        def make(number: int) -> Any:
            own = options | places.of(role, number)
            return actor.options(**own).remote(self.run, self.config, self.shared)

        return ActorGroup(role, make, count, self.config.resources)
