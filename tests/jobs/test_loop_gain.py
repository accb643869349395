"""The summary of a benchmark of the loop, and what it refuses to sum up."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from cdiff.errors import RunError
from jobs import loop_gain
from jobs.loop_gain import METRICS, run_seed, summary


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
    assert out["share_of_oracle_gain"] == pytest.approx(0.05 / 0.15)
    assert out["test"]["loop"]["per_type"]["metal/pit"]["pixel_ap"] == pytest.approx([0.1, 0.25])
    assert out["test"]["loop"]["per_type"]["metal/pit"]["mdice"] == [None, None]
    assert (out["seeds"], out["pairs"]) == ([3, 4], [10, 10])


def test_one_seed_has_no_spread():
    assert summary([_finished(0.1, 0.2)], [0])["gain"]["pixel_ap"]["sd"] is None


@pytest.mark.parametrize(("code", "refused"), [("another", True), (loop_gain.code_hash(), False)])
def test_a_run_that_other_code_completed_is_refused(monkeypatch, code, refused):
    closed = _finished(0.1, 0.2) | {"code": code}

    @contextmanager
    def opened(_):
        yield SimpleNamespace(
            ledger=SimpleNamespace(closing=lambda: closed), run=SimpleNamespace(url="/runs/one")
        )

    monkeypatch.setattr(loop_gain, "run_loop", lambda arguments: 0)
    monkeypatch.setattr(loop_gain, "open_session", opened)
    if refused:
        with pytest.raises(RunError, match="/runs/one was made by other code"):
            run_seed([], 0, oracle=False)
    else:
        assert run_seed([], 0, oracle=False) == closed
