"""Photos on S3: brought to the driver's machine as a whole, and to any other when an actor there asks for one.

    CACHE/data/HASH/NAME/...       the files, as in the bucket; CACHE is CDIFF_CACHE, else ~/.cache/cdiff, and the same path on all nodes
    CACHE/data/HASH/index.json     what was brought: {path: [tag in the bucket, SHA-256]}

A file that changed in the bucket is brought anew by the next start; within a run it is refused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cdiff.data.run import cache_folder
from cdiff.data.s3 import S3Storage
from cdiff.data.storage import write_durably
from cdiff.errors import DataError
from cdiff.types import content_hash

log = logging.getLogger(__name__)
_AT_ONCE = 16
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a network file system
# Files of this machine that this process found to be what they must be, and how they were then: another run may replace or remove them.
_checked: dict[tuple[Path, str], tuple[int, int, int]] = {}
# Names as users give them, with blanks and brackets; never out of the folder.
_PATH = re.compile(r"(?!.*(^|/)\.{1,2}(/|$))[^/\\\x00-\x1f][^\\\x00-\x1f]{0,900}")


@dataclass(frozen=True)
class Origin:
    """A folder of photos whose source is a bucket; crosses to actors."""

    url: str
    folder: Path
    sums: Mapping[str, str]  # SHA-256 by path below the folder

    def bring(self, path: Path) -> None:
        """See to it that this machine has a file of this folder, as it was when the run began; summed up once per process, and again
        where it was replaced.

        Raises:
            DataError: it is not in the bucket any more, or is another one.
        """
        if not path.is_relative_to(self.folder):
            return
        name = path.relative_to(self.folder).as_posix()
        wanted = self.sums.get(name, "")
        state = _state(path)
        if state is not None and _checked.get((path, wanted)) == state:
            return
        if state is None or _sum(path) != wanted:  # an earlier run may have left an earlier one here
            state = self._fetch(name, path, wanted)
        if state is not None:
            _checked[path, wanted] = state

    def _fetch(self, name: str, path: Path, wanted: str) -> tuple[int, int, int] | None:
        """Bring a file; how it is then, whatever another run puts there later."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        try:
            _storage(self.url).fetch(name, temporary)
            if _sum(temporary) != wanted:
                raise DataError(f"{self.url}/{name} was changed since the run began. Start a new run.")
            state = _state(temporary)
            os.replace(temporary, path)
        except FileNotFoundError:
            raise DataError(f"{self.url}/{name} is gone. Restore it, or start a new run.") from None
        finally:
            temporary.unlink(missing_ok=True)
        return state


def _state(path: Path) -> tuple[int, int, int] | None:
    """What tells that a file is the one that it was; None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def origin_of(url: str, wanted: Callable[[str], bool] = lambda name: True) -> Origin:
    """Bring all files under an s3:// URL to this machine; those that are here and unchanged stay. Of several processes one brings them.

    Args:
        wanted: whether a file is, by its path below the URL.
    Raises:
        DataError: nothing lies there, or a name leads out of the folder.
        StorageError: the bucket cannot be read.
    """
    url = _checked_url(url)
    folder = cache_folder().resolve() / "data" / content_hash(url)[:16] / url.rpartition("/")[2]
    found = {name: tag for name, tag in listed(url).items() if wanted(name)}
    with _alone(folder.parent):
        return Origin(url, folder, _brought(url, folder, found))


def _brought(url: str, folder: Path, found: Mapping[str, str]) -> dict[str, str]:
    """Fetch what is missing of the files, by tag in the bucket; their SHA-256."""
    storage, index = _storage(url), folder.parent / "index.json"
    known = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    missing = [
        name
        for name, tag in found.items()
        if known.get(name, [""])[0] != tag or not (folder / name).is_file()
    ]
    if (
        folder.is_dir()
    ):  # what a fetch that was cut off brought is in no index, and may be gone from the bucket
        for path in folder.rglob("*"):
            if (
                path.is_file()
                and not path.name.startswith(".")
                and path.relative_to(folder).as_posix() not in found
            ):
                path.unlink(missing_ok=True)

    def fetch(name: str) -> str:
        storage.fetch(name, folder / name)
        return _sum(folder / name)

    sums = {name: known[name][1] for name in set(found) - set(missing)}
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            bar = tqdm(
                pool.map(fetch, missing), total=len(missing), desc=f"fetching {url}", unit="file", leave=False
            )
            for name, fetched in zip(missing, bar, strict=True):
                sums[name] = fetched
    finally:  # cut off, it goes on from here
        done = {name: [tag, sums[name]] for name, tag in found.items() if name in sums}
        write_durably(index, json.dumps(done).encode())
    return sums


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process of this machine is at it: actors that start together would each fetch gigabytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "%s cannot be locked: actors that start together fetch the same files side by side", folder
            )
        yield


def brought(told: Sequence[str]) -> tuple[list[str], list[Origin]]:
    """Folders of this machine for what a user named, in order; those on S3 are brought here first. Errors as in `origin_of`."""
    origins = {url: origin_of(url) for url in told if "://" in url}
    return [str(origins[path].folder) if path in origins else path for path in told], list(origins.values())


def listed(url: str) -> dict[str, str]:
    """Path and tag of all files under a URL; hidden ones and markers of folders are passed over. Errors as in `origin_of`."""
    storage = _storage(_checked_url(url))
    marks = ("/", "")  # a folder's own, as consoles make them
    found = {n: tag for n, tag in storage.tags().items() if n[-1:] not in marks and "/." not in f"/{n}"}
    if not found:
        raise DataError(f"nothing lies under {storage.url}. Give s3://BUCKET/FOLDER with photos and masks.")
    for name in found:
        if not _PATH.fullmatch(name):
            raise DataError(f"{storage.url}/{name!r} is no path of a photo: rename it in the bucket.")
    return found


def _storage(url: str) -> S3Storage:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return S3Storage(bucket, prefix, names=_PATH)


def _checked_url(url: str) -> str:
    url = url.rstrip("/")
    if not re.fullmatch(r"s3://[^/]+(/.+)?", url) or url.rpartition("/")[2] in (".", ".."):
        raise DataError(f"{url} is neither a folder nor s3://BUCKET/FOLDER.")
    return url


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
