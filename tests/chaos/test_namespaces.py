"""Two machines, as far as the network goes: nodes in namespaces of their own with a wire between them, the loop as a job, and one node that goes."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cdiff.data.ledger import Ledger
from cdiff.data.run import open_run

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
NODES = {"cdiff-a": "10.87.31.1", "cdiff-b": "10.87.31.2"}
HEAD, WORKER = NODES


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Machines:
    """A head and a worker that share a disk, and nothing else but a wire."""

    environment: dict[str, str]
    folder: Path

    def run(self, node: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["ip", "netns", "exec", node, *command],
            env=self.environment | {"RAY_TMPDIR": f"/tmp/{node}"},  # sockets' names are bounded
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def processes(self, node: str) -> dict[int, str]:
        """Of a node, with their names."""
        found = {}
        for pid in map(int, self.run(node, "ip", "netns", "pids", node).stdout.split()):
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found

    def kill(self, node: str) -> None:
        for pid in self.processes(node):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def machines(tmp_path) -> Iterator[Machines]:
    if (
        os.geteuid()
        or not shutil.which("ip")
        or subprocess.run(["ip", "netns", "add", "cdiff-probe"], check=False).returncode
    ):
        pytest.skip("no network namespaces can be made here")
    _ip("netns", "del", "cdiff-probe")
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "CDIFF_"))}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for node in NODES:
        _ip("netns", "add", node)
    _ip(
        "link",
        "add",
        "cdiff-wire-a",
        "netns",
        HEAD,
        "type",
        "veth",
        "peer",
        "name",
        "cdiff-wire-b",
        "netns",
        WORKER,
    )
    for (node, address), wire in zip(NODES.items(), ("cdiff-wire-a", "cdiff-wire-b"), strict=True):
        _ip("-n", node, "addr", "add", f"{address}/24", "dev", wire)
        _ip("-n", node, "link", "set", wire, "up")
        _ip("-n", node, "link", "set", "lo", "up")
    out = Machines(environment, tmp_path)
    try:
        yield out
    finally:
        for node in NODES:
            out.kill(node)
            subprocess.run(["ip", "netns", "del", node], check=False)
            shutil.rmtree(f"/tmp/{node}", ignore_errors=True)


def test_a_job_uses_two_machines_and_outlives_one(machines, tiny_loop, tmp_path) -> None:
    # a folder of its own for each: unpacking the job's code on one would take the other's away
    common = ["--disable-usage-stats", "--num-cpus=2"]
    head = NODES[HEAD]
    machines.run(
        HEAD,
        str(RAY),
        "start",
        "--head",
        f"--node-ip-address={head}",
        "--port=6379",
        "--dashboard-host=0.0.0.0",
        f"--temp-dir=/tmp/{HEAD}",
        *common,
    )
    stranger = machines.environment | {
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "nothing"),
        "RAY_AUTH_MODE": "disabled",
    }
    others = Machines(stranger, tmp_path)
    refused = others.run(WORKER, str(RAY), "start", f"--address={head}:6379", *common, check=False)
    assert refused.returncode != 0, "without the token nobody joins"
    others.kill(WORKER)
    place = [f"--node-ip-address={NODES[WORKER]}", f"--temp-dir=/tmp/{WORKER}"]
    machines.run(WORKER, str(RAY), "start", f"--address={head}:6379", *place, *common)
    home = tmp_path / "home"
    submit = [str(RAY), "job", "submit", f"--address=http://{head}:8265", "--working-dir", ".", "--no-wait"]
    variables = f'{{"env_vars": {{"CDIFF_HOME": "{home}"}}}}'
    settings = [
        *tiny_loop,
        "resources.cpus=0.5",
        "wasm.pairs=24",
        "resources.generators=2",
        "resources.downstreams=1",
    ]
    told = None
    for _ in range(60):  # the agent, which starts jobs, comes up after the job server
        told = machines.run(
            WORKER,
            *submit,
            "--submission-id=loop",
            "--runtime-env-json",
            variables,
            "--",
            "python",
            "jobs/loop.py",
            "--run",
            "job",
            *settings,
            check=False,
        )
        if told.returncode == 0:
            break
        time.sleep(2)
    assert told is not None and told.returncode == 0, told and told.stdout + told.stderr
    pairs = home / "runs" / "job" / "pairs"
    end, seen = time.monotonic() + 400, {}
    while time.monotonic() < end and not list(pairs.glob("*.COMMIT")) and not _state(machines, head):
        for node in NODES:
            seen[node] = {
                name.split()[0] for name in machines.processes(node).values() if name.startswith("ray::")
            }
        time.sleep(0.5)
    assert list(pairs.glob("*.COMMIT")), _log(machines, head)
    actors = {node: {name for name in names if "Actor" in name} for node, names in seen.items()}
    assert all(actors.values()), f"actors on both nodes: {actors}"
    # in mid-round: the machine is gone, and says no word
    assert not Ledger(open_run(home / "runs" / "job")).rounds(), "the first round is still going on"
    _ip("-n", WORKER, "link", "set", "cdiff-wire-b", "down")
    machines.kill(WORKER)
    while time.monotonic() < end and (state := _state(machines, head)) not in (
        "SUCCEEDED",
        "FAILED",
        "STOPPED",
    ):
        time.sleep(2)
    assert state == "SUCCEEDED", _log(machines, head)
    ledger = Ledger(open_run(home / "runs" / "job"))
    assert len(ledger.rounds()) == 2 and ledger.last("finished") is not None


def _state(machines: Machines, head: str) -> str:
    told = machines.run(
        HEAD, str(RAY), "job", "status", f"--address=http://{head}:8265", "loop", check=False
    ).stdout
    return next(
        (word for word in ("SUCCEEDED", "FAILED", "STOPPED") if word in told or word.lower() in told), ""
    )


def _log(machines: Machines, head: str) -> str:
    return machines.run(
        HEAD, str(RAY), "job", "logs", f"--address=http://{head}:8265", "loop", check=False
    ).stdout[-4000:]
