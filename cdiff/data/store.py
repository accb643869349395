"""Parquet shards of pairs: attempts with their pixels and provenance.

A shard is stored whole (cdiff.data.storage); then `SHARD.COMMIT` with its checksum makes it durable. A shard without a COMMIT that fits
does not exist: it is ignored, and made again. Verdicts are not in shards
(they come later, and from the gate); they stand in the ledger (cdiff.data.ledger).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cdiff.data.carriers import from_json, to_json
from cdiff.data.run import Run, create_run, find_run, home_folder, home_of, open_run, safe_name
from cdiff.errors import RunError
from cdiff.types import (
    Assignment,
    Attempt,
    Box,
    GenerationTask,
    Pose,
    Recipe,
    Revisions,
    Strengths,
    content_hash,
)

__all__ = [
    "Run",
    "ShardRow",
    "copy_shard",
    "create_run",
    "encode_shard",
    "find_run",
    "home_folder",
    "home_of",
    "open_run",
    "pool_seconds",
    "read_attempts",
    "read_crops",
    "read_pair",
    "read_provenance",
    "safe_name",
    "shard_committed",
    "shard_name",
    "write_shard",
]

# Far below the 64 MB that readers of the format bear: who wants one pair reads one row group.
ROW_GROUP_BYTES = 4 << 20
IMAGES = ("image_png", "mask_png", "crop_png", "reference_png", "region_png")
_seen: set[tuple[str, str]] = set()  # shards of runs on S3 that this process found to be what was committed
_REVISIONS = tuple(f"revision_{field.name}" for field in dataclasses.fields(Revisions))
_SHARD = re.compile(r"pairs/[0-9a-f]{16}\.parquet")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("task_id", "category", "type", "slice", "purpose")),
        ("index", pa.int64()),
        ("reference", pa.string()),
        ("background", pa.string()),
        ("seed", pa.uint64()),
        ("difficulty", pa.float64()),
        ("recipe", pa.string()),  # JSON, as are pose, box and measures
        *((field.name, pa.float64()) for field in dataclasses.fields(Strengths)),
        ("pose", pa.string()),
        *((f"revision_{field.name}", pa.string()) for field in dataclasses.fields(Revisions)),
        ("box", pa.string()),
        ("measures", pa.string()),
        ("fingerprint", pa.binary()),
        *((name, pa.binary()) for name in IMAGES),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardRow:
    """An attempt with its pixels, all as PNG bytes."""

    attempt: Attempt
    image_png: bytes  # the full photo with the pair pasted in, in the photo's own mode
    mask_png: bytes  # all targets of that photo
    crop_png: bytes  # the crop as the photo now shows it
    reference_png: bytes  # the pasted real target that it started from
    region_png: bytes  # where the generator painted, at the crop's size


def shard_name(assignments: Sequence[Assignment]) -> str:
    """Where the shard of these tasks lies, relative to the run folder: the same tasks, the same file."""
    return f"pairs/{content_hash([assignment.task_id for assignment in assignments])}.parquet"


def write_shard(run: Run, name: str, rows: Sequence[ShardRow], seconds: float = 0.0) -> str:
    """Store a shard, then commit it; returns its name.

    Args:
        seconds: what it took to make; it stands in the COMMIT, not in the shard, since no two times are equal.
    Raises:
        ValueError: a row that does not say this shard and its own place in it, or whose task a file would change
            (a float given as an int).
    """
    for number, row in enumerate(rows):
        if (row.attempt.shard, row.attempt.row) != (name, number):
            raise ValueError(f"row {number} of {name} says row {row.attempt.row} of {row.attempt.shard}")
        if any(
            type(value) is not float for value in dataclasses.astuple(row.attempt.assignment.task.strengths)
        ):
            raise ValueError(f"row {number} of {name}: strengths are floats, or the task_id would change")
    if shard_committed(run, name):  # by an actor whose answer was lost; what is committed never changes
        return name
    data = encode_shard(rows)
    run.storage.write(_checked(name), data)
    commit = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "rows": len(rows),
        "seconds": round(seconds, 3),
    }
    run.storage.write(_commit(name), json.dumps(commit).encode())
    return name


def shard_committed(run: Run, name: str) -> bool:
    """Whether the shard is there, whole and unchanged since its commit; on S3, which keeps checksums itself, by its size."""
    try:
        commit = json.loads(run.storage.read(_commit(name)))
        if not isinstance(commit, dict) or run.storage.size(_checked(name)) != commit.get("bytes"):
            return False
        if run.remote:
            return True
        with run.local(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == commit.get("sha256")
    except (FileNotFoundError, ValueError):
        return False


def copy_shard(source: Run, target: Run, name: str) -> None:
    """Bring a committed shard of one run into another; its COMMIT last."""
    for key in (_checked(name), _commit(name)):
        target.storage.write(key, source.storage.read(key))


def pool_seconds(run: Run, attempts: Iterable[Attempt]) -> float:
    """What the shards of some attempts took when they were made, in seconds of one actor, wherever that was."""
    commits = [run.storage.read(_commit(name)) for name in sorted({attempt.shard for attempt in attempts})]
    return sum(float(json.loads(commit).get("seconds", 0.0)) for commit in commits)


def read_provenance(run: Run, name: str) -> pa.Table:
    """All columns of a committed shard but the pixels, one row per attempt; errors as in `read_attempts`."""
    if not shard_committed(run, name):
        raise RunError(
            f"{run.url}/{name} has no COMMIT that fits it: it was never finished, or was changed later. "
            "Run the same command again to make it anew."
        )
    columns = [column for column in _SCHEMA.names if column not in IMAGES]
    try:
        with run.storage.open(name) as file:  # on S3, only the columns that are asked for travel
            return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {run.url}/{name}: {error}. Run the same command again.") from None


def read_attempts(run: Run, shard: str) -> list[Attempt]:
    """The attempts of a committed shard, in order.

    Raises:
        RunError: the shard has no COMMIT that fits.
    """
    rows = read_provenance(run, shard).to_pylist()
    return [_attempt(row, shard, number) for number, row in enumerate(rows)]


def read_pair(run: Run, attempt: Attempt) -> tuple[bytes, bytes]:
    """Photo and mask of an attempt, PNG bytes.

    Raises:
        RunError: the shard is gone or damaged.
    """
    image, mask = _read_images(run, attempt, IMAGES[:2])
    return image, mask


def read_crops(run: Run, attempt: Attempt) -> tuple[bytes, bytes, bytes]:
    """Crop, reference and region of an attempt, PNG bytes, for pictures; errors as in `read_pair`."""
    crop, reference, region = _read_images(run, attempt, IMAGES[2:])
    return crop, reference, region


def _local(run: Run, name: str) -> Path:
    """The file of a shard on this machine; that of a run on S3 has the checksum of its COMMIT, looked at once per process."""
    path = run.path / _checked(name)
    if not run.remote or (run.url, name) in _seen:
        return path
    try:
        wanted = json.loads(run.storage.read(_commit(name)))["sha256"]
        for _ in range(2):  # what lies here may be of another try than the one that was committed
            if run.local(name).is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted:
                _seen.add((run.url, name))
                return path
            path.unlink(missing_ok=True)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    raise RunError(
        f"{run.url}/{name} has no COMMIT that fits it: it was changed later. A pair that was kept is lost; start a new run."
    )


def _checked(name: str) -> str:
    if not _SHARD.fullmatch(name):
        raise RunError(f"{name!r} is not the name of a shard; shards are pairs/HASH.parquet.")
    return name


def _commit(name: str) -> str:
    return f"{_checked(name)}.COMMIT"


def encode_shard(rows: Sequence[ShardRow]) -> bytes:
    """A shard as Parquet bytes: PNGs as they are (they are compressed, and their statistics are useless), the rest packed."""
    plain = [column for column in _SCHEMA.names if column not in IMAGES]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        _SCHEMA,
        use_dictionary=plain,
        write_statistics=plain,
        compression={column: "NONE" if column in IMAGES else "ZSTD" for column in _SCHEMA.names},
        write_page_checksum=True,
    ) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist([_record(row) for row in group], schema=_SCHEMA))
    return sink.getvalue().to_pybytes()


def _groups(rows: Sequence[ShardRow]) -> list[list[ShardRow]]:
    groups: list[list[ShardRow]] = []
    size = 0
    for row in rows:
        weight = sum(len(getattr(row, name)) for name in IMAGES)
        if not groups or size + weight > ROW_GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += weight
    return groups


def _record(row: ShardRow) -> dict[str, Any]:
    attempt, assignment, task = row.attempt, row.attempt.assignment, row.attempt.assignment.task
    return {
        "task_id": task.task_id,
        "category": attempt.category,
        "type": attempt.type,
        "slice": assignment.slice,
        "purpose": assignment.purpose,
        "index": assignment.index,
        "reference": task.reference,
        "background": task.background,
        "seed": task.seed,
        "difficulty": task.difficulty,
        "recipe": _recipe_text(task.recipe),
        **to_json(task.strengths),
        "pose": json.dumps(to_json(task.pose)),
        **{f"revision_{key}": value for key, value in to_json(task.revisions).items()},
        "box": json.dumps(to_json(attempt.box)),
        "measures": json.dumps(to_json(attempt.measures)),
        "fingerprint": attempt.fingerprint,
        **{name: getattr(row, name) for name in IMAGES},
    }


def _attempt(row: Mapping[str, Any], shard: str, number: int) -> Attempt:
    task = GenerationTask(
        recipe=_recipe(row["recipe"]),
        reference=sys.intern(row["reference"]),
        background=sys.intern(row["background"]),
        pose=from_json(Pose, json.loads(row["pose"])),
        strengths=Strengths(**{field.name: row[field.name] for field in dataclasses.fields(Strengths)}),
        seed=row["seed"],
        difficulty=row["difficulty"],
        revisions=_revisions(*(row[name] for name in _REVISIONS)),
    )
    if task.task_id != row["task_id"]:
        raise RunError(f"row {number} of {shard} was written by another version of cdiff; start a new run.")
    return Attempt(
        assignment=Assignment(task, sys.intern(row["slice"]), row["purpose"], row["index"]),
        shard=shard,
        row=number,
        category=sys.intern(row["category"]),
        type=sys.intern(row["type"]),
        box=from_json(Box, json.loads(row["box"])),
        measures=tuple((sys.intern(name), float(value)) for name, value in json.loads(row["measures"])),
        fingerprint=row["fingerprint"],
    )


# The rows of a run have few recipes and revisions between them: each is read once, and a million attempts share it.
@lru_cache(maxsize=1024)
def _recipe(text: str) -> Recipe:
    recipe: Recipe = from_json(Recipe, json.loads(text))
    return recipe


@lru_cache(maxsize=1024)
def _recipe_text(recipe: Recipe) -> str:
    return json.dumps(to_json(recipe))


@lru_cache(maxsize=1024)
def _revisions(*told: str) -> Revisions:
    return Revisions(*told)


def _read_images(run: Run, attempt: Attempt, columns: Sequence[str]) -> list[bytes]:
    path = _local(run, attempt.shard)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if attempt.row < first + rows:
                    table = file.read_row_group(group, columns=list(columns))
                    return [table[column][attempt.row - first].as_py() for column in columns]
                first += rows
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"cannot read {path}: {error}. A pair that was kept is lost; start a new run."
        ) from None
    raise RunError(f"{path} has no row {attempt.row}: it was changed after its commit.")
