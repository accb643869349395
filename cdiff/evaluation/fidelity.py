"""How near made targets are to real ones, on frozen features: distance of the two sets, and how much of the real one is met.

Features are rows, one per target; both sets come from the same frozen network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # [N, D]
NEIGHBOURS = 5


def kid(real: Features, made: Features) -> float | None:
    """Kernel inception distance without the inception network: unbiased squared MMD under (x.y / D + 1)^3; 0 for equal sets.

    Small sets scatter around it, also below zero. None with under two rows on a side.
    Source: Binkowski et al. (1801.01401).
    """
    if len(real) < 2 or len(made) < 2:
        return None
    x, y = (np.asarray(rows, np.float64) for rows in (real, made))

    def kernel(a: Features, b: Features) -> Features:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def apart(a: Features) -> float:
        values = kernel(a, a)
        return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))

    return apart(x) + apart(y) - 2 * float(kernel(x, y).mean())


def coverage(real: Features, made: Features, neighbours: int = NEIGHBOURS) -> float | None:
    """Share of real rows with a made one nearer than their `neighbours`-th real neighbour, in [0, 1].

    None where there are no more real rows than neighbours, or no made one.
    Source: Naeem et al., coverage (2002.09797).
    """
    if len(real) <= neighbours or not len(made):
        return None
    x, y = (np.asarray(rows, np.float64) for rows in (real, made))
    among = np.sort(_distances(x, x), axis=1)[:, neighbours]  # column 0 is the row itself
    return float((_distances(x, y).min(axis=1) <= among).mean())


def retrieval_at_1(
    here: Features, elsewhere: Features, kinds: Sequence[str], groups: Sequence[str]
) -> float | None:
    """Share of rows whose nearest neighbour in the other scene, targets of other objects alone, is of the same kind; by cosine.

    Args:
        here, elsewhere: the same targets in two scenes, in one order. kinds, groups: type and source object of each target.
    Returns:
        Mean over kinds of at least two objects; None without any.
    """
    x, y = (_unit(rows) for rows in (here, elsewhere))
    # targets of one photo are alike by their photo, which tells nothing of their kind
    owner = np.array(groups)
    likeness = np.where(owner[:, None] == owner, -np.inf, x @ y.T)
    nearest = likeness.argmax(axis=1)
    objects = set(zip(kinds, groups, strict=True))
    shares = [
        np.mean([kinds[nearest[i]] == kind for i, own in enumerate(kinds) if own == kind])
        for kind in sorted(set(kinds))
        if sum(own == kind for own, _ in objects) > 1
    ]
    return float(np.mean(shares)) if shares else None


def same_target_likeness(here: Features, elsewhere: Features) -> float:
    """Mean cosine of a target's features in two scenes, less that of unlike targets: 0 says nothing, 1 is scene agnostic."""
    likeness = _unit(here) @ _unit(elsewhere).T
    count = len(likeness)
    others = (likeness.sum() - np.trace(likeness)) / max(1, count * (count - 1))
    return float(np.trace(likeness) / count - others)


def by_kind(
    measure: Callable[[Features, Features], float | None],
    real: Features,
    made: Features,
    kinds: tuple[Sequence[str], Sequence[str]],
) -> float | None:
    """Mean of a measure over the kinds that have it, so that a set with more of one kind is not farther for that alone.

    Args:
        kinds: of each real and of each made row.
    """
    values = []
    for kind in sorted(set(kinds[0]) & set(kinds[1])):
        rows = [part[[own == kind for own in names]] for part, names in zip((real, made), kinds, strict=True)]
        values.append(measure(rows[0], rows[1]))
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def standardised(real: Features, *sets: Features) -> list[Features]:
    """All sets in units of the real one's standard deviations, column by column, around its mean.

    A column that hardly varies counts as varying a tenth as much as columns do on average.
    """
    mean, spread = np.mean(real, axis=0), np.std(real, axis=0)
    spread = np.maximum(spread, 0.1 * spread.mean() + 1e-9)
    return [(np.asarray(rows) - mean) / spread for rows in (real, *sets)]


def _unit(rows: Features) -> Features:
    values = np.asarray(rows, np.float64)
    return values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)


def _distances(a: Features, b: Features) -> Features:
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))
