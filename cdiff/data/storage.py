"""Where a run's durable files lie: a folder of this machine, or a prefix of an S3 bucket, behind one interface.

    storage_at("/data/runs/x")          LocalStorage
    storage_at("s3://bucket/runs/x")    S3Storage, at AWS_ENDPOINT_URL where that is set

Keys are relative POSIX paths. What `write`, `create` and `swap` return from is durable, and whoever reads sees a file whole or not at
all. Credentials come from the environment or the machine's role, as boto3 finds them; they are in no message and no configuration.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from cdiff.errors import StorageError

PATIENCE = 300.0  # seconds
# what file systems without hard links answer: exFAT, SMB, gcsfuse, vboxsf
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_KEY = re.compile(r"[A-Za-z0-9_][\w.@+=-]*(/[A-Za-z0-9_][\w.@+=-]*)*")


class Storage(Protocol):
    """Files by key."""

    @property
    def url(self) -> str:
        """What messages call this place."""

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError when nothing has this key."""

    def open(self, key: str) -> BinaryIO:
        """For readers of parts, as Parquet's."""

    def write(self, key: str, data: bytes) -> None:
        """Put a file, over an earlier one if there is any."""

    def create(self, key: str, data: bytes) -> bool:
        """Put a file where there is none; False, and nothing changed, where there is another."""

    def size(self, key: str) -> int | None:
        """Bytes of a file; None without one."""

    def tag(self, key: str) -> str | None:
        """A mark that changes with the file's content; None without a file."""

    def swap(self, key: str, data: bytes, tag: str) -> bool:
        """Put a file over one that still has this tag; False, and nothing changed, where it was changed since."""

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that begin with a prefix, in order."""

    def delete(self, key: str) -> None:
        """Remove a file; one that is not there is as good as removed."""

    def fetch(self, key: str, target: Path) -> None:
        """Copy a file to this machine; raises FileNotFoundError."""

    def send(self, key: str, source: Path) -> None:
        """As `write`, from a file of this machine."""

    def free_bytes(self) -> int | None:
        """What there is room for; None where nobody knows."""


def storage_at(place: str | Path, patience: float = PATIENCE) -> Storage:
    """The storage of a local path or an s3:// URL.

    Args:
        patience: seconds for which an unreachable bucket is asked again.
    Raises:
        StorageError: another scheme, or no bucket in the URL.
    """
    text = str(place)
    if "://" not in text:
        return LocalStorage(Path(os.path.abspath(Path(text).expanduser())))
    bucket, _, prefix = text.removeprefix("s3://").partition("/")
    if not text.startswith("s3://") or not bucket:
        raise StorageError(f"{text!r} is neither a local path nor s3://BUCKET/PREFIX.")
    from cdiff.data.s3 import S3Storage  # here: who has only folders need not import boto3

    return S3Storage(bucket, prefix.strip("/"), patience)


class LocalStorage:
    """Files under a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def read(self, key: str) -> bytes:
        return self._path(key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        return self._path(key).open("rb")

    def write(self, key: str, data: bytes) -> None:
        with self._told(key):
            self._path(key).parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        with self._told(key):
            self._path(key).parent.mkdir(parents=True, exist_ok=True)
        with self._told(key), _written(self._path(key), data) as temporary:
            try:
                os.link(temporary, self._path(key))  # unlike a rename, it refuses to replace
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with self._alone(key):
                    if self._path(key).exists():
                        return False
                    os.replace(temporary, self._path(key))
            _sync_folder(self._path(key).parent)
        return True

    def size(self, key: str) -> int | None:
        path = self._path(key)
        return path.stat().st_size if path.is_file() else None

    def tag(self, key: str) -> str | None:
        try:
            return hashlib.sha256(self.read(key)).hexdigest()
        except FileNotFoundError:
            return None

    def swap(self, key: str, data: bytes, tag: str) -> bool:
        with self._told(key), self._alone(key):
            if self.tag(key) != tag:
                return False
            self.write(key, data)
        return True

    def keys(self, prefix: str = "") -> list[str]:
        # whoever asks for verdicts need not walk through all shards
        folder = self.root / prefix.rpartition("/")[0]
        found = (path.relative_to(self.root).as_posix() for path in folder.rglob("*") if path.is_file())
        return sorted(key for key in found if key.startswith(prefix) and "/." not in f"/{key}")

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def fetch(self, key: str, target: Path) -> None:
        source = self._path(key)
        if source != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            shutil.copyfile(source, temporary)
            os.replace(temporary, target)

    def send(self, key: str, source: Path) -> None:
        if source != self._path(key):
            self.write(key, source.read_bytes())

    def free_bytes(self) -> int | None:
        place = next(path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(place).free

    def _path(self, key: str) -> Path:
        return self.root / checked(key)

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """One at a time in the key's folder, for what has to look before it writes."""
        import fcntl  # here: the rest of this file works on any system

        with (self._path(key).parent / ".swap").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _told(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path(key)}: {error.strerror}. Free the disk or mend its rights, and give the same command again, "
                "or choose another --home."
            ) from None


def checked(key: str) -> str:
    """A key that leads nowhere but under its root; StorageError for any other."""
    if len(key) > 512 or not _KEY.fullmatch(key):
        raise StorageError(
            f"{key!r} is no key: keys are relative paths of letters, digits and ._@+=-, without dot files."
        )
    return key


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    with _written(path, data) as temporary:
        os.replace(temporary, path)
        _sync_folder(path.parent)


def rename_durably(temporary: Path, target: Path) -> None:
    """Rename a finished file or folder to its place, on disk: after a power cut it is whole, or not there."""
    for path in [temporary, *(temporary.rglob("*") if temporary.is_dir() else ())]:
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    temporary.rename(target)
    _sync_folder(target.parent)


@contextlib.contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """The data under a passing name beside the path, on disk; two writers may make the same file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; some network file systems refuse to open folders, and need no such help."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
