"""What a replica does for itself: common batches of which each pays for its own, and no photo that judges the run is trained on."""

import asyncio
import base64
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors.generating import Generating, Wish, _made_of
from cdiff.errors import RequestError
from cdiff.service.requests import PairRequest


def _wish(studio: Any, kind: str) -> Wish:
    return Wish(studio, PairRequest.model_validate({"type": kind}))


def test_a_wish_that_cannot_be_made_costs_the_others_of_its_batch_nothing(studio) -> None:
    good, bad = _wish(studio, "pit"), _wish(studio, "rust")
    ((alone, said),) = _made_of([(good, 0)])  # type: ignore[misc]
    first, broken, last = _made_of([(good, 0), (bad, 0), (good, 0)])
    assert isinstance(broken, RequestError) and "no type 'rust'" in str(broken)
    for made in (first, last):
        assert not isinstance(made, Exception)
        assert (made[0].image_png, made[0].mask_png, made[1]) == (alone.image_png, alone.mask_png, said)


@pytest.fixture
def replica(studio) -> Any:
    """Without Serve: it holds a studio, and a thread."""
    replica: Any = object.__new__(Generating)
    replica._comparing = ThreadPoolExecutor(1)
    replica._studio = lambda _: asyncio.sleep(0, studio)
    with ThreadPoolExecutor(1) as replica._thread:
        yield replica


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_replica_refuses_photos_that_judge_the_run(replica, studio, photos, split, monkeypatch) -> None:
    held, free = photos.samples[0], photos.samples[1]
    rows = [
        dataclasses.replace(row, split=split) if row.sample_id == held.sample_id else row
        for row in studio.manifest.rows
    ]
    monkeypatch.setattr(studio, "manifest", dataclasses.replace(studio.manifest, rows=tuple(rows)))

    def adopted(sample: Any) -> Any:
        shown = base64.b64encode(Path(sample.image).read_bytes()).decode()
        asked = PairRequest.model_validate({"type": "pit", "background": shown})
        (ticket,) = studio.tickets(asked)
        return asyncio.run(replica.human("one", asked, ticket.task.task_id))

    with pytest.raises(RequestError, match=r"background: .* judged on"):
        adopted(held)
    assert adopted(free).attempt.assignment.purpose == "human"


def test_what_is_wrong_with_a_request_is_found_once_however_many_pairs_it_asks_for(
    studio, monkeypatch
) -> None:
    planned: list[PairRequest] = []

    def tickets(request: PairRequest) -> Any:
        planned.append(request)
        raise RequestError("region: off the photo")

    monkeypatch.setattr(studio, "tickets", tickets)
    wish = Wish(studio, PairRequest.model_validate({"type": "pit", "n": 16}))
    found = _made_of([(wish, number) for number in range(16)])
    assert len(found) == 16 and all(isinstance(one, RequestError) for one in found) and len(planned) == 1
