"""What people say of a run's pairs: each verdict is one file, written once, that the driver reads when a round begins.

    RUN/verdicts/TASK_ID-XXXXXXXX.json    {"task_id": ..., "accepted": ..., "reviewer": ..., "at": ..., "shard": ""}

A pair that no round made but a person with the service is named by its shard: accepted, it enters the pool. Who only judges needs no right to
write the run: the ledger has one writer, and takes new verdicts in by itself (`Ledger.fold_verdicts`). The last verdict on a pair counts.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import asdict, dataclass

from cdiff.data.run import Run
from cdiff.errors import DataError

_TASK = re.compile(r"[0-9a-f]{16}")
_SHARD = re.compile(r"pairs/[0-9a-f]{16}\.parquet")
_KEY = re.compile(r"verdicts/[0-9a-f]{16}-[0-9a-f]{8}\.json")
_REVIEWER = re.compile(r"[^\x00-\x1f]{1,100}")
_MOST = 10_000  # bytes of a file that is read: anybody with the service's token may have written it


@dataclass(frozen=True, slots=True)
class Verdict:
    """One person's word on one pair."""

    task_id: str
    accepted: bool
    reviewer: str
    at: float  # seconds since 1970
    shard: str = ""  # of a pair that no round made: where it lies

    def __post_init__(self) -> None:
        if not _TASK.fullmatch(self.task_id):
            raise DataError(f"task_id: {self.task_id[:40]!r} is none: it has 16 digits of 0-9a-f.")
        if not _REVIEWER.fullmatch(self.reviewer):
            raise DataError("reviewer: a name of 1 to 100 characters.")
        if self.shard and not _SHARD.fullmatch(self.shard):
            raise DataError(f"shard: {self.shard[:60]!r} is none.")


def write_verdict(run: Run, verdict: Verdict) -> str:
    """Store a verdict; returns its key."""
    key = f"verdicts/{verdict.task_id}-{uuid.uuid4().hex[:8]}.json"
    run.storage.create(key, json.dumps(asdict(verdict)).encode())
    return key


def verdicts(
    run: Run, but: set[str] | frozenset[str] = frozenset(), read: dict[str, Verdict] | None = None
) -> dict[str, Verdict]:
    """All verdicts by key, without those of the given keys and without files that are none, the earliest first.

    Args:
        read: those that were read before, and now these: a verdict is written once, and on S3 each costs two requests.
    """
    found: dict[str, Verdict] = {}
    read = {} if read is None else read
    for key in run.storage.keys("verdicts/"):
        if key in but or not _KEY.fullmatch(key):  # a copy that a file manager made, as "... (copy).json"
            continue
        if key in read:
            found[key] = read[key]
            continue
        if (run.storage.size(key) or 0) > _MOST:
            continue
        try:
            told = json.loads(run.storage.read(key))
            about = told["task_id"], bool(told["accepted"]), told["reviewer"], float(told["at"])
            found[key] = read[key] = Verdict(*about, shard=told.get("shard", ""))
        except (ValueError, KeyError, TypeError, AttributeError, DataError):
            continue
    return dict(sorted(found.items(), key=lambda item: (item[1].at, item[0])))
