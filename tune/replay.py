"""What stopping early would have cost and saved, replayed over trials that all went to their last rung."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Replay:
    """Asynchronous successive halving on recorded curves."""

    cost_ratio: float  # its seconds, by those of the same trials without rungs: all of their pairs, and the last fit alone
    rank_agreement: float  # of the best quarter in the end, the share that it would have taken to the end
    best_kept: bool  # the very best one is among them
    finished: int  # trials that it would have taken to the end


def replay(
    curves: Sequence[Sequence[float]],
    seconds: Sequence[Sequence[float]],
    fits: Sequence[Sequence[float]],
    factor: int,
) -> Replay:
    """Replay trials one after another.

    A trial goes on from a rung unless it is under the quantile 1 - 1/factor of what earlier ones recorded there: Ray Tune's form of 1810.05934.

    Args:
        curves: gains by trial and rung, in the order in which trials began; all of equal length.
        seconds: what each rung took; pairs of earlier rungs are not made again.
        fits: of these, what its fit took: each rung has one of its own, so that a trial that nothing stops would need the last alone.
        factor: of the trials at a rung, one in so many goes on.
    Raises:
        ValueError: no trial, or trials of unequal length.
    """
    if not curves or len({len(curve) for curve in (*curves, *seconds, *fits)}) != 1:
        raise ValueError("give trials that all went to their last rung")
    recorded: list[list[float]] = [[] for _ in curves[0]]
    spent, finished = 0.0, set[int]()
    for number, (curve, costs) in enumerate(zip(curves, seconds, strict=True)):
        for rung, (gain, cost) in enumerate(zip(curve, costs, strict=True)):
            spent += cost
            earlier = recorded[rung]
            stopped = bool(earlier) and gain < np.quantile(earlier, 1 - 1 / factor)
            earlier.append(gain)
            if rung == len(curve) - 1:
                finished.add(number)
            elif stopped:
                break
    order = sorted(range(len(curves)), key=lambda number: -curves[number][-1])
    top = order[: math.ceil(len(curves) / 4)]
    agreement = len(finished.intersection(top)) / len(top)
    whole = sum(sum(costs) - sum(own[:-1]) for costs, own in zip(seconds, fits, strict=True))
    return Replay(spent / whole, agreement, order[0] in finished, len(finished))
