"""The one JSON object of a quality benchmark: arms, paired differences with intervals, fidelity, what can be told at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cdiff.evaluation.comparison import TYPE, Comparison, Resampled
from cdiff.wasm.quality import STOPPED, VALID
from jobs.quality import PLAIN, SplitResult
from jobs.quality_checks import AIMED, BASELINE, curve, negative_control, plain, power, resampled, rise
from jobs.quality_choices import CHANCE, LONG
from jobs.quality_pool import Choice

METRICS = ("pixel_ap", "mdice", "f1_max", "auroc", "aupro", "iou", "miou", "image_auroc")
# means over kept pairs of what the gate measured: its names, and how they are told
_MEASURES = {"label_iou": "label_iou", "visible": "visibility", "reference_distance": "reference_distance"}


def summary(results: Sequence[SplitResult], seeds: Sequence[int], seed: int) -> dict[str, Any]:
    """All that was measured, in the order of the seeds; the caller adds where and how.

    Args:
        results: one per split; each seed belongs to one of them.
        seed: of the bootstrap.
    """
    home = {s: result for result in results for s in result.seeds}
    arms = [arm for arm in dict.fromkeys(a for r in results for a, _ in r.choices) if not arm.endswith(LONG)]
    drawn, splits = resampled(home, arms, seeds, seed), [home[s].split for s in seeds]
    lines = curve(home, seeds)
    first = results[0].run
    return {
        "seeds": list(seeds),
        "splits": splits,
        "split_hashes": {str(r.split): r.split_hash for r in results},
        "splits_of_equal_photos": _alike(results),
        "looked_at": results[0].look,
        "a_seed_redraws": "start weights, batches, fold models, and which candidates of the split's pool are chosen; "
        "split, generator and pool are the split's",
        "runs": first.name if len(results) == 1 else [r.run.name for r in results],
        "base_steps": results[0].base_steps,
        "steps": results[0].steps,
        "arms": {arm: _arm(home, arm, seeds) for arm in arms},
        "comparisons": [plain(c, splits) for c in _comparisons(drawn, arms)],
        "negative_control": negative_control(home, arms, seeds, seed),
        "curve": lines,
        "rise": rise(lines),
        "power": power(drawn, len(seeds)),
        "gain_ratio": _ratio(drawn, arms),
        "equal_compute": _equal_compute(results, home, seeds, seed),
        "fidelity": {arm: _fidelity(home, arm, seeds) for arm in arms},
        "fidelity_by_split": {
            arm: {str(r.split): _fidelity(home, arm, [s for s in seeds if home[s] is r]) for r in results}
            for arm in arms
        },
        "pairs_wanted": results[0].pairs,
        "pairs": {arm: [_pairs(home[s].choices[arm, s]) for s in seeds] for arm in arms},
        "verdicts": {arm: _verdicts([home[s].choices[arm, s] for s in seeds]) for arm in arms},
        "beyond_band": {arm: [home[s].choices[arm, s].beyond_band for s in seeds] for arm in arms},
        "spent": {arm: _spent([home[s].choices[arm, s] for s in seeds]) for arm in arms},
        "seconds": {str(r.split): {k: float(f"{v:.4g}") for k, v in r.seconds.items()} for r in results},
    }


def _fidelity(home: Mapping[int, SplitResult], arm: str, seeds: Sequence[int]) -> dict[str, float | None]:
    found = [home[s] for s in seeds]
    return fidelity(
        [own.choices[arm, s] for s, own in zip(seeds, found, strict=True)],
        [own.fidelity.get((arm, s), {}) for s, own in zip(seeds, found, strict=True)],
    )


def fidelity(
    choices: Sequence[Choice], measured: Sequence[Mapping[str, float | None]]
) -> dict[str, float | None]:
    """What the pairs of an arm are like; None where there is nothing.

    valid_share, visible_share: of the judged candidates, those that are valid, and those in whose mask something can be seen (without the gate:
    that have a mask at all). kid, coverage: distance to real targets, means over seeds (cdiff.evaluation.fidelity; in the generator's own
    features, so that runs with another one do not compare).
    Means over kept pairs of what the gate measured: label_iou, visibility (the gate's distance between target and ring), reference_distance.
    """
    judged: Counter[str] = Counter()
    for choice in choices:
        judged.update(choice.verdicts)
    total = judged.total() - judged[STOPPED]
    # of what painted outside its region, nobody looked whether it can be seen
    seen = total - judged["changed outside"]
    kept = [dict(pair.attempt.measures) for choice in choices for pair in choice.pairs]
    out: dict[str, float | None] = {
        "valid_share": sum(judged[reason] for reason in VALID) / total if total else None,
        "visible_share": 1 - judged["not visible"] / seen if seen else None,
    }
    for name in ("kid", "coverage"):
        known = [row[name] for row in measured if row.get(name) is not None]
        out[name] = float(np.mean(known)) if known else None  # type: ignore[arg-type]
    for name, told in _MEASURES.items():
        values = [measures[name] for measures in kept if name in measures]
        out[told] = float(np.mean(values)) if values else None
    return out


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
    drawn = resampled(home, arms, long, seed)
    pairs = [drawn.compare(metric, AIMED, arm) for arm in arms[1:] for metric in ("pixel_ap", "mdice")]
    return {
        "seeds": long,
        "fits": {str(r.split): r.cycles for r in results if set(r.seeds) & set(long)},
        "fits_of_equal_time": {str(r.split): r.equal_fits for r in results if set(r.seeds) & set(long)},
        "arms": {arm: _arm(home, arm, long) for arm in arms},
        "comparisons": [plain(found, [home[s].split for s in long]) for found in pairs],
    }


def _ratio(drawn: Resampled, arms: Sequence[str]) -> float | None:
    """Gain of aimed pairs over that of undirected ones; None where it is not shown that the latter gain anything."""
    if not {AIMED, BASELINE, "undirected"} <= set(arms):
        return None
    aimed, undirected = (drawn.compare("pixel_ap", arm, BASELINE) for arm in (AIMED, "undirected"))
    return aimed.mean / undirected.mean if undirected.excludes_zero and undirected.low > 0 else None


def _spent(choices: Sequence[Choice]) -> dict[str, list[int]]:
    """Kept pairs by category/type, one number per seed."""
    kinds = [[f"{p.attempt.category}/{p.attempt.type}" for p in choice.pairs] for choice in choices]
    return {kind: [own.count(kind) for own in kinds] for kind in sorted({k for own in kinds for k in own})}


def _verdicts(choices: Sequence[Choice]) -> dict[str, list[int]]:
    """Candidates by the gate's verdict, one number per seed."""
    told = [choice.verdicts for choice in choices]
    return {
        reason: [own.get(reason, 0) for own in told] for reason in sorted({r for own in told for r in own})
    }


def _alike(results: Sequence[SplitResult]) -> list[int]:
    """Splits that have photos in common with another one altogether: folders fix them."""
    photos = Counter(result.photos for result in results)
    return [result.split for result in results if photos[result.photos] > 1]


def _pairs(choice: Choice) -> int:
    return len(choice.pairs) + choice.perlin
