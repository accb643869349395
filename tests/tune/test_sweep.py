"""A sweep from the command line: trials, an overlay that the loop takes, and nothing measured twice after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cdiff.config_file import load_config
from cdiff.data.ledger import Ledger
from cdiff.data.run import open_run
from tune.objective import stored

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]
ROOT = Path(__file__).resolve().parents[2]
SIZE = ["--pairs", "8", "--steps", "20", "--rungs", "2"]


def _start(home: Path, *arguments: str, script: str = "tune/sweep.py", **more: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "CDIFF_"))}
    environment |= {"CDIFF_HOME": str(home), **more}
    command = [sys.executable, str(ROOT / script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=home, start_new_session=True
    )


def _done(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return out, err


@pytest.fixture(scope="module")
def settings(tiny_loop) -> list[str]:
    plain = [part for part in tiny_loop if not part.startswith(("wasm.arm", "wasm.negatives"))]
    return [*plain, "wasm.arm=B0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


def _measured(home: Path) -> dict[str, float]:
    """When each rung of each trial was measured."""
    return {
        str(path.relative_to(home)): json.loads(path.read_text())["at"]
        for path in home.glob("runs/sweep-*/trials/*/[0-9].json")
    }


def test_a_killed_sweep_goes_on_and_measures_nothing_twice(home, settings) -> None:
    wanted = ["--trials", "3", "--confirm", "2", *SIZE, "--out", "tune.json", *settings]
    first = _start(home, *wanted)
    end = time.monotonic() + 300
    while len(_measured(home)) < 2 and first.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = _measured(home)
    assert before
    out, _ = _done(_start(home, *wanted))
    after = _measured(home)
    assert {name: after[name] for name in before} == before
    (run,) = home.glob("runs/sweep-*")
    trials = stored(open_run(run))
    assert len(trials) == 3 and all(trial["ended"] for trial in trials)
    assert "half B" in out and "trials     3" in out
    told = json.loads((home / "tune.json").read_text())
    assert told["trials"] == 3 and set(told["best"]) == set(trials[0]["point"])
    assert told["validation"]["low"] <= told["validation"]["mean"] <= told["validation"]["high"]
    assert len(told["validation"]["per_seed"]) == 2 and told["test"] is None
    page = (run / "report" / "sweep.html").read_text(encoding="utf-8")
    assert "polyline" in page and "half B" in page
    again, _ = _done(_start(home, *wanted))
    assert _measured(home) == after and "trials     3" in again


def test_mlflow_has_a_child_per_trial_with_its_point(home) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "cdiff")
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "cdiff.trial" in run.data.tags]
    (parent,) = {run.data.tags["mlflow.parentRunId"] for run in children}
    assert len(children) == 3 and all("sampling.safe_strength" in run.data.params for run in children)
    assert all("gain" in run.data.metrics and run.info.status == "FINISHED" for run in children)
    assert "half_b/gain" in client.get_run(parent).data.metrics


def test_the_loop_takes_the_overlay_and_sweeps_between_its_rounds(home, settings) -> None:
    best = yaml.safe_load((home / "best.yaml").read_text())
    dry = _start(home, "--overlay", "best.yaml", "--dry-run", *settings, script="jobs/loop.py")
    printed = yaml.safe_load(_done(dry)[0])
    assert printed["sampling"]["start_strength"] == best["sampling"]["start_strength"]
    tuning = ["--retune-every", "1", "--retune-trials", "2", "--run", "tuned"]
    _done(_start(home, *tuning, *settings, script="jobs/loop.py"))
    ledger = Ledger(open_run(home / "runs" / "tuned"))
    assert [result.round for result in ledger.rounds()] == [1, 2]
    assert ledger.milestone("retuned-1") is None
    found = (ledger.milestone("retuned-2") or {})["point"]
    made = [
        {pair.attempt.assignment.task.strengths.safe_strength for pair in ledger.pairs(number)}
        for number in (1, 2)
    ]
    assert made[0] == {2.0} and made[1] == {found["sampling.safe_strength"]}
    assert len(stored(ledger.run)) == 2


def test_a_setting_that_the_arm_lacks_is_refused(home, settings) -> None:
    (home / "space.yaml").write_text("sampling.gradient_strength: [0.01, 0.1]\n")
    process = _start(home, "--space", "space.yaml", *SIZE, *settings)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2 and "the mining arm B0 does not have it" in err


def test_the_configuration_of_a_trial_is_its_points(settings) -> None:
    from tune.objective import at_point

    config = load_config(None, ["wasm.negatives=0.5", "wasm.start_strengths=[0.2,0.4]"])
    made = at_point(config, {"sampling.safe_strength": 3.0, "wasm.band.low": 0.5}, 7)
    assert (made.sampling.safe_strength, made.wasm.pairs, made.wasm.negatives) == (3.0, 7, 0)
    assert made.wasm.start_strengths == () and made.wasm.band[0] == 0.5
