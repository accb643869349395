"""A quality benchmark in sentences: which rivals the aimed pairs beat, and what a reader must know before believing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cdiff.evaluation.comparison import excludes_zero


def verdict(result: Mapping[str, Any]) -> str:
    """Which rivals the aimed pairs beat, in sentences."""
    found = [c for c in result["comparisons"] if c["arm"] == "wasm" and c["metric"] == "pixel_ap"]
    if not found:
        return "No aimed arm was measured."
    beaten = [said(c["minus"]) for c in found if excludes_zero(c["low"], c["high"]) and c["low"] > 0]
    worse = [said(c["minus"]) for c in found if excludes_zero(c["low"], c["high"]) and c["high"] < 0]
    open_ = [said(c["minus"]) for c in found if not excludes_zero(c["low"], c["high"])]
    where = "test" if result["looked_at"] == "test" else "validation"
    parts = [
        f"better than {', '.join(beaten)}" if beaten else "",
        f"worse than {', '.join(worse)}" if worse else "",
        f"not told apart from {', '.join(open_)}" if open_ else "",
    ]
    told = "; ".join(part for part in parts if part)
    seeds = len(result["seeds"])
    over, of = (
        (f"over {seeds} seeds", "seeds and source objects")
        if seeds > 1
        else ("with one seed", "source objects")
    )
    return f"In pixel AP on {where} photos, {over}, aimed pairs are {told} (95 % intervals over {of})."


def doubts(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a difference, in sentences."""
    told = []
    if result["splits_to_come"]:
        told.append(f"not all is measured yet: split {listed(result['splits_to_come'])} is still to come.")
    told += [*_alone(result), *_short_of_pairs(result)]
    if alike := result.get("splits_of_equal_photos"):
        told.append(
            f"splits {listed(alike)} have the same photos, since split folders fix them: they count as one. Draw with data.train_images, or give "
            "photos without split folders."
        )
    found = (result["rise"] or {}).get("pixel_ap") or {"compared": None, "further": None}
    compared, further = found["compared"], found["further"]
    rising = [change for change in (compared, further) if change and _rises(change)]
    if compared and rising:
        more = (
            f" and by {further['mean']:+.3f} over all fits after it (seeds {listed(further['seeds'])})"
            if further
            else ""
        )
        told.append(
            f"real photos alone still rise on validation, by {compared['mean']:+.3f} pixel AP over the fit that is compared{more}"
            f"{'' if any(change['low'] is not None for change in rising) else ' (one seed: it may be chance)'}: a gain may "
            "vanish with longer training. Raise downstream.base_steps, or see how far they go with --equal-compute."
        )
    split = [
        f"{said(c['arm'])} − {said(c['minus'])} ({listed([f'{v:+.3f}' for v in c['by_split'].values()])})"
        for c in result["comparisons"]
        if c["metric"] == "pixel_ap" and c["splits_differ"]
    ]
    if split:
        told.append(
            f"splits differ by more than seeds do in {', '.join(split)}; intervals take the splits as given."
        )
    if any(c["metric"] == "pixel_ap" and c["objects"] == 1 for c in result["comparisons"]):
        told.append(
            "all targets are of one source object: intervals are over seeds alone, and say nothing of other objects. "
            "Give photos of more objects, or name what the photos are of (--groups)."
        )
    return told


def _alone(result: Mapping[str, Any]) -> list[str]:
    """One seed or one split: what intervals then leave out."""
    told = []
    if len(result["seeds"]) == 1:
        told.append(
            "one seed alone: intervals are over source objects, and leave out what chance does to a single fit. A difference may be no "
            "more than that: give five seeds (--seeds 0 1 2 3 4)."
        )
    elif len(set(result["splits"])) == 1 and not result["splits_to_come"]:
        told.append(
            "one split alone: which objects are trained on, the generator and its pool are given, and another split may turn differences "
            "round (--splits 0 1)."
        )
    return told


def _short_of_pairs(result: Mapping[str, Any]) -> list[str]:
    """Arms whose pairs ran out: what they lack, no method is to blame for."""
    wanted, without = result.get("pairs_wanted", 0), ("real_only", "again")
    aimed_or_not = [arm for arm in result["pairs"] if arm not in without and not arm.startswith("mined_")]
    short = {arm: min(result["pairs"][arm]) for arm in aimed_or_not if min(result["pairs"][arm]) < wanted}
    if not short:
        return []
    each = listed([f"{said(arm)} {least}" for arm, least in short.items()])
    bare = " Without any, an arm is real photos alone." if 0 in short.values() else ""
    return [
        f"arms do not have equal pairs: {wanted} are wanted, and the least that a seed has is {each}, since the gate turned the others away.{bare} "
        "Ask for fewer (wasm.pairs), or for more candidates (wasm.pool)."
    ]


def _rises(change: Mapping[str, Any]) -> bool:
    """A rise beyond chance, or of one seed any at all."""
    return bool((change["mean"] if change["low"] is None else change["low"]) > 0)


def said(arm: str) -> str:
    return arm.replace("_", " ")


def listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
