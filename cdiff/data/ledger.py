"""The ledger: what a run has done, as append-only events (cdiff.data.journal). The driver alone writes it, as long as it holds the run's
lease (cdiff.data.lease).

    {"seq": 0, "at": 1763900000.0, "kind": "started", "schema_version": 1, ...}
    {"seq": 1, "at": ..., "kind": "milestone", "name": "generator", ...}     what is dear; the last of a name counts
    {"seq": 2, "at": ..., "kind": "round", "result": {...}, "shards": [...], "verdicts": [[task_id, reason], ...]}
    {"seq": 3, "at": ..., "kind": "verdicts", "keys": [...], "told": [...]}  what people said of pairs (cdiff.data.verdicts)
    {"seq": 4, "at": ..., "kind": "workers", "training": ..., "wanted": ..., "had": ...}   with how many a training goes on
    {"seq": 5, "at": ..., "kind": "finished", ...}

An event that was confirmed is there after any crash; replaying the events gives the state. A round exists when its event does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from cdiff.data.carriers import from_json, to_json
from cdiff.data.journal import journal_of
from cdiff.data.lease import BEAT, Lease
from cdiff.data.storage import PATIENCE, storage_at
from cdiff.data.store import Run, read_attempts
from cdiff.data.verdicts import Verdict, verdicts
from cdiff.errors import RunError, StorageError
from cdiff.types import Attempt, Gain, Pair, RoundResult

SCHEMA_VERSION = 1  # of events; raised when older code would misread them
_RESERVED = frozenset({"seq", "at", "kind", "schema_version"})


class Ledger:
    """The events of one run, in order.

    Reading needs no rights and no lease. Two drivers on one run would make nonsense of it, so writing needs the run's lease: a driver
    takes it before it reads, and gives it here. Without one, the first append takes it until `close`.

    Args:
        lease: of the run, held.
        shards: what was read of shards before, by name; a committed one never changes.
        read: verdicts that were read before, by key; neither do they.
        clock: seconds since 1970, for the `at` of events and the age of the lease.
    Raises:
        RunError: the events are damaged, or of a later version of cdiff.
    """

    def __init__(
        self,
        run: Run,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.time,
        shards: dict[str, dict[str, Attempt]] | None = None,
        read: dict[str, Verdict] | None = None,
    ) -> None:
        self.run, self._clock = run, clock
        self._journal, self._lease = journal_of(run.storage), lease or lease_of(run, clock)
        self._events: list[dict[str, Any]] = []
        self._shards: dict[str, dict[str, Attempt]] = {} if shards is None else shards
        self._read: dict[str, Verdict] = {} if read is None else read
        self._load()

    def refresh(self) -> None:
        """Read what another process has appended since."""
        self._load()

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first: `seq`, `at`, `kind`, and what was appended."""
        return [dict(event) for event in self._events]

    def append(self, kind: str, **payload: Any) -> None:
        """Add an event; when this returns, it is on disk.

        Args:
            payload: plain values and carriers of cdiff.types, also nested.
        Raises:
            RunError: another driver writes this run, or took it over; or the disk does not take it.
        """
        if _RESERVED & set(payload):
            raise ValueError(f"{sorted(_RESERVED & set(payload))} are the ledger's own names")
        told = to_json(payload)
        self._demand_lease()
        event = {"seq": len(self._events), "at": round(self._clock(), 3), "kind": kind, **told}
        if not self._events:
            event["schema_version"] = SCHEMA_VERSION
        self._journal.append(event)
        self._events.append(json.loads(json.dumps(event)))

    def record(self, name: str, **payload: Any) -> None:
        """Remember something dear; `milestone` finds what was last recorded under a name, after a restart too."""
        self.append("milestone", name=name, **payload)

    def milestone(self, name: str) -> dict[str, Any] | None:
        """What was last recorded under this name, or None."""
        found = [
            event for event in self._events if event["kind"] == "milestone" and event.get("name") == name
        ]
        return _payload(found[-1], "name") if found else None

    def last(self, kind: str) -> dict[str, Any] | None:
        """Payload of the last event of a kind ("started", "finished"), or None."""
        found = [event for event in self._events if event["kind"] == kind]
        return _payload(found[-1]) if found else None

    def closing(self) -> dict[str, Any] | None:
        """Payload of the "finished" event; None where rounds were committed after the last: it tells of an earlier state."""
        later = [event["kind"] for event in self._events if event["kind"] in ("round", "finished")]
        return self.last("finished") if later and later[-1] == "finished" else None

    def commit_round(self, result: RoundResult, pairs: Sequence[Pair]) -> None:
        """Make a round's decision and verdicts durable: the round now exists.

        Raises:
            ValueError: the round is committed already.
        """
        self._demand_lease()
        if result.round in {done.round for done in self.rounds()}:
            raise ValueError(f"round {result.round} is committed already")
        self.append(
            "round",
            result=result,
            shards=list(dict.fromkeys(pair.attempt.shard for pair in pairs)),
            verdicts=[(pair.task_id, pair.reason) for pair in pairs],
        )

    def rounds(self) -> list[RoundResult]:
        """Results of the committed rounds, in order.

        Raises:
            RunError: another version of cdiff wrote them.
        """
        try:
            return [from_json(RoundResult, event["result"]) for event in self._rounds()]
        except ValueError as error:
            raise RunError(
                f"{self._journal.place} was written by another version of cdiff ({error}). "
                "Read it with that version, or start a new run."
            ) from None

    def probed(self) -> list[Gain]:
        """What the probe before the first round found pairs to bring; ledgers of earlier versions do not have it."""
        told = self.milestone("probed")
        return from_json(list[Gain], told["gains"]) if told else []

    def gains(self) -> list[Gain]:
        """What the probe before the first round and every committed round brought, by slice.

        The pairs of an accepted round whose model does not stand are measured once more together with the next round's. That
        measurement then takes the place of the first, by slice and start strength: both would count as two of the same pairs. Where that next
        round was rejected, its own stays beside what comes later, though both are in part of the same pairs.
        """
        out, rounds = self.probed(), self.rounds()
        for place, result in enumerate(rounds):
            unseen = result.decision.accepted and not result.decision.stands  # by the best model
            later = rounds[place + 1 : place + 2] if unseen else []
            again = {(g.slice, g.start_strength) for found in later for g in found.gains}
            out += [g for g in result.gains if (g.slice, g.start_strength) not in again]
        return out

    def remaining(self, rounds: int) -> list[int]:
        """Numbers of the rounds that are still to do; the first round is 1."""
        done = {event["result"]["round"] for event in self._rounds()}
        return [number for number in range(1, rounds + 1) if number not in done]

    def pairs(self, round: int) -> list[Pair]:
        """All pairs of a committed round with their verdicts, in the order of the commit; pixels stay in the shards.

        Raises:
            RunError: a shard is gone or damaged.
        """
        return [
            pair
            for event in self._rounds()
            if event["result"]["round"] == round
            for pair in self._pairs(event)
        ]

    def best_round(self) -> int:
        """The round whose candidate is the best model; 0: the model of real photos alone is."""
        return max((result.round for result in self.rounds() if result.decision.stands), default=0)

    def best_segmenter(self) -> tuple[str, float]:
        """Revision of the model that stands, and the score threshold that was best for IoU on validation.

        Raises:
            RunError: nothing was fitted yet.
        """
        number = self.best_round()
        found = self.milestone(f"round-{number}" if number else "real_only")
        if found is None:
            raise RunError(
                f"{self.run.url} has no segmenter yet. Run the loop on it first: python jobs/loop.py --run {self.run.name}"
            )
        return found["assessed"]["revision"], found["assessed"]["threshold"]

    def kept_pairs(self, accepted_only: bool = True, until: int | None = None, since: int = 0) -> list[Pair]:
        """The kept pairs of all committed rounds, by default of the accepted ones, and those that people made: what is trained on.
        Errors as `pairs`.

        Args:
            accepted_only: not of rejected rounds, those that people made and that such a round was the first to try included; and only
                what no person turned away (`rejected`).
            until: the last round that counts; None: all. since: the last one that does not.
        """
        away = self.rejected() if accepted_only else set()
        failed = self._rejected_rounds() if accepted_only else set()
        made = [
            (event["result"]["round"], pair)
            for event in self._rounds()
            if event["result"]["round"] not in failed
            for pair in self._pairs(event)
            if pair.kept
        ]
        made += [(number, pair) for number, pair in self.human_pairs() if number not in failed]
        return [
            pair
            for number, pair in made
            if since < number and (until is None or number <= until) and pair.task_id not in away
        ]

    def human_pairs(self, also_new: bool = False) -> list[tuple[int, Pair]]:
        """Pairs that people made with the service and accepted, rejected since or not, each with the first round that trains on it.

        A round that was rejected may have failed by them: who accepts one of its pairs again gives it to the next round.

        Args:
            also_new: with verdicts that no round has taken in yet.
        Raises:
            RunError: a shard is gone or damaged.
        """
        found: dict[str, tuple[int, str]] = {}
        failed = set[int]()
        number = 1
        new = [{"kind": "verdicts", "told": to_json(list(self._new_verdicts().values()))}] if also_new else []
        for event in self._events + new:
            if event["kind"] == "round":
                number = event["result"]["round"] + 1
                failed |= set() if event["result"]["decision"]["accepted"] else {number - 1}
            for told in event["told"] if event["kind"] == "verdicts" else []:
                first, shard = found.get(told["task_id"], (0, told.get("shard", "")))
                if shard and told["accepted"] and (not first or first in failed):
                    found[told["task_id"]] = (number, shard)
        return [
            (first, Pair(self._attempts(shard)[task_id], "")) for task_id, (first, shard) in found.items()
        ]

    def fold_verdicts(self) -> int:
        """Take in what people said of pairs since the last time (cdiff.data.verdicts); returns how many verdicts."""
        new = self._new_verdicts()
        if new:
            self.append("verdicts", keys=list(new), told=list(new.values()))
        return len(new)

    def rejected(self, also_new: bool = False) -> set[str]:
        """task_ids of pairs that people turned away: the last verdict on each counts.

        Args:
            also_new: with verdicts that no round has taken in yet.
        """
        folded = [event for event in self._events if event["kind"] == "verdicts"]
        last = {verdict["task_id"]: verdict["accepted"] for event in folded for verdict in event["told"]}
        if also_new:
            last |= {verdict.task_id: verdict.accepted for verdict in self._new_verdicts().values()}
        return {task_id for task_id, accepted in last.items() if not accepted}

    def close(self) -> None:
        """Let another process write."""
        self._lease.release()

    def _rejected_rounds(self) -> set[int]:
        return {e["result"]["round"] for e in self._rounds() if not e["result"]["decision"]["accepted"]}

    def _rounds(self) -> list[dict[str, Any]]:
        return [event for event in self._events if event["kind"] == "round"]

    def _pairs(self, event: dict[str, Any]) -> list[Pair]:
        attempts = {t: attempt for shard in event["shards"] for t, attempt in self._attempts(shard).items()}
        return [Pair(attempts[task_id], reason) for task_id, reason in event["verdicts"]]

    def _attempts(self, shard: str) -> dict[str, Attempt]:
        """Those of a shard by task_id."""
        if shard not in self._shards:
            self._shards[shard] = {attempt.task_id: attempt for attempt in read_attempts(self.run, shard)}
        return self._shards[shard]

    def _new_verdicts(self) -> dict[str, Verdict]:
        """Those that no event tells of, by key. Whoever may judge may have written them: a pair that is not where one says is left out."""
        known = {key for event in self._events if event["kind"] == "verdicts" for key in event["keys"]}
        new = verdicts(self.run, known, self._read)
        return {key: told for key, told in new.items() if not told.shard or self._holds(told)}

    def _holds(self, verdict: Verdict) -> bool:
        try:
            found = self._attempts(verdict.shard).get(verdict.task_id)
        except RunError:
            return False
        return found is not None and found.assignment.purpose == "human"

    def _demand_lease(self) -> None:
        if not self._lease.held:
            self._lease.acquire()  # fails where it was lost
            self._load()  # another process may have written before
        began = time.monotonic()
        while True:
            try:
                return self._lease.demand()
            except StorageError:  # out of reach; nobody else can write either
                if time.monotonic() - began > PATIENCE:
                    raise
                time.sleep(BEAT / 2)

    def _load(self) -> None:
        self._events += self._journal.load(len(self._events))
        # files from before versions were told are of the first
        version = self._events[0].get("schema_version", 1) if self._events else SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{self._journal.place} is of schema version {version}; this cdiff knows {SCHEMA_VERSION}. Read it with the version that "
                "wrote it, or start a new run."
            )


def lease_of(run: Run, clock: Callable[[], float] = time.time) -> Lease:
    """The lease of a run, not yet taken."""
    return Lease(storage_at(run.place, patience=BEAT), clock)


def _payload(event: dict[str, Any], *also: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in _RESERVED and key not in also}
