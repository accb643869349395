"""How a ledger's events lie on disk: lines of one file in a folder, numbered objects on S3.

    RUN/ledger.jsonl                 {"seq": 0, ...}\\n{"seq": 1, ...}\\n
    s3://.../RUN/ledger/00000000.json, 00000001.json, ...

Both take an event only in its own place, after all that its writer knows: whoever was overtaken by another writer fails, and
damages nothing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from cdiff.data.storage import LocalStorage, Storage
from cdiff.errors import RunError, StorageError

log = logging.getLogger(__name__)
_READERS = 16  # at once
Event = dict[str, Any]


class Journal(Protocol):
    """Events in order; `seq` counts them from 0."""

    @property
    def place(self) -> str:
        """What messages call it."""

    def load(self, known: int = 0) -> list[Event]:
        """All whole events but the first `known`; RunError where one before the last is damaged."""

    def append(self, event: Event) -> None:
        """Add the next event, durably; RunError where another writer was there first."""


def journal_of(storage: Storage) -> Journal:
    return Lines(storage.root / "ledger.jsonl") if isinstance(storage, LocalStorage) else Objects(storage)


class Lines:
    """One file of JSON lines. A line counts once its newline is on disk; a torn last line was never confirmed to anybody."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0  # the byte at which the next event goes

    @property
    def place(self) -> str:
        return str(self.path)

    def load(self, known: int = 0) -> list[Event]:
        """Where this object read or wrote them, the known ones are not read again."""
        begin, first = (self._end, known) if known and self._end else (0, 0)
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                data = file.read()
        except FileNotFoundError:
            self._end = 0
            return []
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}.") from None
        events, read = _parsed(data, self.place, first)
        self._end = begin + read
        return events[known - first :]

    def append(self, event: Event) -> None:
        line = _encoded(event) + b"\n"
        try:
            self.path.touch()
            with self.path.open("r+b") as file:
                _locked(file.fileno(), self.path)
                file.seek(self._end)
                next_line, newline, _ = file.read().partition(b"\n")
                if newline and _event(next_line, event["seq"]) is not None:
                    raise RunError(
                        f"another process wrote the run {self.path.parent} meanwhile. Nothing is lost; let it go on."
                    )
                file.truncate(self._end)
                file.seek(self._end)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"cannot write {self.path}: {error.strerror}. Free the disk, or choose another --home, and resume."
            ) from None
        self._end += len(line)


class Objects:
    """An object for each event, created only where there is none."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @property
    def place(self) -> str:
        return f"{self._storage.url}/ledger"

    def load(self, known: int = 0) -> list[Event]:
        keys = self._storage.keys("ledger/")[known:]
        with ThreadPoolExecutor(_READERS) as readers:
            # a run of a thousand events would take a minute one by one
            found = list(readers.map(self._storage.read, keys))
        events: list[Event] = []
        for number, (key, data) in enumerate(zip(keys, found, strict=True), start=known):
            event = _event(data, number)
            if event is None or key != _key(number):
                raise RunError(f"{self._storage.url}/{key} is damaged. Restore it, or start a new run.")
            events.append(event)
        return events

    def append(self, event: Event) -> None:
        if not self._storage.create(_key(event["seq"]), _encoded(event)):
            raise RunError(
                f"another process wrote the run {self._storage.url} meanwhile. Nothing is lost; let it go on."
            )


def _key(number: int) -> str:
    return f"ledger/{number:08d}.json"


def _encoded(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


def _parsed(data: bytes, place: str, first: int) -> tuple[list[Event], int]:
    """Events from number `first` on, and the bytes that they take."""
    lines = data.splitlines(keepends=True)
    events: list[Event] = []
    end = 0
    for number, line in enumerate(lines):
        event = _event(line, first + number) if line.endswith(b"\n") else None
        if event is None:
            if number + 1 < len(lines):
                raise RunError(
                    f"{place} is damaged at line {first + number + 1}. Restore it, or start a new run."
                )
            log.warning("the last line of %s is torn and does not count", place)
            break
        events.append(event)
        end += len(line)
    return events, end


def _event(data: bytes, number: int) -> Event | None:
    try:
        event = json.loads(data)
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.get("seq") == number and "kind" in event else None


def _locked(handle: int, path: Path) -> None:
    """Until the file is closed: two appends at once would end in one line."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        log.warning("%s cannot be locked (%s): start no second process on this run", path, error.strerror)
