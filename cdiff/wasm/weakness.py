"""Where the segmenter is weak: outcomes of cross-fitted models, cut into slices and ranked.

    slices   category x type x size bin x contrast bin; thin ones merge upwards
    score    1 - mean soft Dice: the error that the budget is meant to lower; the ranking sorts by it alone

A hopeless slice (score near 1) therefore ranks first. That it is a poor investment is the business of the budget and its
prior; the ranking only says what is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

import numpy as np

from cdiff.data.dataset import Dataset
from cdiff.types import GenerationTask, Outcome, Slice, Weakness

_LEVELS = ("category", "type", "size", "contrast")


def apart(task: GenerationTask, groups: Set[str], dataset: Dataset) -> bool:
    """Whether a pair is made of photos of other groups alone: a fold's model may see it where these are the fold's.

    What people brought to the service may show any object.
    """
    if task.brought:
        return False
    reference = dataset.target(task.reference).group  # a place without a target has its photo's
    return not {reference, dataset.sample(task.background).group} & groups


def rank(outcomes: Iterable[Outcome], min_targets: int) -> list[Weakness]:
    """Rank the slices of the real targets, weakest first.

    Args:
        outcomes: one per target, in any order; those of normal photos are left to `false_positives`.
        min_targets: smaller slices merge into their parent: contrast first, then size, type, category.
    Returns:
        Slices of which every target belongs to exactly one. Each has `min_targets` targets, unless its whole category has
        fewer. Ties in score go by name.
    Raises:
        ValueError: two outcomes of one target.
    """
    rows = sorted((row for row in outcomes if row.type), key=lambda row: row.target_id)
    if len({row.target_id for row in rows}) != len(rows):
        raise ValueError(
            "two outcomes of one target; each is measured by the one fold model that did not see it"
        )
    slices: dict[Slice, list[Outcome]] = {}
    for category in sorted({row.category for row in rows}):
        own = [row for row in rows if row.category == category]
        slices |= _merged(_leaves(own), min_targets)
    ranked = [
        _weakness(piece, sorted(members, key=lambda row: row.target_id)) for piece, members in slices.items()
    ]
    return _sorted(ranked)


def false_positives(outcomes: Iterable[Outcome]) -> list[Weakness]:
    """How much the segmenter sees where nothing is: one entry per category with normal photos, worst first.

    Their `targets` are sample_ids, their score is the mean over photos of the highest pixel score. They are reported apart
    from the slices of `rank` and get no budget here.
    """
    rows = sorted((row for row in outcomes if not row.type), key=lambda row: row.target_id)
    categories = sorted({row.category for row in rows})
    return _sorted([_weakness(Slice(c), [row for row in rows if row.category == c]) for c in categories])


def leaves_of(rows: Iterable[Outcome]) -> dict[str, tuple[float, float, float]]:
    """Where the bins lie, by category: two bounds of size (its terciles) and one of contrast (its median)."""
    own: dict[str, list[Outcome]] = {}
    for row in rows:
        if row.type:
            own.setdefault(row.category, []).append(row)
    edges = {}
    for category, members in own.items():
        small, medium = np.quantile([row.size for row in members], [1 / 3, 2 / 3])
        edges[category] = float(small), float(medium), float(np.median([row.contrast for row in members]))
    return edges


def leaf_of(row: Outcome, edges: Mapping[str, tuple[float, float, float]]) -> Slice:
    """The finest slice of one target; in a category without bounds, its type."""
    if row.category not in edges:
        return Slice(row.category, row.type)
    small, medium, middle = edges[row.category]
    size = "small" if row.size <= small else "medium" if row.size <= medium else "large"
    return Slice(row.category, row.type, size, "faint" if row.contrast < middle else "clear")


def _leaves(rows: list[Outcome]) -> dict[Slice, list[Outcome]]:
    """The finest slices of one category."""
    edges = leaves_of(rows)
    leaves: dict[Slice, list[Outcome]] = {}
    for row in rows:
        leaves.setdefault(leaf_of(row, edges), []).append(row)
    return leaves


def _merged(slices: dict[Slice, list[Outcome]], min_targets: int) -> dict[Slice, list[Outcome]]:
    """Move thin slices up, level by level.

    A parent made of thin children that is still thin takes in its smallest remaining descendants before it moves up
    itself: so a rare size joins its own type, not another type's leftovers.
    """
    slices = dict(slices)
    for level in ("contrast", "size", "type"):
        thin = [piece for piece in slices if getattr(piece, level) and len(slices[piece]) < min_targets]
        for parent in sorted({_parent(piece, level) for piece in thin}, key=_order):
            members = slices.pop(parent, [])
            for piece in [piece for piece in thin if _parent(piece, level) == parent]:
                members = members + slices.pop(piece)
            below = sorted(
                (p for p in slices if parent.contains(p)), key=lambda p: (len(slices[p]), _order(p))
            )
            while len(members) < min_targets and below:
                members = members + slices.pop(below.pop(0))
            slices[parent] = members
    return slices


def _parent(piece: Slice, level: str) -> Slice:
    finer = _LEVELS[_LEVELS.index(level) :]
    return replace(piece, **dict.fromkeys(finer, ""))


def _order(piece: Slice) -> tuple[str, ...]:
    return tuple(getattr(piece, name) for name in _LEVELS)


def _weakness(piece: Slice, rows: list[Outcome]) -> Weakness:
    dice = float(np.mean([row.soft_dice for row in rows]))
    return Weakness(
        slice=piece,
        targets=tuple(row.target_id for row in rows),
        loss=float(np.mean([row.loss for row in rows])),
        soft_dice=dice,
        missed=float(np.mean([row.missed for row in rows])),
        score=float(np.clip(1 - dice, 0, 1)),
    )


def _sorted(weaknesses: list[Weakness]) -> list[Weakness]:
    return sorted(weaknesses, key=lambda weakness: (-weakness.score, _order(weakness.slice)))
