"""What a quality benchmark's object says, and leaves open."""

import numpy as np
import pytest

from cdiff.evaluation.comparison import Resampled
from jobs.quality_pool import Choice
from jobs.quality_summary import _ratio, fidelity


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
    assert _ratio(_drawn(0.04, 0.02, 0.0), ["real_only", "undirected", "wasm"]) is None, "without any spread"


def test_shares_are_of_the_candidates_that_were_looked_at():
    """What painted outside its region was not looked at for what its mask shows, and of a stopped slice nobody knows."""
    verdicts = {"kept": 6, "budget full": 2, "not visible": 2, "changed outside": 10, "slice stopped": 5}
    counts = tuple(("metal/pit", reason, number) for reason, number in verdicts.items())
    told = fidelity([Choice(counts=counts), Choice(counts=counts)], [{"kid": 1.0}, {"kid": None}])
    assert told["valid_share"] == 16 / 40
    assert told["visible_share"] == 16 / 20
    assert told["kid"] == 1.0 and told["coverage"] is None and told["label_iou"] is None
    assert fidelity([Choice(perlin=8)], [{}])["visible_share"] is None
