"""Loops in processes of their own, blows dealt to them, and the comparison with a loop that nothing happened to.

`make chaos` writes what was dealt, and how long it took to recover, into the table of docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cdiff.data.ledger import Ledger
from cdiff.data.run import find_run
from cdiff.data.store import read_pair

ROOT = Path(__file__).resolve().parents[2]
# Of one round, whose calls last long enough to be struck in their midst.
SLOWER = [
    "rounds=1",
    "generator.checkpoint_every=5",
    "sampling.steps=20",
    "downstream.steps=60",
    "resources.downstreams=1",
]
_BEGIN, _END = "<!-- table of make chaos -->", "<!-- end of table -->"
_TIMES = {"seconds", "trained_in", "run_id", "reused"}  # what no two runs share


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", help="Markdown file whose table of blows is written anew")


@dataclass
class Loop:
    """A loop as a user starts it."""

    home: str
    settings: list[str]
    folder: Path  # of logs and, for a home on S3, the cache
    script: Path = ROOT / "jobs" / "loop.py"
    prefix: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    known: set[int] = field(default_factory=set)  # raylets
    began: float = 0.0  # monotonic, of the first start
    seconds: float = 0.0  # from the first start to the last end

    def start(self) -> Loop:
        self.known = set()
        self.began = self.began or time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            *self.prefix,
            sys.executable,
            str(self.script),
            "--home",
            self.home,
            "--run",
            "one",
            *self.settings,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=self.folder,
                start_new_session=True,
            )
        return self

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "CDIFF_"))}
        mine = {"CHAOS_MARK": self.mark, "CDIFF_CACHE": str(self.folder / "cache"), "PYTHONPATH": str(ROOT)}
        return kept | mine | self.variables

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def raylets(self) -> set[int]:
        return {pid for pid, name in _titles() if "raylet/raylet" in name and _marked(pid, self.mark)}

    def workers(self, title: str, of: int = 0) -> list[int]:
        """Processes of this loop's actors whose title begins as given: ray::GeneratorActor for any, ray::GeneratorActor.generate in that call.

        Ray takes the call off the title when another call to the same actor, as for its progress, is over.

        Args:
            of: the raylet whose they are; 0: any.
        """
        self.known = self.known or self.raylets()
        raylets = {of} if of else self.known
        return [pid for pid, name in _titles() if name.startswith(title) and _parent(pid) in raylets]

    def wait(self, ready: Callable[[], Any], seconds: float = 300.0) -> Any:
        """What `ready` returns, as soon as it is anything; the loop must not end before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := ready():
                return found
            assert self.process is not None
            assert self.process.poll() is None, f"the loop ended too early:\n{self.log[-3000:]}"
            time.sleep(0.02)
        raise AssertionError(f"waited {seconds:.0f} s in vain:\n{self.log[-3000:]}")

    def file(self, pattern: str) -> list[Path]:
        """Files of the run that are there."""
        return list((Path(self.home) / "runs" / "one").glob(pattern))

    def busiest(self, title: str) -> int:
        """Of several such processes the one that has computed most: the others are idle twins."""
        self.find(title)
        return max(self.workers(title), key=_ticks)

    def find(self, title: str) -> int:
        return int(self.wait(lambda: self.workers(title))[0])

    def end(self, seconds: float = 300.0) -> int:
        """Wait for its end; the exit code."""
        assert self.process is not None
        return self.process.wait(timeout=seconds)

    def finish(self) -> None:
        assert self.end() == 0, self.log[-5000:]
        self.seconds = time.monotonic() - self.began

    def clear(self) -> None:
        """End everything that this loop started."""
        for pid in [pid for pid, _ in _titles() if _marked(pid, self.mark)]:
            _kill(pid)
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Trace:
    """What a loop has made: task ids with the hashes of their PNG bytes, rounds, milestones; without times."""

    pairs: dict[str, str]
    rounds: list[Any]
    milestones: dict[str, Any]
    seconds: float

    @classmethod
    def of(cls, loop: Loop) -> Trace:
        run = find_run("one", loop.home)
        ledger = Ledger(run)
        kept = ledger.kept_pairs(accepted_only=False)
        twice = [key for key, count in Counter(pair.task_id for pair in kept).items() if count > 1]
        assert kept and not twice, f"kept twice: {twice}"
        hashes = {p.task_id: hashlib.sha256(b"".join(read_pair(run, p.attempt))).hexdigest() for p in kept}
        events = ledger.events()
        rounds = [_timeless(event) for event in events if event["kind"] == "round"]
        told = [event for event in events if event["kind"] == "milestone" and event["name"] != "tracking"]
        again = [name for name, count in Counter(event["name"] for event in told).items() if count > 1]
        assert not again, f"done twice: {again}"
        return cls(hashes, rounds, {event["name"]: _timeless(event) for event in told}, loop.seconds)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: _timeless(v) for k, v in value.items() if k not in _TIMES | {"seq", "at", "schema_version"}
        }
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _titles() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append(
                    (
                        int(entry.name),
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
                    )
                )
            except OSError:
                continue  # gone in between
    return found


def _marked(pid: int, mark: str) -> bool:
    try:
        return f"CHAOS_MARK={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _ticks(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
    except (OSError, IndexError):
        return 0


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def settings(tiny_loop) -> list[str]:
    return [*(s for s in tiny_loop if not s.startswith("rounds=")), *SLOWER]


@pytest.fixture(scope="session")
def calm(settings, tmp_path_factory) -> Trace:
    """The same loop without a blow."""
    folder = tmp_path_factory.mktemp("calm")
    loop = Loop(str(folder / "home"), settings, folder / "work").start()
    try:
        loop.finish()
    finally:
        loop.clear()
    return Trace.of(loop)


@pytest.fixture
def loop(settings, calm, tmp_path) -> Iterator[Loop]:
    """A loop in a home of its own, not yet started."""
    loop = Loop(str(tmp_path / "home"), settings, tmp_path / "work")
    yield loop
    loop.clear()


@pytest.fixture(scope="session")
def table(request, calm) -> Iterator[list[tuple[str, str, float]]]:
    """Rows of the table: what was done, what came of it, seconds that it took in all."""
    rows: list[tuple[str, str, float]] = []
    yield rows
    path = request.config.getoption("--table", default=None)
    if path and rows:
        lines = ["| Blow | What happens | Seconds longer |", "|---|---|---|"]
        lines += [f"| none | | ({calm.seconds:.0f} in all) |"]
        lines += [f"| {blow} | {came} | {max(0.0, took - calm.seconds):.0f} |" for blow, came, took in rows]
        text = Path(path).read_text(encoding="utf-8")
        before, after = text.split(_BEGIN)[0], text.split(_END)[1]
        Path(path).write_text("\n".join([before + _BEGIN, *lines, _END]) + after, encoding="utf-8")


@pytest.fixture
def same(calm, table) -> Callable[..., None]:
    """Demand that a loop ended as the calm one did, and add its row to the table."""

    def check(loop: Loop, blow: str, came: str) -> None:
        trace = Trace.of(loop)
        assert trace.pairs == calm.pairs
        assert trace.rounds == calm.rounds
        assert trace.milestones == calm.milestones
        table.append((blow, came, loop.seconds))

    return check
