"""The split manifest: which photo trains, validates or tests, and in which fold. Written once per run, as Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from cdiff.errors import DataError
from cdiff.types import Sample, Split, content_hash

_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("category", pa.string()),
        ("types", pa.list_(pa.string())),
        ("fold", pa.int32()),
        ("calibration", pa.bool_()),
        ("content", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Row:
    """One photo's place."""

    sample_id: str
    split: Split
    group: str
    category: str
    types: tuple[str, ...]
    fold: int  # -1 outside the training split
    calibration: bool  # a training photo that the generator does not see: gate thresholds come from it
    content: str = ""  # hash of photo and masks; "" in what earlier versions wrote


@dataclass(frozen=True)
class Manifest:
    """The places of all photos, and what was noted while they were given out."""

    rows: tuple[Row, ...]  # sorted by sample_id
    unscored: tuple[str, ...] = ()  # category/type that no test photo shows
    notes: tuple[str, ...] = ()  # what the user should know: photos left out, types pooled

    @cached_property
    def by_id(self) -> dict[str, Row]:
        return {row.sample_id: row for row in self.rows}

    @cached_property
    def hash(self) -> str:
        """Equal for equal splits, whatever the notes and whatever the photos show."""
        return content_hash([{k: v for k, v in asdict(row).items() if k != "content"} for row in self.rows])

    @cached_property
    def photos(self) -> str:
        """Equal for photos and masks of equal bytes and meanings."""
        return content_hash([[row.sample_id, row.content] for row in self.rows])

    def ids(self, split: str) -> list[str]:
        """Sample ids of "train", "validation" or "test", sorted."""
        return [row.sample_id for row in self.rows if row.split == split]

    def row(self, sample_id: str) -> Row:
        """Raises DataError for a photo that has no place."""
        try:
            return self.by_id[sample_id]
        except KeyError:
            raise DataError(f"no sample {sample_id!r} in the split manifest.") from None

    def fold(self, sample_id: str) -> int:
        """Fold of a training photo, -1 for others; errors as in `row`."""
        return self.row(sample_id).fold

    def group(self, sample_id: str) -> str:
        """Source object of a photo; errors as in `row`."""
        return self.row(sample_id).group

    def calibration_ids(self) -> list[str]:
        """Training photos that the generator must not see, sorted."""
        return [row.sample_id for row in self.rows if row.calibration]

    def count(self, split: str) -> str:
        """One line for people: photos, groups and photos with targets of a split."""
        rows = [row for row in self.rows if row.split == split]
        groups = len({row.group for row in rows})
        return f"{split}: {len(rows)} photos ({sum(bool(row.types) for row in rows)} with targets) of {groups} groups"


def content_of(sample: Sample) -> str:
    """Hash of a photo's and its masks' bytes and what the masks' values mean, rare types renamed; not of names, places or groups."""
    return content_hash([sample.checksum, [[mask.checksum, mask.types] for mask in sample.masks]])


def make_manifest(rows: Iterable[Row], unscored: Iterable[str], notes: Iterable[str]) -> Manifest:
    """Put rows in order."""
    ordered = tuple(sorted(rows, key=lambda row: row.sample_id))
    return Manifest(ordered, tuple(sorted(unscored)), tuple(notes))


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest as Parquet; the file appears whole or not at all."""
    table = pa.Table.from_pylist([asdict(row) for row in manifest.rows], schema=_SCHEMA)
    about = json.dumps({"unscored": manifest.unscored, "notes": manifest.notes, "hash": manifest.hash})
    target = Path(path)
    part = target.with_name(f"{target.name}.part")
    pq.write_table(table.replace_schema_metadata({"cdiff": about}), part)
    os.replace(part, target)


def read_manifest(path: str | Path) -> Manifest:
    """Read what `write_manifest` wrote.

    Raises:
        DataError: missing, damaged, or not a manifest.
    """
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"cdiff"])
    except (OSError, KeyError, pa.ArrowException, json.JSONDecodeError) as error:
        raise DataError(f"{path} is no readable split manifest ({error}). Start the run again.") from None
    rows = tuple(
        Row(
            sample_id=row["sample_id"],
            split=cast(Split, row["split"]),
            group=row["group"],
            category=row["category"],
            types=tuple(row["types"]),
            fold=row["fold"],
            calibration=row["calibration"],
            content=row.get("content") or "",
        )
        for row in table.to_pylist()
    )
    manifest = Manifest(rows, tuple(about["unscored"]), tuple(about["notes"]))
    if manifest.hash != about["hash"]:
        raise DataError(f"{path} was changed after it was written. Start the run again.")
    return manifest
