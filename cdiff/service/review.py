"""The pairs that a run has kept, and those that people made for it: to look at and to judge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from cdiff.data.ledger import Ledger
from cdiff.data.run import Run
from cdiff.data.store import ShardRow, read_pair
from cdiff.data.verdicts import Verdict, verdicts, write_verdict
from cdiff.errors import RequestError
from cdiff.service.adoption import MOST_WAITING, store_human_pair
from cdiff.service.requests import KeptPair, KeptPairs, VerdictRequest
from cdiff.types import Pair

Part = Literal["image", "mask"]


class Review:
    """Of one run. The driver may be writing it: what it has committed is seen at the next look."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.time) -> None:
        self._run, self._clock = run, clock
        self._known: tuple[int, list[tuple[int, Pair]]] = (-1, [])  # number of events, and what they come to
        self._read: Ledger | None = None
        self._verdicts: dict[str, Verdict] = {}  # read once: they never change
        self._one = threading.Lock()

    def kept(self, model: str, offset: int, limit: int) -> KeptPairs:
        """Those that people made, then the rounds' kept ones, the latest first; with the last verdict on each."""
        found = self._pairs()
        last = {
            verdict.task_id: verdict.accepted for verdict in verdicts(self._run, read=self._verdicts).values()
        }
        said: dict[bool | None, Literal["accepted", "rejected"] | None] = {
            True: "accepted",
            False: "rejected",
            None: None,
        }
        shown = [
            KeptPair(
                task_id=pair.task_id,
                round=number,
                human=pair.attempt.assignment.purpose == "human",
                category=pair.attempt.category,
                type=pair.attempt.type,
                verdict=said[last.get(pair.task_id)],
            )
            for number, pair in found[offset : offset + limit]
        ]
        return KeptPairs(model=model, total=len(found), pairs=shown)

    def picture(self, task_id: str, part: Part) -> bytes:
        """PNG bytes of a kept pair's photo or mask.

        Raises:
            RequestError: the run kept no such pair.
        """
        image, mask = read_pair(self._run, self._pair(task_id).attempt)
        return image if part == "image" else mask

    def knows(self, task_id: str) -> bool:
        """Whether a verdict needs nothing but the pair's name."""
        return any(pair.task_id == task_id for _, pair in self._pairs())

    def judge(self, request: VerdictRequest, made: ShardRow | None = None) -> None:
        """Store a verdict, and with it the pair where no round made it.

        Raises:
            RequestError: as in `picture`, for a pair that does not come along.
        """
        shard = ""
        if made is not None and request.made is not None:
            with self._ledger() as ledger:
                waiting = len(ledger.human_pairs(also_new=True)) - len(ledger.human_pairs())
            if waiting >= MOST_WAITING:
                raise RequestError(
                    f"made: {waiting} pairs wait for the loop's next round already; it takes them in when it begins."
                )
            shard = store_human_pair(self._run, request.made, made)
        else:
            self._pair(request.task_id)
        verdict = Verdict(request.task_id, request.accepted, request.reviewer, self._clock(), shard)
        write_verdict(self._run, verdict)

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        """As it is now, for one thread at a time. What was read before is not read again: a page asks for many pictures at once."""
        with self._one:
            if self._read is None:
                self._read = Ledger(self._run, read=self._verdicts)
            self._read.refresh()
            yield self._read

    def _pairs(self) -> list[tuple[int, Pair]]:
        with self._ledger() as ledger:
            if len(ledger.events()) != self._known[0]:
                numbers = sorted((result.round for result in ledger.rounds()), reverse=True)
                found = [(number, pair) for number in numbers for pair in ledger.pairs(number) if pair.kept]
                self._known = len(ledger.events()), found
            return ledger.human_pairs(also_new=True)[::-1] + self._known[1]

    def _pair(self, task_id: str) -> Pair:
        for _, pair in self._pairs():
            if pair.task_id == task_id:
                return pair
        raise RequestError(f"task_id: the run kept no pair {task_id[:40]!r}.")
