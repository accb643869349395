"""The run's own pairs through the service: looked at, turned away, and left out by the next round."""

import base64
import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import cdiff.data.ledger as ledger_module
import cdiff.service.review as review_module
from actors import web
from actors.door import Door
from cdiff.data.ledger import Ledger
from cdiff.data.storage import LocalStorage
from cdiff.data.store import read_pair
from cdiff.service.adoption import human_pair_again
from cdiff.service.studio import Studio
from tests.conftest import b64, png


@pytest.fixture
def client(backend) -> TestClient:
    return TestClient(
        web.build_app(lambda: backend, Door),
        base_url="http://127.0.0.1",
        client=("127.0.0.1", 50000),
        raise_server_exceptions=False,
    )


def test_kept_pairs_are_listed_shown_and_judged(client, judged_run) -> None:
    listed = client.get("/v1/kept?limit=2").json()
    assert listed["total"] == 3 and len(listed["pairs"]) == 2
    assert {(pair["category"], pair["type"], pair["round"]) for pair in listed["pairs"]} == {
        ("metal", "pit", 1)
    }
    first = listed["pairs"][0]["task_id"]
    (pair,) = (p for p in Ledger(judged_run).pairs(1) if p.task_id == first)
    shown = client.get(f"/v1/kept/{first}/mask")
    assert (
        shown.headers["content-type"] == "image/png"
        and shown.content == read_pair(judged_run, pair.attempt)[1]
    )
    said = {"task_id": first, "accepted": False, "reviewer": "Ada"}
    assert client.post("/v1/verdicts", json=said).status_code == 201
    assert client.get("/v1/kept?limit=1").json()["pairs"][0]["verdict"] == "rejected"
    assert len(list((judged_run.path / "verdicts").iterdir())) == 1
    ledger = Ledger(judged_run)
    ledger.fold_verdicts()
    assert first not in {pair.task_id for pair in ledger.kept_pairs()} and len(ledger.kept_pairs()) == 2
    ledger.close()
    assert client.post("/v1/verdicts", json=said | {"accepted": True}).status_code == 201
    assert client.get("/v1/kept?limit=1").json()["pairs"][0]["verdict"] == "accepted"


@pytest.mark.parametrize(
    "path", ["/v1/kept/0123456789abcdef/image", "/v1/kept/..%2F..%2Fetc/image", "/v1/kept?limit=1000"]
)
def test_what_is_not_there_is_a_4xx(client, path) -> None:
    assert 400 <= client.get(path).status_code < 500


def test_a_verdict_on_nothing_is_refused(client) -> None:
    said = {"task_id": "0123456789abcdef", "accepted": False, "reviewer": "Ada"}
    assert client.post("/v1/verdicts", json=said).status_code == 422
    assert client.post("/v1/verdicts", json=said | {"reviewer": ""}).status_code == 422


def _accepted(client, request: dict, **more) -> tuple[dict, Any]:
    pair = client.post("/v1/pairs", json=request).json()["pairs"][-1]
    said = {"task_id": pair["task_id"], "accepted": True, "reviewer": "Ada", "made": request} | more
    return pair, client.post("/v1/verdicts", json=said)


def test_a_pair_made_by_hand_enters_the_pool_and_is_made_again_byte_for_byte(
    client, judged_run, studio, sent
) -> None:
    request = {"type": "pit", "background": sent["photo"], "mask": sent["mask"], "n": 2, "seed": 9}
    pair, answer = _accepted(client, request)
    assert answer.status_code == 201, answer.text
    listed = client.get("/v1/kept").json()["pairs"]
    assert [one["human"] for one in listed] == [True, False, False, False]
    assert listed[0]["task_id"] == pair["task_id"] and listed[0]["round"] == 2
    shown = client.get(f"/v1/kept/{pair['task_id']}/image").content
    assert shown == base64.b64decode(pair["image"])
    ledger = Ledger(judged_run)
    ledger.fold_verdicts()
    ((_, human),) = ledger.human_pairs()
    assert human in ledger.kept_pairs() and human.attempt.assignment.purpose == "human"
    again = human_pair_again(Studio(judged_run, studio.dataset), human.attempt)
    assert again == read_pair(judged_run, human.attempt)
    ledger.close()
    assert _accepted(client, request)[1].status_code == 201, "twice is once"
    said = {"task_id": pair["task_id"], "accepted": False, "reviewer": "Grace"}
    assert client.post("/v1/verdicts", json=said).status_code == 201
    ledger = Ledger(judged_run)
    ledger.fold_verdicts()
    assert len(ledger.human_pairs()) == 1 and human not in ledger.kept_pairs()
    ledger.close()


def test_what_was_read_once_is_not_read_again(client, judged_run, monkeypatch) -> None:
    request = {"type": "pit", "n": 3, "seed": 4}
    pairs = client.post("/v1/pairs", json=request).json()["pairs"]
    for pair in pairs:
        said = {"task_id": pair["task_id"], "accepted": True, "reviewer": "Ada", "made": request}
        assert client.post("/v1/verdicts", json=said).status_code == 201
    assert len({path.name for path in (judged_run.path / "made").glob("*.json")}) == 1, (
        "one request, stored once"
    )
    client.get("/v1/kept")
    monkeypatch.setattr(ledger_module, "read_attempts", lambda *_: pytest.fail("read again"))
    read = LocalStorage.read

    def counted(storage, key):
        assert not key.startswith("verdicts/"), "read again"
        return read(storage, key)

    monkeypatch.setattr(LocalStorage, "read", counted)
    assert client.get("/v1/kept").json()["total"] == 6


def test_only_so_many_pairs_wait_for_a_round(client, monkeypatch) -> None:
    monkeypatch.setattr(review_module, "MOST_WAITING", 1)
    assert _accepted(client, {"type": "pit", "seed": 4})[1].status_code == 201
    _, answer = _accepted(client, {"type": "bar"})
    assert answer.status_code == 422 and "wait" in answer.json()["error"]


def test_a_request_that_makes_another_pair_is_told(client) -> None:
    _, answer = _accepted(client, {"type": "pit"}, task_id="0123456789abcdef")
    assert answer.status_code == 422 and "makes no pair" in answer.json()["error"]
    other = {"type": "pit", "model": "another"}
    said = {"task_id": "0123456789abcdef", "accepted": True, "reviewer": "Ada", "made": other}
    assert client.post("/v1/verdicts", json=said).status_code == 422


@pytest.mark.parametrize("split", ["validation", "test"])
def test_photos_that_judge_the_run_are_not_trained_on(
    client, studio, photos, sent, split, monkeypatch
) -> None:
    sample = photos.samples[0]
    held = dataclasses.replace(
        studio.manifest,
        rows=tuple(
            dataclasses.replace(row, split=split) if row.sample_id == sample.sample_id else row
            for row in studio.manifest.rows
        ),
    )
    monkeypatch.setattr(studio, "manifest", held)
    with Image.open(sample.image) as image:  # not the very file, but what it shows, turned and mirrored
        pixels = np.asarray(image.convert("RGB"), int)[::-1].swapaxes(0, 1) + 4
    shown = b64(png(pixels.clip(0, 255).astype(np.uint8)))
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[20:40, 20:40] = 255
    reference = {"image": shown, "mask": b64(png(mask))}
    for asked, where in (
        ({"type": "bar", "background": shown}, "background"),
        ({"reference": reference}, "reference"),
    ):
        _, answer = _accepted(client, {"category": "metal", **asked})
        assert answer.status_code == 422 and answer.json()["error"].startswith(where)
    assert _accepted(client, {"type": "bar", "background": sent["photo"]})[1].status_code == 201
    own = {"image": sent["photo"], "mask": sent["mask"]}  # a target and where it is to go, on one photo
    asked = {"category": "metal", "reference": own, "background": sent["photo"]}
    assert _accepted(client, asked)[1].status_code == 201
