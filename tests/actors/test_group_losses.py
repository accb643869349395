"""What the group does when nodes, cards and places are lost: on a Ray of this process, whose actors answer as the test says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, NodeDiedError, RayTaskError, RuntimeEnvSetupError

from actors.failures import broken
from actors.group import ActorGroup
from cdiff.config import ResourceConfig
from cdiff.errors import ActorError, LoopStalled

Answer = Callable[
    [int, Any], Any
]  # by the actor's number and the argument: a result, or an error that is raised
NEVER = object()


class Cluster:
    """The part of Ray that the group uses. Answers come as soon as they are asked for, or never.

    Args:
        answer: what an actor says. homeless: numbers of actors that find no place.
    """

    def __init__(self, answer: Answer, homeless: tuple[int, ...] = ()) -> None:
        self._answer, self._homeless, self._numbers = answer, homeless, itertools.count()
        self.calls: list[tuple[int, Any]] = []

    def make(self, _: int) -> Any:
        """An actor with the next number."""
        return _Actor(self, next(self._numbers))

    def call(self, number: int, argument: Any = None, starts: bool = False) -> _Reference:
        if starts:
            return _Reference(NEVER if number in self._homeless else True)
        self.calls.append((number, argument))
        return _Reference(NEVER if number in self._homeless else self._answer(number, argument))

    def wait(
        self, references: list[_Reference], *, num_returns: int = 1, **_: Any
    ) -> tuple[list[_Reference], list[_Reference]]:
        ready = [reference for reference in references if reference.value is not NEVER][:num_returns]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference: _Reference) -> Any:
        assert reference.value is not NEVER
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, *_: Any, **__: Any) -> None:
        pass

    def cancel(self, *_: Any, **__: Any) -> None:
        pass

    def available_resources(self) -> dict[str, float]:
        return {}


class _Reference:
    def __init__(self, value: Any) -> None:
        self.value = value


class _Actor:
    def __init__(self, cluster: Cluster, number: int) -> None:
        self._cluster, self._number = cluster, number

    @property
    def work(self) -> _Call:
        return _Call(self._cluster, self._number)

    @property
    def __ray_ready__(self) -> _Call:
        return _Call(self._cluster, self._number, starts=True)


class _Call:
    def __init__(self, cluster: Cluster, number: int, starts: bool = False) -> None:
        self._cluster, self._number, self._starts = cluster, number, starts

    def remote(self, argument: Any = None) -> _Reference:
        return self._cluster.call(self._number, argument, self._starts)


def _group(cluster: Cluster, count: int, **resources: Any) -> ActorGroup:
    return ActorGroup("test", cluster.make, count, ResourceConfig(**resources), cluster)


def _ill(text: str) -> RayTaskError:
    return RayTaskError("work", "", RuntimeError(text))


def test_a_node_that_takes_more_actors_along_than_a_call_has_tries_ends_nothing() -> None:
    """Idle actors of a lost node are asked before it is known that they are dead."""
    cluster = Cluster(lambda number, _: NodeDiedError("its node has died") if number < 4 else number)
    assert _group(cluster, 6, retries=1).call("work", "fit") in range(4, 10)


def test_what_loses_actor_after_actor_without_its_node_is_given_up() -> None:
    cluster = Cluster(lambda number, _: ActorUnavailableError("no answer", None))
    with pytest.raises(ActorError, match="failed 3 times in work on item work"):
        _group(cluster, 6, retries=2).call("work", "fit")
    assert len({number for number, _ in cluster.calls}) == 3


def test_an_actor_whose_gpu_is_broken_is_replaced_though_it_lives() -> None:
    cluster = Cluster(
        lambda number, _: _ill("CUDA error: unspecified launch failure") if number == 1 else number
    )
    results = _group(cluster, 4, in_flight=1).run("work", [(str(n), (n,)) for n in range(12)])
    assert 1 not in results and [number for number, _ in cluster.calls].count(1) == 1


@pytest.mark.parametrize(
    ("text", "is_broken"),
    [
        ("CUDA error: device-side assert triggered", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("CUDA error: out of memory", False),
        ("shapes do not match", False),
    ],
)
def test_a_gpu_without_memory_is_not_broken(text: str, is_broken: bool) -> None:
    assert broken(_ill(text)) is is_broken


def test_who_fails_at_once_does_not_use_up_the_tries_of_a_call() -> None:
    """As on a node whose disk is full: the others are busy, and it would always be the one with room."""
    asked: list[int] = []

    def answer(number: int, argument: Any) -> Any:
        asked.append(number)
        return _ill("No space left on device") if number == 1 else argument

    cluster = Cluster(answer)
    items = [(str(n), (n,)) for n in range(9)]
    assert _group(cluster, 3, in_flight=1, retries=1).run("work", items) == list(range(9))


def test_a_node_that_cannot_set_up_its_environment_does_not_end_the_others_work() -> None:
    cluster = Cluster(lambda number, n: RuntimeEnvSetupError("pip failed") if number == 2 else n)
    assert _group(cluster, 3).run("work", [(str(n), (n,)) for n in range(9)]) == list(range(9))


def test_an_actor_without_a_place_gets_no_calls() -> None:
    cluster = Cluster(lambda number, n: n, homeless=(0,))
    group = _group(cluster, 3, stall_timeout_s=1.0)
    assert group.placed == 2
    assert group.run("work", [(str(n), (n,)) for n in range(9)]) == list(range(9))
    assert {number for number, _ in cluster.calls} == {1, 2}


def test_without_any_place_the_group_says_so_and_with_nothing_to_do_it_waits_for_none() -> None:
    group = _group(Cluster(lambda number, n: n, homeless=(0, 1)), 2, stall_timeout_s=1.0)
    assert group.run("work", []) == []
    with pytest.raises(LoopStalled, match=r"of work, 0 results are there and 1 are waited for \(a\)"):
        group.run("work", [("a", (1,)), ("b", (2,))])
