"""The service's face without Ray: who comes in, what is refused and how, and the forms of the answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import time
import zipfile
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from actors import web
from actors.door import Away, Busy, Door
from cdiff.data.images import OWN, decode_mask_png
from cdiff.data.ledger import Ledger
from cdiff.downstream.segmenter import build_segmenter, save_segmenter
from cdiff.errors import DataError
from cdiff.service.requests import SegmentRequest
from cdiff.service.studio import Studio

TOKEN = "a-token-of-some-length"
HERE = ("127.0.0.1", 50000)


@pytest.fixture
def client(backend) -> TestClient:
    door = Door(token=TOKEN, max_bytes=1_000_000, timeout_s=20)
    found = TestClient(web.build_app(lambda: backend, lambda: door), raise_server_exceptions=False)
    found.headers["authorization"] = f"Bearer {TOKEN}"
    return found


def test_pairs_come_as_json_zip_or_parquet(client) -> None:
    answer = client.post("/v1/pairs", json={"type": "pit", "n": 2})
    assert answer.status_code == 200, answer.text
    images = [base64.b64decode(pair["image"]) for pair in answer.json()["pairs"]]
    zipped = client.post("/v1/pairs", json={"type": "pit", "n": 2}, headers={"accept": "application/zip"})
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert archive.read("metal/test/pit/001.png") == images[1]
    parquet = client.post(
        "/v1/pairs", json={"type": "pit"}, headers={"accept": "application/vnd.apache.parquet"}
    )
    assert parquet.content[:4] == b"PAR1"
    assert client.post("/v1/pairs", json={"type": "pit"}, headers={"accept": "text/csv"}).status_code == 406


def test_the_other_routes_answer(client, sent) -> None:
    assert {row["type"] for row in client.get("/v1/types").json()} == {"pit", "bar"}
    assert client.get("/v1/models").json()[0]["model"] == "one"
    assert client.get("/healthz").json() == {"status": "ok"} and client.get("/readyz").status_code == 200
    region = {"left": 30, "top": 20, "right": 70, "bottom": 60}
    read = client.post("/v1/masks", json={"image": sent["photo"], "region": region, "type": "pit"})
    assert base64.b64decode(read.json()["mask"]).startswith(b"\x89PNG")
    told = client.post("/v1/segment", json={"image": sent["photo"]})
    assert told.status_code == 409 and "no segmenter" in told.json()["error"]


def test_what_is_segmented_is_white_where_the_score_reaches_the_threshold(
    client, backend, judged_run, photos, sent
) -> None:
    studio = backend.studio = Studio(judged_run, photos)
    network = build_segmenter(studio.config.downstream, 0)
    revision = save_segmenter(network, judged_run.checkpoints, studio.config.downstream)
    with contextlib.closing(Ledger(judged_run)) as ledger:
        for name in ("real_only", "round-1"):
            ledger.record(name, assessed={"revision": revision, "threshold": 0.3})
    scores, *_ = studio.segment(SegmentRequest.model_validate({"image": sent["photo"]}))
    level = float(np.quantile(scores, 0.5, method="higher"))  # a score that is there
    answer = client.post("/v1/segment", json={"image": sent["photo"], "threshold": level}).json()
    mask = decode_mask_png(base64.b64decode(answer["mask"]), OWN)
    assert np.array_equal(mask, scores >= level) and 0 < mask.mean() < 1
    assert answer["threshold"] == level


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer ", TOKEN])
def test_nobody_comes_in_without_the_token(client, header) -> None:
    client.headers.pop("authorization")
    headers = {"authorization": header} if header else {}
    for path in ("/v1/types", "/v1/models", "/nowhere"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/page.js", "/healthz", "/docs", "/openapi.json"):
        assert client.get(path, headers=headers).status_code == 200


def test_under_a_prefix_the_same_stands_open(backend) -> None:
    door = Door(token=TOKEN)
    app = web.build_app(lambda: backend, lambda: door)
    client = TestClient(app, root_path="/cdiff", raise_server_exceptions=False)
    for path in ("/", "/page.js", "/healthz", "/docs", "/openapi.json"):
        assert client.get(f"/cdiff{path}").status_code == 200, path
    assert "unsafe-inline" in client.get("/cdiff/docs").headers["content-security-policy"]
    assert client.get("/cdiff").url.path == "/cdiff/", "where its pictures and scripts are found"
    assert client.get("/cdiff/v1/types").status_code == 401 and client.get("/v1/types").status_code == 401


def _bomb() -> str:
    """A small PNG that promises 10 000 times 10 000 pixels and more."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000))
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    ).decode()


def test_bad_input_gets_its_4xx_at_once_and_the_service_lives_on(client, sent) -> None:
    truncated = base64.b64encode(base64.b64decode(sent["photo"])[:2000]).decode()
    bmp = base64.b64encode(b"BM" + bytes(100)).decode()
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"type": "pit", "background": _bomb()}, 422, "pixels"),
        ({"type": "pit", "background": truncated}, 422, "truncated"),
        ({"type": "pit", "background": bmp}, 422, "not a PNG, JPEG"),
        ({"type": "pit", "background": sent["photo"], "mask": sent["other"]}, 422, "90 x 60"),
        ({"type": "pit", "n": 1_000_000}, 422, "less than or equal"),
        ({"type": "../../etc/passwd"}, 422, "pattern"),
        ({"type": "rust"}, 422, "no type"),
        ({"type": "pit", "background": "http://example.org/a.png"}, 422, "base64"),
        ({"type": "pit", "model": "other"}, 404, "model"),
        ({"type": "pit", "strength": 3}, 422, "Extra"),
    ]
    for fields, code, message in cases:
        began = time.process_time()  # whatever else the machine does
        answer = client.post("/v1/pairs", json=fields)
        assert time.process_time() - began < 1
        assert answer.status_code == code and message in answer.json()["error"], (fields.keys(), answer.text)
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert (
        client.post(
            "/v1/pairs", content=b"{no json", headers={"content-type": "application/json"}
        ).status_code
        == 400
    )
    assert client.post("/v1/pairs", json={"type": "pit"}).status_code == 200


def test_a_body_that_is_too_large_is_not_read(client) -> None:
    told = client.post("/v1/pairs", content=b"x" * 2_000_000)
    assert told.status_code == 413 and "1000000 bytes" in told.json()["error"]

    def in_pieces():
        for _ in range(20):
            yield b"y" * 100_000

    answer = client.post("/v1/pairs", content=in_pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_where_no_token_is_asked_for_no_body_is_taken(client) -> None:
    del client.headers["authorization"]
    assert client.get("/readyz").status_code == 200
    for body in (b"x" * 10, iter([b"y" * 100])):
        assert client.request("GET", "/readyz", content=body).status_code == 400
    assert client.request("POST", "/docs", content=b"x").status_code == 400


def test_bodies_that_wait_are_bounded_together(backend) -> None:
    """A request keeps its own until it is answered: many large ones would fill a node's memory."""
    door = Door(token=TOKEN, max_bytes=1_000_000, most_bytes=1_500_000, timeout_s=20)
    statuses: list[int] = []

    class Slow:
        async def pairs(self, model: Any, request: Any) -> Any:
            await asyncio.sleep(0.3)
            raise Away

    app = web.build_app(lambda: Slow(), lambda: door)  # type: ignore[arg-type,return-value]
    body = json.dumps({"type": "pit", "background": base64.b64encode(bytes(600_000)).decode()}).encode()

    async def post(length: bool) -> None:
        headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"application/json")]
        headers += [(b"content-length", str(len(body)).encode())] if length else []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/pairs",
            "headers": headers,
            "query_string": b"",
            "client": HERE,
        }

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await app(scope, receive, send)

    async def all_at_once() -> None:
        await asyncio.gather(*(post(length) for length in (True, True, False)))

    asyncio.run(all_at_once())
    assert sorted(statuses) == [429, 429, 503]
    statuses.clear()
    asyncio.run(post(True))
    assert statuses == [503], "what was answered is held no longer"


def test_who_finds_it_busy_away_or_broken_is_told_no_more_than_that(client, backend) -> None:
    backend.trouble = Busy()
    busy = client.post("/v1/pairs", json={"type": "pit"})
    assert busy.status_code == 429 and int(busy.headers["retry-after"]) > 0
    backend.trouble = Away()
    assert client.get("/readyz").status_code == 503
    backend.trouble = ZeroDivisionError("secret /path")
    broken = client.post("/v1/pairs", json={"type": "pit"})
    assert broken.status_code == 500 and "secret" not in broken.text and broken.json()["request_id"]
    assert broken.headers["x-request-id"] and broken.headers["x-content-type-options"] == "nosniff"
    backend.trouble = DataError("/photos/secret.png: cannot be read")
    inside = client.post("/v1/pairs", json={"type": "pit"})
    assert inside.status_code == 503 and "secret" not in inside.text, "what is wrong here is not the sender's"


def test_without_a_token_it_answers_on_loopback_alone(backend) -> None:
    app = web.build_app(lambda: backend, Door)
    client = TestClient(app, base_url="http://127.0.0.1:8000", client=HERE)
    assert client.get("/v1/types").status_code == 200
    mapped = TestClient(app, base_url="http://127.0.0.1:8000", client=("::ffff:127.0.0.1", 50000))
    assert mapped.get("/v1/types").status_code == 200
    for host in ("evil.example", "10.0.0.7:8000"):
        assert client.get("/v1/types", headers={"host": host}).status_code == 403
    for address in (("203.0.113.9", 50000), ("elsewhere", 1), ("", 0)):  # whatever they write as host
        far = TestClient(app, base_url="http://127.0.0.1:8000", client=address)
        assert far.get("/v1/types").status_code == 403


def test_a_late_answer_is_a_retryable_503(backend) -> None:
    async def slow(model, request):
        await asyncio.sleep(5)

    backend.pairs = slow
    app = web.build_app(lambda: backend, lambda: Door(timeout_s=0.2))
    answer = TestClient(app, base_url="http://localhost", client=HERE).post("/v1/pairs", json={"type": "pit"})
    assert answer.status_code == 503 and answer.headers["retry-after"]


def test_answers_carry_the_headers_of_a_closed_door(client) -> None:
    page = client.get("/", headers={"origin": "http://elsewhere"})
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not any(name.startswith("access-control") for name in page.headers)


def test_pages_fetch_nothing_from_elsewhere(client) -> None:
    for path in ("/", "/page.js", "/page.css", "/docs"):
        assert "//" not in client.get(path).text.replace("// ", "").replace("http://www.w3.org", "")


def test_openapi_names_the_token_and_the_errors(client) -> None:
    told = json.loads(client.get("/openapi.json").text)
    assert told["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert {"401", "413", "422", "429"} <= told["paths"]["/v1/pairs"]["post"]["responses"].keys()
