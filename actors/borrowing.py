"""What trials ask of lent actors (`actors.lending`): whoever lives answers, and no wait is without an end.

    calls -> [an actor that said that it is there: one call at a time] -> answers, in the order of the calls
               ^ a call whose actor died, or shows no life, goes to the next that is free

Calls of an actor that was lost with its node, and finds no other place, wait for ever. So an actor gets a call only once it said that it is there, for which it may take as
long as it likes while others work; and Ray repeats no call: it fails with its actor, and is given to another. Same task, same bytes, whoever makes it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from actors.failures import broken, lost_with_node, what
from cdiff.config import Config, ResourceConfig
from cdiff.errors import ActorError, LoopStalled

Key = TypeVar("Key", bound=Hashable)
_PAUSE = 1.0  # seconds until an actor that is out of reach is asked again
_LIFE = 10.0  # seconds in which an actor tells how far it is, beside its work


def answers(names: Sequence[str], method: str, calls: Sequence[tuple[Any, ...]], config: Config) -> list[Any]:
    """What lent actors answer to calls of a method, in the order of the calls.

    Args:
        names: of equal actors; where several are free, the first of them gets the first call.
        calls: the arguments of each.
    Raises:
        LoopStalled: nothing came for `resources.stall_timeout_s`. ActorError: a call failed with 1 + `resources.retries` actors, or for
        `resources.wait_seconds` no actor showed life. Whatever kind the method raises itself.
    """
    return _Round(names, method, calls, config.resources).run()


class _Round:
    """Calls of one method, until all are answered."""

    def __init__(
        self, names: Sequence[str], method: str, calls: Sequence[tuple[Any, ...]], resources: ResourceConfig
    ) -> None:
        self._method, self._calls, self._resources = method, calls, resources
        self._answers: dict[int, Any] = {}
        self._waiting, self._failures = deque(range(len(calls))), Counter[int]()
        self._asked: dict[Any, tuple[Any, int | None]] = {}  # actor and call; None: whether it is there
        self._free: list[Any] = []
        self._gone = "it is unknown"  # why the last actor is that is gone for good
        for name in names:
            with suppress(ValueError):  # it is gone for good
                self._greet(ray.get_actor(name))

    def run(self) -> list[Any]:
        """All answers; errors as of `answers`."""
        moved, most, some = time.monotonic(), self._resources.stall_timeout_s, self._resources.wait_seconds
        while left := len(self._calls) - len(self._answers):
            if not self._asked:
                raise ActorError(f"no lent actor is left for {self._method}; the last: {self._gone}")
            rest = max(0.0, moved + most - time.monotonic())
            done, _ = ray.wait(list(self._asked), num_returns=1, timeout=min(some, rest))
            if done and self._settled(done[0]):
                moved = time.monotonic()
                continue
            waited = time.monotonic() - moved
            if waited >= most:
                raise LoopStalled(
                    f"{left} of {len(self._calls)} calls of {self._method} by a trial wait, and none was answered in {most:.0f} s. What was measured "
                    "is kept; the same command goes on."
                )
            if waited >= some:
                self._look_round()
        return [self._answers[number] for number in range(len(self._calls))]

    def _settled(self, reference: Any) -> bool:
        """Take what came; whether it is an answer."""
        actor, number = self._asked.pop(reference)
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            if not broken(error):  # another actor would raise it, too
                raise
            ray.kill(actor, no_restart=False)  # made anew, for other trials as well
            time.sleep(_PAUSE)  # it would still say that it is there
            self._failed(actor, number, error)
            return False
        except RayError as error:
            self._failed(actor, number, error)
            return False
        if number is not None:
            self._answers[number] = answer
        if self._waiting:
            number = self._waiting.popleft()
            call = getattr(actor, self._method).options(max_task_retries=0)
            self._asked[call.remote(*self._calls[number])] = actor, number
        else:
            self._free.append(actor)
        return True

    def _failed(self, actor: Any, number: int | None, error: RayError) -> None:
        """Give a call that failed to another, and ask whether the actor is there again."""
        if number is not None:
            self._failures[number] += not lost_with_node(error)  # a node takes all its actors along
            if self._failures[number] > self._resources.retries:
                raise ActorError(
                    f"{self._method} by a trial failed with {self._failures[number]} lent actors; the last: {what(error)}"
                ) from error
            self._again(number)
        elif isinstance(error, ActorDiedError):  # as Ray restarts it, it could not be made again
            self._gone = what(error)
            return
        else:  # its node is lost, and Ray does not know yet
            time.sleep(_PAUSE)
        self._greet(actor)

    def _look_round(self) -> None:
        """After a long silence: give calls of actors that show no life to others; ActorError where none does."""
        told = {r: actor for r, (actor, _) in self._asked.items() if hasattr(actor, "progress")}
        living = showing_life(told)
        silent = [reference for reference in told if reference not in living]
        if len(silent) == len(self._asked) and not self._free:
            # where trials have all places that a lost node has left, this one's is what they wait for
            raise ActorError(f"no lent actor that could do {self._method} shows life: they may have no place")
        for reference in silent:
            actor, number = self._asked[reference]
            if number is not None:
                self._asked[reference] = actor, None  # whatever it answers one day, it is there again
                self._again(number)

    def _again(self, number: int) -> None:
        """For whoever is there: those that are free said so long ago."""
        self._waiting.append(number)
        while self._free:
            self._greet(self._free.pop())

    def _greet(self, actor: Any) -> None:
        self._asked[actor.__ray_ready__.remote()] = actor, None


def showing_life(actors: Mapping[Key, Any]) -> list[Key]:
    """Which of some actors tell how far they are: those that have a place do, beside their work."""
    asked = {key: actor.progress.remote() for key, actor in actors.items()}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_LIFE)
    return [key for key, told in asked.items() if _answered(told)]


def _answered(reference: Any) -> bool:
    with suppress(RayError):  # a timeout is one of them
        ray.get(reference, timeout=0)
        return True
    return False
