"""Tracking: what is logged is found again in MLflow, under legal names, in the right run."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from cdiff.config import Config
from cdiff.config_file import dump_config, load_config
from cdiff.data.run import Run, create_run
from cdiff.errors import CdiffError, TrackingError, shown_uri
from cdiff.tracking import MAX_NAME, Log, Tracker, demand_store, legal_name, may_be_away

mlflow = pytest.importorskip("mlflow")


@dataclasses.dataclass
class Splits:
    hash: str = "abc"
    photos: str = "def"


@pytest.fixture(autouse=True)
def no_uri(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One home for all: making MLflow's database takes seconds."""
    return tmp_path_factory.mktemp("a home")


@pytest.fixture
def run(home, request) -> Run:
    return create_run(
        home, request.node.name[:60].replace("[", "-").replace("]", ""), dump_config(Config()), Splits()
    )


def client(tracker: Tracker):
    return mlflow.MlflowClient(tracking_uri=tracker.uri)


def test_the_default_database_and_artefacts_lie_under_the_absolute_home(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(run, Config())
    assert tracker.uri == f"sqlite:///{home}/mlflow.db"
    assert (home / "mlflow.db").is_file()
    tracker.picture("grid", np.zeros((4, 5, 3), np.uint8))
    assert len(list((home / "mlartifacts").rglob("grid.png"))) == 1
    assert not list(tmp_path.iterdir())


def test_the_uri_comes_from_flag_then_environment_then_config(run, home, monkeypatch):
    config = load_config(None, [f"tracking.uri=sqlite:///{home}/mlflow.db?from=config"])
    assert Tracker(run, config).uri.endswith("from=config")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db?from=environment")
    assert Tracker(run, config).uri.endswith("from=environment")
    assert Tracker(run, config, f"sqlite:///{home}/mlflow.db?from=flag").uri.endswith("from=flag")


def test_parameters_and_tags_are_flat_text(run):
    tracker = Tracker(run, Config())
    tracker.start(Config(), {"split_hash": "abc", "train": 12, "type crack+": "x" * 9000})
    data = client(tracker).get_run(tracker.run_id).data
    assert data.params["generator.steps"] == "1500"
    assert data.params["generator.margin"] == "[1.3, 2.2]"
    assert data.params["downstream.factory"] == "cdiff.downstream.segmenter:unet"
    assert data.tags["split_hash"] == "abc"
    assert data.tags["train"] == "12"
    assert client(tracker).get_run(tracker.run_id).info.run_name == run.name


def test_a_round_is_a_nested_run_whose_metrics_stand_on_the_parent_by_step(run):
    tracker = Tracker(run, Config())
    for number in (1, 2):
        with tracker.round(number) as log:
            log.metrics({"validation": {"pixel_ap": 0.1 * number, "aupro": None, "note": "x"}})
            log.metrics({"loss": 3.0}, step=500)
    runs = client(tracker).search_runs(
        [tracker.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'"
    )
    kind = client(tracker).get_experiment(tracker.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development", "its page opens on runs, not on traces"
    assert {found.info.run_name for found in runs} == {"round 1", "round 2"}
    assert {found.info.status for found in runs} == {"FINISHED"}
    history = client(tracker).get_metric_history(tracker.run_id, "validation/pixel_ap")
    assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.2)]
    assert "loss" not in client(tracker).get_run(tracker.run_id).data.metrics
    assert all(found.data.metrics.keys() == {"validation/pixel_ap", "loss"} for found in runs)


def test_arms_and_seeds_are_nested_runs_that_compare_by_parameter_and_colour(run):
    tracker = Tracker(run, Config())
    for value, (arm, seed) in enumerate([("wasm", 0), ("wasm", 1), ("real_only", 0), ("wasm", 0)]):
        with tracker.arm(arm, seed) as log:
            log.metrics({"test": {"pixel_ap": value / 10}})
    wanted = f"tags.mlflow.parentRunId = '{tracker.run_id}'"
    runs = client(tracker).search_runs([tracker.experiment_id], wanted)
    found = {(r.data.params["arm"], r.data.params["seed"]): r for r in runs}
    assert len(runs) == len(found) == 3  # told again, it is overwritten
    assert found["wasm", "0"].data.metrics["test/pixel_ap"] == 0.3
    colours = {key: r.data.tags["mlflow.runColor"] for key, r in found.items()}
    assert colours["wasm", "0"] == colours["wasm", "1"] != colours["real_only", "0"]
    assert "test/pixel_ap" not in client(tracker).get_run(tracker.run_id).data.metrics


def test_metric_names_of_any_type_are_legal_and_stay_apart(run):
    names = [
        "metal/crack+",
        "metal/crack*",
        "metal//x",
        "../up",
        "a/./b",
        "größe",
        "a" * 300,
        "ok/name-1.0 x",
        "日本/ひび",
    ]
    assert len({legal_name(name) for name in names}) == len(names)
    assert all(len(legal_name(name)) <= MAX_NAME for name in names)
    assert legal_name("ok/name-1.0 x") == "ok/name-1.0 x"
    tracker = Tracker(run, Config())
    tracker.metrics({"per_type": {name: {"iou": np.float32(0.5)} for name in names}})
    assert len(client(tracker).get_run(tracker.run_id).data.metrics) == len(names)


def test_a_resumed_run_goes_on_in_the_same_mlflow_runs(run):
    first = Tracker(run, Config())
    first.start(Config(), {"split_hash": "abc"})
    with pytest.raises(KeyboardInterrupt), first.round(1) as log:  # noqa: PT012
        log.table("weaknesses", pd.DataFrame({"slice": ["a", "b"], "score": [0.5, 0.25]}))
        raise KeyboardInterrupt
    first.finish("KILLED")
    second = Tracker(run, Config(), resume=first.run_id)
    assert second.run_id == first.run_id
    assert client(second).get_run(second.run_id).info.status == "RUNNING"
    second.start(load_config(None, ["generator.steps=7"]), {"split_hash": "abc"})
    with second.round(1) as log:
        log.table("weaknesses", pd.DataFrame({"slice": ["c"], "score": [0.75]}))
        child = log.run_id
    second.finish()
    found = client(second).search_runs([second.experiment_id], f"tags.mlflow.parentRunId = '{first.run_id}'")
    assert [(item.info.run_id, item.info.status) for item in found] == [(child, "FINISHED")]
    table = json.loads(Path(client(second).download_artifacts(child, "tables/weaknesses.json")).read_text())
    assert table == {"columns": ["slice", "score"], "data": [["c", 0.75]]}
    tagged = json.loads(client(second).get_run(child).data.tags["mlflow.loggedArtifacts"])
    assert tagged == [{"path": "tables/weaknesses.json", "type": "table"}]
    assert client(second).get_run(first.run_id).data.params["generator.steps"] == "1500"


def test_resuming_a_run_that_the_store_does_not_know_starts_a_new_one(run, caplog):
    tracker = Tracker(run, Config(), resume="0" * 32)
    assert tracker.run_id != "0" * 32
    assert "a new one is started" in caplog.text


def test_a_store_that_fails_for_a_moment_does_not_part_the_history(run, monkeypatch):
    first = Tracker(run, Config())
    from mlflow import MlflowClient

    def away(*_, **__):
        raise MlflowException("503: upstream is away", TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(MlflowClient, "update_run", away)
    with pytest.raises(TrackingError, match="upstream is away"):
        Tracker(run, Config(), resume=first.run_id)


def test_an_artefact_store_that_is_away_costs_a_warning(run, tmp_path, monkeypatch, caplog):
    """Clients write to it themselves, and nothing of it is tried before the first round: S3's own errors are none of MLflow's."""
    for name, value in {
        "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.MlflowClient(tracking_uri=uri).create_experiment(
        "cdiff", artifact_location="s3://bucket/artefacts"
    )
    tracker = Tracker(run, Config(), uri)
    with may_be_away("round 1"), tracker.round(1) as log:
        log.metrics({"validation": {"pixel_ap": 0.5}})
        log.table("counts", pd.DataFrame({"slice": ["a"], "count": [1]}))
    assert "not in MLflow yet: round 1" in caplog.text and "127.0.0.1:9" in caplog.text
    assert client(tracker).get_run(tracker.run_id).data.metrics["validation/pixel_ap"] == 0.5


def test_a_fault_in_code_is_no_store_that_is_away(run):
    log = Log(object(), "run")  # type: ignore[arg-type]  # a client that can do nothing
    with pytest.raises(AttributeError), may_be_away("round 1"):
        log.metrics({"pixel_ap": 0.5})


def test_ctrl_c_is_told_though_the_store_is_away(run, monkeypatch):
    tracker = Tracker(run, Config())

    def away(*_):
        raise TrackingError("MLflow: no answer")

    def stopped():
        with tracker.round(1):
            monkeypatch.setattr(tracker, "_end", away)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()


def test_a_round_that_fails_is_marked_failed(run):
    tracker = Tracker(run, Config())
    with pytest.raises(ZeroDivisionError), tracker.round(1) as log:
        raise ZeroDivisionError
    assert client(tracker).get_run(log.run_id).info.status == "FAILED"


def test_pictures_and_files_are_artefacts_and_round_pictures_a_series(run, tmp_path):
    tracker = Tracker(run, Config())
    (tmp_path / "report.html").write_text("<p>hello</p>")
    tracker.artifact(tmp_path / "report.html")
    with tracker.round(3) as log:
        log.picture("kept/grid", np.full((8, 8, 3), 7, np.uint8))
        inside = [item.path for item in client(tracker).list_artifacts(log.run_id, "pictures")]
    assert [item.path for item in client(tracker).list_artifacts(tracker.run_id)] == ["images", "report.html"]
    assert len(inside) == 1
    series = [item.path for item in client(tracker).list_artifacts(tracker.run_id, "images")]
    assert series
    assert all("step+3" in path or "step%3" in path for path in series), series


def test_an_unreachable_or_nonsensical_store_is_named_without_its_password(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(CdiffError, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:9") as caught:
        Tracker(run, Config(), "http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)
    with pytest.raises(CdiffError, match="MLflow at nonsense"):
        Tracker(run, Config(), "nonsense://x")
    assert shown_uri("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert shown_uri("postgresql://me:pa@ss@host/db") == "postgresql://***@host/db"
    assert (
        shown_uri("postgresql://host/db?user=me&password=secret&x=1")
        == "postgresql://host/db?user=me&password=***&x=1"
    )
    for uri in ("postgresql://me:pa@ss@host/db", "postgresql://host/db?password=secret"):
        with pytest.raises(CdiffError, match="does not belong into settings"):
            load_config(None, [f"tracking.uri={uri}"])


def test_a_database_without_its_driver_or_with_other_bytes_is_told_as_such(run, tmp_path):
    for uri in ("postgresql://me:secret@nowhere/db", "mysql+pymysql://me:secret@nowhere/db"):
        for opened in (lambda uri=uri: Tracker(run, Config(), uri), lambda uri=uri: demand_store(uri)):
            with pytest.raises(TrackingError, match="MLflow at") as told:
                opened()
            assert "secret" not in str(told.value)
    damaged = tmp_path / "mlflow.db"
    damaged.write_bytes(b"no database " * 100)
    for asked in (
        lambda: demand_store(f"sqlite:///{damaged}"),
        lambda: Tracker(run, Config(), f"sqlite:///{damaged}"),
    ):
        with pytest.raises(TrackingError, match="not a database"):
            asked()
    demand_store(f"sqlite:///{tmp_path}/new.db")
    with pytest.raises(TrackingError, match="no folder of yours"):
        demand_store(f"sqlite:///{damaged}/below/mlflow.db")


def test_two_runs_that_make_the_experiment_at_once_share_it(run, monkeypatch):
    first = Tracker(run, Config())
    from mlflow import MlflowClient

    asked = MlflowClient.get_experiment_by_name
    calls: list[int] = []

    def late(client, name):
        """At first as if it were not there yet."""
        calls.append(1)
        return None if len(calls) == 1 else asked(client, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert Tracker(run, Config()).experiment_id == first.experiment_id and len(calls) == 2


def test_telemetry_is_off_and_mlflow_is_not_imported_before_a_tracker_is_made(home):
    code = (
        "import sys; import cdiff.tracking; assert 'mlflow' not in sys.modules\n"
        "from cdiff.tracking import _connect\n"
        f"_connect('sqlite:///{home}/mlflow.db')\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled; assert is_telemetry_disabled()"
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in ("CI", "GITHUB_ACTIONS", "DO_NOT_TRACK")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_mlflow_the_error_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(CdiffError, match="pip install mlflow"):
        Tracker(run, Config())
