"""Where the service may listen without a token, what it needs room for, and what it does with a Serve that is there already."""

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
import ray

from actors.claim import claimed
from actors.resources import ROOT, connect
from actors.served import checked
from cdiff.errors import ConfigError, ResourceError, RunError
from jobs.serve import _NAME, _demand_room, _serves, _take_over, serving
from tests.ports import free_port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_without_a_token_it_listens_on_loopback_by_address_or_name(host, tmp_path) -> None:
    wanted = {"run": "nowhere", "data": "x", "home": str(tmp_path), "insecure_loopback": True}
    with pytest.raises(RunError, match="nowhere"), serving(wanted, host, 8000):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "cdiff.example.org", ""])
def test_without_a_token_any_other_host_is_refused_with_the_remedy(host) -> None:
    wanted = {"run": "nowhere", "data": "x", "insecure_loopback": True}
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1.*set CDIFF_TOKEN"), serving(wanted, host, 8000):
        pass


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"replicas": 0}, "replicas: .*greater than or equal to 1"),
        ({"max_queued": 0}, "max_queued: "),
        ({"replicas": 4, "most_replicas": 2}, "most_replicas=2 is under replicas=4"),
        ({"settings": ["wasm.pairs=3"]}, r"wasm\.pairs=3: a run is served as it was made"),
    ],
)
def test_arguments_that_cannot_be_are_told_before_anything_starts(wrong, told) -> None:
    wanted = {"run": "nowhere", "data": "x", "insecure_loopback": True}
    with pytest.raises(ConfigError, match=told), serving(wanted | wrong, "127.0.0.1", 8000):
        pass


@pytest.mark.ray
@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"replicas": 5000}, ResourceError, "(?s)5000 generator.*the service takes --replicas"),
        (
            {"settings": ["resources.device=cuda"]},
            ConfigError,
            "(?s)reserves no GPU for generator.*resources.gpus, as 1 where.*resources.device=cpu",
        ),
    ],
)
def test_replicas_without_room_are_told_and_not_waited_for(served_run, more, error, told) -> None:
    served = checked({"run": str(served_run.path), "data": "x", "insecure_loopback": True} | more)
    cluster = connect()
    try:
        with pytest.raises(error, match=told):
            _demand_room(served, cluster)
        _demand_room(checked({"run": str(served_run.path), "data": "x"}), cluster)  # one replica has room
    finally:
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.long
def test_what_a_killed_service_left_is_ended_and_what_others_deployed_is_left_alone(capsys) -> None:
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Left:
        pass

    left: Any = Left  # a deployment, which Ray's stubs do not know
    connect()
    try:
        _take_over()
        assert not capsys.readouterr().out, "without a Serve there is nothing to end"
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        serve.run(left.bind(), name=_NAME, route_prefix="/")
        serve.run(left.bind(), name="shop", route_prefix="/shop")
        with pytest.raises(
            ResourceError, match=r"other applications.*: shop.*`serve deploy`.*`serve shutdown -y`"
        ):
            _take_over()
        assert set(serve.status().applications) == {_NAME, "shop"}
        serve.delete("shop")
        _take_over()
        assert "a killed service left" in capsys.readouterr().out
        assert not _serves()
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        _take_over()  # as where all but the proxies was ended
        assert not _serves()
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def head(monkeypatch) -> Iterator[str]:
    """Address of a cluster that outlives its drivers."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


_SERVICE = """
import pickle, sys, threading
from actors import endpoint
from jobs.serve import serving

photos = pickle.load(open(sys.argv[1], "rb"))
endpoint.photos_of = lambda *_: [photos]
with serving({"run": sys.argv[2], "data": "x", "insecure_loopback": True}, "127.0.0.1", int(sys.argv[3])):
    threading.Event().wait()
"""


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_service_is_taken_over_once_its_driver_was_killed_and_not_before(
    head, served_run, photos, tmp_path
) -> None:
    (tmp_path / "photos").write_bytes(pickle.dumps(photos))
    port = free_port()
    command = [sys.executable, "-c", _SERVICE, str(tmp_path / "photos"), str(served_run.path), str(port)]

    def start() -> subprocess.Popen[str]:
        pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
        )

    def told(service: subprocess.Popen[str]) -> list[str]:
        """What it says until it serves, or ends."""
        lines: list[str] = []
        for line in service.stdout or ():
            lines.append(line)
            if line.startswith("serving "):
                break
        return lines

    def answers() -> bool:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=10).status_code == 200

    services = [start()]
    try:
        assert told(services[0])[-1].startswith("serving "), "the first"
        services.append(start())
        assert "another jobs/serve.py serves on this cluster" in "".join(told(services[1]))
        assert services[1].wait(60) != 0 and answers(), "the first was left alone"
        services[0].kill()
        services[0].wait()
        assert answers(), "what is detached outlives its driver"
        services.append(start())
        lines = told(services[2])
        assert lines[-1].startswith("serving "), lines
        assert any("a killed service left" in line for line in lines) and answers()
        services[2].terminate()  # as `ray job stop` does it
        time.sleep(3)
        services[2].kill()
        services[2].wait()
        services.append(start())
        lines = told(services[3])
        assert lines[-1].startswith("serving ") and answers(), lines
    finally:
        for service in services:
            service.kill()
            service.wait()


@pytest.mark.ray
@pytest.mark.long
def test_a_name_is_free_again_when_the_driver_that_claimed_it_is_killed(head) -> None:
    code = "import ray, sys; from actors.claim import claimed; ray.init(); held = claimed('one'); print(held is not None, flush=True); sys.stdin.read()"
    pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, env=environment
    )
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    ray.init(logging_level=logging.WARNING)
    assert claimed("one") is None
    other.kill()
    other.wait()
    end, mine = time.monotonic() + 30, None
    while mine is None and time.monotonic() < end:
        time.sleep(0.2)
        mine = claimed("one")
    assert mine is not None and claimed("one") is None
