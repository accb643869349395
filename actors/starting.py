"""The members of an actor group that have not found their places yet: at the start, on a cluster that grows, and after the loss of a node."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError

from actors.room import Member

log = logging.getLogger(__name__)
_POLL = 1.0  # seconds
_SILENT = 10.0  # seconds until a wait for a place is told of


class Starting:
    """Members by the call that answers once they have a place.

    Args:
        members: all of a group, whose `starting` are such calls. name: of the group. cluster: as of `actors.group.ActorGroup`.
    """

    def __init__(self, members: Sequence[Member], name: str, cluster: Any) -> None:
        self._waiting = {member.starting: member for member in members}
        self._all, self._name, self._ray = members, name, cluster

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def references(self) -> list[Any]:
        """The calls that are not answered."""
        return list(self._waiting)

    def add(self, successor: Member) -> None:
        """A member takes the place of one that may have been without one itself."""
        self._waiting = {r: m for r, m in self._waiting.items() if m.index != successor.index}
        self._waiting[successor.starting] = successor

    def placed(self, seconds: float = 0.0) -> list[Member]:
        """Take out who has a place by now, after so many seconds at most in which nobody has; who could not be made is among them: its first
        call says why."""
        references = self.references
        if references and seconds:
            self._ray.wait(references, num_returns=1, timeout=seconds)
        ready = self._ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
        found = [self._waiting.pop(reference) for reference in ready]
        for member in found:
            with suppress(RayError):
                self._ray.get(member.starting)
            member.starting = None
        return found

    def someone(self, most: float) -> list[Member]:
        """Wait for one at least, so many seconds at most, and say so."""
        began, told = time.monotonic(), False
        while (waited := time.monotonic() - began) < most:
            if found := self.placed(min(_POLL, most)):
                return found
            if waited >= _SILENT and not told:
                told = True
                log.warning(
                    "none of the %d %s actors has a place on the cluster; waiting at most %.0f s (resources.stall_timeout_s)",
                    len(self._all),
                    self._name,
                    most,
                )
        return []
