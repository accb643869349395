"""A full disk, and a bucket that fails or goes away: the loop waits or stops with a reason, and nothing of it is lost."""

import contextlib
import http.client
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cdiff.data.s3 import clients

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    told = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if told.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {told.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_in_mid_round_stops_the_loop_with_a_remedy(loop, small_disk, same) -> None:
    loop.home = str(small_disk / "home")
    loop.start()
    loop.wait(lambda: loop.file("pairs/*.COMMIT"))
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(100_000))
    assert loop.end() == 2, loop.log[-3000:]
    told = loop.log.strip().splitlines()[-1]
    assert told.startswith("StorageError: ") and "Free the disk" in told, loop.log[-3000:]
    ballast.unlink()
    loop.start()
    loop.finish()
    same(
        loop,
        "disk full in mid-round",
        "stops with exit 2 and what to free; the same command goes on",
    )


class Faults:
    """What a proxy before the bucket does to requests."""

    def __init__(self) -> None:
        self.every = 0  # this and every further request of so many gets a 503
        self.away_until = 0.0  # until then connections are cut
        self.count = self.refused = 0
        self.lock = threading.Lock()

    def strike(self) -> int:
        """0: pass; 503: refuse; -1: cut."""
        with self.lock:
            self.count += 1
            bad = (
                -1
                if time.time() < self.away_until
                else 503
                if self.every and self.count % self.every == 0
                else 0
            )
            self.refused += bool(bad)
            return bad


@pytest.fixture
def faults(bucket, monkeypatch, s3_server) -> Iterator[Faults]:
    """A proxy before the S3 server; the environment names the proxy."""
    state, port = Faults(), int(s3_server.rpartition(":")[2])

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            bad = state.strike()
            if bad < 0:
                self.close_connection = True
                return
            if bad:
                self._answer(bad, [], b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>")
                return
            there = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            there.request(self.command, self.path, body, dict(self.headers))
            answer = there.getresponse()
            skipped = ("transfer-encoding", "content-length", "connection", "date", "server")
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in skipped]
            data = answer.read()
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, kept, data, length)
            there.close()

        def _answer(
            self, code: int, headers: list[tuple[str, str]], data: bytes, length: str | None = None
        ) -> None:
            self.send_response(code)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Not into the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    clients.cache_clear()
    yield state
    server.shutdown()
    server.server_close()


def test_a_bucket_that_fails_every_third_request_is_asked_again(loop, bucket, faults, same) -> None:
    loop.home = f"{bucket}/flaky"
    faults.every = 3
    loop.start()
    loop.finish()
    assert faults.refused > 20
    faults.every = 0
    same(loop, "S3 refuses every third request", "requests are repeated")


def test_a_bucket_that_is_away_for_a_minute_is_waited_for(loop, bucket, faults, same, monkeypatch) -> None:
    loop.home = f"{bucket}/away"
    loop.start()
    loop.wait(lambda: loop.workers("ray::GeneratorActor.generate"))
    faults.away_until = time.time() + 60
    back = faults.away_until
    loop.wait(lambda: time.time() > back)
    refused, before = faults.refused, faults.count
    assert refused > 0
    loop.wait(lambda: faults.count > before)
    loop.finish()
    same(loop, "S3 away for a minute", "what asks waits and asks again")
