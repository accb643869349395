"""What storage promises, kept on a folder and on a real S3 server over HTTP."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from cdiff.data import s3
from cdiff.data.s3 import S3Storage
from cdiff.data.storage import LocalStorage, Storage, storage_at
from cdiff.errors import StorageError


@pytest.fixture(params=["folder", "bucket"])
def storage(request, tmp_path) -> Storage:
    if request.param == "folder":
        return LocalStorage(tmp_path / "run")
    url = request.getfixturevalue("bucket")
    return storage_at(f"{url}/{tmp_path.name}")


def test_what_is_written_is_read_and_written_over(storage):
    storage.write("pairs/a.parquet", b"one")
    assert storage.read("pairs/a.parquet") == b"one"
    storage.write("pairs/a.parquet", b"two")
    assert storage.read("pairs/a.parquet") == b"two"
    with storage.open("pairs/a.parquet") as file:
        file.seek(1)
        assert file.read() == b"wo"
    with pytest.raises(FileNotFoundError):
        storage.read("pairs/b.parquet")


def test_only_one_of_two_creates_a_file(storage):
    assert storage.create("ledger/0001.json", b"mine")
    assert not storage.create("ledger/0001.json", b"theirs")
    assert storage.read("ledger/0001.json") == b"mine"


def test_of_many_at_once_one_creates_and_one_swaps(storage):
    won: list[int] = []

    def race(number: int) -> None:
        if storage.create("lease.json", str(number).encode()):
            won.append(number)

    together(race)
    assert len(won) == 1 and storage.read("lease.json") == str(won[0]).encode()
    tag, won[:] = storage.tag("lease.json"), []

    def take_over(number: int) -> None:
        if storage.swap("lease.json", f"new {number}".encode(), tag):
            won.append(number)

    together(take_over)
    assert len(won) == 1 and storage.read("lease.json") == f"new {won[0]}".encode()
    assert not storage.swap("lease.json", b"late", tag)


@pytest.mark.parametrize("answer", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_lets_one_create_all_the_same(tmp_path, monkeypatch, answer):
    """exFAT, SMB, gcsfuse, vboxsf."""

    def refused(*_: object) -> None:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "link", refused)
    storage, won = LocalStorage(tmp_path / "run"), list[int]()

    def race(number: int) -> None:
        if storage.create("lease.json", str(number).encode()):
            won.append(number)

    together(race)
    assert len(won) == 1 and storage.read("lease.json") == str(won[0]).encode()
    assert not storage.create("lease.json", b"late") and storage.read("lease.json") == str(won[0]).encode()
    assert storage.keys() == ["lease.json"]


def test_what_else_keeps_a_file_from_being_created_is_told(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(StorageError, match="Read-only file system"):
        LocalStorage(tmp_path / "run").create("lease.json", b"x")


def test_keys_are_listed_in_order_and_deleted_for_good(storage):
    for number in (11, 2, 30):
        storage.write(f"ledger/{number:04d}.json", b"{}")
    storage.write("config.yaml", b"")
    assert storage.keys("ledger/") == ["ledger/0002.json", "ledger/0011.json", "ledger/0030.json"]
    storage.delete("ledger/0011.json")
    storage.delete("ledger/0011.json")
    assert storage.keys() == ["config.yaml", "ledger/0002.json", "ledger/0030.json"]
    assert storage.tag("ledger/0011.json") is None


def test_files_are_fetched_and_sent_whole(storage, tmp_path):
    source, target = tmp_path / "weights", tmp_path / "deep" / "copy"
    source.write_bytes(os.urandom(9 << 20))  # above the size at which uploads are cut in parts
    storage.send("checkpoints/r/model.safetensors", source)
    storage.fetch("checkpoints/r/model.safetensors", target)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(FileNotFoundError):
        storage.fetch("checkpoints/r/none", tmp_path / "none")
    assert [path.name for path in target.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    "key", ["../x", "/etc/passwd", "a/../b", "a//b", ".hidden", "a/.b", "", "a\\b", "x" * 600, "a\n"]
)
def test_keys_lead_nowhere_else(storage, key):
    with pytest.raises(StorageError, match="no key"):
        storage.write(key, b"")


def test_a_full_or_forbidden_disk_is_told_by_its_remedy(tmp_path):
    (tmp_path / "run").write_text("a file where a folder must be")
    with pytest.raises(StorageError, match="Free the disk"):
        LocalStorage(tmp_path / "run").write("pairs/a", b"")


def test_other_places_are_refused():
    for place in ("gs://bucket/run", "s3://", "s3:///run"):
        with pytest.raises(StorageError, match="s3://BUCKET"):
            storage_at(place)


def test_a_missing_bucket_is_told_at_once(bucket):
    with pytest.raises(StorageError, match="NoSuchBucket"):
        S3Storage("nowhere", "run").write("a", b"")


def test_a_bucket_that_goes_away_is_waited_for(bucket, monkeypatch):
    """Every third call fails, then all do, until the waiting is over."""
    storage, calls = storage_at(f"{bucket}/away"), []
    real = s3.clients(s3.READ)[0].put_object

    def flaky(**request):
        calls.append(request)
        if len(calls) % 3 == 0:
            raise ConnectionError("reset by peer")
        return real(**request)

    monkeypatch.setattr(s3.clients(s3.READ)[0], "put_object", flaky)
    for number in range(7):
        assert storage.create(f"ledger/{number}", b"x")
    assert len(calls) == 10

    def dead(**request):
        raise ConnectionError("refused")

    monkeypatch.setattr(s3.clients(1)[0], "put_object", dead)  # of those who have little patience
    short = S3Storage("cdiff", "away", patience=0.5)
    with pytest.raises(StorageError, match="give the same command again"):
        short.write("a", b"")


def test_a_write_whose_answer_was_lost_counts_as_ours(bucket, monkeypatch):
    storage, real, lost = storage_at(f"{bucket}/lost"), s3.clients(s3.READ)[0].put_object, list[int]()

    def deaf(**request):
        answer = real(**request)
        if not lost:
            lost.append(1)
            raise ConnectionError("reset by peer")
        return answer

    monkeypatch.setattr(s3.clients(s3.READ)[0], "put_object", deaf)
    assert storage.create("ledger/1", b"mine")
    assert not storage.create("ledger/1", b"theirs")


def test_an_answer_that_the_network_lost_counts_as_ours(bucket, monkeypatch):
    """Below boto3's own retries: repeated there unseen, a conditional write would be refused for its own first try."""
    from botocore.exceptions import ReadTimeoutError
    from botocore.httpsession import URLLib3Session

    storage, real, lost = storage_at(f"{bucket}/network"), URLLib3Session.send, list[str]()

    def deaf(self, request):
        answer = real(self, request)
        if request.method == "PUT" and not lost:
            lost.append(request.url)
            raise ReadTimeoutError(endpoint_url=request.url)
        return answer

    monkeypatch.setattr(URLLib3Session, "send", deaf)
    assert storage.create("ledger/1", b"mine")
    assert lost and not storage.create("ledger/1", b"theirs")


def test_what_no_waiting_mends_is_told_at_once(bucket, tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(9 << 20))
    with pytest.raises(StorageError, match="NoSuchBucket"):
        S3Storage("nowhere", "run").send("model.safetensors", weights)
    with pytest.raises(StorageError, match="is no place on S3"):
        S3Storage("no bucket", "run").write("a", b"")
    storage = storage_at(f"{bucket}/full")
    storage.write("a", b"x")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(s3.clients(s3.READ)[0], "download_file", full)
    with pytest.raises(StorageError, match="CDIFF_CACHE"):
        storage.fetch("a", tmp_path / "a")

    def elsewhere(*_: object, **__: object) -> None:  # as pyarrow tells a redirect, which it does not follow
        raise OSError("AWS Error UNKNOWN (HTTP status 301): the configured region is 'us-east-1'")

    monkeypatch.setattr(s3.clients(s3.READ)[0], "download_file", elsewhere)
    with pytest.raises(StorageError, match="Set AWS_REGION"):
        storage.fetch("a", tmp_path / "a")


def test_nothing_swaps_a_file_that_is_gone(storage):
    storage.write("a", b"x")
    tag = storage.tag("a")
    storage.delete("a")
    assert not storage.swap("a", b"y", tag)


def together(call) -> None:
    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_who_asks_for_a_folders_keys_does_not_walk_through_the_others(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    for number in range(30):
        storage.write(f"pairs/{number}.parquet", b"x")
    storage.write("verdicts/a.json", b"x")
    looked: list[Path] = []
    is_file = Path.is_file

    def noted(path: Path) -> bool:
        looked.append(path)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", noted)
    assert storage.keys("verdicts/") == ["verdicts/a.json"]
    assert len(looked) < 5, "a million pairs are sixty thousand shards"
    assert storage.keys("absent/") == [] and len(storage.keys("pairs/1")) == 11
