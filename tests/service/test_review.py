"""The run's own pairs through the service: looked at, turned away, and left out by the next round."""

import pytest
from starlette.testclient import TestClient

from actors import web
from actors.door import Door
from cdiff.data.ledger import Ledger
from cdiff.data.store import read_pair


@pytest.fixture
def client(backend) -> TestClient:
    return TestClient(
        web.build_app(lambda: backend, Door), base_url="http://127.0.0.1", raise_server_exceptions=False
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
