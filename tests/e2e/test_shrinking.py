"""A training by two workers on two nodes, of which one is lost: it goes on with one worker, to the same losses."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdiff.data.ledger import Ledger
from cdiff.data.run import open_run
from cdiff.generator.training import TRAINING_STATE

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


def _losses(home: Path, run: str) -> list[float]:
    ledger = Ledger(open_run(home / "runs" / run))
    assert len(ledger.rounds()) == 1, "the whole loop, not the training alone"
    return (ledger.milestone("generator") or {})["losses"]


def test_a_training_that_loses_a_node_goes_on_with_the_workers_that_are_left(tmp_path, tiny_loop) -> None:
    from ray.cluster_utils import Cluster

    settings = [
        *tiny_loop,
        "rounds=1",
        "generator.bfloat16=false",
        "generator.steps=80",
        "generator.checkpoint_every=4",
        "resources.cpus=0.15",
        "wasm.arm=B0",
    ]
    together = ["train.workers=2", "train.least_workers=1", "train.cpus=0.7", "resources.wait_seconds=60"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "CDIFF_"))}
    environment |= {"CDIFF_HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    loop = [sys.executable, str(ROOT / "jobs" / "loop.py")]
    log = tmp_path / "log"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        with log.open("w") as out:
            process = subprocess.Popen(
                [*loop, "--run", "shrunk", *settings, *together],
                env=environment | {"RAY_ADDRESS": cluster.address},
                cwd=tmp_path,
                stdout=out,
                stderr=out,
            )
            state = tmp_path / "runs" / "shrunk" / "checkpoints" / TRAINING_STATE
            end = time.monotonic() + 200
            while not state.exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            assert process.poll() is None and state.exists(), log.read_text()[-3000:]
            cluster.remove_node(second, allow_graceful=False)
            assert process.wait(300) == 0, log.read_text()[-3000:]
    finally:
        cluster.shutdown()
    told = log.read_text()
    assert "goes on with 1 of 2 workers" in told, "the blow has to hit, and be told"
    apart = tmp_path / "apart"  # a home of its own: nothing to take over
    alone = [*loop, "--run", "alone", *settings]
    own = environment | {"CDIFF_HOME": str(apart)}
    subprocess.run(alone, env=own, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    assert _losses(tmp_path, "shrunk") == pytest.approx(_losses(apart, "alone"), rel=5e-3)
