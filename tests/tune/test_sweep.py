"""A sweep from the command line: trials, an overlay that the loop takes, and nothing measured twice after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from cdiff.config_file import load_config
from cdiff.data.ledger import Ledger
from cdiff.data.run import Run, open_run
from cdiff.errors import ResourceError, RunError
from jobs.session import Session
from tune.objective import stored
from tune.sweep import count_reads, main
from tune.trials import _trial

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
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
    out, err = process.communicate(timeout=800)
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


@pytest.mark.long
def test_a_killed_sweep_goes_on_and_measures_nothing_twice(home, settings) -> None:
    wanted = [
        "--trials",
        "3",
        "--confirm",
        "2",
        *SIZE,
        "--out",
        "tune.json",
        "--best",
        "best.yaml",
        *settings,
    ]
    first = _start(home, *wanted)
    end = time.monotonic() + 300
    while len(_measured(home)) < 2 and first.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = sorted(home.glob("runs/sweep-*/trials/*/[0-9].json"))
    for number, path in enumerate(before):  # whoever measured it again would find something else
        told = json.loads(path.read_text())
        told["measured"]["gain"] = 0.5 + number / 100
        path.write_text(json.dumps(told))
    out, _ = _done(_start(home, *wanted))
    (run,) = home.glob("runs/sweep-*")
    trials = stored(open_run(run))
    assert len(trials) == 3 and all(trial["ended"] for trial in trials), "three points, none of them twice"
    reported = {round(value, 3) for values in _gains_in_mlflow(home) for value in values}
    assert {round(0.5 + number / 100, 3) for number in range(len(before))} <= reported
    assert "half B" in out and "trials     3" in out
    told = json.loads((home / "tune.json").read_text())["demo"]
    assert told["trials"] == 3 and set(told["best"]) == set(trials[0]["point"]) and told["seconds"] > 0
    assert told["validation"]["low"] <= told["validation"]["mean"] <= told["validation"]["high"]
    assert len(told["validation"]["per_seed"]) == 2 and told["test"] is None
    page = (run / "report" / "sweep.html").read_text(encoding="utf-8")
    assert "polyline" in page and "half B" in page
    best = yaml.safe_load((home / "best.yaml").read_text())
    assert best == yaml.safe_load((run / "report" / "best.yaml").read_text())
    dry = _start(home, "--overlay", "best.yaml", "--dry-run", *settings, script="jobs/loop.py")
    printed = yaml.safe_load(_done(dry)[0])
    assert printed["sampling"]["start_strength"] == best["sampling"]["start_strength"]


def _gains_in_mlflow(home: Path) -> list[list[float]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "cdiff")
    runs = [run for run in client.search_runs([experiment.experiment_id]) if "cdiff.trial" in run.data.tags]
    return [[m.value for m in client.get_metric_history(run.info.run_id, "gain")] for run in runs]


def _generators(home: Path) -> list[psutil.Process]:
    """Processes of this sweep's generators that make pairs right now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = " ".join(process.cmdline())
            if told.startswith("ray::GeneratorActor.generate") and process.environ().get("CDIFF_HOME") == str(
                home
            ):
                found.append(process)
    return found


@pytest.mark.long
def test_a_generator_that_dies_within_a_trial_costs_the_sweep_nothing(tmp_path, settings) -> None:
    sweep = _start(tmp_path, "--trials", "3", "--confirm", "0", *SIZE, "--random", *settings)
    end, killed = time.monotonic() + 300, 0
    while not killed and sweep.poll() is None and time.monotonic() < end:
        if list(tmp_path.glob("runs/sweep-*/trials/*")):  # trials have begun: lent actors work
            for process in _generators(tmp_path)[:1]:
                process.kill()
                killed += 1
        time.sleep(0.02)
    _done(sweep)
    assert killed, "the blow has to hit"
    (run,) = tmp_path.glob("runs/sweep-*")
    trials = stored(open_run(run))
    assert len(trials) == 3 and all(trial["ended"] for trial in trials)


@pytest.mark.long
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


@pytest.mark.long
def test_the_loop_sweeps_between_its_rounds(home, settings) -> None:
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


@pytest.mark.long
def test_a_sweep_uses_both_nodes_of_a_cluster(home, settings) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        where = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
        # three places on each node: generator and extractor take two, four trials the others
        places = ["resources.cpus=0.3", "resources.generators=1", "resources.downstreams=4"]
        wanted = ["--trials", "6", "--confirm", "0", "--random", "--to-the-end", *SIZE, "--out", "both.json"]
        _done(_start(home, *wanted, "--run", "both", *settings, *places, **where))
    finally:
        cluster.shutdown()
    trials = stored(open_run(home / "runs" / "sweep-both"))
    assert len(trials) == 6 and len({trial["node"] for trial in trials}) == 2
    assert all(len(trial["rungs"]) == 2 for trial in trials), "to the end: none was stopped"
    told = json.loads((home / "both.json").read_text())
    (entry,) = told.values()
    assert 0 < entry["asha"]["cost_ratio"] < 2, "early rungs have fits of their own"


@pytest.mark.long
def test_a_sweep_that_loses_a_node_goes_on_with_what_is_left(tmp_path, settings) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        where = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
        # four places on each node; those of one are enough for what a run cannot do without
        places = ["resources.cpus=0.25", "resources.generators=4", "resources.least_generators=1"]
        places += ["resources.wait_seconds=15"]  # until generators make room for trials
        wanted = ["--trials", "6", "--confirm", "0", "--random", "--to-the-end", *SIZE]
        sweep = _start(tmp_path, *wanted, *settings, *places, **where)
        end = time.monotonic() + 400
        while not _measured(tmp_path) and sweep.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        assert sweep.poll() is None, "trials have to be under way"
        cluster.remove_node(node, allow_graceful=False)
        _done(sweep)
    finally:
        cluster.shutdown()
    (run,) = tmp_path.glob("runs/sweep-*")
    trials = stored(open_run(run))
    assert len(trials) == 6 and all(trial["ended"] and len(trial["rungs"]) == 2 for trial in trials)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (["--factor", "1"], "--factor 1: at least 2"),
        (["--trials", "0"], "--trials 0"),
        (["--best", "nowhere/best.yaml"], "its folder is not there"),
        (["--look", "test", "--confirm", "0"], "--confirm"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_once(wanted, told, capsys) -> None:
    assert main(wanted) == 2
    assert told in capsys.readouterr().err


def test_the_test_split_is_counted_by_points(run) -> None:
    ledger = Ledger(run)
    assert [count_reads(ledger, {"a": value}) for value in (1, 1, 2)] == [1, 1, 2]
    ledger.close()


def test_what_other_code_began_is_not_gone_on_with(run) -> None:
    ledger = Ledger(run)
    session: Any = SimpleNamespace(ledger=ledger, run=run)
    Session.demand_same_code(session, "tune")
    Session.demand_same_code(session, "tune")
    with pytest.raises(RunError, match="measured by other code than this"):
        Session.demand_same_code(session, "jobs")  # another hash
    ledger.close()
    with pytest.raises(ResourceError, match="other code"):
        _trial({}, None, None, (), None, "0123456789abcdef")  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path) -> Run:
    (tmp_path / "one").mkdir()
    return Run(tmp_path / "one")


def test_the_configuration_of_a_trial_is_its_points(settings) -> None:
    from tune.objective import at_point

    config = load_config(None, ["wasm.negatives=0.5", "wasm.start_strengths=[0.2,0.4]"])
    made = at_point(config, {"sampling.safe_strength": 3.0, "wasm.band.low": 0.5}, 7)
    assert (made.sampling.safe_strength, made.wasm.pairs, made.wasm.negatives) == (3.0, 7, 0)
    assert made.wasm.start_strengths == () and made.wasm.band[0] == 0.5
