"""A group of equal actors: fan-out with bounded queues, retries by item, replacement of dead actors, and a watchdog.

    items (keyed) -> [ _fill: least loaded actor, at most `in_flight` calls each ] -> [ _collect: wait ] -> results
                          ^                                                             |
                          +---- retried item, up to `retries` more times, elsewhere <---+

Ray's own restarts stay off (`actors.resources.actor_options`): an actor that Ray restarts refuses calls while it starts,
and that would eat the retries. The group makes a new one instead, so there is one mechanism to understand.
Every remote method must be harmless to repeat: a call may have run before its answer was lost.
An actor that has a method `progress` is asked how far it is: as long as a step is done or a result comes, the group waits.
Only actors that have found their places get calls: the others, on a cluster that grows or has lost a node, join once they have one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

from actors.failures import (
    DEAD,
    MEMORY_REMEDY,
    broken,
    how,
    last_words,
    lost_with_node,
    never_made,
    out_of_memory,
    what,
)
from actors.room import Item, Member, Room, Steps
from actors.starting import Starting
from cdiff.config import ResourceConfig
from cdiff.errors import ActorError, CdiffError, LoopStalled

log = logging.getLogger(__name__)

Work = tuple[str, tuple[Any, ...]]  # the item's id, the arguments of its call
# Of an item that killed its actor twice: called with its id, arguments and cause.
Parts = Callable[[str, tuple[Any, ...], str], list[Work]]
# Of an item that ran out of memory: called with its id and arguments; arguments that need less, or None if there are none.
Lighter = Callable[[str, tuple[Any, ...]], tuple[Any, ...] | None]
Watch = Callable[[Sequence[Steps]], None]  # called while the group waits, with the steps of actors that work

POLL_SECONDS = 1.0  # how often a waiting group looks up: Ctrl-C and progress bars
_PATIENCE = 10.0  # seconds for which an item that failed waits for another actor's place


class ActorGroup:
    """Equal actors behind one face.

    Args:
        name: what messages call the group, as "generator".
        make: makes the actor with the given index, as `lambda i: GeneratorActor.options(**options).remote(run, config)`;
            called again when the actor dies, so it must give the actor all state that it needs.
        count: actors, >= 1. One with a place is enough to go on.
        resources: `in_flight` calls per actor, `retries` of an item, `stall_timeout_s` without a step or a result before the
            group gives up.
        cluster: what waits for calls and takes them back, with the functions of the module `ray`: other futures than Ray's.
    Raises (all calls):
        ActorError: an item failed 1 + retries times, or an actor could not be made.
        LoopStalled: nothing moved any more.
        CdiffError: whatever kind the actor raised: it is the user's to mend, so it is never retried.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[int], Any],
        count: int,
        resources: ResourceConfig,
        cluster: Any = ray,
    ) -> None:
        if count < 1:
            raise ValueError(f"a group needs at least one actor, not {count}")
        self.name, self._make, self._resources, self._ray = name, make, resources, cluster
        self._members = [self._member(index) for index in range(count)]
        self._streaming, self._results = False, 0
        # Who has room and what is in flight, kept as it changes: going through all members for every call would cost their square.
        self._room = Room(self._members, resources.in_flight)
        self._owner: dict[Any, Member] = {}  # by object reference
        self._starting = Starting(self._members, name, cluster)
        self._asked = -POLL_SECONDS  # when members were asked for their progress, time.monotonic
        self._parts: Parts | None = None
        self._lighter: Lighter | None = None

    def __enter__(self) -> ActorGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    @property
    def placed(self) -> int:
        """Members that have found their places."""
        self._admit(self._starting.placed())
        return len(self._members) - len(self._starting)

    @property
    def handles(self) -> list[Any]:
        """The live actor handles, in order."""
        return [member.handle for member in self._members]

    def call(self, method: str, *arguments: Any, watch: Watch | None = None) -> Any:
        """One call on one actor of the group, with the group's retries; returns its result."""
        return self.run(method, [(method, arguments)], watch=watch)[0]

    def run(
        self,
        method: str,
        items: Iterable[Work],
        *,
        done: Callable[[str], None] | None = None,
        watch: Watch | None = None,
    ) -> list[Any]:
        """All results, in the order of the items, whatever order they finish in. Arguments as in `stream`."""
        work = list(items)
        results = dict(self.stream(method, work, done=done, watch=watch))
        return [results[key] for key, _ in work]

    def stream(
        self,
        method: str,
        items: Iterable[Work],
        *,
        done: Callable[[str], None] | None = None,
        watch: Watch | None = None,
        parts: Parts | None = None,
        lighter: Lighter | None = None,
    ) -> Generator[tuple[str, Any], None, None]:
        """Yield (id, result) as items complete.

        Args:
            method: name of the actors' method.
            items: (id, arguments), ids unique; taken one by one only as actors have room.
            done: called with an item's id when its result is there, for progress bars.
            watch: called about once a second while the group waits, with the steps that working actors told last.
            parts: what to do instead of an item that killed two actors, so that what is harmless in it is done; nothing, and the
                stream goes on without it. A part that kills once more is asked about in its turn. Without it such an item is an error.
            lighter: with what arguments to try an item again that ran out of memory, once.
        """
        if self._streaming:
            raise ActorError(f"the {self.name} group is still working: finish or close its last stream first")
        source, waiting, seen = iter(items), deque[Item](), set[str]()
        self._streaming, self._results = True, 0
        self._room = Room(self._members, self._resources.in_flight)
        self._parts, self._lighter = parts, lighter
        try:
            while self._fill(method, source, waiting, seen):
                for key, result in self._collect(method, waiting, watch):
                    self._results += 1
                    if done:
                        done(key)
                    yield key, result
        finally:
            self._streaming = False
            self._cancel()

    def close(self) -> None:
        """End all actors; the group cannot be used afterwards."""
        for member in self._members:
            self._ray.kill(member.handle, no_restart=True)
        self._members = []

    def _member(self, index: int) -> Member:
        handle = self._make(index)
        return Member(index, handle, starting=handle.__ray_ready__.remote())

    def _fill(self, method: str, source: Iterator[Work], waiting: deque[Item], seen: set[str]) -> bool:
        """Hand out items while there is room; whether anything is in flight."""
        if not self.placed:
            if not waiting and (item := self._next(source, seen)):
                waiting.append(item)
            if not waiting:
                return False
            self._admit(self._starting.someone(self._resources.stall_timeout_s))
            if not self.placed:
                raise self._standstill(method, waiting)
        self._hand_out(method, source, waiting, seen)
        if waiting and not self._owner:  # what failed waits for another actor, and the others have no place
            self._admit(self._starting.placed(_PATIENCE))
            self._hand_out(method, source, waiting, seen)
            if not self._owner:
                self._hand_out(method, source, waiting, seen, choosy=False)
        return bool(self._owner)

    def _admit(self, placed: list[Member]) -> None:
        for member in placed:
            self._room.offer(member)

    def _hand_out(
        self,
        method: str,
        source: Iterator[Work],
        waiting: deque[Item],
        seen: set[str],
        choosy: bool = True,
    ) -> None:
        """Calls for who has room.

        Args:
            choosy: an item that failed waits for another actor than the one it failed on: the fault may be the actor's, or its node's, and who
                fails at once would be free at once to fail again.
        """
        choosy, aside = choosy and len(self._members) > 1, []
        while (member := self._room.freest()) is not None:
            place = next(
                (n for n, i in enumerate(waiting) if not choosy or i.failed_on != member.index), None
            )
            item = self._next(source, seen) if place is None else waiting[place]
            if item is None or (item.deaths and member.pending):
                # in the latter case: alone with its actor, so that blame for another death is sure
                aside.append(member)
                if not waiting or item is not None:
                    break
                continue
            if place is not None:
                del waiting[place]
            reference = getattr(member.handle, method).remote(*item.arguments)
            member.pending[reference], self._owner[reference] = item, member
            self._room.offer(member)
        for member in aside:
            self._room.offer(member)

    def _settled(self, reference: Any) -> Item:
        """Take a call out of those in flight."""
        member = self._owner.pop(reference)
        item = member.pending.pop(reference)
        self._room.offer(member)
        return item

    @staticmethod
    def _next(source: Iterator[Work], seen: set[str]) -> Item | None:
        for key, arguments in source:
            if key in seen:
                raise ValueError(f"two items have the id {key!r}: results could not be told apart")
            seen.add(key)
            return Item(key, arguments)
        return None

    def _collect(self, method: str, waiting: deque[Item], watch: Watch | None) -> list[tuple[str, Any]]:
        """Wait until something is there, and settle all that is."""
        results: list[tuple[str, Any]] = []
        # who finds a place meanwhile has work at once
        for reference in self._wait(method, [*self._owner, *self._starting.references], watch):
            member = self._owner.get(reference)
            if member is None:
                continue  # settled with its actor's death a moment ago, or somebody's place
            try:
                value = self._ray.get(reference)
            except RayTaskError as error:
                if broken(
                    error
                ):  # its process lives, and everything else that it is asked for would fail as well
                    results += self._replace(method, member, error, waiting)
                else:
                    self._failed(method, self._settled(reference), member, error, waiting)
            except (*DEAD, RuntimeEnvSetupError) as error:
                results += self._replace(method, member, error, waiting)
            except RayError as error:  # the result was lost with a node, or did not fit into memory
                self._failed(method, self._settled(reference), member, error, waiting)
            else:
                results.append((self._settled(reference).key, value))
        return results

    def _wait(self, method: str, references: list[Any], watch: Watch | None) -> list[Any]:
        """The references that are ready, at least one; LoopStalled after `stall_timeout_s` in which none was and no step was done."""
        everything = {"num_returns": len(references), "timeout": 0, "fetch_local": False}
        if ready := self._ray.wait(references, **everything)[0]:
            return ready
        told, moved = self._pulse(), time.monotonic()
        while (left := moved + self._resources.stall_timeout_s - time.monotonic()) > 0:
            seconds = min(POLL_SECONDS, left)
            if self._ray.wait(references, num_returns=1, timeout=seconds, fetch_local=False)[0]:
                return self._ray.wait(references, **everything)[0]
            if (now := self._pulse()) != told:
                told, moved = now, time.monotonic()
            if watch:
                watch([steps for _, steps in told if steps[0] < steps[1]])
        raise self._standstill(method, [i for member in self._members for i in member.pending.values()])

    def _standstill(self, method: str, items: Iterable[Item]) -> LoopStalled:
        keys = [item.key for item in items]
        return LoopStalled(
            f"nothing moved among the {self.name} actors for {self._resources.stall_timeout_s:.0f} s: of {method}, {self._results} results are "
            f"there and {len(keys)} are waited for ({', '.join(keys[:3])}{' and more' if len(keys) > 3 else ''}). The cluster has free: "
            f"{self._ray.available_resources()}. If the actors never started, free or add resources; if one step takes so long, raise "
            "resources.stall_timeout_s. What is committed is safe: the same command goes on."
        )

    def _pulse(self) -> list[tuple[int, Steps]]:
        """Index and steps of the members that work, as they told last. Who has not answered is not asked again, and nobody more than a few
        times a second: results may come by the thousand."""
        began = time.monotonic()
        asking = began - self._asked >= POLL_SECONDS / 4
        self._asked = began if asking else self._asked
        for member in self._members if asking else ():
            if not member.pending or not hasattr(member.handle, "progress"):
                continue
            if member.asked is not None and self._ray.wait([member.asked], timeout=0)[0]:
                with suppress(RayError):  # a death is found by the calls that wait for it
                    member.steps = self._ray.get(member.asked)
                member.asked = None
            if member.asked is None:
                member.asked = member.handle.progress.remote()
        return [(member.index, member.steps) for member in self._members if member.pending and member.steps]

    def _replace(
        self, method: str, member: Member, error: RayError, waiting: deque[Item]
    ) -> list[tuple[str, Any]]:
        """Bury a dead actor and make its successor. The call that it was working on is blamed, those queued behind it are not."""
        said = last_words(error)
        said = f"; its last lines:\n{said}" if said else ""
        log.warning(
            "actor=%s-%d %s: %s%s; making a new one", self.name, member.index, how(error), what(error), said
        )
        results, requeued = [], deque[Item]()
        blamed = False
        pending, member.pending = member.pending, {}  # settled here, once: their errors are still to arrive
        for reference, item in pending.items():
            del self._owner[reference]
            value, finished = self._finished(reference)
            if finished:
                results.append((item.key, value))
            elif blamed:
                requeued.append(item)
            else:
                blamed = True
                self._failed(method, item, member, error, waiting, said)
        waiting.extendleft(reversed(requeued))
        self._ray.kill(member.handle, no_restart=True)  # it may be alive behind a broken connection
        successor = self._member(member.index)
        self._members[member.index] = successor
        self._starting.add(successor)
        return results

    def _failed(
        self,
        method: str,
        item: Item,
        member: Member,
        error: RayError,
        waiting: deque[Item],
        said: str = "",
    ) -> None:
        """Queue a failed item again, lighter or in parts, or give up: at once on errors that the user must mend."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, CdiffError):
            cause.add_note(f"raised in {method} of the {self.name} group, item {item.key}")
            raise cause from None
        item.failed_on = member.index
        item.cause = item.cause or what(error) + said
        if self._lightened(item, error):
            waiting.append(item)
            return
        # A node takes all its actors along, and who is asked next may be one that is not yet known to be dead: each is buried once, so this ends.
        item.failures += not lost_with_node(error)
        item.deaths += (isinstance(error, DEAD) or broken(error)) and not lost_with_node(error)
        if self._parts and item.deaths > 1 and not never_made(error):
            pieces = self._parts(item.key, item.arguments, item.cause)
            waiting.extend(
                Item(*piece, deaths=1, cause=item.cause, failed_on=member.index, light=item.light)
                for piece in pieces
            )
            return
        if never_made(error) or item.failures > self._resources.retries:
            end = f"failed {item.failures} times in {method} on item {item.key}"
            remedy = f"\n{MEMORY_REMEDY}" if out_of_memory(error) else ""
            raise ActorError(
                f"{self.name} actor {'could not be made' if never_made(error) else end}; first cause: {item.cause}{remedy}"
            ) from error
        log.warning("group=%s item=%s failure=%d: %s", self.name, item.key, item.failures, what(error))
        waiting.append(item)

    def _lightened(self, item: Item, error: RayError) -> bool:
        """Whether an item that ran out of memory goes on with lighter arguments, once."""
        if item.light or not self._lighter or not out_of_memory(error):
            return False
        lighter = self._lighter(item.key, item.arguments)
        if lighter is None:
            return False
        log.warning(
            "group=%s item=%s ran out of memory, is tried lighter: %s", self.name, item.key, what(error)
        )
        item.arguments, item.light = lighter, True
        return True

    def _cancel(self) -> None:
        """Take back what is queued: an abandoned stream must not hold up the next one."""
        for member in self._members:
            for reference in member.pending:
                self._ray.cancel(reference, force=False)
            member.pending.clear()
        self._owner.clear()

    def _finished(self, reference: Any) -> tuple[Any, bool]:
        """(result, True) when the call ended well before its actor died."""
        if not self._ray.wait([reference], timeout=0)[0]:
            return None, False
        try:
            return self._ray.get(reference), True
        except RayError:
            return None, False
