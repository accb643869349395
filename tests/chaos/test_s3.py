"""A whole loop whose run lies on S3: nothing of it is lost with the machine that made it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cdiff.data.ledger import Ledger
from cdiff.data.run import find_run
from cdiff.data.store import read_pair

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


def _loop(home: str, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "CDIFF_"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "loop.py"), "--home", home, "--run", "far", *arguments],
        capture_output=True,
        text=True,
        env=environment | {"CDIFF_CACHE": str(cache)},
        cwd=cache,
        check=False,
        timeout=400,
    )


def test_a_run_on_s3_goes_on_with_more_rounds_on_a_machine_that_never_saw_it(
    bucket, tmp_path, tiny_loop, monkeypatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    settings = [s for s in tiny_loop if not s.startswith("rounds=")]
    first = _loop(f"{bucket}/home", one, *settings, "rounds=1")
    assert first.returncode == 0, first.stderr[-3000:]
    shutil.rmtree(one)  # the machine is gone
    again = _loop(f"{bucket}/home", other, *settings, "rounds=2")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "with 1 of 2 rounds committed" in again.stdout
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "reader"))
    run = find_run("far", f"{bucket}/home")
    ledger = Ledger(run)
    assert [result.round for result in ledger.rounds()] == [1, 2]
    assert [event.get("name") for event in ledger.events()].count("base") == 1
    pairs = ledger.kept_pairs(accepted_only=False)
    assert len({pair.task_id for pair in pairs}) == len(pairs) > 0
    for pair in pairs[:2]:
        assert read_pair(run, pair.attempt)[0].startswith(b"\x89PNG")
    assert "report/report.html" in run.storage.keys("report/")
