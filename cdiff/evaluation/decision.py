"""Whether a candidate is accepted: validation pixel AP against its rivals, with a paired bootstrap over source objects.

Pixel AP is pooled over photos, so no photo has a value of its own that could be resampled. Instead the pixels of each source
object are counted by score; the counts of any draw of objects add up, and pixel AP follows from the sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdiff.data.dataset import Dataset
from cdiff.types import Decision

BINS = 2048  # of the scores' logits: pixel AP stays within a few thousandths of the exact one
LOGIT = 16.0  # scores beyond are as sure as float32 tells
REPLICATES = 1000  # draws of an interval

Counts = NDArray[np.float32]  # [objects, BINS], scores ascending


@dataclass(frozen=True)
class Pool:
    """Pixels that are pooled for one type, or the normals of one category: counted by source object and score."""

    objects: NDArray[np.intp]  # [n], places in `Tally.objects`
    positives: Counts  # [n, BINS]
    negatives: Counts  # [n, BINS]


@dataclass(frozen=True)
class Tally:
    """The pixels of a split under one model."""

    ids: tuple[str, ...]
    objects: tuple[str, ...]
    types: dict[str, Pool]  # by "category/type"
    normals: dict[str, Pool]  # by category; no positives

    def pixel_ap(self, draws: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """Pixel AP as the strict protocol has it (mean over types, normals pooled), from the counts.

        Args:
            draws: [R, objects], how often each object is counted; without it each counts once.
        Returns:
            [R]; a type without a pixel in a draw is left out of that draw's mean, and a draw without any type is nan.
        """
        weights = np.ones((1, len(self.objects))) if draws is None else draws
        values = np.full((len(self.types), len(weights)), np.nan)
        quiet = {
            key: weights[:, pool.objects].astype(np.float32) @ pool.negatives
            for key, pool in self.normals.items()
        }
        for row, (key, pool) in enumerate(self.types.items()):
            counted = weights[:, pool.objects].astype(np.float32)
            negatives = counted @ pool.negatives + quiet.get(key.rsplit("/", 1)[0], 0)
            values[row] = _average_precision(counted @ pool.positives, negatives)
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)


def tally(scored: Iterable[tuple[str, NDArray[np.floating]]], dataset: Dataset) -> Tally:
    """Count the pixels of a split photo by photo, so that one score map at a time need be in memory.

    Args:
        scored: sample_id and score map [H, W] in [0, 1] at native size, each photo once.
    """
    types: dict[str, list[tuple[str, Counts, Counts]]] = {}
    normals: dict[str, list[tuple[str, Counts, Counts]]] = {}
    ids = []
    for sample_id, scores in scored:
        sample, bins = dataset.sample(sample_id), _bins(scores)
        ids.append(sample_id)
        negatives = _count(bins[~dataset.mask(sample_id)])
        if sample.is_normal:
            normals.setdefault(sample.category, []).append(
                (sample.group, np.zeros_like(negatives), negatives)
            )
        for type in sample.types:
            positives = _count(bins[dataset.type_mask(sample_id, type)])
            types.setdefault(f"{sample.category}/{type}", []).append((sample.group, positives, negatives))
    objects = tuple(sorted({dataset.sample(sample_id).group for sample_id in ids}))
    return Tally(
        tuple(sorted(ids)),
        objects,
        {key: _pool(types[key], objects) for key in sorted(types)},
        {key: _pool(normals[key], objects) for key in sorted(normals)},
    )


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


def _average_precision(
    positives: NDArray[np.floating], negatives: NDArray[np.floating]
) -> NDArray[np.float64]:
    """[R] from counts [R, BINS]; nan without a positive.

    A bin's pixels are taken to be mixed, and its positives to stand in their middle: entering all together would cost
    them precision.
    """
    found = np.cumsum(positives[:, ::-1], axis=1, dtype=np.float64)
    shown = found + np.cumsum(negatives[:, ::-1], axis=1, dtype=np.float64)
    own = positives[:, ::-1]
    behind = np.maximum(own - 1, 0) / 2  # of the bin's other positives, half come later
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(own > 0, (found - behind) / (shown - behind - negatives[:, ::-1] / 2), 0)
        out: NDArray[np.float64] = (own * precision).sum(axis=1) / found[:, -1]
    return out


def _bins(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    certain = np.clip(scores.astype(np.float64), 1e-9, 1 - 1e-9)
    logits = np.log(certain / (1 - certain))
    return np.clip((logits + LOGIT) * (BINS / (2 * LOGIT)), 0, BINS - 1).astype(np.intp)


def _count(bins: NDArray[np.intp]) -> Counts:
    return np.bincount(bins, minlength=BINS).astype(np.float32)


def _pool(rows: list[tuple[str, Counts, Counts]], objects: tuple[str, ...]) -> Pool:
    names, place = np.unique([name for name, _, _ in rows], return_inverse=True)
    positives, negatives = np.zeros((2, len(names), BINS), np.float32)
    np.add.at(positives, place, np.stack([row[1] for row in rows]))
    np.add.at(negatives, place, np.stack([row[2] for row in rows]))
    return Pool(np.searchsorted(objects, names), positives, negatives)
