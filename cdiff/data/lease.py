"""Who may write a run: one file that its owner renews, and that another takes over once it is stale.

    free ----acquire----> mine --renewed every BEAT seconds--> mine ----release----> free
                            | not renewed for EXPIRY seconds, or its process is gone
                            +----acquire by another--> lost: `demand` fails from then on, and nothing wins this lease back

A driver that was cut off and comes back finds that it lost the lease, and stops before it writes. Ages compare two machines' clocks: they
must agree to well under EXPIRY.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from cdiff.data.storage import Storage
from cdiff.errors import RunError, StorageError

log = logging.getLogger(__name__)
KEY = "lease.json"
BEAT, EXPIRY = 10.0, 60.0  # seconds


class Lease:
    """The right to write one run, kept by a thread of its own.

    Args:
        storage: of the run; one that waits no longer than a beat for an unreachable bucket (`storage_at(place, patience=BEAT)`).
        clock: seconds since 1970; that of the owner against that of whoever wants to take over.
        awake: seconds that go on while the machine sleeps.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Callable[[], float] = time.time,
        beat: float = BEAT,
        expiry: float = EXPIRY,
        awake: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._awake = awake
        self._storage, self._clock, self._beat, self._expiry = storage, clock, beat, expiry
        self._token = uuid.uuid4().hex
        self._tag: str | None = None  # of the lease as we wrote it last; None: not ours
        self._lost = False
        self._renewed = 0.0  # seconds since boot, sleep included
        self._stop, self._lock = threading.Event(), threading.RLock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        return self._tag is not None

    def acquire(self) -> None:
        """Take the lease, or take it over from an owner that is gone; without effect where it is ours.

        An owner that missed its beats is waited for: it may have been killed, and what starts it again is this.

        Raises:
            RunError: another driver lives (with its name, and how long ago it was heard), or took this very lease over.
            StorageError: the storage cannot exclude anybody.
        """
        with self._lock:
            if self._lost:
                raise self._taken()
            if self.held:
                return
            began = self._awake()
            while not self._storage.create(KEY, self._written()):
                began = self._awake()
                if self._taken_over():
                    break
            self._demand_exclusion()
            self._look(began)
            if not self.held:
                raise self._taken()
        self._stop = threading.Event()  # of this thread alone: an earlier one may still wait for its storage
        self._thread = threading.Thread(
            target=self._keep, args=(self._stop,), name="cdiff-lease", daemon=True
        )
        self._thread.start()

    def demand(self) -> None:
        """Return while the lease is ours; RunError, with the new owner's name, once it was taken over.

        Whoever slept for some beats, and so cannot know, renews first.
        """
        with self._lock:
            if self.held and self._awake() - self._renewed > 2 * self._beat:
                self.renew()
            if not self.held:
                raise self._taken()

    def renew(self) -> None:
        """Say that the owner lives; called every BEAT seconds by the lease's own thread."""
        with self._lock:
            if self._tag is not None:
                began = self._awake()
                self._storage.swap(KEY, self._written(), self._tag)
                self._look(began)  # won or not: an answer may have been lost

    def release(self) -> None:
        """Give the lease back; without effect where it is not ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * self._beat)
            self._thread = None
        with self._lock:
            tag, self._tag = self._tag, None
            if tag is not None:
                try:  # not deleted: between a look and a removal it may have become another's
                    self._storage.swap(KEY, json.dumps({"at": 0}).encode(), tag)
                except (RunError, OSError) as error:  # it runs out by itself
                    log.warning("the lease of %s was not given back: %s", self._storage.url, error)

    def _taken_over(self) -> bool:
        """Take over what lies there, if its owner is gone; False: look again."""
        tag, found = self._storage.tag(KEY), self._found()
        if tag is None or found is None:
            return False
        age = self._clock() - float(found.get("at", 0.0))
        if 2 * self._beat < age < self._expiry and not _gone(found):
            log.warning(
                "%s: %s is silent for %.0f s; waiting until it may be taken over",
                self._storage.url,
                _named(found),
                age,
            )
            time.sleep(min(self._beat, self._expiry - age))
            return False
        if age < self._expiry and not _gone(found):
            raise RunError(
                f"{self._storage.url} is written by {_named(found)}, heard {max(age, 0.0):.0f} s ago. Wait for it, stop it, or choose "
                f"another run name; {self._expiry:.0f} s after it fell silent the run can be taken over."
            )
        if not self._storage.swap(KEY, self._written(), tag):
            return False
        if "token" in found:
            log.warning("%s: taken over from %s, silent for %.0f s", self._storage.url, _named(found), age)
        return True

    def _demand_exclusion(self) -> None:
        """Some servers that speak S3 ignore conditions: two drivers would both win."""
        data = self._written()
        if self._storage.create(KEY, data) or self._storage.swap(KEY, data, '"0"'):
            raise StorageError(
                f"{self._storage.url} ignores conditional writes (If-None-Match, If-Match), so two drivers could write one run. Use a "
                "server that knows them, or a home on a shared folder."
            )

    def _keep(self, stop: threading.Event) -> None:
        while not stop.wait(self._beat):
            try:
                self.renew()
            except (RunError, OSError) as error:
                # out of reach: the next beat tries again, and `demand` tells
                log.warning("the lease of %s cannot be renewed: %s", self._storage.url, error)

    def _look(self, began: float) -> None:
        """Whether what lies there now is ours, written since `began`; otherwise it is lost for good."""
        tag, found = self._storage.tag(KEY), self._found()
        if tag is not None and found is not None and found.get("token") == self._token:
            self._tag, self._renewed = tag, began
        else:
            self._tag, self._lost = None, True

    def _taken(self) -> RunError:
        found = self._found() or {}
        return RunError(
            f"{self._storage.url} was taken over by {_named(found) if 'token' in found else 'another driver'}: this one fell silent for too "
            "long. Nothing that was committed is lost; let the other go on."
        )

    def _written(self) -> bytes:
        about = {
            "token": self._token,
            "host": socket.gethostname(),
            "world": _world(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "user": os.environ.get("USER", str(os.getuid())),
            "at": round(self._clock(), 3),
        }
        return json.dumps(about).encode()

    def _found(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._storage.read(KEY))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _gone(found: dict[str, Any]) -> bool:
    """Whether the owner was a process that this one could see, and has ended; pids are used anew, start times are not."""
    world = _world()
    if not world or found.get("world") != world or not isinstance(found.get("pid"), int):
        return False
    return _started(found["pid"]) != found.get("started")


def _world() -> str:
    """Where pids mean the same: this boot of this machine, this container. "" where nobody can tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process of this machine began, in ticks since boot; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _named(found: dict[str, Any]) -> str:
    return f"process {found.get('pid', '?')} of {found.get('user', '?')} on {found.get('host', '?')}"
