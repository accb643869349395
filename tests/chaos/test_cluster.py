"""A second node that is lost in mid-round, fewer actors, and a machine that is cut off from every network."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def two_nodes(loop, tmp_path) -> Iterator[int]:
    """A cluster of two nodes with token authentication, which the loop joins; the process id of the second's raylet."""
    token = tmp_path / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    port = free_port()
    loop.variables |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": "/tmp/chaos-ray",  # sockets' names are bounded
        "RAY_USAGE_STATS_ENABLED": "0",
    }

    def ray(*arguments: str) -> None:
        done = subprocess.run(
            [str(RAY), *arguments], env=loop.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    common = ["--num-cpus=2", "--disable-usage-stats"]
    ray("start", "--head", f"--port={port}", "--include-dashboard=false", *common)
    first = loop.raylets()
    ray("start", f"--address=127.0.0.1:{port}", *common)
    (second,) = loop.raylets() - first
    loop.variables["RAY_ADDRESS"] = f"127.0.0.1:{port}"
    yield second
    loop.clear()
    shutil.rmtree("/tmp/chaos-ray", ignore_errors=True)


def test_the_raylet_of_a_second_node_is_killed(loop, two_nodes, same) -> None:
    loop.settings = [*loop.settings, "resources.cpus=0.5"]
    loop.start()
    loop.wait(lambda: loop.file("pairs/*.COMMIT"))
    assert loop.workers("ray::", of=two_nodes), "an actor has to be there, or nothing is lost with the node"
    os.kill(two_nodes, signal.SIGKILL)
    loop.finish()
    same(loop, "SIGKILL to the raylet of a second node", "its actors are made anew on the first")


def test_one_generator_makes_what_two_make(loop, same) -> None:
    fewer = ["resources.generators=1", "resources.in_flight=1"]
    loop.settings = [*loop.settings, *fewer]
    loop.start()
    loop.finish()
    same(loop, "one generator instead of two, all along", "the same pairs")


def test_a_loop_needs_no_network(loop, same) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here")
    loop.prefix = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    loop.start()
    loop.finish()
    same(loop, "no network but loopback, all along", "nothing is missed")
