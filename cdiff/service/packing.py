"""Pairs as an answer: JSON with base64 PNGs, a ZIP in MVTec AD's layout, or Parquet with the columns of a run's shards."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from cdiff.data.images import OWN, decode_mask_png
from cdiff.data.mvtec import pair_places
from cdiff.data.store import ShardRow, encode_shard
from cdiff.service.requests import PairAnswer, PairsAnswer

JSON, ZIP, PARQUET = "application/json", "application/zip", "application/vnd.apache.parquet"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of all files: equal pairs, equal bytes

__all__ = ["JSON", "PARQUET", "ZIP", "as_json", "as_parquet", "as_zip", "b64"]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def as_json(rows: Sequence[ShardRow], reasons: Sequence[str], model: str) -> PairsAnswer:
    """Pixels and provenance.

    Args:
        reasons: of the gate, one per pair; "" for a valid one.
    """
    return PairsAnswer(
        model=model, pairs=[_pair(row, reason) for row, reason in zip(rows, reasons, strict=True)]
    )


def as_zip(rows: Sequence[ShardRow], reasons: Sequence[str], model: str) -> bytes:
    """CATEGORY/test/TYPE/000.png, CATEGORY/ground_truth/TYPE/000_mask.png, and provenance.json; under invalid/ what shows no target.

    A photo with an empty mask is none of a defect, and as it may still show what was painted, none of a normal object.
    """
    numbers: Counter[tuple[str, str]] = Counter()
    sink, told = io.BytesIO(), []
    with zipfile.ZipFile(sink, "w") as archive:
        for row, reason in zip(rows, reasons, strict=True):
            image, mask = _places(row, numbers)
            archive.writestr(zipfile.ZipInfo(image, _EPOCH), row.image_png)  # PNGs are packed already
            if mask is not None:
                archive.writestr(zipfile.ZipInfo(mask, _EPOCH), row.mask_png)
            about = _pair(row, reason).model_dump(exclude={"image", "mask"})
            told.append({"image": image, "mask": mask, **about})
        text = json.dumps({"model": model, "pairs": told}, indent=1)
        archive.writestr(zipfile.ZipInfo("provenance.json", _EPOCH), text)
    return sink.getvalue()


def _places(row: ShardRow, numbers: Counter[tuple[str, str]]) -> tuple[str, str | None]:
    shows = decode_mask_png(row.mask_png, OWN).any()
    key = (row.attempt.category, row.attempt.type) if shows else ("", "")
    number = numbers[key]
    numbers[key] += 1
    return pair_places(*key, number) if shows else (f"invalid/{number:03d}.png", None)


def as_parquet(rows: Sequence[ShardRow]) -> bytes:
    """The columns of a run's shards (cdiff.data.store); the gate's verdict is not among them."""
    return encode_shard(rows)


def _pair(row: ShardRow, reason: str) -> PairAnswer:
    attempt, task = row.attempt, row.attempt.assignment.task
    return PairAnswer(
        task_id=task.task_id,
        category=attempt.category,
        type=attempt.type,
        seed=task.seed,
        image=b64(row.image_png),
        mask=b64(row.mask_png),
        box=attempt.box,
        valid=not reason,
        reason=reason,
        reference=task.reference,
        background=task.background,
        strengths=asdict(task.strengths),
        pose=asdict(task.pose),
        recipe=asdict(task.recipe),
        revisions=asdict(task.revisions),
        measures=dict(attempt.measures),
    )
