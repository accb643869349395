"""Whether a candidate is accepted: validation pixel AP against its rivals, with a paired bootstrap over source objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cdiff.evaluation.comparison import interval, showing
from cdiff.evaluation.tally import Tally
from cdiff.types import Decision

REPLICATES = 1000  # draws of an interval


def decide(candidate: Tally, best: Tally, real_only: Tally, gain: float, seed: int) -> Decision:
    """Accept a candidate that is not significantly worse on validation than the best so far AND than real-only.

    It then becomes the best model itself, unless that is improbable (`Decision.stands`).
    The interval is over draws of source objects, the same draws for all models, and as wide as the number of objects with targets
    asks for (`cdiff.evaluation.comparison`): as they are, percentiles over three refuse one in eight of candidates that are no worse.
    Where one object shows all targets, there is no interval, and nothing is refused. The chance is the plain share of the draws: for
    so few objects it is next to all or nothing, and of one alone 0 or 1 but for what the normals move.

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
    drawn, shown = candidate.pixel_ap(draws), showing([candidate])["pixel_ap"]
    ends, chance = found = _spread(drawn - best.pixel_ap(draws), shown)
    beaten, over_real = found if real_only is best else _spread(drawn - real_only.pixel_ap(draws), shown)
    rivals = (("the best model so far", ends), ("the model of real photos alone", beaten))
    worse = [name for name, about in rivals if about is not None and about[1] < 0]
    if worse:
        reason = "significantly worse than " + " and ".join(worse)
    elif ends is None:
        reason = "one source object shows all targets: nothing is significant"
    else:
        reason = "not significantly worse than the best model so far and the model of real photos alone"
    low, high = ends or (None, None)
    return Decision(not worse, reason, gain, low, high, min(chance, over_real))


def _spread(differences: NDArray[np.float64], objects: int) -> tuple[tuple[float, float] | None, float]:
    """Of the draws that show a target: the interval, None for one object, and the share above zero."""
    told = differences[~np.isnan(differences)]
    return interval(told, told, objects, 1) if objects > 1 else None, float(np.mean(told > 0))
