"""Metrics of score maps, as pure functions on numpy arrays. All curves are exact: no thresholds are sampled.

The functions on `Ranks` take positives and negatives apart and sorted, so that the same normals (tens of millions of
pixels) are sorted once and serve every type. With P positives and N negatives a metric costs P log N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Labels = NDArray[np.bool_]


@dataclass(frozen=True)
class Ranks:
    """Scores of positive and negative pixels.

    positives: [P], ascending. negatives: ascending arrays whose union is meant: [N1], [N2], ...
    weights: [P], a positive's share of its region's area and of the number of regions, in order of `positives`; sums to 1.
        Only `aupro_of` needs it.
    """

    positives: Scores
    negatives: tuple[Scores, ...]
    weights: NDArray[np.float64] | None = None

    @property
    def negative_count(self) -> int:
        return sum(len(part) for part in self.negatives)

    def negatives_from(self, thresholds: Scores, side: str = "left") -> NDArray[np.int64]:
        """How many negatives score >= each threshold ("left"), or > it ("right")."""
        total = np.zeros(len(thresholds), dtype=np.int64)
        for part in self.negatives:
            # A threshold of another dtype would make searchsorted copy the whole array.
            total += len(part) - np.searchsorted(part, thresholds.astype(part.dtype, copy=False), side=side)  # type: ignore[call-overload]
        return total

    def positives_from(self, thresholds: Scores) -> NDArray[np.int64]:
        """How many positives score >= each threshold."""
        return len(self.positives) - np.searchsorted(self.positives, thresholds, side="left")


def rank(scores: Scores, labels: Labels) -> Ranks:
    """Sort scores [...] apart by labels [...]. Raises ValueError when the shapes differ or a score is not finite."""
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    if scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} differ in shape")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    return Ranks(np.sort(scores[labels]), (np.sort(scores[~labels]),))


def ap_of(ranks: Ranks) -> float:
    """Average precision, sum over thresholds of (recall step) x precision; needs a positive.

    Tied positives enter together, so that each contributes the precision at its own score: the mean over positives.
    """
    found = ranks.positives_from(ranks.positives)
    return float((found / (found + ranks.negatives_from(ranks.positives))).mean())


def f1_max_of(ranks: Ranks) -> tuple[float, float]:
    """Highest F1 over all thresholds and the threshold that reaches it; needs a positive.

    Only scores of positives are candidates: between two of them a lower threshold adds nothing but false positives.
    """
    thresholds = np.unique(ranks.positives)
    found = ranks.positives_from(thresholds)
    f1 = 2 * found / (found + ranks.negatives_from(thresholds) + len(ranks.positives))
    best = int(f1.argmax())
    return float(f1[best]), float(thresholds[best])


def auroc_of(ranks: Ranks) -> float:
    """Probability that a positive outscores a negative, ties counting half; needs a positive and a negative."""
    above, level = ranks.negatives_from(ranks.positives, "right"), ranks.negatives_from(ranks.positives)
    return float(1 - ((above + level) / 2).mean() / ranks.negative_count)


def aupro_of(ranks: Ranks, limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate, as a share of its highest value; exact.

    The curve is drawn through all distinct thresholds, linear in between. Each positive p enters with its weight when the
    false-positive rate passes from a = P(negative > p) to b = P(negative >= p), so the area is the weighted mean of
    limit - u over u in [a, b], cut off at zero.

    Source: Bergmann et al., MVTec AD (IJCV 2021), section 5.
    """
    assert ranks.weights is not None
    a = ranks.negatives_from(ranks.positives, "right") / ranks.negative_count
    b = ranks.negatives_from(ranks.positives) / ranks.negative_count
    whole = limit - (a + b) / 2
    cut = np.square(limit - a) / np.maximum(2 * (b - a), 1e-300)
    heights = np.where(b <= limit, whole, np.where(a >= limit, 0.0, cut))
    return float((ranks.weights * heights).sum() / limit)


def iou_of(ranks: Ranks, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of the pooled pixels that score >= each threshold [T]; needs a positive."""
    cut = thresholds.astype(ranks.positives.dtype)
    return ranks.positives_from(cut) / (len(ranks.positives) + ranks.negatives_from(cut))


def pixel_ap(scores: Scores, labels: Labels) -> float | None:
    """Average precision over all pixels, exact, ties pooled; None without a positive."""
    ranks = rank(scores, labels)
    return ap_of(ranks) if len(ranks.positives) else None


def f1_max(scores: Scores, labels: Labels) -> float | None:
    """Highest F1 over all thresholds, exact; None without a positive."""
    ranks = rank(scores, labels)
    return f1_max_of(ranks)[0] if len(ranks.positives) else None


def auroc(scores: Scores, labels: Labels) -> float | None:
    """Area under the ROC curve, exact; None unless there are positives and negatives."""
    ranks = rank(scores, labels)
    return auroc_of(ranks) if len(ranks.positives) and ranks.negative_count else None


def region_weights(regions: Sequence[NDArray[np.integer]]) -> NDArray[np.float64]:
    """For each pixel of a region, 1 / (area of the region x number of regions), over photos with region labels [H, W],
    or those of their targets' pixels alone.

    Returns:
        [P], in row-major order photo by photo; sums to 1 (empty without regions).
    """
    areas = [np.bincount(labels.ravel())[1:] for labels in regions]
    count = sum(int((area > 0).sum()) for area in areas)
    parts = [1 / (area[labels[labels > 0] - 1] * count) for labels, area in zip(regions, areas, strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0)


def aupro(
    scores: Sequence[Scores], regions: Sequence[NDArray[np.integer]], limit: float = 0.3
) -> float | None:
    """AUPRO over photos: `aupro_of` on score maps [H, W] and region labels [H, W] (0 is background).

    Returns:
        A value in [0, 1], or None unless there are regions and background.
    """
    if not scores:
        return None
    positives = np.concatenate([score[labels > 0] for score, labels in zip(scores, regions, strict=True)])
    negatives = np.concatenate([score[labels == 0] for score, labels in zip(scores, regions, strict=True)])
    if not len(positives) or not len(negatives):
        return None
    order = np.argsort(positives, kind="stable")
    weights = region_weights(regions)[order]
    return aupro_of(Ranks(positives[order], (np.sort(negatives),), weights), limit)


def iou(predicted: Labels, mask: Labels) -> float | None:
    """Intersection over union of two bool arrays; None when both are empty."""
    union = int((predicted | mask).sum())
    return int((predicted & mask).sum()) / union if union else None


def dice(predicted: Labels, mask: Labels) -> float | None:
    """2 x intersection over the sum of the areas; None when both are empty."""
    total = int(predicted.sum()) + int(mask.sum())
    return 2 * int((predicted & mask).sum()) / total if total else None


def soft_dice(scores: Scores, mask: Labels) -> float:
    """Dice with scores in place of a prediction: 2 x sum over the mask / (sum of scores + area); the mask is not empty."""
    inside = float(scores[mask].sum(dtype=np.float64))
    return 2 * inside / (float(scores.sum(dtype=np.float64)) + int(mask.sum()))
