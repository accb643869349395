"""Whether a candidate is accepted: validation pixel AP against its rivals, with a paired bootstrap over source objects.

Pixel AP is pooled over photos, so no photo has a value of its own that could be resampled. Instead the pixels of each source
object are counted by score; the counts of any draw of objects add up, and pixel AP follows from the sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdiff.data.dataset import Dataset
from cdiff.evaluation.protocol import Maps
from cdiff.types import Decision

BINS = 2048  # of the scores' logits: pixel AP stays within 1e-3 of the exact one
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


def tally(score_maps: Maps, dataset: Dataset, ids: Iterable[str], groups: Mapping[str, str]) -> Tally:
    """Count the pixels of a split.

    Args:
        score_maps: [H, W] in [0, 1] by sample_id, at native size.
        groups: source object by sample_id; a photo that is missing stands for itself.
    """
    wanted = sorted(set(ids))
    objects = sorted({groups.get(sample_id, sample_id) for sample_id in wanted})
    place = {name: index for index, name in enumerate(objects)}
    types: dict[str, list[tuple[int, Counts, Counts]]] = {}
    normals: dict[str, list[tuple[int, Counts, Counts]]] = {}
    for sample_id in wanted:
        sample, bins = dataset.sample(sample_id), _bins(score_maps[sample_id])
        owner = place[groups.get(sample_id, sample_id)]
        negatives = _count(bins[~dataset.mask(sample_id)])
        if sample.is_normal:
            normals.setdefault(sample.category, []).append((owner, np.zeros_like(negatives), negatives))
        for type in sample.types:
            positives = _count(bins[dataset.type_mask(sample_id, type)])
            types.setdefault(f"{sample.category}/{type}", []).append((owner, positives, negatives))
    return Tally(
        tuple(objects),
        {key: _pool(types[key]) for key in sorted(types)},
        {key: _pool(normals[key]) for key in sorted(normals)},
    )


def decide(candidate: Tally, best: Tally, real_only: Tally, seed: int) -> Decision:
    """Accept a candidate that is not significantly worse on validation than the best so far AND than real-only.

    Args:
        candidate, best, real_only: tallies of the same validation photos.
    Returns:
        The decision, with the difference of pixel AP to the best so far and its 95 % interval: percentiles over draws of
        source objects, the same draws for all models.
    Raises:
        ValueError: the photos' objects differ, or none shows a target.
    """
    if candidate.objects != best.objects or candidate.objects != real_only.objects:
        raise ValueError("a decision needs tallies of the same validation photos for all three models")
    if not candidate.types:
        raise ValueError("a decision needs a validation photo with a target")
    count = len(candidate.objects)
    drawer = np.random.default_rng([seed, 7])
    draws = drawer.multinomial(count, np.full(count, 1 / count), size=REPLICATES).astype(np.float32)
    drawn, own = candidate.pixel_ap(draws), float(candidate.pixel_ap()[0])
    against = {}
    for name, rival in (("best", best), ("real_only", real_only)):
        low, high = np.nanpercentile(np.subtract(drawn, rival.pixel_ap(draws)), [2.5, 97.5])
        against[name] = own - float(rival.pixel_ap()[0]), float(low), float(high)
    worse = [name for name, (_, _, high) in against.items() if high < 0]
    told = {"best": "the best model so far", "real_only": "the model of real photos alone"}
    reason = (
        "significantly worse than " + " and ".join(told[name] for name in worse)
        if worse
        else "not significantly worse than the best model so far and the model of real photos alone"
    )
    return Decision(not worse, reason, *against["best"])


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


def _pool(rows: list[tuple[int, Counts, Counts]]) -> Pool:
    owners = np.array([owner for owner, _, _ in rows])
    objects, place = np.unique(owners, return_inverse=True)
    positives, negatives = np.zeros((2, len(objects), BINS), np.float32)
    np.add.at(positives, place, np.stack([row[1] for row in rows]))
    np.add.at(negatives, place, np.stack([row[2] for row in rows]))
    return Pool(objects, positives, negatives)
