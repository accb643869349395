"""A crew's actors, lent: under names by which processes without their handles find them, as the trials of a sweep.

    with lent(crew) as names: ...    the crew rests; its downstream actors' CPUs are free for the trials, one for each

A sweep cannot do without the extractor, one generator and one trial: there must be room for these before anything is made, and further generators, of which there may be
more than there is room for since a node was lost, come last. The driver owns lent actors: they end with it. Ray restarts one that dies, as often as that is, since no group
of the driver's watches them; whoever calls them (`actors.borrowing`) repeats a call that died with its actor. All that they do is harmless to repeat.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from actors.borrowing import showing_life
from actors.coordinator import CoordinatorActor
from actors.crew import Crew
from actors.extractor import ExtractorActor
from actors.failures import what
from actors.generator import GeneratorActor
from actors.places import preflight, reserve, stay_reserved
from actors.resources import Role, actor_options, roles
from cdiff.config import Config
from cdiff.errors import ActorError

log = logging.getLogger(__name__)

_WAITS = 1  # retries by Ray: with any, a question waits while its actor is restarted, instead of failing
STARTS = 60.0  # seconds in which actors with a place start, where many start at once


@dataclass(frozen=True, slots=True)
class Names:
    """Of the lent actors, for `ray.get_actor`."""

    generators: tuple[str, ...]
    extractor: str
    coordinator: str


@dataclass(frozen=True, slots=True, eq=False)
class _Lent:
    name: str
    handle: Any
    ready: Any  # answers once it has started


@contextmanager
def lent(crew: Crew) -> Iterator[Names]:
    """Lend generators, extractor and coordinator of a prepared crew, which rests until the block ends.

    One generator must find a place; of the others those are lent that find theirs.

    Raises:
        ResourceError: there is no room for the extractor, a generator and a trial. ActorError: an actor could not be made.
    """
    config = crew.config
    # those with a place, and those that are lost with theirs: a group learns of deaths by its calls alone
    count = max(roles(config)["generator"], crew.generators.placed)
    crew.rest()
    preflight(config, actors={"extractor": 1, "generator": 1, "downstream": 1})
    mark = uuid.uuid4().hex[:8]
    with ExitStack() as ending:

        def made(role: Role, number: int = 0) -> _Lent:
            name = f"cdiff-{mark}-{role}-{number}"
            handle = _made(crew, role, name)
            ending.callback(ray.kill, handle, no_restart=True)
            return _Lent(name, handle, handle.__ray_ready__.remote())

        # for a while, and none for the actors: one that is lost with a node, and finds no other room, keeps Ray's head busy without a pause
        trial = reserve(config, actors={"downstream": 1})
        ending.callback(trial.give_back)
        first = made("generator")
        if stay_reserved(config):  # else a small share of the extractor's could take the last whole card
            _demand([first], config)
        extractor, coordinator = made("extractor"), made("coordinator")
        _demand([first, extractor, coordinator], config)
        others = [made("generator", number) for number in range(1, count)]
        late = _late(others, config)
        for one in late:  # it would take the place of a trial as soon as one ends
            ray.kill(one.handle, no_restart=True)
        trial.give_back()
        found = [first, *(one for one in others if one not in late)]
        yield Names(tuple(one.name for one in found), extractor.name, coordinator.name)
    crew.wake()  # not after a failure: what ends the run needs no actors


def make_room(generators: Sequence[str]) -> list[str]:
    """End lent generators beyond what there is room for: those without a place, which would take what is freed, and one that has its own. One stays; returns who does."""
    handles: dict[str, Any] = {}
    for name in generators:
        with suppress(ValueError):  # it is gone
            handles[name] = ray.get_actor(name)
    living = showing_life(handles)
    stay = living[:-1] or living or list(handles)[:1]
    for name in set(handles).difference(stay):
        ray.kill(handles[name], no_restart=True)
    return stay


def _made(crew: Crew, role: Role, name: str) -> Any:
    kinds = {"generator": GeneratorActor, "extractor": ExtractorActor, "coordinator": CoordinatorActor}
    kind: Any = kinds[role]
    options = actor_options(crew.config, role)
    options |= {"name": name, "max_restarts": -1, "max_task_retries": _WAITS}
    arguments = crew.coordinates if role == "coordinator" else (crew.run, crew.config, [crew.shared])
    return kind.options(**options).remote(*arguments)


def _demand(actors: Sequence[_Lent], config: Config) -> None:
    """ActorError where one has not started."""
    try:
        ray.get([one.ready for one in actors], timeout=config.resources.stall_timeout_s)
    except RayError as error:  # a timeout is one of them
        raise ActorError(f"an actor to lend could not be made: {what(error)}") from error


def _late(others: Sequence[_Lent], config: Config) -> list[_Lent]:
    """Those that have not started in a while; ActorError where one cannot."""
    # not as long as nodes may take to come: meanwhile the trials could run
    seconds = min(config.resources.wait_seconds, STARTS)
    asked = [one.ready for one in others]
    there, missing = ray.wait(asked, num_returns=len(asked), timeout=seconds)
    _demand([one for one in others if one.ready in there], config)
    if missing:
        told = len(there) + 1, len(others) + 1, seconds
        log.warning("%d of %d generators found a place; the others had %.0f s", *told)
    return [one for one in others if one.ready in missing]
