"""What a round leaves in MLflow, and what the report shows of a finished run."""

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.crew import Assessed
from actors.downstream import Evaluation
from cdiff.data.carriers import from_json
from cdiff.data.ledger import Ledger
from cdiff.evaluation.decision import decide
from cdiff.evaluation.report import ReportContent
from cdiff.evaluation.tally import Pool, Tally
from cdiff.tracking import Tracker
from cdiff.types import LEAST_CHANCE, Decision, RoundResult
from jobs import closing
from jobs.closing import PAGE, best_and_worst, close, rival, show
from jobs.quality_pool import Choice
from jobs.session import Session
from jobs.telling import log_missed, log_round, log_start


@pytest.mark.parametrize(
    ("photos", "best", "worst"), [(0, "", ""), (1, "", "a"), (3, "c", "ab"), (9, "ihgf", "abcd")]
)
def test_no_photo_is_both_among_the_best_and_the_worst(photos, best, worst):
    dice = {name: index / 10 for index, name in enumerate("abcdefghi"[:photos])}
    assert best_and_worst(dice) == (list(best), list(worst))


@pytest.fixture
def session(judged_run, photos, tiny_config, uri) -> Any:
    """A run whose first round is committed, and no more."""
    ledger = Ledger(judged_run)
    scores = {"pixel_ap": 0.4, "per_type": {"metal/pit": {"pixel_ap": 0.3}}}
    ledger.record("round-1", assessed=Assessed("rev", scores, 0.5, (0.9, 0.7), 1.5, ()))
    yield SimpleNamespace(run=judged_run, ledger=ledger, config=tiny_config, dataset=photos, tracking_uri=uri)
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


def test_a_store_that_is_away_for_a_while_costs_no_round(session, uri, caplog, mlflow_away) -> None:
    tracker, (result,) = Tracker(session.run, session.config, uri), session.ledger.rounds()
    found = from_json(Assessed, (session.ledger.milestone("round-1") or {})["assessed"])
    with mlflow_away():
        log_round(session, tracker, result, session.ledger.pairs(1), found)
    assert "not in MLflow yet: round 1" in caplog.text and not _logged(tracker)[0]
    log_missed(session, tracker)
    assert [child.info.run_name for child in _logged(tracker)[0]] == ["round 1"]


def test_a_store_that_is_away_after_hours_of_training_does_not_end_the_loop(
    session, uri, caplog, capsys, mlflow_away
) -> None:
    tracker, ledger = Tracker(session.run, session.config, uri), session.ledger
    ledger.record("generator", revision="generator", losses=[0.9, 0.6])
    with mlflow_away():
        log_start(tracker, ledger, _assessed("real"))
    assert "not in MLflow yet: what stands before the first round (MLflow: no answer)" in caplog.text
    assert "the same command, run again, logs that" in caplog.text and "gain:" in capsys.readouterr().out
    assert not _logged(tracker)[2]
    again = Tracker(session.run, session.config, uri, resume=tracker.run_id)
    log_start(again, ledger, _assessed("real"))  # as every start does
    assert _logged(again)[2] == [(0, 0.4)]


def test_a_store_that_is_away_at_the_end_costs_a_warning_and_the_next_start_logs_it(
    session, uri, caplog, capsys, mlflow_away
) -> None:
    from mlflow import MlflowClient

    _complete(session)
    told = {"pixel_ap": 0.5, "f1_max": 0.5, "iou": 0.5, "mdice": 0.5}
    test = {"real_only": told, "loop": told}
    session.ledger.append("finished", test=test, dice={}, seconds={}, ahead={}, pairs=3)
    crew: Any = SimpleNamespace(score=lambda revision, photos: {})
    models = _assessed("real"), _assessed("rev")
    (session.run.checkpoints / "rev").mkdir(parents=True)
    (session.run.checkpoints / "rev" / "model.safetensors").write_bytes(b"weights")
    with Session.tracker(session) as tracker, mlflow_away():
        close(session, crew, session.ledger, tracker, *models)
    assert "Before and after" in (session.run.report_dir / PAGE).read_text()
    assert "test split, read once" in capsys.readouterr().out
    assert "not in MLflow yet: the scores on the test split, the report and the model" in caplog.text
    assert "test/loop/pixel_ap" not in MlflowClient(uri).get_run(tracker.run_id).data.metrics
    with Session.tracker(session) as again:
        close(session, crew, session.ledger, again, *models)
    logged = MlflowClient(uri).get_run(again.run_id)
    assert again.run_id == tracker.run_id and logged.data.metrics["test/loop/pixel_ap"] == 0.5
    for folder, file in (("report", PAGE), ("model", "model.safetensors")):
        (there,) = MlflowClient(uri).list_artifacts(again.run_id, folder)
        assert there.path == f"{folder}/{file}"
    assert [child.info.run_name for child in _logged(again)[0]] == ["round 1"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_store_that_does_not_hear_of_the_end_hides_no_success_and_no_error(
    session, caplog, mlflow_away, fails
) -> None:
    _complete(session)
    expected: Any = pytest.raises(ZeroDivisionError) if fails else nullcontext()
    with ExitStack() as away, expected, Session.tracker(session):
        away.enter_context(mlflow_away())
        if fails:
            raise ZeroDivisionError
    assert "not in MLflow yet: the end of this run" in caplog.text


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


def test_a_round_without_an_interval_is_told_and_logged_without_one(session, uri, capsys) -> None:
    (result,) = session.ledger.rounds()
    bare = replace(result, decision=replace(result.decision, low=None, high=None))
    tracker = Tracker(session.run, session.config, uri)
    log_round(session, tracker, bare, session.ledger.pairs(1), _assessed("rev"))
    (child,), _, _ = _logged(tracker)
    assert {name for name in child.data.metrics if name.startswith("decision/")} == {
        f"decision/{name}" for name in ("gain", "chance", "accepted", "stands")
    }
    assert "gain=+0.1000 [–] chance=0.900" in capsys.readouterr().out


def test_another_mlflow_run_gets_the_rounds_of_before(session, uri) -> None:
    """As where the store of the first did not answer, and another is named."""
    log_missed(session, Tracker(session.run, session.config, uri))
    other = Tracker(session.run, session.config, uri)
    log_missed(session, other)
    assert _logged(other)[2] == [(1, 0.4)]


def _complete(session: Any) -> None:
    """What the report and the tracker ask of a session besides."""
    split = {"count": lambda split: f"{split}: some", "ids": lambda split: [f"{split}-photo"]}
    session.manifest = SimpleNamespace(**split, hash="hash", notes=())
    session.command, session.demo = "python jobs/loop.py", False


def _assessed(revision: str) -> Assessed:
    return Assessed(revision, {"pixel_ap": 0.4}, 0.5, (0.7,), 1.5, ())


def test_after_a_round_the_report_is_there_as_far_as_it_goes(session) -> None:
    _complete(session)
    session.config = session.config.model_copy(update={"rounds": 3})
    show(session, session.ledger, _assessed("real"))
    page = session.run.report_dir / PAGE
    shown = page.read_text()
    assert "1 of 3 rounds are done" in shown and "Before and after" not in shown
    assert "<dt>rounds</dt><dd>3</dd>" in shown and "<dt>tracking.uri</dt><dd>&quot;&quot;</dd>" in shown, (
        "as given to the loop"
    )
    assert "<dt>train</dt><dd>some</dd>" in shown
    page.write_text("of the end")
    session.ledger.append("finished", test={})
    show(session, session.ledger, _assessed("real"))
    assert page.read_text() == "of the end", "until the run is closed again"


@pytest.mark.parametrize(
    ("best", "passed", "control", "chance"),
    [
        (1, 3, "copy_paste", 0.25),
        (1, 3, "copy_paste", 0.24),
        (0, 3, "copy_paste", 0.9),
        (1, 0, "copy_paste", 0.9),
        (1, 3, "none", 0.9),
    ],
)
def test_the_rival_has_as_many_copies_as_the_kept_model_has_pairs_and_passes_the_same_rule(
    session, photos, monkeypatch, best, passed, control, chance
) -> None:
    """A round's model is kept where validation favours it, so that copies which it does not favour are no rival either."""
    ledger, asked = session.ledger, list[Any]()
    pairs = ledger.pairs(1)[:3]
    ledger.record("generator", revision="generator")
    ledger.record("extractor", bank="bank", thresholds={"lows": {}, "highs": {}, "distances": {}})
    ledger.record("round-1", assessed=_assessed("rev"), mix=0.7)
    monkeypatch.setattr(ledger, "best_round", lambda: best)
    monkeypatch.setattr(ledger, "kept_pairs", lambda until: pairs if until else [])
    monkeypatch.setattr(closing, "from_json", lambda kind, found: None)

    def choose(pools, configs, per_type, wanted, label, least=1):
        ((key, told),) = wanted.items()
        asked.append(
            (sum(told.quotas.values()), configs[0].sampling.start_strength, configs[0].sampling.mode)
        )
        return {key: Choice(tuple(pairs[:passed]))}

    monkeypatch.setattr(closing.Pools, "choose", choose)

    def assess(ledger, name, pairs, config) -> Assessed:
        asked.append((name, len(pairs), config.downstream.synthetic_mix))
        return _assessed("copies")

    def decide(candidate, best, real_only, seed) -> Decision:
        asked.append((candidate.revision, best.revision, real_only.revision, seed))
        return Decision(True, "", 0.0, -0.1, 0.1, chance)

    config = session.config.model_copy(update={"control": control})
    crew: Any = SimpleNamespace(
        config=config,
        dataset=photos,
        train=[s.sample_id for s in photos.samples],
        assess=assess,
        decide=decide,
    )
    found = rival(crew, ledger, _assessed("real"))
    if best and passed and control == "copy_paste":
        assert found["copy_paste"].revision == ("copies" if chance >= LEAST_CHANCE else "real")
        drawn = config.seed + best  # as when the round was decided
        fit = ("copy_paste", 3, 0.7)  # with the round's own share beside real targets
        assert asked == [(3, 0.0, "given_mask"), fit, ("copies", "real", "real", drawn)]
        noted = ledger.milestone("copies") or {}
        assert noted["pairs"] == 3 and noted["decision"]["chance"] == chance
    else:
        assert found == {} and (not asked or not passed)


def test_pairs_that_people_turned_away_later_still_count_for_the_model_that_has_them(
    session, photos, monkeypatch
) -> None:
    """The copies are as many as it was fitted on, though a round after the best one took verdicts in."""
    ledger, asked = session.ledger, list[int]()
    ledger.record("generator", revision="generator")
    ledger.record("extractor", bank="bank", thresholds={"lows": [], "highs": {}, "distances": {}})
    away = ledger.pairs(1)[0].task_id
    ledger.append("verdicts", keys=["a"], told=[{"task_id": away, "accepted": False}])
    worse = Decision(False, "worse", -0.1, -0.2, -0.05, 0.0)
    ledger.commit_round(RoundResult(2, (), (), 0, (), "rev-2", (), worse, ()), [])
    monkeypatch.setattr(closing, "from_json", lambda kind, found: None)

    def choose(pools, configs, per_type, wanted, label, least=1):
        ((key, told),) = wanted.items()
        asked.append(sum(told.quotas.values()))
        return {key: Choice(())}

    monkeypatch.setattr(closing.Pools, "choose", choose)
    crew: Any = SimpleNamespace(
        config=session.config, dataset=photos, train=[s.sample_id for s in photos.samples]
    )
    rival(crew, ledger, _assessed("real"))
    assert asked == [2], "a ledger from before it was noted has those that count now"
    assert closing._told(ledger, _assessed("real"), {})["pairs"] == 2
    ledger.record("round-1", assessed=_assessed("rev"), mix=0.0, pairs=3)
    rival(crew, ledger, _assessed("real"))
    assert asked == [2, 3] and closing._told(ledger, _assessed("real"), {})["pairs"] == 3
    took = closing._told(ledger, _assessed("real"), {"copies": 61.234, "test": 0.0})["seconds"]
    assert took["copies"] == 61.23 and "test" not in took and took["real_only"] == 1.5


def test_the_kept_model_is_compared_with_each_rival_on_the_test_split(session) -> None:
    scores = {"real": 0.3, "loop": 0.5, "copies": 0.45}

    class Crew:
        def evaluate(self, revision, photos, threshold) -> Evaluation:
            return Evaluation({"pixel_ap": scores[revision]}, {"photo": scores[revision]}, threshold, ())

        def ahead(self, model, rival, photos, gain) -> Decision:
            return Decision(True, "", gain, gain - 0.1, gain + 0.1, 0.9)

    session.manifest = SimpleNamespace(ids=lambda split: [f"{split}-photo"])
    crew: Any = Crew()
    rivals = {"real_only": _assessed("real"), "copy_paste": _assessed("copies")}
    told = closing._tested(session, crew, session.ledger, rivals, _assessed("loop"))
    assert {arm: s["pixel_ap"] for arm, s in told["test"].items()} == {
        "real_only": 0.3,
        "copy_paste": 0.45,
        "loop": 0.5,
    }
    assert told["ahead"]["copy_paste"]["gain"] == pytest.approx(0.05) and told["ahead"]["real_only"][
        "low"
    ] == pytest.approx(0.1)
    assert told["dice"] == {"photo": 0.5} and told["copies_stand"] is True
    unkept = rivals | {"copy_paste": _assessed("real")}
    told = closing._tested(session, crew, session.ledger, unkept, _assessed("loop"))
    assert told["copies_stand"] is False and told["ahead"]["copy_paste"] == told["ahead"]["real_only"]
    assert told["test"]["copy_paste"] == told["test"]["real_only"]
    stands = closing._tested(
        session, crew, session.ledger, {"real_only": _assessed("real")}, _assessed("real")
    )
    assert stands["ahead"] == {} and stands["test"]["loop"] == stands["test"]["real_only"]
    assert stands["copies_stand"] is None


@pytest.mark.parametrize(
    ("told", "kept"), [({}, True), ({"copies_stand": True}, True), ({"copies_stand": False}, False)]
)
def test_copies_that_validation_did_not_keep_are_told(session, capsys, told, kept) -> None:
    """A run that an earlier version closed says nothing of it: its copies were not put to the rule."""
    metrics = ("pixel_ap", "f1_max", "iou", "mdice")
    scores = {arm: dict.fromkeys(metrics, 0.4) for arm in ("real_only", "copy_paste", "loop")}
    ahead = {arm: {"gain": 0.1, "low": 0.0, "high": 0.2} for arm in ("real_only", "copy_paste")}
    finished = {"test": scores, "copies": 3, "pairs": 3, "seconds": {}, "ahead": ahead} | told
    closing._tell(SimpleNamespace(demo=False), finished, "page", real_only_stands=False)  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert ("copies not kept on validation: real photos alone stand in" in shown) != kept
    assert ("pixel_ap over 3 pasted copies" in shown) == kept, "nobody measured that"
    content = closing._closed(ReportContent("one"), finished, (), ())
    assert content.copies_stand == kept and ("copy_paste" in content.ahead) == kept


def test_one_test_object_gives_no_interval(session, capsys) -> None:
    def counted(*positives: int) -> Tally:
        """Of one object: its pixels, from the lowest score to the highest."""
        pixels = np.array([positives, (90, 9, 1)], np.float32)[:, None]
        pool = Pool(np.arange(1), *pixels)
        return Tally(("photo",), ("object",), {"metal/pit": pool}, {}, np.ones((1, 2)))

    def evaluated(revision: str, photos: list[str], threshold: float) -> Evaluation:
        scores = dict.fromkeys(("pixel_ap", "f1_max", "iou", "mdice"), {"real": 0.3, "loop": 0.5}[revision])
        return Evaluation(scores, {"photo": 0.5}, threshold, ())

    def ahead(model: str, rival: str, photos: list[str], gain: float) -> Decision:
        one, other = counted(1, 3, 6), counted(2, 4, 4)
        return decide(one, other, other, gain, 0)

    session.manifest, session.demo = SimpleNamespace(ids=lambda split: ["photo"]), False
    crew: Any = SimpleNamespace(evaluate=evaluated, ahead=ahead)
    rivals = {"real_only": _assessed("real")}
    finished = closing._tested(session, crew, session.ledger, rivals, _assessed("loop"))
    assert finished["ahead"] == {"real_only": {"gain": pytest.approx(0.2), "low": None, "high": None}}
    closing._tell(session, finished, "report.html", real_only_stands=False)
    assert "pixel_ap over real photos alone: +0.2000 [–]" in capsys.readouterr().out
