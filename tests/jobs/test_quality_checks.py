"""What a quality benchmark says against its own numbers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cdiff.evaluation.comparison import Comparison
from cdiff.evaluation.tally import BINS, Pool, Tally
from jobs.quality_checks import negative_control, plain, rise

OBJECTS = tuple(f"o{n}" for n in range(12))


def _tally(skill: float, share: float, seed: int) -> Tally:
    """Twelve objects of 40,000 pixels, a share of them targets, whose scores stand out by `skill` bins."""
    rng, pixels = np.random.default_rng(seed), 40_000
    shown = int(pixels * share)

    def counts(number: int, centre: float) -> np.ndarray:
        drawn = rng.normal(centre, 100, (len(OBJECTS), number)).clip(0, BINS - 1).astype(int)
        return np.stack([np.bincount(row, minlength=BINS) for row in drawn]).astype(np.float32)

    pool = Pool(np.arange(len(OBJECTS)), counts(shown, 800 + skill), counts(pixels - shown, 800))
    return Tally(OBJECTS, OBJECTS, {"metal/pit": pool}, {}, np.ones((len(OBJECTS), 2)))


def _home(against_others: dict[str, float], share: float) -> Any:
    """Two seeds on two splits; by arm, how far targets of other photos stand out."""

    def tally(arm: str, seed: int, swapped: bool) -> Tally:
        assert swapped
        return _tally(against_others[arm], share, 10 * seed + list(against_others).index(arm))

    return {seed: SimpleNamespace(split=seed, tally=tally) for seed in (0, 1)}


def test_an_arm_that_guesses_place_and_size_does_not_hold_zero():
    home = _home({"real_only": 150, "copy_paste": 150, "wasm": 200}, share=0.1)
    found = negative_control(home, ["real_only", "copy_paste", "wasm"], [0, 1], 0)
    assert found is not None and found["says_something"] and not found["holds_zero"]
    assert found["low"] > 0 and set(found["by_split"]) == {"0", "1"}
    (other,) = found["others"]
    assert other["arm"] == "copy_paste" and abs(other["mean"]) < found["mean"] / 10
    assert found["level"]["wasm"] > found["level"]["real_only"] > found["level_at_random"] + 0.01


def test_where_no_skill_shows_against_other_masks_the_control_says_nothing():
    """Small targets anywhere: every arm is at the level of random scores, and zero is no evidence."""
    found = negative_control(
        _home({"real_only": 0, "wasm": 0}, share=0.002), ["real_only", "wasm"], [0, 1], 0
    )
    assert found is not None and not found["says_something"]
    assert found["level_at_random"] == pytest.approx(0.002)
    assert found["level"]["wasm"] == pytest.approx(0.002, rel=0.3)


def test_a_control_that_fails_is_not_silenced_by_a_weak_baseline():
    home = _home({"real_only": 0, "wasm": 400}, share=0.002)
    found = negative_control(home, ["real_only", "wasm"], [0, 1], 0)
    assert found is not None and found["says_something"] and not found["holds_zero"]


def test_without_masks_to_swap_or_arms_to_compare_there_is_no_negative_control():
    """A type of a single object on one of two splits: nothing is scored there against others' masks."""

    def home(types):
        return SimpleNamespace(split=0, tally=lambda arm, seed, swapped: SimpleNamespace(types=types))

    homes = {0: home({"metal/pit": object()}), 1: home({})}
    assert negative_control(homes, ["wasm", "real_only"], [0, 1], 0) is None
    assert negative_control(homes, ["mined_B0", "mined_B3"], [0], 0) is None


def _line(seed: int, *values: float) -> dict:
    steps = [400 + 70 * n for n in range(len(values))]
    return {"seed": seed, "steps": steps, "pixel_ap": list(values), "mdice": [0.5] * len(values)}


def test_a_baseline_that_still_rises_is_told_from_one_that_is_trained_out():
    rising = rise([_line(0, 0.30, 0.36), _line(1, 0.31, 0.35), _line(2, 0.28, 0.33, 0.34)])
    assert rising is not None
    assert rising["pixel_ap"]["compared"]["per_seed"] == pytest.approx([0.06, 0.04, 0.05])
    assert 0.03 < rising["pixel_ap"]["compared"]["low"] < rising["pixel_ap"]["compared"]["mean"]
    further = rising["pixel_ap"]["further"]
    assert further["seeds"] == [2] and further["mean"] == pytest.approx(0.01) and further["low"] is None
    flat = rise([_line(0, 0.30, 0.31), _line(1, 0.31, 0.30)])
    assert (
        flat is not None and flat["pixel_ap"]["compared"]["low"] < 0 and flat["pixel_ap"]["further"] is None
    )
    assert rise([]) is None


def test_a_metric_that_is_not_defined_is_left_out():
    undefined = {"seed": 5, "steps": [400, 470], "pixel_ap": [None, 0.3], "mdice": [0.5, 0.6]}
    found = rise([_line(0, 0.30, 0.36), undefined])
    assert found is not None and found["pixel_ap"]["compared"]["seeds"] == [0]
    assert found["mdice"]["compared"]["seeds"] == [0, 5]
    alone = rise([undefined])
    assert alone is not None and alone["pixel_ap"]["compared"] is None


def test_a_difference_is_told_split_by_split():
    found = Comparison("pixel_ap", "wasm", "real_only", 0.0, -0.1, 0.1, (0.05, -0.04, 0.03, None), 9)
    told = plain(found, [0, 1, 0, 1])
    assert told["by_split"] == pytest.approx({"0": 0.04, "1": -0.04})
    assert told["splits_differ"] is None  # one seed of a split tells nothing of how seeds vary


@pytest.mark.parametrize(
    ("values", "differ"),
    [
        ((0.03, -0.03, 0.04, -0.02, 0.02, -0.04), True),
        ((0.03, -0.03, -0.04, 0.02, 0.02, 0.04), False),  # seeds of a split vary as much
        ((0.01, -0.01, 0.01, -0.01), True),
        ((0.01, 0.01, 0.01, 0.01), False),
    ],
)
def test_splits_differ_where_seeds_vary_less(values, differ):
    found = Comparison("pixel_ap", "wasm", "copy_paste", 0.0, -0.1, 0.1, values, 9)
    assert plain(found, [0, 1] * (len(values) // 2))["splits_differ"] is differ
