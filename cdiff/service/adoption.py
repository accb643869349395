"""Pairs that people make with the service and want trained on: made again, looked at, and stored for the driver to take in.

    RUN/made/HASH.json           a request with its pictures: from it its pairs can be made again
    RUN/made/TASK_ID.of          the HASH of the request that made a pair
    RUN/pairs/HASH.parquet       the pair, of purpose "human", with its COMMIT
    RUN/verdicts/TASK_ID-*.json  who accepted it; written last (cdiff.data.verdicts)

The service makes the pair itself, from the request: nobody brings pixels that are said to be a generator's. Photos that come with it must not be
those of the validation or test split, or the proof would be none; that they show other objects than those, only their owner can know.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageOps

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.data.images import Limits, decode_upload, probe
from cdiff.data.leaks import near_duplicates
from cdiff.data.manifest import Manifest
from cdiff.data.run import Run
from cdiff.data.store import ShardRow, shard_name, write_shard
from cdiff.errors import RequestError, RunError
from cdiff.service.requests import PairRequest
from cdiff.service.studio import Studio
from cdiff.types import Attempt, Sample

MOST_WAITING = 200  # pairs that no round has taken in yet
_COMPARED = 512  # longest side of a photo that is looked for among others


def human_pair(studio: Studio, request: PairRequest, task_id: str) -> ShardRow:
    """One pair of a request, made again, under the name of the shard that it is to be stored as.

    Raises:
        RequestError: the request makes no such pair (another generator may stand now); or as `Studio.tickets`.
    """
    tickets = [ticket for ticket in studio.tickets(request) if ticket.task.task_id == task_id]
    if not tickets:
        raise RequestError(
            f"task_id: this request makes no pair {task_id}. Make its pairs again: the run may have another generator now."
        )
    if request.model not in (None, studio.run.name):
        raise RequestError(
            f"made.model: {request.model!r} made this pair, but {studio.run.name!r} is to train on it."
        )
    (row,) = studio.make(tickets)
    assignment = replace(row.attempt.assignment, purpose="human")
    return replace(row, attempt=replace(row.attempt, assignment=assignment, shard=shard_name([assignment])))


def demand_unseen(request: PairRequest, dataset: Dataset, manifest: Manifest, config: DataConfig) -> None:
    """Refuse photos that are held out, or nearly, turned or mirrored as well. Takes seconds for a thousand photos.

    Raises:
        RequestError: naming the offender.
    """
    pictures = list(_pictures(request))
    if not pictures:
        return
    held_out = [dataset.sample(i) for split in ("validation", "test") for i in manifest.ids(split)]
    # each side is of one group: only photos of the request and held-out ones are compared with each other
    known = [replace(s, image=dataset.here(s.image), group="held out") for s in held_out]
    with tempfile.TemporaryDirectory() as folder:
        brought = [s for name, picture in pictures for s in _turned(name, picture, Path(folder), config)]
        found = near_duplicates([*known, *brought], config)
    own = {sample.sample_id for sample in brought}
    if near := [one for pair in found for one in (pair.first, pair.second) if one in own]:
        raise RequestError(
            f"{near[0].rpartition('-')[0]}: this photo is one of those that the run is judged on, or nearly; a pair made of it cannot be trained on."
        )


def store_human_pair(run: Run, request: PairRequest, row: ShardRow) -> str:
    """Store request and pair; returns the shard's name. Twice the same is once.

    Raises:
        StorageError: there is no room.
    """
    told = request.model_dump_json(exclude_none=True).encode()
    pixels = (
        len(row.image_png)
        + len(row.mask_png)
        + len(row.crop_png)
        + len(row.reference_png)
        + len(row.region_png)
    )
    run.demand_room(len(told) + 2 * pixels, "a pair and its request")
    name = hashlib.sha256(told).hexdigest()[:32]
    run.storage.create(f"made/{name}.json", told)
    run.storage.create(_key(row.attempt), name.encode())
    return write_shard(run, row.attempt.shard, [row])


def human_pair_again(studio: Studio, attempt: Attempt) -> tuple[bytes, bytes]:
    """Photo and mask of a stored human pair, PNG bytes, from the request that made it.

    Raises:
        RequestError: the request makes another pair now. RunError: it is gone.
    """
    storage = studio.run.storage
    try:
        name = storage.read(_key(attempt)).decode("ascii")
        request = PairRequest.model_validate_json(storage.read(f"made/{name}.json"))
    except (FileNotFoundError, ValueError):
        raise RunError(
            f"{studio.run.url} no longer has the request that made pair {attempt.task_id}: it cannot be made again."
        ) from None
    row = human_pair(studio, request, attempt.task_id)
    return row.image_png, row.mask_png


def _key(attempt: Attempt) -> str:
    return f"made/{attempt.task_id}.of"


def _turned(name: str, picture: bytes, folder: Path, config: DataConfig) -> Iterable[Sample]:
    """A photo in all eight turns and mirrorings: fits turn photos, too."""
    with Image.fromarray(decode_upload(picture, name, Limits.of(config))[0]) as image:
        image.thumbnail((_COMPARED, _COMPARED), Image.Resampling.BOX)
        for number in range(8):
            turned = ImageOps.mirror(image) if number % 2 else image
            for _ in range(number // 2):
                turned = turned.transpose(Image.Transpose.ROTATE_90)
            path = folder / f"{name}-{number}.png"
            turned.save(path, compress_level=0)
            width, height, mode, checksum, _ = probe(path, Limits.of(config))
            yield Sample(path.stem, "", (), "brought", str(path), (), width, height, mode, checksum)


def _pictures(request: PairRequest) -> Iterable[tuple[str, bytes]]:
    if request.reference:
        yield "reference", request.reference.image
    if request.background:
        yield "background", request.background
