"""How many calls the driver can hand out: the real actor group on Ray, and the same group on futures of this process. Called by `jobs/scale.py`.

    real         N actors without a reserved CPU whose call sleeps for the service time: a generator on a device of its own, as the driver sees it
    in process   more workers than this machine bears: the same group, whose calls are futures that are done when their worker has served
                 what came before and then them. What Ray itself costs is not in these; it is taken from the real ones

Efficiency is the rate against N / service time, which no scheduler can exceed. Every call is a shard's, of many pairs.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from actors.group import ActorGroup, Work
from cdiff.config import ResourceConfig


@ray.remote(num_cpus=0)
class Sleeper:
    """Serves by sleeping, as a device serves while its process waits."""

    def serve(self, seconds: float) -> float:
        """What it really took, seconds."""
        began = time.perf_counter()
        time.sleep(seconds)
        return time.perf_counter() - began


class Future:
    """A call that is over at a time, `time.perf_counter` seconds, after so many seconds of service."""

    __slots__ = ("over", "took")

    def __init__(self, over: float, took: float) -> None:
        self.over, self.took = over, took


class Worker:
    """A handle as the group sees it; serves one call after the other, each for the measured time of a real one.

    Args:
        service: seconds per call.
    """

    def __init__(self, service: float, cluster: Futures) -> None:
        self._service, self._cluster, self._free = service, cluster, 0.0

    @property
    def __ray_ready__(self) -> Worker:
        """Has its place as soon as it is asked."""
        return Worker(0.0, self._cluster)

    @property
    def serve(self) -> Worker:
        """The method; its `remote` is below."""
        return self

    def remote(self, _: float = 0.0) -> Future:
        """A future of the next call."""
        self._free = max(time.perf_counter(), self._free) + self._service
        future = Future(self._free, self._service)
        self._cluster.expect(future)
        return future


class Futures:
    """The part of Ray that the group uses, over futures of this process, in real time."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Future]] = []
        self._order = itertools.count()  # of futures that are over at once
        self._over: dict[Future, None] = {}  # and nobody took them yet

    def expect(self, future: Future) -> None:
        """Remember a future that `wait` looks for."""
        heapq.heappush(self._due, (future.over, next(self._order), future))

    def wait(
        self, references: Sequence[Future], *, num_returns: int = 1, timeout: float | None = None, **_: Any
    ) -> tuple[list[Future], list[Future]]:
        """As ray.wait, for all that are expected: up to `num_returns` of those that are over; what is not is not told."""
        if self._due and not self._over:
            left = self._due[0][0] - time.perf_counter()
            time.sleep(max(0.0, min(left, timeout or 0.0)))
        now = time.perf_counter()
        while self._due and self._due[0][0] <= now:
            self._over[heapq.heappop(self._due)[2]] = None
        return list(itertools.islice(self._over, num_returns)), []

    def get(self, future: Future) -> float:
        """How long it was served, seconds."""
        del self._over[future]
        return future.took

    def cancel(self, future: Future, **_: Any) -> None:
        """A stream that ran to its end leaves nothing to cancel."""
        raise NotImplementedError

    def kill(self, handle: Any, **_: Any) -> None:
        """A worker is nothing but its futures."""

    def available_resources(self) -> dict[str, float]:
        """None are reserved."""
        return {}


def real(workers: int, services: Sequence[float], seconds: float) -> list[dict[str, Any]]:
    """Rates of a group of real actors, for each service time; a Ray has to be connected.

    Args:
        services: seconds per call. seconds: for which calls are handed out at least, at each.
    """
    with ActorGroup("sleeper", lambda _: Sleeper.remote(), workers, _RESOURCES) as group:  # type: ignore[attr-defined]
        ray.get([handle.serve.remote(0.0) for handle in group.handles])  # all have started
        return [_point(group, workers, service, seconds) for service in services]


def in_process(workers: int, points: Sequence[tuple[float, float]], seconds: float) -> list[dict[str, Any]]:
    """Rates of a group on futures.

    Args:
        points: the service time that is asked for, and the one that real actors took for it, seconds.
    """
    found = []
    for service, measured in points:
        cluster = Futures()
        make = functools.partial(_worker, measured, cluster)
        with ActorGroup("future", make, workers, _RESOURCES, cluster) as group:
            found.append(_point(group, workers, service, seconds))
    return found


def _worker(service: float, cluster: Futures, _: int) -> Worker:
    return Worker(service, cluster)


_RESOURCES = ResourceConfig()
_LAPS = 20  # service times that are looked at at least: equal workers answer in bursts, and one burst more or less is 5 %


def _point(group: ActorGroup, workers: int, service: float, seconds: float) -> dict[str, Any]:
    """Calls per second once the first queues are done, for as long as `seconds` and as many calls again as the queues hold.

    The driver's share is of one core: the CPU time of all its threads over wall time. Its limit is what it could hand out with that core to itself,
    whatever else the machine does.
    """
    window = _Window(workers * _RESOURCES.in_flight, max(seconds, _LAPS * service))

    def items() -> Iterator[Work]:
        number = itertools.count()
        while not window.full:
            yield str(next(number)), (service,)

    for _, taken in group.stream("serve", items()):
        window.saw(taken)
    rate = window.calls / window.wall
    return {
        "workers": workers,
        "service_s": service,
        "calls": window.calls,
        "calls_per_s": round(rate, 2),
        "efficiency": round(rate * service / workers, 4),
        "driver_cpu_share": round(window.cpu / window.wall, 4),
        "driver_ms_per_call": round(1e3 * window.cpu / window.calls, 4),
        "driver_limit_calls_per_s": round(window.calls / window.cpu, 1),
        "served_s": round(window.served / window.calls, 5),
        "first_result_after_s": round(window.first, 3),
    }


class _Window:
    """The calls that count.

    Args:
        queued: calls that the group hands out at once; the window opens when they are back, and holds as many again at least.
    """

    def __init__(self, queued: int, seconds: float) -> None:
        self._queued, self._seconds = queued, seconds
        self._began, self._seen = time.perf_counter(), 0
        self.full = False
        self.first = self.wall = self.cpu = self.served = 0.0  # seconds
        self.calls = 0

    def saw(self, taken: float) -> None:
        """One more result; `taken` seconds of service."""
        now, used = time.perf_counter(), time.process_time()
        self._seen += 1
        self.first = self.first or now - self._began
        if self._seen == self._queued:
            self._opened, self._used = now, used
        if self._seen <= self._queued or self.full:
            return
        self.calls, self.served = self.calls + 1, self.served + taken
        self.wall, self.cpu = now - self._opened, used - self._used
        self.full = self.wall >= self._seconds and self.calls >= self._queued
