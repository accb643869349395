"""SIGKILL to every process of a loop in turn: the loop ends with the same pairs, byte for byte, and the same ledger."""

import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


IDLE = "ray::GeneratorActor"
# Moments in the log, as a call stands on its process's title for an instant only.
BEFORE = "fitting real_only"  # generators are idle, and wanted later
AMID = "fitting round-1"  # a fit of seconds begins


@pytest.mark.parametrize(
    ("moment", "victim", "blow"),
    [
        ("checkpoints/training-generator.safetensors", IDLE, "SIGKILL to a generator in training"),
        (BEFORE, IDLE, "SIGKILL to an idle generator"),
        (AMID, "ray::Downstream", "SIGKILL to a downstream actor in mid-fit"),
        ("pairs/*.COMMIT", "ray::CoordinatorActor", "SIGKILL to the coordinator"),
        (
            "pairs/*.COMMIT",
            "ray::GeneratorActor.generate",
            "SIGKILL to the process of a generator in mid-call",
        ),
    ],
)
def test_an_actors_process_is_killed(moment, victim, blow, loop, same) -> None:
    loop.start()
    loop.wait(lambda: moment in loop.log if moment in (BEFORE, AMID) else loop.file(moment))
    time.sleep(0.5 if moment == AMID else 0)
    pid = loop.busiest(victim)
    os.kill(pid, signal.SIGKILL)
    loop.finish()
    assert "making a new one" in loop.log, "the blow has to hit"
    same(loop, blow, "a new actor does its call again")


def test_the_driver_is_killed_and_started_again(loop, same) -> None:
    loop.start()
    loop.wait(lambda: loop.file("pairs/*.COMMIT"))
    loop.process.kill()
    loop.end()
    loop.start()
    loop.finish()
    same(loop, "SIGKILL to the driver", "the same command takes over from the dead process")


STOPPED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from cdiff.data.ledger import Ledger
Ledger.commit_round = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from jobs.loop import main
main()
"""


def test_the_driver_is_killed_between_blobs_and_commit(loop, same) -> None:
    plain = loop.script
    loop.script = loop.folder.parent / "stopped.py"
    loop.script.write_text(STOPPED.format(root=str(ROOT)))
    loop.start()
    loop.end()
    first, *others = sorted(loop.file("pairs/*.COMMIT"))
    first.unlink()  # as if the actor had been killed there as well: a shard without its COMMIT
    shards = len(loop.file("pairs/*.parquet"))
    loop.script = plain
    loop.start()
    loop.finish()
    assert others and len(loop.file("pairs/*.parquet")) == shards
    same(
        loop,
        "SIGKILL to the driver between blobs and COMMIT",
        "what has a COMMIT is read, the rest is made again",
    )
