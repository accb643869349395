"""The loop as a job on a running head with token authentication, and Ctrl-C."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdiff.data.ledger import Ledger
from cdiff.data.run import open_run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _heeds_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and their children would, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "CDIFF_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "CDIFF_HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"} | more


@pytest.fixture
def head(tmp_path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node with token authentication: its dashboard's address, and the environment of who may submit."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    port, dashboard, agent, agent_grpc = _free_ports(4)
    more = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": "/tmp"}
    environment = _environment(tmp_path / "home", **more)
    node = subprocess.Popen(
        [
            str(RAY),
            "start",
            "--head",
            "--block",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            "--dashboard-host=127.0.0.1",
            "--node-ip-address=127.0.0.1",
            "--num-cpus=4",
            "--include-dashboard=true",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        yield address, environment
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        try:
            node.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(node.pid, signal.SIGKILL)


def _submit(
    address: str, environment: dict[str, str], home: Path, *arguments: str, program: str = "jobs/loop.py"
) -> subprocess.CompletedProcess[str]:
    variables = f'{{"env_vars": {{"CDIFF_HOME": "{home}"}}}}'
    command = [
        str(RAY),
        "job",
        "submit",
        f"--address={address}",
        "--working-dir",
        ".",
        "--runtime-env-json",
        variables,
    ]
    return subprocess.run(
        [*command, "--", "python", program, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def _wait_for(address: str, environment: dict[str, str]) -> None:
    for _ in range(60):
        told = subprocess.run(
            [str(RAY), "job", "list", f"--address={address}"],
            env=environment,
            capture_output=True,
            check=False,
        )
        if told.returncode == 0:
            return
        time.sleep(1)
    pytest.fail("the head's job server did not come up within a minute")


@pytest.mark.long
def test_the_loop_runs_as_a_job_with_the_token_and_not_without(head, tiny_loop, tmp_path) -> None:
    address, environment = head
    _wait_for(address, environment)
    home = tmp_path / "home"
    stranger = {k: v for k, v in environment.items() if k != "RAY_AUTH_TOKEN_PATH"} | {"HOME": str(tmp_path)}
    refused = _submit(address, stranger, home, "--dry-run")
    assert refused.returncode != 0
    for _ in range(30):  # the node's agent, which starts jobs, comes up after the job server
        told = _submit(address, environment, home, program="jobs/doctor.py")
        if "No available agent" not in told.stdout + told.stderr:
            break
        time.sleep(2)
    assert told.returncode == 0, (told.stdout + told.stderr)[-3000:]
    assert "ok       token      Ray asks for it, and it is kept to its owner" in told.stdout
    told = _submit(address, environment, home, "--run", "job", *tiny_loop, "rounds=1")
    assert told.returncode == 0, (told.stdout + told.stderr)[-3000:]
    ledger = Ledger(open_run(home / "runs" / "job"))
    assert len(ledger.rounds()) == 1
    assert ledger.last("finished") is not None


@pytest.mark.parametrize(
    ("signum", "code", "bound"),
    [pytest.param(signal.SIGINT, 130, 60, marks=pytest.mark.long), (signal.SIGTERM, 75, 20)],
)
def test_a_stopped_run_ends_cleanly_and_says_that_it_goes_on(
    tiny_loop, tmp_path, signum, code, bound
) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "loop.py"), "--run", "stopped", *tiny_loop]
    environment = _environment(tmp_path)
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "generator.steps=100000"],
            env=environment,
            stdout=file,
            stderr=file,
            cwd=tmp_path,
            preexec_fn=_heeds_interrupts,
        )
        try:
            for _ in range(120):
                if "training the generator" in log.read_text():
                    break
                time.sleep(1)
            process.send_signal(signum)
            assert process.wait(bound) == code
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()
    assert signum == signal.SIGTERM or "stopped; the same command goes on" in log.read_text()
    lease = json.loads((tmp_path / "runs" / "stopped" / "lease.json").read_text())
    assert "token" not in lease, "given back: another machine need not wait"
