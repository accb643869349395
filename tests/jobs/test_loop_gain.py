"""The summary of a benchmark of the loop, and what it refuses to sum up."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actors.resources import code_hash
from cdiff.config_file import dump_config, load_config
from cdiff.data.ledger import Ledger
from cdiff.data.manifest import Row, make_manifest
from cdiff.data.run import create_run
from cdiff.errors import ConfigError, RunError
from cdiff.types import (
    QUARANTINED,
    Assignment,
    Attempt,
    Decision,
    GenerationTask,
    Pair,
    Pose,
    Recipe,
    Revisions,
    RoundResult,
    Split,
    Strengths,
)
from jobs import loop_gain
from jobs.loop_gain import METRICS, demand_comparable, fidelity_of, oracle_scores, run_seed, summary
from jobs.session import Session


def _scores(pixel_ap: float, mdice: float) -> dict:
    return dict.fromkeys(METRICS, 0.5) | {
        "pixel_ap": pixel_ap,
        "mdice": mdice,
        "per_type": {"metal/pit": {"pixel_ap": pixel_ap / 2, "f1_max": 0.1, "iou": 0.1}},
    }


def _finished(real: float, loop: float, **more: float) -> dict:
    test = {"real_only": _scores(real, 0.4), "loop": _scores(loop, 0.3)}
    test |= {arm: _scores(value, 0.6) for arm, value in more.items()}
    return {
        "test": test,
        "pairs": 10,
        "pairs_accepted": 12,
        "valid_share": 0.8,
        "fidelity": {"label_iou": real, "reasons": {"kept": 12}},
        "accepted_rounds": [1],
        "best_round": 1,
        "seconds": {"fit": 3.0},
        "peak_memory_gb": 2.0,
    }


def test_gains_are_paired_by_seed_with_mean_and_spread():
    out = summary([_finished(0.1, 0.2, oracle=0.3), _finished(0.5, 0.5, oracle=0.6)], [3, 4])
    gain = out["gain"]["pixel_ap"]
    assert gain["per_seed"] == pytest.approx([0.1, 0.0])
    assert (gain["mean"], gain["sd"]) == pytest.approx((0.05, 0.0707), abs=1e-4)
    assert out["gain"]["mdice"]["mean"] == pytest.approx(-0.1)
    assert (gain["low"], gain["high"]) == pytest.approx((0.05 - 0.6353, 0.05 + 0.6353), abs=1e-3), (
        "12.706 sd / sqrt(2)"
    )
    assert out["share_of_oracle_gain"] is None, "the oracle's own gain is not shown to be one"
    assert out["test"]["loop"]["per_type"]["metal/pit"]["pixel_ap"] == pytest.approx([0.1, 0.25])
    assert out["test"]["loop"]["per_type"]["metal/pit"]["mdice"] == [None, None]
    assert [told["label_iou"] for told in out["fidelity"]] == [0.1, 0.5]
    assert (out["seeds"], out["pairs"]) == ([3, 4], [10, 10])


def test_the_gain_over_copies_names_the_seeds_whose_loop_kept_pairs():
    both = [_finished(0.1, 0.2, copy_paste=0.15), _finished(0.5, 0.5, copy_paste=0.6)]
    both[1]["copies_stand"] = False
    out = summary(both, [3, 4])
    assert out["gain_over_copies"]["pixel_ap"]["per_seed"] == pytest.approx([0.05, -0.1])
    assert set(out["gain_over_copies"]) == {*out["gain"], "of", "seeds"} and not out["seeds_without"]
    assert out["gain_over_copies"]["of"] == "seeds whose loop kept pairs"
    assert out["copies_stand"] == [None, False], "an earlier version did not put copies to the rule"
    for mixed in ([both[0], _finished(0.5, 0.5)], [_finished(0.5, 0.5), both[1]]):
        out = summary(mixed, [3, 4])
        first = mixed[0] is both[0]
        assert set(out["test"]) == {"real_only", "loop"}
        assert out["seeds_without"] == {"copy_paste": [4 if first else 3]}
        found = out["gain_over_copies"]
        assert found["seeds"] == [3 if first else 4]
        assert found["pixel_ap"]["per_seed"] == pytest.approx([0.05 if first else -0.1])
    assert "gain_over_copies" not in summary([_finished(0.5, 0.5)], [3])


def test_one_seed_has_neither_spread_nor_interval():
    gain = summary([_finished(0.1, 0.2)], [0])["gain"]["pixel_ap"]
    assert (gain["sd"], gain["low"], gain["high"]) == (None, None, None)


def test_the_share_of_the_oracles_gain_is_told_where_that_is_one():
    sure = [_finished(0.1, 0.2, oracle=0.3), _finished(0.5, 0.6, oracle=0.701)]
    assert summary(sure, [3, 4])["share_of_oracle_gain"] == pytest.approx(0.1 / 0.2005)


@pytest.fixture
def session(tmp_path, photos) -> Any:
    """A new run that asks for two rounds, and fits for a moment."""
    config = load_config(
        None,
        [
            "rounds=2",
            "data.demo=true",
            "data.demo_side=64",
            "downstream.longest_side=64",
            "downstream.crop=32",
            "downstream.steps=2",
            "downstream.base_steps=0",
            "downstream.batch=2",
        ],
    )
    sides: tuple[Split, ...] = ("train", "validation", "test")
    rows = [
        Row(s.sample_id, sides[number % 6 // 2], s.group, s.category, s.types, 0, False)
        for number, s in enumerate(photos.samples)
    ]
    manifest = make_manifest(rows, (), ())
    run = create_run(tmp_path, "one", dump_config(config), manifest)
    ledger = Ledger(run)
    cluster: Any = None
    yield Session(config, run, tmp_path, photos, manifest, ledger, cluster, None, "", demo=True)
    ledger.close()


def _round(ledger: Ledger, number: int) -> None:
    decision = Decision(True, "better", 0.1, 0.0, 0.2, 0.9)
    ledger.commit_round(RoundResult(number, (), (), 0, (), "rev", (), decision, ()), [])


def _refused(
    session: Session, monkeypatch, told: str, kind: type[Exception] = RunError, oracle: bool = False
) -> None:
    """Before a single actor starts."""

    @contextmanager
    def opened(_, purpose, program):
        assert purpose, "jobs/loop.py has runs of its own"
        yield session

    monkeypatch.setattr(loop_gain, "open_session", opened)
    before = session.ledger.events()
    with pytest.raises(kind, match=told):
        run_seed([], 0, oracle=oracle)
    assert session.ledger.events() == before


def test_an_oracle_of_real_photos_is_refused(session, monkeypatch) -> None:
    real = replace(session, demo=False)
    _refused(real, monkeypatch, "--oracle trains on fresh samples .* Leave it out", ConfigError, oracle=True)


@pytest.mark.parametrize(
    ("told", "names"),
    [
        (["--run", "tile"], ["loop-seed0-", "loop-seed7-"]),
        (["--run=tile", "rounds=1"], ["loop-seed0-", "loop-seed7-"]),
        (["rounds=1"], ["loop-", "loop-"]),  # their configurations differ by the seed
    ],
)
def test_seeds_under_one_given_name_have_a_run_each(told, names, monkeypatch) -> None:
    purposes = []

    @contextmanager
    def opened(_, purpose, program):
        purposes.append(purpose)
        yield None  # as after --dry-run

    monkeypatch.setattr(loop_gain, "open_session", opened)
    for seed in (0, 7):
        with pytest.raises(ConfigError, match="--dry-run"):
            run_seed(told, seed, oracle=False)
    assert purposes == names


def test_a_run_of_this_code_goes_on_and_is_read_again(session) -> None:
    demand_comparable(session)
    assert session.ledger.milestone("code") is not None, "before anything is made"
    _round(session.ledger, 1)
    demand_comparable(session)
    _round(session.ledger, 2)
    session.ledger.append("finished", code=code_hash())
    demand_comparable(session)


def test_a_run_that_other_code_had_a_part_in_is_refused(session, monkeypatch) -> None:
    session.ledger.record("code", code="another")
    _refused(session, monkeypatch, "measured by other code than this. Give another --home")
    session.ledger.record("code", code=code_hash("actors", "cdiff", "jobs"))
    for number in (1, 2):
        _round(session.ledger, number)
    session.ledger.append("finished", code="another")  # jobs/loop.py goes on with any
    _refused(session, monkeypatch, "one was finished by other code than this. Give another --home")


@pytest.mark.parametrize(
    ("rounds", "finished", "told"),
    [
        (4, True, "was finished with rounds=4; asked for is rounds=2. Give rounds=4, or another --home"),
        (1, True, "was finished with rounds=1; asked for is rounds=2. Give rounds=1"),
        (3, False, "has 3 rounds already; asked for is rounds=2. Give rounds=3"),
    ],
)
def test_a_run_of_another_number_of_rounds_is_refused(session, monkeypatch, rounds, finished, told) -> None:
    demand_comparable(session)
    for number in range(1, rounds + 1):
        _round(session.ledger, number)
    if finished:
        session.ledger.append("finished", code=code_hash())
    _refused(session, monkeypatch, told)


def test_fidelity_is_read_from_the_ledger_and_measured_once(session, monkeypatch) -> None:
    """Of kept pairs that show a target; a hard negative shows none."""
    kept = [_pair("pit", 0.5), _pair("bar", 0.7), _pair("", None)]
    monkeypatch.setattr(Ledger, "kept_pairs", lambda self, accepted_only: kept)
    ledger, asked = session.ledger, list[Any]()

    class Extractor:
        def call(self, method, generator, real, made):
            asked.append((method, generator, len(real), [attempt.type for attempt in made]))
            return {"kid": 0.25, "coverage": None}

    crew: Any = SimpleNamespace(
        extractor=Extractor(), dataset=session.dataset, validation=session.manifest.ids("validation")
    )
    ledger.record("generator", revision="gen-0")
    counted = [("metal/pit", "kept", 3), ("metal/pit", "not visible", 2), ("metal/bar", "not visible", 1)]
    counted += [("metal/bar", "slice stopped", 9), ("metal/bar", QUARANTINED, 1), ("metal/bar", "blurred", 4)]
    decision = Decision(False, "worse", 0.1, 0.0, 0.2, 0.9)
    ledger.commit_round(RoundResult(1, (), (), 3, tuple(counted), "rev", (), decision, ()), [])
    found = fidelity_of(crew, ledger)
    assert found["reasons"]["not visible"] == 3 and found["reasons"]["kept"] == 3
    assert found["visible_share"] == pytest.approx(0.7) and found["valid_share"] == pytest.approx(0.3)
    assert found["reasons"][QUARANTINED] == 1, "told, though nobody judged it"
    assert (found["pairs"], found["label_iou"]) == (2, pytest.approx(0.6))
    assert (found["kid"], found["coverage"]) == (0.25, None)
    ((method, generator, targets, types),) = asked
    assert (method, generator, types) == ("fidelity", "gen-0", ["pit", "bar"]) and targets > 0
    assert fidelity_of(crew, ledger) == found and len(asked) == 1, "read, not measured"


def test_a_run_that_kept_nothing_has_no_fidelity(session) -> None:
    crew: Any = None  # nobody is asked
    found = fidelity_of(crew, session.ledger)
    assert found["reasons"] == {} and {found[name] for name in ("visible_share", "label_iou", "kid")} == {
        None
    }


def _pair(kind: str, agreed: float | None) -> Pair:
    task = GenerationTask(
        Recipe("joint", "B0", 1, 0.25, 4, "euler", "float32", 1, 1),
        f"metal/{kind}/0#0",
        "metal/good/6",
        Pose(0, 0, 0, 1, False, 0, 2),
        Strengths(1, 0.5),
        0,
        Revisions("gen-0", "bank-0"),
    )
    measures = () if agreed is None else (("label_iou", agreed),)
    return Pair(
        Attempt(Assignment(task, "metal", "weak", 0), "a", 0, "metal", kind, (0, 0, 1, 1), measures, b""), ""
    )


def test_the_oracle_is_fitted_anew_where_more_pairs_were_accepted(session) -> None:
    first = oracle_scores(session, 2)
    session.ledger.record("oracle", scores=first | {"pixel_ap": 7.0}, count=2)
    assert oracle_scores(session, 2)["pixel_ap"] == 7.0, "read, not fitted"
    assert oracle_scores(session, 3)["pixel_ap"] <= 1
    assert (session.ledger.milestone("oracle") or {})["count"] == 3
