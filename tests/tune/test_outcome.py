"""What a sweep leaves in its JSON file: an entry of its own, in nobody else's place."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.resources import Cluster
from cdiff.config_file import dump_config
from cdiff.data.ledger import Ledger
from cdiff.data.store import create_run
from cdiff.errors import ConfigError
from jobs.session import Session
from tune import sweep
from tune.objective import Bench, Rung
from tune.outcome import Swept, demand_place, write_json
from tune.sweep import entry_name

NONE: Any = None  # of what trials share, but nothing here reads


def _swept(trials: int, config: Any = NONE) -> Swept:
    """So many trials of one rung."""
    bench = Bench(NONE, config, NONE, NONE, "", 0, (), (), (), (Rung(8, 20),), ({},))
    rung = {"gain": 0.1, "kept": 8, "seconds": 2.0, "fit_seconds": 1.0}
    return Swept(bench, (), tuple({"point": {}, "rungs": [rung], "spans": [(0, 2)]} for _ in range(trials)))


def _found(path: Path) -> dict[str, tuple[str, int]]:
    return {name: (told["split"], told["trials"]) for name, told in json.loads(path.read_text()).items()}


def test_an_entry_is_written_anew_and_those_of_others_stay(tmp_path) -> None:
    path = tmp_path / "tune.json"
    write_json(path, "tile", "abc", _swept(1), {})
    write_json(path, "screw", "def", _swept(3), {})
    write_json(path, "tile", "abc", _swept(5), {})
    assert _found(path) == {"tile": ("abc", 5), "screw": ("def", 3)}


def test_an_entry_of_another_split_is_not_replaced(tmp_path) -> None:
    path = tmp_path / "tune.json"
    write_json(path, "mvtec", "abc", _swept(3), {})
    before = path.read_bytes()
    for refused in (
        lambda: demand_place(path, "mvtec", "def"),
        lambda: write_json(path, "mvtec", "def", _swept(3), {}),
    ):
        with pytest.raises(
            ConfigError, match=r"entry mvtec of another split.*another --out file; .*--run NAME"
        ):
            refused()
    assert path.read_bytes() == before


def test_an_entry_that_names_no_split_is_replaced(tmp_path) -> None:
    path = tmp_path / "tune.json"
    path.write_text('{"mvtec": {"trials": 1}}')
    write_json(path, "mvtec", "def", _swept(3), {})
    assert _found(path) == {"mvtec": ("def", 3)}


def test_another_kind_of_file_is_left_alone(tmp_path) -> None:
    for text in ("[]", "no JSON"):
        (tmp_path / "tune.json").write_text(text)
        with pytest.raises(ConfigError, match="name another file"):
            demand_place(tmp_path / "tune.json", "mvtec", "def")


def test_an_entry_is_called_after_the_profile_or_by_the_whole_given_name() -> None:
    assert entry_name(["--config", "configs/mvtec.yaml"], "sweep-mvtec-01234567") == "mvtec"
    assert entry_name(["--config", "configs/mvtec.yaml", "rounds=1"], "sweep-my-tile-01234567") == "my-tile"
    assert entry_name(["--run", "tile-a", "rounds=1"], "sweep-tile-a") == "tile-a"
    assert entry_name(["--run", "tile"], "sweep-tile") == "tile"


def test_a_sweep_that_would_replace_anothers_entry_is_refused_before_its_trials(
    tmp_path, monkeypatch
) -> None:
    path = tmp_path / "tune.json"
    write_json(path, "mvtec", "abc", _swept(3), {})

    @contextmanager
    def opened(*_: Any, **__: Any):
        yield SimpleNamespace(  # has neither actors nor a tracker, which would be asked for next
            config=None,
            ledger=None,
            manifest=SimpleNamespace(hash="def"),
            run=SimpleNamespace(name="sweep-mvtec-01234567"),
        )

    monkeypatch.setattr(sweep, "open_session", opened)
    args = sweep.parser().parse_args(["--out", str(path)])
    with pytest.raises(ConfigError, match="another split"):
        sweep.run(["--config", str(Path("configs") / "mvtec.yaml")], args, {})


def test_a_sweep_whose_mlflow_goes_away_writes_what_was_asked_for_and_logs_it_when_run_again(
    tmp_path, monkeypatch, tiny_config, mlflow_away, caplog, capsys
) -> None:
    from mlflow import MlflowClient

    splits: Any = SimpleNamespace(hash="abc", photos="def", ids=lambda split: ["photo"])
    run = create_run(tmp_path, "sweep-tile", dump_config(tiny_config), splits)
    uri, ledger = f"sqlite:///{tmp_path}/mlflow.db", Ledger(run)
    cluster, command = Cluster(True, 1, 1, 0), "python tune/sweep.py"
    session = Session(tiny_config, run, tmp_path, NONE, splits, ledger, cluster, uri, command, False)

    @contextmanager
    def opened(*_: Any, **__: Any):
        yield session

    monkeypatch.setattr(sweep, "open_session", opened)
    monkeypatch.setattr(Session, "crew", lambda _: nullcontext())
    monkeypatch.setattr(sweep, "demand_tunable", lambda *_: None)
    monkeypatch.setattr(sweep, "prepare", lambda *_: None)
    out = tmp_path / "tune.json"
    args = sweep.parser().parse_args(["--out", str(out), "--confirm", "0", "--random"])
    with ExitStack() as away:

        def searched(*_: Any) -> Swept:
            away.enter_context(mlflow_away())
            return _swept(1, tiny_config)

        monkeypatch.setattr(sweep, "search_points", searched)
        sweep.run(["--run", "tile"], args, {})
    assert _found(out) == {"tile": ("abc", 1)} and "report     " in capsys.readouterr().out
    assert "not in MLflow yet: the sweep's report and its best point" in caplog.text
    monkeypatch.setattr(sweep, "search_points", lambda *_: _swept(1, tiny_config))
    sweep.run(["--run", "tile"], args, {})
    run_id = (ledger.milestone("tracking") or {})["run_id"]
    assert MlflowClient(uri).get_run(run_id).data.metrics["best/gain"] == 0.1
    (page,) = MlflowClient(uri).list_artifacts(run_id, "report")
    assert page.path == "report/sweep.html"
    ledger.close()
