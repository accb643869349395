"""Places on the cluster: what must be alive is compared with what there is, and reserved before anything is made.

    reserve(config) -> Places      a bundle for each actor that a run cannot do without; theirs until they are given back
    preflight(config)              the same, given back at once: is there room?
    preflight_workers(config)      likewise for the workers of a training

Ray itself is asked, by placement groups: it knows which node has room for what, shares of a GPU included, and an autoscaling cluster starts to
grow. Without a reservation, generators that may come later (`resources.least_generators`) would take the places of the extractor and of successors.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.resources import Resources, Role, living_nodes, needs, roles, training_gpus
from cdiff.config import Config
from cdiff.errors import ConfigError, ResourceError

log = logging.getLogger(__name__)
_SHORT = 5.0  # seconds for what is there already
_SILENT, _AGAIN = 10.0, 60.0  # seconds until a wait is told of, and between two words of it


@dataclass(frozen=True, slots=True)
class Places:
    """Reserved places by role and number."""

    group: PlacementGroup | None  # None: nobody wants any resources
    bundles: Mapping[tuple[Role, int], int]

    def of(self, role: Role, number: int) -> dict[str, Any]:
        """Arguments of `.options()` for an actor, and for its successors; none where it has no place of its own."""
        bundle = self.bundles.get((role, number))
        if self.group is None or bundle is None:
            return {}
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, bundle)}

    def give_back(self) -> None:
        """The places are free for others; actors in them end."""
        if self.group is not None:
            remove_placement_group(self.group)


NOWHERE = Places(None, {})


def reserve(config: Config, *, wait: bool = True, actors: Mapping[Role, int] | None = None) -> Places:
    """Reserve places for all actors that must be alive at once.

    The driver counts nothing: Ray reserves nothing for it.

    Args:
        config: `resources` is read.
        wait: wait up to `resources.wait_seconds` for nodes to come or other jobs to end. False for a local Ray.
        actors: how many of each role; None for `roles(config)`.
    Raises:
        ResourceError: there is not enough, with what is wanted, what there is, and the remedy.
        ConfigError: the device is cuda and no GPU is asked for.
    """
    counts = actors if actors is not None else roles(config)
    without = [role for role in counts if role != "coordinator" and not needs(config, role).get("GPU")]
    if config.resources.device == "cuda" and without:
        raise ConfigError(
            f"resources.device=cuda reserves no GPU for {' and '.join(without)}: set resources.gpus, as {_share(counts):g} where all share one card, "
            "or resources.device=cpu."
        )
    placed = [
        (role, number) for role, count in counts.items() for number in range(count) if needs(config, role)
    ]
    bundles = [needs(config, role) for role, _ in placed]
    if not bundles:
        return NOWHERE
    total = ray.cluster_resources()
    if not wait and any(total.get(kind, 0) < amount for kind, amount in _sum(bundles).items()):
        raise ResourceError(_shortage(config, counts, bundles, 0))
    seconds = config.resources.wait_seconds if wait else min(config.resources.wait_seconds, 10.0)
    group = placement_group(bundles, strategy="PACK")
    wanted = (
        f"{', '.join(f'{count} {role}' for role, count in counts.items())}: {_words(_sum(bundles))} in all"
    )
    try:
        if not Wait(wanted, seconds, lambda: _there(_sum(bundles))).for_(group, seconds):
            raise ResourceError(_shortage(config, counts, bundles, seconds))
    except BaseException:  # Ctrl-C as well: an autoscaling cluster would go on to grow for it
        remove_placement_group(group)
        raise
    return Places(group, {place: number for number, place in enumerate(placed)})


def stay_reserved(config: Config) -> bool:
    """Whether actors are made in the places that were reserved for them.

    Where some may come later, others would take their places. Unlike shares of cards Ray would spread over cards as they come, so that no whole
    one is left. All else is better left to Ray, which spreads actors over nodes where a reservation packs them.
    """
    shares = {needs(config, role).get("GPU", 0.0) for role in roles(config)} - {0.0}
    return bool(config.resources.least_generators) or len(shares) > 1


def preflight(config: Config, *, wait: bool = True, actors: Mapping[Role, int] | None = None) -> None:
    """Whether there is room for all actors that must be alive at once; arguments and errors as of `reserve`."""
    reserve(config, wait=wait, actors=actors).give_back()


def preflight_workers(config: Config, *, wait: bool = True, grow: bool = True) -> int:
    """As `preflight`, for the workers of a training; returns how many there is room for, `train.least_workers` to `train.workers`.

    Args:
        grow: wait for all of them, so that a cluster can grow; without it the most that are there now, and only if these are too few, for more.
    Raises:
        ResourceError: not even for the least. ConfigError: GPUs that no worker would have, or shares of one.
    """
    settings = config.train
    if config.resources.device == "cuda" and not settings.gpus:
        raise ConfigError(
            "resources.device=cuda, and train.workers would train on CPUs: set train.gpus=1, or train.workers=1."
        )
    if settings.gpus != int(settings.gpus):
        raise ConfigError(
            f"train.gpus={settings.gpus:g}: workers of a training cannot share a card. Give each a whole one, or fewer workers."
        )
    wants = ("CPU", settings.cpus), ("GPU", training_gpus(config))
    need = {kind: amount for kind, amount in wants if amount}
    seconds = config.resources.wait_seconds if wait else min(config.resources.wait_seconds, 10.0)
    began, patient = time.monotonic(), settings.workers if grow else settings.least_workers
    wanted = f"{settings.least_workers} to {settings.workers} workers of a training: {_words(need)} each"
    wait_for = Wait(wanted, seconds, lambda: _there(need)).for_
    for count in range(settings.workers, settings.least_workers - 1, -1):
        group = placement_group([need] * count, strategy="PACK")
        try:
            if wait_for(group, seconds if count == patient else min(seconds, _SHORT)):
                return count
        finally:
            remove_placement_group(group)
    total = ray.cluster_resources()
    raise ResourceError(
        f"training wants {settings.least_workers} workers at least (train.least_workers) of {_words(need)} each, and the cluster has "
        f"{_words({kind: total.get(kind, 0.0) for kind in need})} in all; waited {time.monotonic() - began:.0f} s.\n"
        "Lower train.workers, train.least_workers or train.cpus, or add nodes."
    )


class Wait:
    """A wait for places that is told of: after some seconds what is waited for, what there is and for how long at most, then a line each minute.

    Args:
        wanted: what is waited for. most: seconds that it may take in all, as the first line says.
        there: says what the cluster has; it may have grown meanwhile.
    """

    def __init__(self, wanted: str, most: float, there: Callable[[], str]) -> None:
        self._wanted, self._most, self._there = wanted, most, there
        self._waited, self._due = 0.0, _SILENT

    def for_(self, group: PlacementGroup, seconds: float) -> bool:
        """Whether a group has its places within so many seconds. One wait may be for several groups, one after another."""
        end = self._waited + seconds
        while self._waited < end:
            if self._waited >= self._due:
                self._tell()
            until = min(self._due, end)
            if group.wait(timeout_seconds=until - self._waited):
                return True
            self._waited = until
        return False

    def _tell(self) -> None:
        if self._due == _SILENT:
            most = f"at most {self._most:.0f} s (resources.wait_seconds)"
            about = f"for {self._wanted}. {self._there()}; {most}"
        else:
            about = f"after {self._waited:.0f} s of at most {self._most:.0f}. {self._there()}"
        log.warning("waiting for room %s", about)
        self._due = self._waited + _AGAIN


def _sum(bundles: list[Resources]) -> Resources:
    kinds = {kind for bundle in bundles for kind in bundle}
    return {kind: math.fsum(bundle.get(kind, 0.0) for bundle in bundles) for kind in sorted(kinds)}


def _shortage(config: Config, counts: Mapping[Role, int], bundles: list[Resources], waited: float) -> str:
    """What is wanted, what there is, and what to do about it."""
    wanted, total, free, nodes = (
        _sum(bundles),
        ray.cluster_resources(),
        ray.available_resources(),
        living_nodes(),
    )
    lacking = [kind for kind, amount in wanted.items() if total.get(kind, 0) < amount]
    busy = [kind for kind, amount in wanted.items() if free.get(kind, 0) < amount]
    largest = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in wanted}
    if wanted.get("GPU") and not total.get("GPU"):
        remedy = (
            "Ray knows of no GPU: set resources.device=cpu, or give it nodes with cards. Where a node has one, Ray finds it by NVIDIA's driver "
            "(nvidia-smi must list it), or takes `ray start --num-gpus=N`."
        )
    elif "GPU" in lacking:
        own = [
            f"resources.{role}_gpus"
            for role in ("generator", "downstream")
            if getattr(config.resources, f"{role}_gpus") is not None
        ]
        remedy = (
            f"Lower resources.generators, add nodes, or set resources.gpus={_share(counts):g}{' and lower ' + ' and '.join(own) if own else ''}: so "
            "all actors share one card."
        )
    elif lacking:
        remedy = "Lower resources.generators or resources.cpus, or add nodes."
    elif busy:
        remedy = "Other jobs hold the rest: wait for them, raise resources.wait_seconds, or lower resources.generators."
    else:
        remedy = "Enough in sum, but no node has room for some actor: lower resources.cpus or resources.gpus per actor."
    each = [
        f"{count} {role} ({_words(needs(config, role)) or 'nothing'} each)" for role, count in counts.items()
    ]
    return (
        f"the run wants actors alive at once: {', '.join(each)}; {_words(wanted)} in all.\n"
        f"The cluster has {len(nodes)} node(s) with {_words({kind: total.get(kind, 0.0) for kind in wanted})} in all, "
        f"free {_words({kind: free.get(kind, 0.0) for kind in wanted})}, at most {_words(largest)} on one node"
        f"{f'; waited {waited:.0f} s' if waited else ''}.\n{remedy}"
    )


def _share(counts: Mapping[Role, int]) -> float:
    """GPUs per actor with which all of them fit one card."""
    actors = sum(count for role, count in counts.items() if role != "coordinator")
    return math.floor(100 / max(actors, 1)) / 100


def _there(wanted: Resources) -> str:
    """What the cluster has of what is wanted."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return (
        f"The cluster has {_words({kind: total.get(kind, 0.0) for kind in wanted})}, "
        f"free {_words({kind: free.get(kind, 0.0) for kind in wanted})}"
    )


def _words(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
