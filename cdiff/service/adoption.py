"""Pairs that people make with the service and want trained on: made again, looked at, and stored for the driver to take in.

    RUN/made/TASK_ID.json        the request that made the pair, with its pictures: from it the pair can be made again
    RUN/pairs/HASH.parquet       the pair, of purpose "human", with its COMMIT
    RUN/verdicts/TASK_ID-*.json  who accepted it; written last (cdiff.data.verdicts)

The service makes the pair itself, from the request: nobody brings pixels that are said to be a generator's. Photos that come with it must not be
of the validation or test split, or the proof would be none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.data.images import Limits, probe
from cdiff.data.leaks import near_duplicates
from cdiff.data.manifest import Manifest
from cdiff.data.run import Run
from cdiff.data.store import ShardRow, shard_name, write_shard
from cdiff.errors import RequestError
from cdiff.service.requests import PairRequest
from cdiff.service.studio import Studio
from cdiff.types import Attempt, Sample


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
    (row,) = studio.make(tickets)
    assignment = replace(row.attempt.assignment, purpose="human")
    return replace(row, attempt=replace(row.attempt, assignment=assignment, shard=shard_name([assignment])))


def demand_unseen(request: PairRequest, dataset: Dataset, manifest: Manifest, config: DataConfig) -> None:
    """Refuse photos that are held out, or nearly. Takes seconds for a thousand photos.

    Raises:
        RequestError: naming the offender.
    """
    held_out = [dataset.sample(i) for split in ("validation", "test") for i in manifest.ids(split)]
    # of one group: they are compared with the photos of the request alone
    known = [replace(s, image=dataset.here(s.image), group="held out") for s in held_out]
    with tempfile.TemporaryDirectory() as folder:
        for name, picture in _pictures(request):
            path = Path(folder) / name
            path.write_bytes(picture)
            width, height, mode, checksum = probe(path, Limits.of(config))
            brought = Sample(name, "", (), name, str(path), (), width, height, mode, checksum)
            if near_duplicates([*known, brought], config):
                raise RequestError(
                    f"{name}: this photo is one of those that the run is judged on, or nearly; a pair made of it cannot be trained on."
                )


def store_human_pair(run: Run, request: PairRequest, row: ShardRow) -> str:
    """Store request and pair; returns the shard's name. Twice the same is once."""
    run.storage.create(_key(row.attempt), request.model_dump_json(exclude_none=True).encode())
    return write_shard(run, row.attempt.shard, [row])


def human_pair_again(studio: Studio, attempt: Attempt) -> tuple[bytes, bytes]:
    """Photo and mask of a stored human pair, PNG bytes, from the request that made it.

    Raises:
        RequestError, FileNotFoundError: the request is gone, or makes another pair now.
    """
    request = PairRequest.model_validate_json(studio.run.storage.read(_key(attempt)))
    row = human_pair(studio, request, attempt.task_id)
    return row.image_png, row.mask_png


def _key(attempt: Attempt) -> str:
    return f"made/{attempt.task_id}.json"


def _pictures(request: PairRequest) -> Iterable[tuple[str, bytes]]:
    if request.reference:
        yield "reference", request.reference.image
    if request.background:
        yield "background", request.background
