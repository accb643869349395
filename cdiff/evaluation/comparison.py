"""Is one arm better than another? Paired differences over seeds, with a two-level bootstrap over source objects and seeds.

    replicate r:  draw source objects with replacement; d_s = metric(arm, draw) - metric(minus, draw) for every seed s
                  draw seeds with replacement;          e = mean of d over all seeds, u = over the drawn ones
                  D_r = E + c_objects (e - E) + c_seeds (u - e), where E is the mean of e over the replicates
    interval:     the middle 95 % of D_r

Photos of one object are not independent, so objects are drawn, one draw for all splits that test them; both arms of a seed are
scored on the same draw, so what a draw makes easy or hard falls out of the difference. Pixel AP is pooled anew in each replicate.
A bootstrap over n is too narrow by sqrt((n-1)/n) and knows no t distribution: c = t / z sqrt(n/(n-1)) widens what seeds and
objects add (2.7 for three, 1.6 for five, 1.04 for forty). With one seed the interval is over objects alone. Objects are those that show
targets of the type, of a mean over types those of all types: where each has a few, that is still a little too narrow.
Source: Davison and Hinkley, Bootstrap Methods (1997), chapter 3.8, for two levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from cdiff.evaluation.tally import Tally

REPLICATES = 2000
POWER = 0.8  # chance to find a difference of the smallest detectable size
TYPE = "type:"  # prefix of metrics of one type: "type:tile/crack" is its pixel AP


def excludes_zero(low: float, high: float) -> bool:
    """Whether a difference is told from none. An interval without width, of one seed and one object, tells nothing."""
    return low != high and (low > 0 or high < 0)


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
    objects: int = 0  # source objects that show the targets in question

    @property
    def excludes_zero(self) -> bool:
        return excludes_zero(self.low, self.high)


@dataclass(frozen=True)
class Resampled:
    """Every arm's metrics, as measured and in every replicate."""

    exact: dict[str, dict[str, NDArray[np.float64]]]  # arm -> metric -> [seeds]
    drawn: dict[str, dict[str, NDArray[np.float64]]]  # arm -> metric -> [seeds, R]
    seeds: NDArray[np.float64]  # [R, seeds], how often a seed is counted
    objects: Mapping[str, int]  # metric -> source objects that show its targets

    @property
    def metrics(self) -> list[str]:
        return sorted({metric for values in self.exact.values() for metric in values})

    def compare(self, metric: str, arm: str, minus: str) -> Comparison:
        """The difference of two arms, over the seeds that have the metric (a split may lack a type)."""
        exact = self.exact[arm][metric] - self.exact[minus][metric]
        drawn = self.drawn[arm][metric] - self.drawn[minus][metric]  # [seeds, R]
        known = ~np.isnan(drawn)
        values = np.where(known, drawn, 0)
        whole, some = known.sum(axis=0), (self.seeds.T * known).sum(axis=0)
        told = (whole > 0) & (some > 0)
        even = values.sum(axis=0)[told] / whole[told]
        uneven = (self.seeds.T * values).sum(axis=0)[told] / some[told]
        objects = self.objects[metric]
        low, high = interval(even, uneven, objects, int((~np.isnan(exact)).sum()))
        return Comparison(
            metric,
            arm,
            minus,
            float(np.nanmean(exact)),
            low,
            high,
            tuple(None if math.isnan(value) else float(value) for value in exact),
            objects,
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
    drawn_objects = _drawn(
        {name for tallies in arms.values() for t in tallies for name in t.objects}, replicates, rng
    )
    photos: dict[int, tuple[str, ...]] = {}
    for arm, tallies in arms.items():
        if len(tallies) != count:
            raise ValueError(f"arm {arm} has {len(tallies)} tallies, the seeds are {count}")
        for split, counted in zip(splits, tallies, strict=True):
            if photos.setdefault(split, counted.ids) != counted.ids:
                raise ValueError(f"arm {arm} was scored on other photos of split {split} than the first arm")
            if split not in draws:
                draws[split] = np.stack([drawn_objects[name] for name in counted.objects], axis=1)
    exact = {arm: _stacked([_metrics(t, None) for t in tallies], 1) for arm, tallies in arms.items()}
    values = {
        arm: _stacked([_metrics(t, draws[s]) for s, t in zip(splits, tallies, strict=True)], replicates)
        for arm, tallies in arms.items()
    }
    seeds = rng.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.float64)
    return Resampled(
        {arm: {name: v[:, 0] for name, v in found.items()} for arm, found in exact.items()},
        values,
        seeds,
        showing(next(iter(arms.values()), ())),
    )


def paired_targets(
    differences: Sequence[Mapping[str, float]],
    objects: Mapping[str, str],
    seed: int,
    replicates: int = REPLICATES,
) -> tuple[float, float, float]:
    """Mean difference over targets and seeds, and the ends of its interval, by the same two-level bootstrap.

    Args:
        differences: of one arm minus another, by target; one mapping per seed, all of the same targets.
        objects: source object of every target.
    Raises:
        ValueError: no seed, or seeds of other targets than the first.
    """
    if not differences or any(own.keys() != differences[0].keys() for own in differences):
        raise ValueError("give differences of the same targets for one seed at least")
    rng, count = np.random.default_rng([seed, 23]), len(differences)
    targets = sorted(differences[0])
    values = np.array([[own[target] for target in targets] for own in differences])  # [seeds, targets]
    drawn = _drawn({objects[target] for target in targets}, replicates, rng)
    # [R, targets]
    weights = np.stack([drawn[objects[target]] for target in targets], axis=1).astype(np.float64)
    weights = weights[weights.sum(axis=1) > 0]
    by_seed = weights @ values.T / weights.sum(axis=1, keepdims=True)  # [R, seeds]
    seeds = rng.multinomial(count, np.full(count, 1 / count), size=len(weights)) / count
    even, uneven = by_seed.mean(axis=1), (by_seed * seeds).sum(axis=1)
    low, high = interval(even, uneven, len({objects[target] for target in targets}), count)
    return float(values.mean()), low, high


def smallest_detectable(differences: Sequence[float], seeds: int) -> float | None:
    """The true difference that a paired comparison over `seeds` seeds finds with a chance of POWER, at a level of 5 %.

    Args:
        differences: of arms that do not differ (fits that differ in nothing but chance).
    Returns:
        None with under two differences or seeds.
    """
    count = len(differences)
    if count < 2 or seeds < 2:
        return None
    spread = math.sqrt(sum(value**2 for value in differences) / count)  # their mean is known to be zero
    tails = special.stdtrit(seeds - 1, 0.975) + special.stdtrit(seeds - 1, POWER)
    return float(tails * spread / math.sqrt(seeds))


def _drawn(objects: set[str], replicates: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """How often each object is counted, [R] by name: one that two splits test is one observation, not two."""
    names = sorted(objects)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    return dict(zip(names, drawn.T.astype(np.float32), strict=True))


def interval(
    even: NDArray[np.float64], uneven: NDArray[np.float64], objects: int, seeds: int
) -> tuple[float, float]:
    """The ends, from the replicates [R] with all seeds and with the drawn ones; of a single seed these are the same."""
    middle = even.mean()
    drawn = middle + _widening(objects) * (even - middle) + _widening(seeds) * (uneven - even)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _widening(count: int) -> float:
    """What a percentile interval over few seeds or objects lacks; 0 for one alone, of whose kind nothing is known."""
    if count < 2:
        return 0.0
    # scipy.special has the same quantiles to the last bit; the driver imports this, and scipy.stats takes over a second
    return float(special.stdtrit(count - 1, 0.975) / special.ndtri(0.975) * math.sqrt(count / (count - 1)))


def showing(tallies: Sequence[Tally]) -> dict[str, int]:
    """How many source objects show targets, by metric; of all splits together."""
    shown: dict[str, set[str]] = {}
    for counted in tallies:
        for key, pool in counted.types.items():
            shown.setdefault(f"{TYPE}{key}", set()).update(counted.objects[place] for place in pool.objects)
    everything = len(set().union(*shown.values()))
    return {name: len(found) for name, found in shown.items()} | dict.fromkeys(
        ("pixel_ap", "mdice"), everything
    )


def _metrics(counted: Tally, draws: NDArray[np.float32] | None) -> dict[str, NDArray[np.float64]]:
    per_type = {f"{TYPE}{key}": values for key, values in counted.per_type(draws).items()}
    return {"pixel_ap": counted.pixel_ap(draws), "mdice": counted.mdice(draws), **per_type}


def _stacked(rows: list[dict[str, NDArray[np.float64]]], length: int) -> dict[str, NDArray[np.float64]]:
    """[seeds, R] per metric; a seed without a metric (a type that its split lacks) has nan."""
    names = sorted({name for row in rows for name in row})
    return {name: np.stack([row.get(name, np.full(length, np.nan)) for row in rows]) for name in names}
