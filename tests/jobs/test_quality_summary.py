"""What a quality benchmark's object says, and leaves open."""

from types import SimpleNamespace

import numpy as np
import pytest

from cdiff.evaluation.comparison import Resampled
from jobs.quality_summary import _negative, _ratio


def _drawn(aimed, plain, spread):
    """Differences of two arms to real photos alone, with draws around them."""
    around = np.linspace(-spread, spread, 101)[None]
    exact = {"real_only": 0.0, "undirected": plain, "wasm": aimed}
    return Resampled(
        {arm: {"pixel_ap": np.array([value])} for arm, value in exact.items()},
        {arm: {"pixel_ap": value + (around if value else 0 * around)} for arm, value in exact.items()},
        np.ones((101, 1)),
        {"pixel_ap": 40},
    )


def test_a_ratio_of_gains_is_told_where_the_lesser_gain_is_shown():
    assert _ratio(_drawn(0.04, 0.02, 0.01), ["real_only", "undirected", "wasm"]) == pytest.approx(2)
    assert _ratio(_drawn(0.04, 0.02, 0.05), ["real_only", "undirected", "wasm"]) is None
    assert _ratio(_drawn(0.04, 0.02, 0.01), ["real_only", "wasm"]) is None


def test_without_masks_to_swap_or_arms_to_compare_there_is_no_negative_control():
    """A type of a single object on one of two splits: nothing is scored there against others' masks."""

    def home(types):
        return SimpleNamespace(split=0, tally=lambda arm, seed, swapped: SimpleNamespace(types=types))

    homes = {0: home({"metal/pit": object()}), 1: home({})}
    assert _negative(homes, ["wasm", "real_only"], [0, 1], 0) is None
    assert _negative(homes, ["mined_B0", "mined_B3"], [0], 0) is None
