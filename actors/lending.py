"""A crew's actors, lent: under names by which processes without their handles find them, as the trials of a sweep.

    with lent(crew) as names: ...    the crew rests; its downstream actors' CPUs are free for the trials, one for each

The driver owns lent actors: they end with it. Ray restarts one that dies, as often as that is, and repeats its calls once, since no group of the driver's
watches them; all that they do is harmless to repeat. A call that kills its actor twice fails its trial, and no other.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.coordinator import CoordinatorActor
from actors.crew import Crew
from actors.extractor import ExtractorActor
from actors.failures import what
from actors.generator import GeneratorActor
from actors.resources import actor_options, roles
from cdiff.errors import ActorError

_FURTHER = 1  # tries of a call that killed its actor


@dataclass(frozen=True, slots=True)
class Names:
    """Of the lent actors, for `ray.get_actor`."""

    generators: tuple[str, ...]
    extractor: str
    coordinator: str


@contextmanager
def lent(crew: Crew) -> Iterator[Names]:
    """Lend generators, extractor and coordinator of a prepared crew, which rests until the block ends.

    Raises:
        ActorError: an actor could not be made.
    """
    count = max(roles(crew.config)["generator"], crew.generators.placed)  # those that have a place now
    crew.rest()
    mark = uuid.uuid4().hex[:8]
    handles: list[Any] = []
    wanted: list[tuple[Any, Any, tuple[Any, ...]]] = [
        ("generator", GeneratorActor, (crew.run, crew.config, [crew.shared])) for _ in range(count)
    ]
    wanted.append(("extractor", ExtractorActor, (crew.run, crew.config, [crew.shared])))
    wanted.append(("coordinator", CoordinatorActor, crew.coordinates))
    names = [f"cdiff-{mark}-{role}-{number}" for number, (role, _, _) in enumerate(wanted)]
    try:
        for name, (role, actor, arguments) in zip(names, wanted, strict=True):
            options = actor_options(crew.config, role)
            options |= {"name": name, "max_restarts": -1, "max_task_retries": _FURTHER}
            handles.append(actor.options(**options).remote(*arguments))
        try:
            ray.get(
                [handle.__ray_ready__.remote() for handle in handles],
                timeout=crew.config.resources.stall_timeout_s,
            )
        except (RayError, GetTimeoutError) as error:
            raise ActorError(f"an actor to lend could not be made: {what(error)}") from error
        yield Names(tuple(names[:-2]), names[-2], names[-1])
    finally:
        for handle in handles:
            ray.kill(handle, no_restart=True)
    crew.wake()  # not after a failure: what ends the run needs no actors
