"""Is one arm better than another? Paired differences over seeds, with a two-level bootstrap over source objects and seeds.

    replicate r:  draw seeds with replacement; for each split draw its source objects with replacement
                  D_r = mean over the drawn seeds of [ metric(arm, draw) - metric(minus, draw) ]
    interval:     the middle 95 % of D_r

Photos of one object are not independent, so objects are drawn; both arms of a seed are scored on the same draw, so what
a draw makes easy or hard falls out of the difference. Pixel AP is pooled anew in each replicate.
Source: Davison and Hinkley, Bootstrap Methods (1997), chapter 3.8, for two levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cdiff.evaluation.tally import Tally

REPLICATES = 2000
POWER = 0.8  # chance to find a difference of the smallest detectable size
TYPE = "type:"  # prefix of metrics of one type: "type:tile/crack" is its pixel AP


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arm minus another in one metric; per_seed in the order of the seeds, None where the metric is undefined."""

    metric: str  # "pixel_ap", "mdice", or "type:CATEGORY/TYPE" for the pixel AP of a type
    arm: str
    minus: str
    mean: float
    low: float
    high: float
    per_seed: tuple[float | None, ...]

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Resampled:
    """Every arm's metrics, as measured and in every replicate."""

    exact: dict[str, dict[str, NDArray[np.float64]]]  # arm -> metric -> [seeds]
    drawn: dict[str, dict[str, NDArray[np.float64]]]  # arm -> metric -> [seeds, R]
    seeds: NDArray[np.float64]  # [R, seeds], how often a seed is counted

    @property
    def metrics(self) -> list[str]:
        return sorted({metric for values in self.exact.values() for metric in values})

    def compare(self, metric: str, arm: str, minus: str) -> Comparison:
        """The difference of two arms, over the seeds that have the metric (a split may lack a type)."""
        exact = self.exact[arm][metric] - self.exact[minus][metric]
        drawn = self.drawn[arm][metric] - self.drawn[minus][metric]  # [seeds, R]
        known = ~np.isnan(drawn)
        weights = self.seeds.T * known
        total = weights.sum(axis=0)
        means = (weights * np.where(known, drawn, 0)).sum(axis=0)[total > 0] / total[total > 0]
        low, high = np.percentile(means, [2.5, 97.5])
        return Comparison(
            metric,
            arm,
            minus,
            float(np.nanmean(exact)),
            float(low),
            float(high),
            tuple(None if math.isnan(value) else float(value) for value in exact),
        )


def resample(
    arms: Mapping[str, Sequence[Tally]], splits: Sequence[int], seed: int, replicates: int = REPLICATES
) -> Resampled:
    """Draw seeds and objects, and compute every arm's metrics in every draw.

    Args:
        arms: per arm one tally per seed, in the same order of seeds.
        splits: of each seed, which split it was scored on; seeds of one split share the draws of its objects.
    Raises:
        ValueError: tallies of one split are not of the same photos, or an arm lacks a seed.
    """
    rng = np.random.default_rng([seed, 19])
    count = len(splits)
    draws: dict[int, NDArray[np.float32]] = {}
    photos: dict[int, tuple[str, ...]] = {}
    for arm, tallies in arms.items():
        if len(tallies) != count:
            raise ValueError(f"arm {arm} has {len(tallies)} tallies, the seeds are {count}")
        for split, counted in zip(splits, tallies, strict=True):
            if photos.setdefault(split, counted.ids) != counted.ids:
                raise ValueError(f"arm {arm} was scored on other photos of split {split} than the first arm")
            if split not in draws:
                objects = len(counted.objects)
                drawn = rng.multinomial(objects, np.full(objects, 1 / objects), size=replicates)
                draws[split] = drawn.astype(np.float32)
    exact = {arm: _stacked([_metrics(t, None) for t in tallies], 1) for arm, tallies in arms.items()}
    values = {
        arm: _stacked([_metrics(t, draws[s]) for s, t in zip(splits, tallies, strict=True)], replicates)
        for arm, tallies in arms.items()
    }
    seeds = rng.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.float64)
    return Resampled(
        {arm: {name: v[:, 0] for name, v in found.items()} for arm, found in exact.items()}, values, seeds
    )


def smallest_detectable(differences: Sequence[float], seeds: int) -> float:
    """The true difference that a paired comparison over `seeds` seeds finds with a chance of POWER, at a level of 5 %.

    Args:
        differences: of arms that do not differ (fits that differ in nothing but chance), at least two.
    """
    count = len(differences)
    if count < 2 or seeds < 2:
        return math.nan
    spread = math.sqrt(sum(value**2 for value in differences) / count)  # their mean is known to be zero
    return float((stats.t.ppf(0.975, seeds - 1) + stats.t.ppf(POWER, seeds - 1)) * spread / math.sqrt(seeds))


def _metrics(counted: Tally, draws: NDArray[np.float32] | None) -> dict[str, NDArray[np.float64]]:
    per_type = {f"{TYPE}{key}": values for key, values in counted.per_type(draws).items()}
    return {"pixel_ap": counted.pixel_ap(draws), "mdice": counted.mdice(draws), **per_type}


def _stacked(rows: list[dict[str, NDArray[np.float64]]], length: int) -> dict[str, NDArray[np.float64]]:
    """[seeds, R] per metric; a seed without a metric (a type that its split lacks) has nan."""
    names = sorted({name for row in rows for name in row})
    return {name: np.stack([row.get(name, np.full(length, np.nan)) for row in rows]) for name in names}
