"""The one JSON object of a quality benchmark: arms, paired differences with intervals, fidelity, what can be told at all."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cdiff.evaluation.comparison import TYPE, Comparison, Resampled, resample, smallest_detectable
from cdiff.wasm.quality import STOPPED, VALID
from jobs.quality import PLAIN, SplitResult
from jobs.quality_choices import CHANCE, LONG
from jobs.quality_pool import Choice

METRICS = ("pixel_ap", "mdice", "f1_max", "auroc", "aupro", "iou", "miou", "image_auroc")
BASELINE, AIMED = "real_only", "wasm"
_MEASURES = ("label_iou", "visible", "reference_distance")


def summary(results: Sequence[SplitResult], seeds: Sequence[int], seed: int) -> dict[str, Any]:
    """All that was measured, in the order of the seeds; the caller adds where and how.

    Args:
        results: one per split; each seed belongs to one of them.
        seed: of the bootstrap.
    """
    home = {s: result for result in results for s in result.seeds}
    arms = [arm for arm in dict.fromkeys(a for r in results for a, _ in r.choices) if not arm.endswith(LONG)]
    drawn = _resampled(home, arms, seeds, seed)
    first = results[0].run
    return {
        "seeds": list(seeds),
        "splits": [home[s].split for s in seeds],
        "split_hashes": {str(r.split): r.split_hash for r in results},
        "looked_at": results[0].look,
        "a_seed_redraws": "start weights, batches, fold models, and which candidates of the split's pool are chosen; "
        "split, generator and pool are the split's",
        "runs": first.name if len(results) == 1 else [r.run.name for r in results],
        "base_steps": results[0].base_steps,
        "steps": results[0].steps,
        "arms": {arm: _arm(home, arm, seeds) for arm in arms},
        "comparisons": [_plain(c) for c in _comparisons(drawn, arms)],
        "negative_control": _negative(home, arms, seeds, seed),
        "curve": _curve(home, seeds),
        "power": _power(drawn, len(seeds)),
        "gain_ratio": _ratio(drawn, arms),
        "equal_compute": _equal_compute(results, home, seeds, seed),
        "fidelity": {
            arm: fidelity(
                [home[s].choices[arm, s] for s in seeds], [home[s].fidelity.get((arm, s), {}) for s in seeds]
            )
            for arm in arms
        },
        "pairs": {arm: [_pairs(home[s].choices[arm, s]) for s in seeds] for arm in arms},
        "beyond_band": {arm: [home[s].choices[arm, s].beyond_band for s in seeds] for arm in arms},
        "spent": {arm: _spent([home[s].choices[arm, s] for s in seeds]) for arm in arms},
        "seconds": {str(r.split): {k: float(f"{v:.4g}") for k, v in r.seconds.items()} for r in results},
    }


def fidelity(
    choices: Sequence[Choice], measured: Sequence[Mapping[str, float | None]]
) -> dict[str, float | None]:
    """Share of judged candidates that are valid, means over seeds of distance and coverage (cdiff.evaluation.fidelity), and
    means over kept pairs of what the gate measured; None where there is nothing."""
    judged: dict[str, int] = {}
    for choice in choices:
        for _, reason, number in choice.counts:
            judged[reason] = judged.get(reason, 0) + number
    total = sum(judged.values()) - judged.get(STOPPED, 0)
    kept = [dict(pair.attempt.measures) for choice in choices for pair in choice.pairs]
    out: dict[str, float | None] = {
        "valid_share": sum(judged.get(reason, 0) for reason in VALID) / total if total else None
    }
    for name in ("kid", "coverage"):
        known = [row[name] for row in measured if row.get(name) is not None]
        out[name] = float(np.mean(known)) if known else None  # type: ignore[arg-type]
    for name in _MEASURES:
        values = [measures[name] for measures in kept if name in measures]
        out[name] = float(np.mean(values)) if values else None
    return out


def _resampled(
    home: Mapping[int, SplitResult],
    arms: Sequence[str],
    seeds: Sequence[int],
    seed: int,
    swapped: bool = False,
) -> Resampled:
    tallies = {arm: [home[s].tally(arm, s, swapped) for s in seeds] for arm in arms}
    return resample(tallies, [home[s].split for s in seeds], seed)


def _arm(home: Mapping[int, SplitResult], arm: str, seeds: Sequence[int]) -> dict[str, Any]:
    rows = [home[s].scores[arm, s].scores for s in seeds]
    out: dict[str, Any] = {name: [row[name] for row in rows] for name in METRICS}
    keys = sorted({key for row in rows for key in row["per_type"]})
    out["per_type"] = {
        key: {
            name: [row["per_type"].get(key, {}).get(name) for row in rows]
            for name in ("pixel_ap", "f1_max", "mdice")
        }
        for key in keys
    }
    out["validation_pixel_ap"] = [home[s].validation[arm, s].scores["pixel_ap"] for s in seeds]
    return out


def _comparisons(drawn: Resampled, arms: Sequence[str]) -> list[Comparison]:
    """The aimed arm against every other one, and every arm against real photos alone."""
    wanted = [(AIMED, other) for other in arms if other not in (AIMED, CHANCE)] if AIMED in arms else []
    wanted += [(arm, BASELINE) for arm in arms if arm not in (AIMED, BASELINE) and BASELINE in arms]
    control = "mined_B0"
    wanted += [
        (arm, control) for arm in arms if arm.startswith("mined_") and arm != control and control in arms
    ]
    metrics = ["pixel_ap", "mdice", *(m for m in drawn.metrics if m.startswith(TYPE))]
    return [drawn.compare(metric, arm, minus) for arm, minus in wanted for metric in metrics]


def _equal_compute(
    results: Sequence[SplitResult], home: Mapping[int, SplitResult], seeds: Sequence[int], seed: int
) -> dict[str, Any] | None:
    """The aimed arm against those that ran on for as long; of the seeds that did."""
    long = [s for s in seeds if any((f"{arm}{LONG}", s) in home[s].choices for arm in PLAIN)]
    if not long:
        return None
    arms = [AIMED, *(f"{arm}{LONG}" for arm in PLAIN if (f"{arm}{LONG}", long[0]) in home[long[0]].choices)]
    drawn = _resampled(home, arms, long, seed)
    pairs = [drawn.compare(metric, AIMED, arm) for arm in arms[1:] for metric in ("pixel_ap", "mdice")]
    return {
        "seeds": long,
        "fits": {str(r.split): r.cycles for r in results if set(r.seeds) & set(long)},
        "fits_of_equal_time": {str(r.split): r.equal_fits for r in results if set(r.seeds) & set(long)},
        "arms": {arm: _arm(home, arm, long) for arm in arms},
        "comparisons": [_plain(found) for found in pairs],
    }


def _curve(home: Mapping[int, SplitResult], seeds: Sequence[int]) -> list[dict[str, Any]]:
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


def _negative(
    home: Mapping[int, SplitResult], arms: Sequence[str], seeds: Sequence[int], seed: int
) -> dict[str, Any] | None:
    """The gain against the masks of other photos: what is left of it is not found but guessed by place and size.

    None without both arms, or where no photo has another object of its types to swap masks with.
    """
    if not {AIMED, BASELINE} <= set(arms) or not all(home[s].tally(AIMED, s, True).types for s in seeds):
        return None
    found = _resampled(home, (AIMED, BASELINE), seeds, seed, swapped=True).compare(
        "pixel_ap", AIMED, BASELINE
    )
    return {
        **_plain(found),
        "masks": "those of another photo of the same types",
        "holds_zero": not found.excludes_zero,
    }


def _power(drawn: Resampled, seeds: int) -> dict[str, Any] | None:
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


def _ratio(drawn: Resampled, arms: Sequence[str]) -> float | None:
    """Gain of aimed pairs over that of undirected ones; None where it is not shown that the latter gain anything."""
    if not {AIMED, BASELINE, "undirected"} <= set(arms):
        return None
    aimed, plain = (drawn.compare("pixel_ap", arm, BASELINE) for arm in (AIMED, "undirected"))
    return aimed.mean / plain.mean if plain.low > 0 else None


def _spent(choices: Sequence[Choice]) -> dict[str, list[int]]:
    """Kept pairs by category/type, one number per seed."""
    kinds = [[f"{p.attempt.category}/{p.attempt.type}" for p in choice.pairs] for choice in choices]
    return {kind: [own.count(kind) for own in kinds] for kind in sorted({k for own in kinds for k in own})}


def _pairs(choice: Choice) -> int:
    return len(choice.pairs) + choice.perlin


def _plain(found: Comparison) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "arm": found.arm,
        "minus": found.minus,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "per_seed": list(found.per_seed),
        "objects": found.objects,
    }
