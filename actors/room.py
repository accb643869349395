"""Which member of an actor group gets the next call: the one with fewest, found without going through all of them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Steps = tuple[int, int]  # done, and in all of the current phase


@dataclass(slots=True)
class Item:
    """Something to call a member with."""

    key: str
    arguments: tuple[Any, ...]
    failures: int = 0
    deaths: int = 0  # of actors that were working on it
    cause: str = ""  # of the first failure: later ones are often its consequences
    failed_on: int = -1  # member that failed last
    light: bool = False  # it has its lighter arguments


@dataclass(slots=True)
class Member:
    """An actor with its calls."""

    index: int
    handle: Any
    pending: dict[Any, Item] = field(default_factory=dict)  # object reference -> item, in order of submission
    asked: Any = None  # a question for progress without an answer yet
    steps: Steps | None = None  # the last answer
    starting: Any = None  # answers once it has found a place; None once it has


class Room:
    """Members by how many calls they have, those with room for more.

    A heap of (calls, index). Whoever changes a member's calls offers it again; entries that no longer hold are passed over, so that a call
    costs the logarithm of the members.

    Args:
        members: by index; the list of the group itself, in which a successor takes the place of a dead one. in_flight: most calls of each.
    """

    def __init__(self, members: Sequence[Member], in_flight: int) -> None:
        self.looked = 0  # at entries, so far
        self._members, self._in_flight = members, in_flight
        self._heap = [(len(member.pending), member.index) for member in members if self._has_room(member)]
        heapq.heapify(self._heap)

    def offer(self, member: Member) -> None:
        """Say that a member's calls have changed, or that one that was taken out isn't used."""
        if self._has_room(member):
            heapq.heappush(self._heap, (len(member.pending), member.index))

    def freest(self) -> Member | None:
        """Take out the member with room and fewest calls, of these the first; None without any."""
        while self._heap:
            self.looked += 1
            calls, index = heapq.heappop(self._heap)
            member = self._members[index]
            if len(member.pending) == calls and self._has_room(member):
                return member
        return None

    def _has_room(self, member: Member) -> bool:
        suspect = any(item.deaths for item in member.pending.values())
        return member.starting is None and not suspect and len(member.pending) < self._in_flight
