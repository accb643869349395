"""The service on a real Ray Serve: bytes do not depend on who else asks, and beyond the queue there is 429."""

from __future__ import annotations

import base64
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import ray

from cdiff.data.ledger import Ledger
from cdiff.data.manifest import make_manifest, read_manifest, write_manifest
from cdiff.data.run import Run
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(300)]
TOKEN = "a-token-of-some-length"
HELD = "metal/good/009"  # that the second run is judged on


@pytest.fixture(scope="module")
def runs(served_run, tmp_path_factory) -> dict[str, Run]:
    """Two models, in copies: what is said of their pairs stays in them."""
    folder = tmp_path_factory.mktemp("served_here")
    for name in ("one", "two"):
        shutil.copytree(served_run.path, folder / name)
    second = Run(folder / "two")  # it draws in other steps, and is judged on a photo that the first trains on
    changed = second.local("config.yaml").read_text().replace("steps: 4\n", "steps: 5\n")
    second.local("config.yaml").write_text(changed)
    rows = [
        replace(row, split="test") if row.sample_id == HELD else row
        for row in read_manifest(second.splits_path).rows
    ]
    write_manifest(make_manifest(rows, (), ()), second.splits_path)
    return {"one": Run(folder / "one"), "two": second}


@pytest.fixture(scope="module")
def url(runs, photos, tiny_config) -> Iterator[str]:
    from ray import serve

    from actors.door import Door
    from actors.endpoint import Gateway
    from actors.generating import Generating
    from actors.resources import ROOT
    from cdiff.data.images import Limits

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    generators = serve.deployment(Generating).options(  # type: ignore[attr-defined]
        max_ongoing_requests=6, max_queued_requests=4, ray_actor_options={"num_cpus": 0.4}
    )
    behind = generators.bind(runs, dict.fromkeys(runs, photos), tiny_config, 1, ())
    door = Door(token=TOKEN, max_bytes=2_000_000)
    gateway: Any = Gateway
    service = gateway.bind(behind, runs, Limits.of(tiny_config.data), door)
    serve.run(service, name="cdiff", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=120)


def test_a_request_has_the_same_bytes_alone_and_in_a_crowd_and_overload_is_shed(url) -> None:
    with _client(url) as client:
        alone = client.post("/v1/pairs", json={"type": "pit", "n": 2, "seed": 5})
        assert alone.status_code == 200, alone.text
        wanted = [{"type": kind, "n": 2, "seed": seed} for seed in range(20) for kind in ("pit", "bar")]
        wanted[7] = {"type": "pit", "n": 2, "seed": 5}
        with ThreadPoolExecutor(40) as crowd:
            answers = list(crowd.map(lambda fields: client.post("/v1/pairs", json=fields), wanted))
        codes = {answer.status_code for answer in answers}
        assert codes <= {200, 429} and 429 in codes and 200 in codes
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
        again = answers[7] if answers[7].status_code == 200 else client.post("/v1/pairs", json=wanted[7])
        assert again.json() == alone.json()


def test_without_the_token_nothing_and_with_it_types_and_models(url) -> None:
    assert httpx.get(f"{url}/v1/types").status_code == 401
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    with _client(url) as client:
        assert {row["type"] for row in client.get("/v1/types").json()} == {"bar", "pit"}
        model, other = client.get("/v1/models").json()
        assert other["model"] == "two"
        assert model["model"] == "one" and model["revisions"]["generator"].startswith("generator-")
        assert client.post("/v1/pairs", json={"type": "rust"}).status_code == 422
        big = client.post("/v1/pairs", content=b"x" * 100_000_000)
        assert big.status_code == 413


def test_two_models_share_a_replica_that_holds_one(url, runs, photos) -> None:
    wanted = {"type": "pit", "seed": 3}
    with _client(url) as client:
        alone = [client.post("/v1/pairs", json=wanted | {"model": name}).json() for name in ("one", "two")]
        mixed = [wanted | {"model": name} for name in ("one", "two", "two", "one")]
        with ThreadPoolExecutor(4) as crowd:
            answers = [
                a.json() for a in crowd.map(lambda fields: client.post("/v1/pairs", json=fields), mixed)
            ]
        assert answers == [alone[0], alone[1], alone[1], alone[0]]
        assert alone[0]["pairs"][0]["recipe"]["steps"] == 4 and alone[1]["pairs"][0]["recipe"]["steps"] == 5
        task_id = alone[1]["pairs"][0]["task_id"]
        said = {"task_id": task_id, "accepted": True, "reviewer": "Ada", "made": wanted, "model": "two"}
        assert client.post("/v1/verdicts", json=said).status_code == 201
        assert client.post("/v1/verdicts", json=said | {"task_id": "0" * 16}).status_code == 422
        photo = base64.b64encode(Path(photos.sample(HELD).image).read_bytes()).decode()
        asked = wanted | {"background": photo, "model": "two"}
        made = client.post("/v1/pairs", json=asked).json()["pairs"][0]
        answer = client.post("/v1/verdicts", json=said | {"task_id": made["task_id"], "made": asked})
        assert answer.status_code == 422 and "judged on" in answer.json()["error"]
    human = {name: [pair.task_id for _, pair in Ledger(run).human_pairs(True)] for name, run in runs.items()}
    assert human == {"one": [], "two": [task_id]}


def test_a_killed_replica_costs_no_more_than_a_retryable_503(url) -> None:
    codes: list[int] = []
    end = threading.Event()

    def ask() -> None:
        with _client(url) as client:
            while not end.is_set():
                codes.append(client.post("/v1/pairs", json={"type": "pit", "seed": len(codes)}).status_code)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    time.sleep(3)
    (victim,) = (a for a in ray.util.list_named_actors(all_namespaces=True) if "#Generating#" in a["name"])
    ray.kill(ray.get_actor(victim["name"], namespace=victim["namespace"]))
    time.sleep(20)
    end.set()
    for thread in asking:
        thread.join()
    assert set(codes) <= {200, 429, 503}
    with _client(url) as client:
        assert client.post("/v1/pairs", json={"type": "pit"}).status_code == 200
