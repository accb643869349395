"""What a round leaves in MLflow, and what the report shows of a finished run."""

from types import SimpleNamespace
from typing import Any

import pytest

from actors.crew import Assessed
from cdiff.data.carriers import from_json
from cdiff.data.ledger import Ledger
from cdiff.errors import TrackingError
from cdiff.tracking import Tracker
from jobs.closing import best_and_worst
from jobs.telling import log_missed, log_round


@pytest.mark.parametrize(
    ("photos", "best", "worst"), [(0, "", ""), (1, "", "a"), (3, "c", "ab"), (9, "ihgf", "abcd")]
)
def test_no_photo_is_both_among_the_best_and_the_worst(photos, best, worst):
    dice = {name: index / 10 for index, name in enumerate("abcdefghi"[:photos])}
    assert best_and_worst(dice) == (list(best), list(worst))


@pytest.fixture
def session(judged_run, photos, tiny_config) -> Any:
    """A run whose first round is committed, and no more."""
    ledger = Ledger(judged_run)
    scores = {"pixel_ap": 0.4, "per_type": {"metal/pit": {"pixel_ap": 0.3}}}
    ledger.record("round-1", assessed=Assessed("rev", scores, 0.5, (0.9, 0.7), 1.5, ()))
    yield SimpleNamespace(run=judged_run, ledger=ledger, config=tiny_config, dataset=photos)
    ledger.close()


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """One store for all: making its database takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def _logged(tracker: Tracker) -> Any:
    """The nested runs, with the names of their files; and what the parent has of the rounds."""
    from mlflow import MlflowClient

    client = MlflowClient(tracker.uri)
    children = client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'")
    files = [
        [
            file.path
            for folder in ("tables", "pictures")
            for file in client.list_artifacts(r.info.run_id, folder)
        ]
        for r in children
    ]
    history = client.get_metric_history(tracker.run_id, "validation/pixel_ap")
    return children, files, [(point.step, point.value) for point in history]


def test_a_round_that_was_cut_off_between_commit_and_log_is_logged_by_the_next_start(
    session, uri, capsys
) -> None:
    tracker = Tracker(session.run, session.config, uri)
    log_missed(session, tracker)
    (child,), (files,), history = _logged(tracker)
    assert child.info.run_name == "round 1" and child.info.status == "FINISHED"
    assert child.data.metrics["validation/per_type/metal/pit/pixel_ap"] == 0.3
    assert child.data.metrics["fit/loss"] == 0.7 and child.data.metrics["decision/gain"] == 0.1
    assert files == [
        "tables/counts.json",
        "tables/gains.json",
        "tables/weakness.json",
        "pictures/pairs_kept.png",
    ]
    assert history == [(1, 0.4)]
    assert capsys.readouterr().out.count("round=1 kept=3") == 1
    log_missed(session, Tracker(session.run, session.config, uri, resume=tracker.run_id))
    assert _logged(tracker)[2] == history and not capsys.readouterr().out, "logged once"


def test_a_store_that_is_away_for_a_while_costs_no_round(session, uri, caplog, monkeypatch) -> None:
    tracker, (result,) = Tracker(session.run, session.config, uri), session.ledger.rounds()
    found = from_json(Assessed, (session.ledger.milestone("round-1") or {})["assessed"])

    def away(*_: Any, **__: Any) -> None:
        raise TrackingError("MLflow: no answer")

    with monkeypatch.context() as patch:
        patch.setattr(tracker, "_child_run", away)
        log_round(session, tracker, result, session.ledger.pairs(1), found)
    assert "round 1 is not in MLflow yet" in caplog.text and not _logged(tracker)[0]
    log_missed(session, tracker)
    assert [child.info.run_name for child in _logged(tracker)[0]] == ["round 1"]


def test_a_round_that_is_logged_again_reads_as_before(session, uri) -> None:
    """As of runs whose ledger does not tell what is logged, and after a kill in the midst of it."""
    (result,) = session.ledger.rounds()
    fitted = Assessed("rev", {"pixel_ap": 0.4}, 0.5, (0.7,), 1.5, ())
    tracker = Tracker(session.run, session.config, uri)
    tracker.metrics({"validation": {"pixel_ap": 0.6}}, step=2)
    for _ in range(2):
        log_round(session, tracker, result, session.ledger.pairs(1), fitted)
    (child,), (files,), history = _logged(tracker)
    assert len(files) == 4 and child.data.metrics["validation/pixel_ap"] == 0.4
    assert set(history) == {(1, 0.4), (2, 0.6)}
    from mlflow import MlflowClient

    parent = MlflowClient(uri).get_run(tracker.run_id)
    assert parent.data.metrics["validation/pixel_ap"] == 0.6, "the last round's stays the latest"


def test_another_mlflow_run_gets_the_rounds_of_before(session, uri) -> None:
    """As where the store of the first did not answer, and another is named."""
    log_missed(session, Tracker(session.run, session.config, uri))
    other = Tracker(session.run, session.config, uri)
    log_missed(session, other)
    assert _logged(other)[2] == [(1, 0.4)]
