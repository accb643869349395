"""Files under a prefix of an S3 bucket, as `cdiff.data.storage.Storage`.

boto3 writes, lists and makes the conditional writes (IfNoneMatch, IfMatch) that commits and leases rest on; pyarrow reads parts of Parquet
files. Both are built by `clients` from the same settings: AWS_ENDPOINT_URL for a server of one's own, AWS_REGION, and credentials from
the environment, the shared file or the machine's role.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config as ClientConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
)
from pyarrow import fs

from cdiff.data.storage import PATIENCE, checked
from cdiff.errors import StorageError

log = logging.getLogger(__name__)
_PAUSE = 5.0  # longest pause between two tries
_CONNECT, READ = 5, 60  # seconds; those who have less patience wait for an answer for half of it
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_CHANGED = frozenset({"412", "PreconditionFailed"})
_AGAIN = frozenset(
    {
        "409",
        "ConditionalRequestConflict",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "TooManyRequestsException",
        "InternalError",
        "ServiceUnavailable",
    }
)
# no waiting mends them
_LOCAL = frozenset({errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM})
_Result = TypeVar("_Result")


class S3Storage:
    """Objects under s3://BUCKET/PREFIX."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        patience: float = PATIENCE,
        sleep: Callable[[float], None] = time.sleep,
        names: re.Pattern[str] | None = None,
    ) -> None:
        self.bucket, self.prefix, self._patience, self._sleep = bucket, prefix, patience, sleep
        self._read = min(READ, max(1, int(patience / 2)))
        self._names = names  # keys that are taken instead of our own: of folders that others filled

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def read(self, key: str) -> bytes:
        def call() -> bytes:
            found: bytes = self._client().get_object(**self._at(key))["Body"].read()
            return found

        return self._patiently("read", key, call)

    def open(self, key: str) -> BinaryIO:
        """For readers of parts, as Parquet's."""
        name = f"{self.bucket}/{self._at(key)['Key']}"
        return self._patiently("read", key, lambda: clients(self._read)[1].open_input_file(name))

    def write(self, key: str, data: bytes) -> None:
        self._patiently("write", key, lambda: self._client().put_object(**self._at(key), Body=data))

    def create(self, key: str, data: bytes) -> bool:
        return self._conditionally(key, data, IfNoneMatch="*")

    def size(self, key: str) -> int | None:
        try:
            return int(
                self._patiently("read", key, lambda: self._client().head_object(**self._at(key)))[
                    "ContentLength"
                ]
            )
        except FileNotFoundError:
            return None

    def tag(self, key: str) -> str | None:
        try:
            return str(
                self._patiently("read", key, lambda: self._client().head_object(**self._at(key)))["ETag"]
            )
        except FileNotFoundError:
            return None

    def swap(self, key: str, data: bytes, tag: str) -> bool:
        return self._conditionally(key, data, IfMatch=tag)

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(self.tags(prefix))

    def tags(self, prefix: str = "") -> dict[str, str]:
        """Tags of all files whose keys begin with a prefix, by key."""
        cut = len(self.prefix) + 1 if self.prefix else 0
        whole = f"{self.prefix}/{prefix}" if self.prefix else prefix

        def call() -> dict[str, str]:
            pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=whole)
            return {found["Key"][cut:]: found["ETag"] for page in pages for found in page.get("Contents", ())}

        return self._patiently("list", prefix or "all", call)

    def delete(self, key: str) -> None:
        self._patiently("delete", key, lambda: self._client().delete_object(**self._at(key)))

    def fetch(self, key: str, target: Path) -> None:
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        at = self._at(key)

        def call() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._client().download_file(at["Bucket"], at["Key"], str(temporary))
            os.replace(temporary, target)

        try:
            self._patiently("read", key, call)
        finally:
            temporary.unlink(missing_ok=True)

    def send(self, key: str, source: Path) -> None:
        at = self._at(key)
        self._patiently(
            "write", key, lambda: self._client().upload_file(str(source), at["Bucket"], at["Key"])
        )

    def free_bytes(self) -> int | None:
        return None

    def _client(self) -> Any:
        return clients(self._read)[0]

    def _at(self, key: str) -> dict[str, str]:
        if not (self._names and self._names.fullmatch(key)):
            checked(key)
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}" if self.prefix else key}

    def _conditionally(self, key: str, data: bytes, **condition: str) -> bool:
        """A conditional write; where it is refused after a try whose answer was lost, what lies there may be ours."""
        tries = 0

        def call() -> bool:
            nonlocal tries
            tries += 1
            try:
                self._client().put_object(**self._at(key), Body=data, **condition)
            except ClientError as error:
                if "IfMatch" in condition and _code(error) in _MISSING:
                    return False
                if _code(error) not in _CHANGED:
                    raise
                return tries > 1 and self.read(key) == data
            return True

        return self._patiently("write", key, call)

    def _patiently(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        """A call, again and again while the bucket cannot be reached; what no waiting mends is raised at once."""
        began, pause, told = time.monotonic(), 0.2, False
        while True:
            try:
                return call()
            except (BotoCoreError, ClientError, Boto3Error, OSError) as raised:
                # transfers in parts wrap what the server said
                error = raised.__context__ if isinstance(raised, Boto3Error) else raised
                assert isinstance(error, Exception)
                cause = self._hopeless(verb, key, error)
                if cause is not None:
                    raise cause from None
                waited = time.monotonic() - began
                if waited > self._patience:
                    raise StorageError(
                        f"cannot {verb} {self.url}/{key} for {waited:.0f} s: {_said(error)}. What is committed is safe: mend the network "
                        "or the bucket, and give the same command again."
                    ) from None
                if waited > 1 and not told:
                    log.warning(
                        "cannot %s %s/%s (%s): trying for up to %.0f s",
                        verb,
                        self.url,
                        key,
                        _said(error),
                        self._patience,
                    )
                    told = True
            self._sleep(pause)
            pause = min(_PAUSE, 2 * pause)

    def _hopeless(self, verb: str, key: str, error: Exception) -> Exception | None:
        """What to raise at once; None where another try may help."""
        if isinstance(error, FileNotFoundError):
            return error
        if isinstance(error, NoCredentialsError):
            return StorageError(
                f"no credentials for {self.url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, or give the "
                "machines a role."
            )
        if isinstance(error, ParamValidationError):
            return StorageError(f"{self.url} is no place on S3: {error}. Give s3://BUCKET/PREFIX.")
        if isinstance(error, OSError) and error.errno in _LOCAL:
            return StorageError(
                f"cannot {verb} {self.url}/{key}: {error.strerror} on this machine. Free the disk under CDIFF_CACHE, or name another."
            )
        if "ACCESS_DENIED" in str(error):  # pyarrow's way to say it
            return StorageError(
                f"cannot {verb} {self.url}/{key}: access denied. Check the rights of the credentials."
            )
        if "configured region" in str(error):  # pyarrow's as well: it follows no redirect
            return StorageError(
                f"cannot {verb} {self.url}/{key}: {_said(error)}. Set AWS_REGION to the bucket's region on every node."
            )
        if not isinstance(error, ClientError):
            return None  # connections
        code, status = _code(error), int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _MISSING:
            return FileNotFoundError(f"{self.url}/{key}")
        if code in _AGAIN or status == 429 or (status >= 500 and status != 501):
            return None
        return StorageError(
            f"cannot {verb} {self.url}/{key}: {_said(error)}. Check the bucket's name, its region and the rights of the credentials."
        )


@cache
def clients(read_seconds: int) -> tuple[Any, fs.S3FileSystem]:
    """boto3's client and pyarrow's file system, of the same settings; one pair per process and patience."""
    session = boto3.Session()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # botocore reads AWS_DEFAULT_REGION alone
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    client = session.client(
        "s3",
        region_name=region,
        endpoint_url=endpoint,
        config=ClientConfig(
            connect_timeout=_CONNECT,
            read_timeout=read_seconds,
            # one try each: a conditional write that is repeated unseen would be refused for its own first try
            retries={"mode": "standard", "total_max_attempts": 1},
            s3={"addressing_style": "path"}
            if endpoint
            else {},  # a server of one's own rarely has a name per bucket
        ),
    )
    told: dict[str, Any] = {"region": region, "connect_timeout": _CONNECT, "request_timeout": read_seconds}
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        told |= {"endpoint_override": host.rstrip("/"), "scheme": scheme}
    found = session.get_credentials()
    if found is not None and found.method in ("env", "shared-credentials-file", "config-file"):
        fixed = found.get_frozen_credentials()
        told |= {"access_key": fixed.access_key, "secret_key": fixed.secret_key, "session_token": fixed.token}
    return client, fs.S3FileSystem(**told)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _said(error: Exception) -> str:
    """An error without addresses that sign requests."""
    if isinstance(error, ClientError):
        return f"{_code(error)} {error.response.get('Error', {}).get('Message', '')}".strip()
    return (
        f"{type(error).__name__}: {error}" if not isinstance(error, HTTPClientError) else type(error).__name__
    )
