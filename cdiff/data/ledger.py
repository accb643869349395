"""The ledger: what a run has done, as an append-only file of JSON lines. The driver alone writes it.

    {"seq": 0, "at": 1763900000.0, "kind": "started", ...}
    {"seq": 1, "at": ..., "kind": "milestone", "name": "generator", ...}     what is dear; the last of a name counts
    {"seq": 2, "at": ..., "kind": "round", "result": {...}, "shards": [...], "verdicts": [[task_id, reason], ...]}
    {"seq": 3, "at": ..., "kind": "finished", ...}

A line counts once its newline is on disk. A torn last line (the machine died while it was written) was never confirmed
to anybody: it is ignored, and cut off by the next append. A round exists when its line does.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cdiff.data.carriers import from_json, to_json
from cdiff.data.store import Run, read_attempts
from cdiff.errors import RunError
from cdiff.types import Gain, Pair, RoundResult

log = logging.getLogger(__name__)
_RESERVED = frozenset({"seq", "at", "kind"})


class Ledger:
    """The events of one run, in order.

    Reading needs no rights and no lock. The first append takes a lock that is held until `close` or the end of the
    process: two drivers on one run would make nonsense of it.

    Args:
        path: `Run.ledger_path`; shards are looked up beside it.
        clock: seconds since 1970, for the `at` of events; nothing depends on it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.run, self._clock = Run(path.parent), clock
        self._file: BinaryIO | None = None
        self._events, self._end = _load(self.run)

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first: `seq`, `at`, `kind`, and what was appended."""
        return [dict(event) for event in self._events]

    def append(self, kind: str, **payload: Any) -> None:
        """Add an event; when this returns, it is on disk.

        Args:
            payload: plain values and carriers of cdiff.types, also nested.
        Raises:
            RunError: another process writes this run, or the disk does not take it.
        """
        if _RESERVED & set(payload):
            raise ValueError(f"{sorted(_RESERVED & set(payload))} are the ledger's own names")
        file = self._open()
        event = {"seq": len(self._events), "at": round(self._clock(), 3), "kind": kind, **to_json(payload)}
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        try:
            file.truncate(self._end)
            file.seek(self._end)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"cannot write {self.run.ledger_path}: {error.strerror}. Free the disk and resume."
            ) from None
        self._end += len(line)
        self._events.append(json.loads(line))

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

    def commit_round(self, result: RoundResult, pairs: Sequence[Pair]) -> None:
        """Make a round's decision and verdicts durable: the round now exists.

        Raises:
            ValueError: the round is committed already.
        """
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
                f"{self.run.ledger_path} was written by another version of cdiff ({error}). "
                "Read it with that version, or start a new run."
            ) from None

    def gains(self) -> list[Gain]:
        """What every committed round brought, by slice."""
        return [gain for result in self.rounds() for gain in result.gains]

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

    def kept_pairs(self, accepted_only: bool = True, until: int | None = None, since: int = 0) -> list[Pair]:
        """The kept pairs of all committed rounds, by default of the accepted ones: what is trained on. Errors as `pairs`.

        Args:
            until: the last round that counts; None: all. since: the last one that does not.
        """
        return [
            pair
            for event in self._rounds()
            if event["result"]["decision"]["accepted"] or not accepted_only
            if since < event["result"]["round"] and (until is None or event["result"]["round"] <= until)
            for pair in self._pairs(event)
            if pair.kept
        ]

    def close(self) -> None:
        """Let another process write."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rounds(self) -> list[dict[str, Any]]:
        return [event for event in self._events if event["kind"] == "round"]

    def _pairs(self, event: dict[str, Any]) -> list[Pair]:
        attempts = {
            attempt.task_id: attempt
            for shard in event["shards"]
            for attempt in read_attempts(self.run, shard)
        }
        return [Pair(attempts[task_id], reason) for task_id, reason in event["verdicts"]]

    def _open(self) -> BinaryIO:
        if self._file is not None:
            return self._file
        path = self.run.ledger_path
        try:
            path.touch()
            file = path.open("r+b")
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}. Choose another --home.") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RunError(
                f"another process writes the run {self.run.path}. Wait for it, or choose another run name."
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): start no second process on this run", path, error.strerror)
        self._events, self._end = _load(
            self.run
        )  # another process may have written between reading and locking
        self._file = file
        return file


def _payload(event: dict[str, Any], *also: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in _RESERVED and key not in also}


def _load(run: Run) -> tuple[list[dict[str, Any]], int]:
    """The whole events of a ledger file, and the byte at which the next one goes."""
    try:
        lines = run.ledger_path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise RunError(f"cannot read {run.ledger_path}: {error.strerror}.") from None
    events: list[dict[str, Any]] = []
    end = 0
    for number, line in enumerate(lines):
        event = _parse(line, number)
        if event is None:
            if number + 1 < len(lines):
                raise RunError(
                    f"{run.ledger_path} is damaged at line {number + 1}. Restore it, or start a new run."
                )
            log.warning("the last line of %s is torn and does not count", run.ledger_path)
            break
        events.append(event)
        end += len(line)
    return events, end


def _parse(line: bytes, number: int) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = (
        line.endswith(b"\n") and isinstance(event, dict) and event.get("seq") == number and "kind" in event
    )
    return event if whole else None
