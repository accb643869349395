"""Whether a candidate is accepted: validation pixel AP against its rivals, with a paired bootstrap over source objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cdiff.evaluation.tally import Tally
from cdiff.types import Decision

REPLICATES = 1000  # draws of an interval


def decide(candidate: Tally, best: Tally, real_only: Tally, gain: float, seed: int) -> Decision:
    """Accept a candidate that is not significantly worse on validation than the best so far AND than real-only.

    It then becomes the best model itself, unless that is improbable (`Decision.stands`).
    The interval holds percentiles over draws of source objects, the same draws for all models. With one or two objects of a
    type, a draw often misses the type: such intervals are wide, and hardly anything is refused.

    Args:
        candidate, best, real_only: tallies of the same validation photos.
        gain: exact pixel AP of the candidate minus that of the best so far.
    Raises:
        ValueError: the photos differ, or none shows a target.
    """
    if candidate.ids != best.ids or candidate.ids != real_only.ids:
        raise ValueError("a decision needs tallies of the same validation photos for all three models")
    if not candidate.types:
        raise ValueError("a decision needs a validation photo with a target")
    count = len(candidate.objects)
    drawer = np.random.default_rng([seed, 7])
    draws = drawer.multinomial(count, np.full(count, 1 / count), size=REPLICATES).astype(np.float32)
    drawn = candidate.pixel_ap(draws)
    found = _spread(drawn - best.pixel_ap(draws))
    low, high, chance = found
    _, beaten, over_real = found if real_only is best else _spread(drawn - real_only.pixel_ap(draws))
    worse = ["the best model so far"] * (high < 0) + ["the model of real photos alone"] * (beaten < 0)
    reason = (
        "significantly worse than " + " and ".join(worse)
        if worse
        else "not significantly worse than the best model so far and the model of real photos alone"
    )
    return Decision(not worse, reason, gain, low, high, min(chance, over_real))


def _spread(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Of the draws that show a target: the bounds of their middle 95 %, and the share above zero."""
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return float(low), float(high), float(np.mean(differences[~np.isnan(differences)] > 0))
