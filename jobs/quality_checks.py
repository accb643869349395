"""What speaks for or against a quality benchmark's own numbers: a baseline that still rises, chance, guessing by place and size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from cdiff.evaluation.comparison import Comparison, Resampled, resample, smallest_detectable
from jobs.quality import SplitResult
from jobs.quality_choices import CHANCE

BASELINE, AIMED = "real_only", "wasm"
# A level against other photos' masks says something from so far above random scores on: pixel AP, or so many times theirs.
_CLEAR, _TIMES = 0.01, 3.0
_LEVEL = 0.05  # of the test whether a difference depends on the split


def resampled(
    home: Mapping[int, SplitResult],
    arms: Sequence[str],
    seeds: Sequence[int],
    seed: int,
    swapped: bool = False,
) -> Resampled:
    """Every arm's metrics in every draw of seeds and objects.

    Args:
        home: the split that each seed belongs to. seed: of the bootstrap.
        swapped: against the masks of other photos.
    """
    tallies = {arm: [home[s].tally(arm, s, swapped) for s in seeds] for arm in arms}
    return resample(tallies, [home[s].split for s in seeds], seed)


def plain(found: Comparison, splits: Sequence[int]) -> dict[str, Any]:
    """A comparison for JSON, with what an interval does not know: its mean on each split, and whether splits differ by more than seeds do.

    Args:
        splits: on which split each seed of the comparison was scored.
    """
    by_split: dict[str, list[float]] = {}
    for split, value in zip(splits, found.per_seed, strict=True):
        if value is not None:
            by_split.setdefault(str(split), []).append(value)
    return {
        "metric": found.metric,
        "arm": found.arm,
        "minus": found.minus,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "per_seed": list(found.per_seed),
        "by_split": {split: statistics.mean(values) for split, values in by_split.items()},
        "splits_differ": _differ(list(by_split.values())),
        "objects": found.objects,
    }


def _differ(groups: Sequence[Sequence[float]]) -> bool | None:
    """Analysis of variance; None with under two seeds on some split, or under two splits."""
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return None
    if all(max(values) == min(values) for values in groups):
        return len({values[0] for values in groups}) > 1
    return bool(stats.f_oneway(*groups).pvalue < _LEVEL)


def curve(home: Mapping[int, SplitResult], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Real photos alone on validation, from the base on: is the baseline trained out where the arms are compared?"""
    return [
        {
            "seed": s,
            "steps": [steps for steps, _ in home[s].curve[s]],
            **{name: [found.scores[name] for _, found in home[s].curve[s]] for name in ("pixel_ap", "mdice")},
        }
        for s in seeds
        if s in home[s].curve
    ]


def rise(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How much real photos alone gain over the fit that is compared, and over those after it.

    Args:
        lines: of `curve`.
    Returns:
        By metric {"compared": told, "further": told}: from the base to the compared fit, and from this one to the last. Each told as {"seeds",
        "per_seed", "mean", "low"}, `low` being the one-sided 95 % bound of the mean over the seeds (None for one seed). Above zero, the
        baseline was not trained out; below, that is not shown. None instead where no seed has the metric, or ran on. None without a line.
    """
    if not lines:
        return None
    ran_on = [line for line in lines if len(line["steps"]) > 2]
    return {
        metric: {"compared": _change(lines, metric, 0, 1), "further": _change(ran_on, metric, 1, -1)}
        for metric in ("pixel_ap", "mdice")
    }


def _change(lines: Sequence[Mapping[str, Any]], metric: str, first: int, last: int) -> dict[str, Any] | None:
    ends = {line["seed"]: (line[metric][first], line[metric][last]) for line in lines}
    changes = {s: float(b) - float(a) for s, (a, b) in ends.items() if a is not None and b is not None}
    if not changes:
        return None
    values, mean, low = list(changes.values()), statistics.mean(changes.values()), None
    if len(values) > 1:
        bound = float(stats.t.ppf(0.95, len(values) - 1))
        low = mean - bound * statistics.stdev(values) / math.sqrt(len(values))
    return {"seeds": list(changes), "per_seed": values, "mean": mean, "low": low}


def negative_control(
    home: Mapping[int, SplitResult], arms: Sequence[str], seeds: Sequence[int], seed: int
) -> dict[str, Any] | None:
    """Arms against the masks of other photos of the same types: what they gain there is place and size of targets, not finding them.

    Beside the aimed arm's difference to real photos alone stand those of the others, every arm's level, and that of scores at random:
    where no arm is clear of it (small targets anywhere in the photo, or weak models), zero is all that there can be, and says nothing.

    None without both arms, or where no photo has another object of its types to swap masks with.
    """
    if not {AIMED, BASELINE} <= set(arms) or not all(home[s].tally(AIMED, s, True).types for s in seeds):
        return None
    drawn = resampled(home, arms, seeds, seed, swapped=True)
    splits = [home[s].split for s in seeds]
    found = {arm: drawn.compare("pixel_ap", arm, BASELINE) for arm in arms if arm not in (BASELINE, CHANCE)}
    level = {arm: float(np.nanmean(drawn.exact[arm]["pixel_ap"])) for arm in arms}
    chance = statistics.mean(home[s].tally(BASELINE, s, True).chance() for s in seeds)
    return {
        **plain(found[AIMED], splits),
        "masks": "those of another photo of the same types",
        "holds_zero": not found[AIMED].excludes_zero,
        "others": [plain(difference, splits) for arm, difference in found.items() if arm != AIMED],
        "level": level,
        "level_at_random": chance,
        "says_something": max(level.values()) > min(chance + _CLEAR, chance * _TIMES)
        or any(difference.excludes_zero for difference in found.values()),
    }


def power(drawn: Resampled, seeds: int) -> dict[str, Any] | None:
    """What differences of real-only fits say about the smallest gain that can be told."""
    if not {CHANCE, BASELINE} <= set(drawn.exact):
        return None
    out: dict[str, Any] = {}
    for metric in ("pixel_ap", "mdice"):
        found = drawn.compare(metric, CHANCE, BASELINE)
        differences = [value for value in found.per_seed if value is not None]
        values = [float(v) for v in drawn.exact[BASELINE][metric]]
        out[metric] = {
            "sd_of_real_only": statistics.stdev(values) if len(values) > 1 else None,
            "differences_of_two_real_only_fits": differences,
            "smallest_detectable": {
                str(n): smallest_detectable(differences, n) for n in sorted({seeds, 5, 8, 16})
            },
        }
    return out
