"""Stopping early, replayed."""

from typing import Any

import numpy as np
import pytest

from tune.outcome import Swept
from tune.replay import replay


def test_where_early_rungs_tell_the_end_little_is_lost_and_much_saved() -> None:
    rng = np.random.default_rng(0)
    ends = rng.normal(0, 0.05, 32)
    curves = [[end * 0.25, end * 0.5, end] for end in ends]
    seconds = [[1.0, 2.0, 4.0]] * 32
    found = replay(curves, seconds, [[0.5, 1.0, 2.0]] * 32, factor=2)
    assert found.best_kept and found.rank_agreement >= 0.75
    assert found.cost_ratio < 0.9 and found.finished < 20


def test_what_is_saved_is_saved_of_trials_without_rungs() -> None:
    """A second trial that ends at its first rung: 7 + 1 seconds of twice 5.5, as nobody would fit the early rungs but to stop there."""
    curves, seconds, fits = [[0.1, 0.2, 0.3], [0.0, 0.2, 0.3]], [[1.0, 2.0, 4.0]] * 2, [[0.5, 1.0, 2.0]] * 2
    found = replay(curves, seconds, fits, factor=2)
    assert found.cost_ratio == pytest.approx(8 / 11) and found.finished == 1
    even = replay(curves[:1], seconds[:1], fits[:1], factor=2)
    assert even.cost_ratio == pytest.approx(7 / 5.5), "rungs that stop nobody cost more than none"


def test_where_early_rungs_tell_nothing_the_best_are_lost_as_by_chance() -> None:
    kept = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        curves = [list(rng.normal(0, 1, 3)) for _ in range(32)]
        kept.append(replay(curves, [[1.0, 2.0, 4.0]] * 32, [[0.5, 1.0, 2.0]] * 32, factor=2).rank_agreement)
    assert 0.1 < np.mean(kept) < 0.5


def test_a_trial_alone_goes_to_its_end_and_unequal_ones_are_refused() -> None:
    assert replay([[0.1, 0.2]], [[1, 1]], [[0.5, 0.5]], factor=2).finished == 1
    with pytest.raises(ValueError, match="last rung"):
        replay([[0.1, 0.2], [0.1]], [[1, 1], [1]], [[1, 1], [1]], factor=2)


def test_pauses_of_a_sweep_are_not_its_time() -> None:
    """Two trials side by side, then a night, then a third."""
    spans: Any = [[(0.0, 10.0), (10.0, 30.0)], [(5.0, 35.0)], [(90_000.0, 90_007.0)]]
    swept = Swept(None, (), tuple({"spans": own} for own in spans))  # type: ignore[arg-type]
    assert swept.seconds == 42
