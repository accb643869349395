"""Who may write a run: one file that its owner renews, and that another takes over once it is stale.

    free ----acquire----> mine --renewed every BEAT seconds--> mine ----release----> free
                            | not renewed for EXPIRY seconds, or its process is gone
                            +----acquire by another--> theirs: the earlier owner's next `demand` fails

A driver that was cut off and comes back finds that it lost the lease, and stops before it writes. Where clocks of two machines differ
by more than EXPIRY the name in the refusal still tells whom to ask.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psutil

from cdiff.data.storage import Storage
from cdiff.errors import RunError

log = logging.getLogger(__name__)
KEY = "lease.json"
BEAT, EXPIRY = 10.0, 60.0  # seconds


class Lease:
    """The right to write one run, kept by a thread of its own.

    Args:
        clock: seconds since 1970; that of the owner against that of whoever wants to take over.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Callable[[], float] = time.time,
        beat: float = BEAT,
        expiry: float = EXPIRY,
    ) -> None:
        self._storage, self._clock, self._beat, self._expiry = storage, clock, beat, expiry
        self._token = uuid.uuid4().hex
        self._tag: str | None = None  # of the lease as we wrote it last; None: not ours
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lease, or take it over from an owner that is gone.

        Raises:
            RunError: another driver lives; with its name, and how long ago it was heard.
        """
        wanted = self._written()
        while not self._storage.create(KEY, wanted):
            tag = self._storage.tag(KEY)
            found = self._found()
            if tag is None or found is None:
                continue  # released in between
            age = self._clock() - float(found.get("at", 0.0))
            if age < self._expiry and not _gone(found):
                raise RunError(
                    f"{self._storage.url} is written by {_named(found)}, heard {max(age, 0.0):.0f} s ago. Wait for it, stop it, or choose "
                    f"another run name; {self._expiry:.0f} s after it fell silent the run can be taken over."
                )
            if self._storage.swap(KEY, wanted, tag):
                log.warning(
                    "%s: taken over from %s, silent for %.0f s", self._storage.url, _named(found), age
                )
                break
        self._tag = self._storage.tag(KEY)
        self._demand_token()
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep, name="cdiff-lease", daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        return self._tag is not None

    def demand(self) -> None:
        """Return while the lease is ours; RunError, with the new owner's name, once it was taken over."""
        if self._tag is None:
            found = self._found()
            raise RunError(
                f"{self._storage.url} was taken over by {_named(found) if found else 'another driver'}: this one fell silent for too "
                "long. Nothing that was committed is lost; let the other go on."
            )

    def release(self) -> None:
        """Give the lease back; without effect where it is not ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=self._beat)
            self._thread = None
        with self._lock:
            if self._tag is not None and self._storage.tag(KEY) == self._tag:
                self._storage.delete(KEY)
            self._tag = None

    def renew(self) -> None:
        """Say that the owner lives; called every BEAT seconds by the lease's own thread."""
        with self._lock:
            if self._tag is None:
                return
            data = self._written()
            if self._storage.swap(KEY, data, self._tag):
                self._tag = self._storage.tag(KEY)
                self._demand_token()
            else:
                self._demand_token()

    def _keep(self) -> None:
        while not self._stop.wait(self._beat):
            with contextlib.suppress(
                RunError
            ):  # storage out of reach: the next beat tries again, and `demand` tells
                self.renew()

    def _demand_token(self) -> None:
        """Whether what lies there now is ours; otherwise it is lost for good."""
        found = self._found()
        if found is None or found.get("token") != self._token:
            self._tag = None

    def _written(self) -> bytes:
        process = psutil.Process()
        about = {
            "token": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": process.create_time(),
            "user": process.username(),
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
    """Whether the owner was a process of this machine that has ended; pids are used anew, start times are not."""
    if found.get("host") != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(int(found["pid"])).create_time() != found["started"])
    except psutil.NoSuchProcess:
        return True
    except (KeyError, ValueError, TypeError, psutil.Error):
        return False


def _named(found: dict[str, Any]) -> str:
    return f"process {found.get('pid', '?')} of {found.get('user', '?')} on {found.get('host', '?')}"
