"""One writer per run: the second is refused by name, a silent one is taken over and cannot write again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest

from cdiff.data import lease as lease_module
from cdiff.data.lease import KEY, Lease
from cdiff.data.storage import LocalStorage, Storage, storage_at
from cdiff.errors import RunError, StorageError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["folder", "bucket"])
def storage(request, tmp_path) -> Storage:
    if request.param == "folder":
        return LocalStorage(tmp_path / "run")
    return storage_at(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_a_second_driver_is_refused_with_the_owners_name_and_age(storage):
    clock = Clock()
    first, second = Lease(storage, clock, beat=100), Lease(storage, clock, beat=100)
    first.acquire()
    clock.now += 7
    with pytest.raises(RunError, match=rf"process {os.getpid()} of .* on .*, heard 7 s ago"):
        second.acquire()
    first.demand()
    first.release()
    second.acquire()
    second.demand()
    second.release()
    third = Lease(storage, clock, beat=100)
    third.acquire()  # at once: what was given back need not be waited for
    third.release()


def overtaken(storage: Storage) -> tuple[Lease, Lease]:
    """The lease of an owner that fell silent, and that of who took over."""
    clock = Clock()
    first, second = Lease(storage, clock, beat=100), Lease(storage, clock, beat=100)
    first.acquire()
    clock.now += 61
    second.acquire()
    return first, second


def test_a_silent_owner_is_taken_over_and_cannot_write_again(storage):
    first, second = overtaken(storage)
    first.renew()
    with pytest.raises(RunError, match="was taken over by process"):
        first.demand()
    second.demand()
    first.release()  # must not take the new owner's lease with it
    second.renew()
    second.demand()
    second.release()


def test_a_silent_owner_is_waited_for_until_its_minute_is_over(tmp_path, monkeypatch):
    """It may live, behind a network that is slow for a while; its driver would find itself shut out of its run."""
    clock, slept = Clock(), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    first, second = Lease(LocalStorage(tmp_path), clock, beat=100), Lease(LocalStorage(tmp_path), clock)
    first.acquire()
    clock.now += 25
    with monkeypatch.context() as patch:
        patch.setattr(lease_module, "time", SimpleNamespace(**vars(time) | {"sleep": sleep}))
        second.acquire()
    assert slept == [10, 10, 10, 5], "a beat at a time"
    second.demand()
    second.release()
    first.release()


def test_a_lost_lease_is_not_won_back(storage):
    first, second = overtaken(storage)
    second.release()  # it did its work and ended
    first.renew()
    for call in (first.demand, first.acquire):
        with pytest.raises(RunError, match="was taken over"):
            call()


def test_whoever_slept_learns_it_before_the_next_write(storage):
    clock, asleep = Clock(), [0.0]
    first = Lease(storage, clock, beat=100, awake=lambda: asleep[0])
    second = Lease(storage, clock, beat=100)
    first.acquire()
    clock.now += 61
    second.acquire()
    asleep[0] += 201  # no beat came meanwhile
    with pytest.raises(RunError, match=f"taken over by process {os.getpid()}"):
        first.demand()
    second.release()


class Careless(LocalStorage):
    """A server that ignores conditions."""

    def create(self, key: str, data: bytes) -> bool:
        self.write(key, data)
        return True


def test_storage_that_excludes_nobody_is_refused(tmp_path):
    with pytest.raises(StorageError, match="ignores conditional writes"):
        Lease(Careless(tmp_path)).acquire()


class Flaky(LocalStorage):
    """Loses the answers of conditional writes, then is out of reach for a while."""

    troubles: int = 0

    def swap(self, key: str, data: bytes, tag: str) -> bool:
        won = super().swap(key, data, tag)
        if won and self.troubles:
            self.troubles -= 1
            if self.troubles % 2:
                raise OSError(116, "Stale file handle")
            return False
        return won


def test_beats_go_on_after_lost_answers(tmp_path):
    storage = Flaky(tmp_path)
    with Lease(storage, beat=0.05) as lease:
        storage.troubles = 4
        deadline = time.monotonic() + 20
        while storage.troubles:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        at = json.loads(storage.read(KEY))["at"]
        while json.loads(storage.read(KEY))["at"] == at:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lease.demand()


def test_the_lease_is_renewed_by_itself(storage):
    lease = Lease(storage, beat=0.05)
    lease.acquire()
    at = json.loads(storage.read(KEY))["at"]
    deadline = time.monotonic() + 20
    while json.loads(storage.read(KEY))["at"] == at:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lease.demand()
    lease.release()


def _hold(root, ready) -> None:
    Lease(LocalStorage(root)).acquire()
    ready.put(True)
    time.sleep(60)


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    other = context.Process(target=_hold, args=(tmp_path, ready))
    other.start()
    ready.get(timeout=60)
    with pytest.raises(RunError, match=f"process {other.pid} "):
        Lease(LocalStorage(tmp_path)).acquire()
    assert other.pid
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    mine = Lease(LocalStorage(tmp_path))
    mine.acquire()
    mine.demand()
    mine.release()


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b'{"pid": "x", "host": 3}'])
def test_a_damaged_lease_is_taken_over(tmp_path, damaged):
    storage = LocalStorage(tmp_path)
    storage.write(KEY, damaged)
    lease = Lease(storage, beat=100)
    lease.acquire()
    lease.demand()
    lease.release()
