"""The gate: every attempt is kept, or turned away with a named reason.

    validity    is it a true pair? bounds are a low percentile of what real targets of the type measure
    selection   is it wanted? difficulty within the purpose's band, the first of them by plan index

A verdict depends on the set of attempts alone, never on the order in which they arrived. The slacks below were chosen on
copies of real training targets of three data sets (tiles, screws, polyps): of the same copies 81 to 86 % pass the pixel
tests, of blurred, unchanged and displaced versions 0 to 8 %, of versions enlarged from 32 px up to 10 %.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cdiff.config import Config
from cdiff.data.dataset import MIN_AREA
from cdiff.types import QUARANTINED, Assignment, Attempt, Outcome, Pair, Purpose
from cdiff.wasm.dealing import band
from cdiff.wasm.duplicates import Earlier

# In order of precedence. All say that the pair is not true; they count towards stopping a slice.
INVALID = (
    "changed outside",
    "not visible",
    "off object",
    "blurred",
    "label disagrees",
    "near-duplicate",
    "adversarial",
)
STOPPED, OUT_OF_BAND, FULL = "slice stopped", "out of band", "budget full"
VALID = ("kept", OUT_OF_BAND, FULL)  # verdicts of pairs that nothing is said against

_BOUNDED = ("visible", "on_object", "sharpness", "label_iou", "survives")
_SHARPNESS_SLACK = 0.75  # a real target laid on another photo takes its own focus along
_LOOK_SLACK = 0.2  # a look of the denoiser smooths real targets, too, and their bound knows nothing of it
_OBJECT_SLACK = 0.05  # foreground maps of two photos of one object differ by about this much


@dataclass(frozen=True)  # without slots: what is looked up is kept
class Thresholds:
    """Lowest values that real targets of a type show; plain JSON through `cdiff.data.carriers`."""

    bounds: tuple[tuple[str, str, float], ...]  # (measure, "category/type" | "category" | "" for all, bound)

    def bound(self, measure: str, key: str) -> float:
        """The bound of the type, else of its category, else of all; -inf for what was never measured."""
        known, places = self._known, (key, key.rpartition("/")[0], "")
        return next((known[measure, place] for place in places if (measure, place) in known), -np.inf)

    @cached_property
    def _known(self) -> dict[tuple[str, str], float]:
        return {(name, where): value for name, where, value in self.bounds}

    def joined(self, bounds: Iterable[tuple[str, str, float]]) -> Thresholds:
        """With further bounds."""
        return Thresholds(tuple(sorted({*self.bounds, *bounds})))


def survival_bounds(outcomes: Iterable[Outcome], config: Config) -> tuple[tuple[str, str, float], ...]:
    """What is left at least of a real target's hardness after slight blur and JPEG, by type, for a round's gate.

    Only targets that were hard say something. Under `gate.min_targets` of them there is no bound: one real target would
    turn away all that is hard.
    """
    rows = [(f"{row.category}/{row.type}", {"survives": row.survives}) for row in outcomes if row.hard]
    return thresholds(rows, config).bounds if len(rows) >= config.gate.min_targets else ()


def thresholds(rows: Sequence[tuple[str, Mapping[str, float]]], config: Config) -> Thresholds:
    """The configured percentile of real targets, per type where there are enough of them, pooled where not.

    Args:
        rows: ("category/type", measures) of real targets; a row may hold some of the measures only.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for key, measures in rows:
        for name in _BOUNDED:
            if name in measures:
                for place in {key, key.rpartition("/")[0], ""}:
                    found[name, place].append(measures[name])
    enough = {k: v for k, v in found.items() if len(v) >= config.gate.min_targets or not k[1]}
    bounds = [
        (*place, float(np.percentile(values, config.gate.percentile))) for place, values in enough.items()
    ]
    return Thresholds(tuple(sorted(bounds)))


def validity_reason(measures: Mapping[str, float], key: str, thresholds: Thresholds, config: Config) -> str:
    """Why a pair is not true, or "".

    Without `gate.checks` only what is painted beyond its region, or empty, is turned away. Without `changed` (a target
    repainted in place changes little) that test is left out; without `reference_distance`, `label_iou`, `survives` or
    `outside` theirs.

    Args:
        key: "category/type"; without a type for a hard negative.
    """
    if measures.get("outside", 0.0) > 0:
        return INVALID[0]
    if not key.rpartition("/")[2]:  # a hard negative shows no target that could be seen or read
        return ""
    if not config.gate.checks:
        return INVALID[1] if measures["area"] < MIN_AREA else ""
    visible = thresholds.bound("visible", key)
    tests = (
        # A mask over plain texture can differ from its ring by chance: the photo must have changed there, too. Not as much as its
        # type stands out, which on a thread is the thread's own doing.
        measures["area"] < MIN_AREA
        or measures["visible"] < visible
        or measures.get("changed", np.inf) < min(visible, thresholds.bound("visible", "")),
        measures["on_object"] < thresholds.bound("on_object", key) - _OBJECT_SLACK,
        measures["sharpness"] < thresholds.bound("sharpness", key) * _SHARPNESS_SLACK,
        measures.get("label_iou", np.inf) < thresholds.bound("label_iou", key),
        measures.get("reference_distance", np.inf) < config.gate.duplicate,
        min(measures.get("survives", np.inf), measures.get("survives_look", np.inf) + _LOOK_SLACK)
        < thresholds.bound("survives", key),
    )
    return next((reason for reason, fails in zip(INVALID[1:], tests, strict=True) if fails), "")


def judge(
    attempts: Iterable[Attempt],
    quotas: Mapping[tuple[str, Purpose], int],
    thresholds: Thresholds,
    config: Config,
    *,
    last: bool,
) -> list[Pair]:
    """Give every attempt of a round its verdict, in plan order.

    1. Validity: `validity_reason`, then near-duplicates of an earlier valid attempt with the same reference, or in the same
       place of the same background.
    2. A slice stops after the first `stop_after` or more attempts by index of which more than `stop_invalid` are invalid;
       all its later attempts read "slice stopped".
    3. Difficulty is the rank of min(kappa, loss) among the valid attempts of the type. Outside of the purpose's band: "out
       of band". Of the others the first by index are kept up to the quota; the rest read "budget full".
    4. Bands must not starve the budget: while a further wave can follow, what is missing is left to it. With `last`, valid
       attempts nearest to the band fill up, the lower index first where two are equally near; `beyond_band` counts them.

    Args:
        attempts: all of the round so far, of every wave, in any order.
        quotas: wanted pairs by slice and purpose, as `budget.quotas` gives them.
        last: no further wave follows.
    Raises:
        ValueError: two attempts of one index.
    """
    ordered = sorted(attempts, key=lambda attempt: attempt.assignment.index)
    if len({attempt.assignment.index for attempt in ordered}) != len(ordered):
        raise ValueError("two attempts of one index: each place in the plan is judged once")
    reasons = validity_reasons(ordered, thresholds, config)
    _stop_slices(ordered, reasons, config)
    _select(ordered, reasons, quotas, config, last)
    return [Pair(attempt, reason) for attempt, reason in zip(ordered, reasons, strict=True)]


def counts(pairs: Iterable[Pair], quarantined: Iterable[Assignment] = ()) -> tuple[tuple[str, str, int], ...]:
    """(slice, reason or "kept", how many), sorted; their sum is the number of attempts, and of tasks that killed their actors."""
    found = Counter((pair.attempt.assignment.slice, pair.reason or "kept") for pair in pairs)
    found.update((assignment.slice, QUARANTINED) for assignment in quarantined)
    return tuple((name, reason, number) for (name, reason), number in sorted(found.items()))


def shortfall(
    pairs: Iterable[Pair], quotas: Mapping[tuple[str, Purpose], int], config: Config
) -> dict[tuple[str, Purpose], int]:
    """Pairs still missing by slice and purpose; none for a slice that stopped, be it at its last attempt: its budget lapses."""
    judged = sorted(pairs, key=lambda pair: pair.attempt.assignment.index)
    stopped = _stop_slices([pair.attempt for pair in judged], [pair.reason for pair in judged], config)
    kept: Counter[tuple[str, Purpose]] = Counter()
    for pair in judged:
        kept[pair.attempt.assignment.slice, pair.attempt.assignment.purpose] += pair.kept
    missing = {key: number - kept[key] for key, number in quotas.items() if key[0] not in stopped}
    return {key: number for key, number in missing.items() if number > 0}


def valid_shares(pairs: Iterable[Pair]) -> dict[str, float]:
    """By slice the share of its judged attempts that were true, whether they were wanted or not."""
    tried: Counter[str] = Counter()
    true: Counter[str] = Counter()
    for pair in pairs:
        tried[pair.attempt.assignment.slice] += pair.reason != STOPPED
        true[pair.attempt.assignment.slice] += pair.reason not in (*INVALID, STOPPED)
    return {name: true[name] / number for name, number in tried.items() if number}


def beyond_band(pairs: Iterable[Pair], config: Config) -> dict[str, int]:
    """How many pairs of each slice were kept although their difficulty lies outside the wanted band (`judge`, rule 4)."""
    valid = [pair for pair in pairs if pair.reason in ("", OUT_OF_BAND, FULL)]
    distances = _band_distances([pair.attempt for pair in valid], config)
    outside = [p for p in valid if p.kept and distances[p.attempt.assignment.index] > 0]
    return dict(sorted(Counter(pair.attempt.assignment.slice for pair in outside).items()))


def _key(attempt: Attempt) -> str:
    return f"{attempt.category}/{attempt.type}"


def validity_reasons(ordered: Sequence[Attempt], thresholds: Thresholds, config: Config) -> list[str]:
    """`validity_reason` of each attempt, and near-duplicates of earlier ones (`judge`, rule 1)."""
    reasons: list[str] = []
    earlier = Earlier(ordered, config.gate.duplicate) if config.gate.checks else None
    for number, attempt in enumerate(ordered):
        task, measures = attempt.assignment.task, dict(attempt.measures)
        if task.reference.rpartition("#")[0] == task.background:  # repainted in place: little need change
            measures.pop("changed", None)
        reason = validity_reason(measures, _key(attempt), thresholds, config)
        if not reason and earlier and earlier.repeated(number):
            reason = "near-duplicate"
        if not reason and earlier:
            earlier.add(number)
        reasons.append(reason)
    return reasons


def _stop_slices(ordered: Sequence[Attempt], reasons: list[str], config: Config) -> set[str]:
    """Write "slice stopped" over all that follows, by index, once a slice has failed too often; return the slices that did."""
    tried: Counter[str] = Counter()
    invalid: Counter[str] = Counter()
    stopped: set[str] = set()
    for place, attempt in enumerate(ordered):
        name = attempt.assignment.slice
        if name in stopped:
            reasons[place] = STOPPED
            continue
        tried[name] += 1
        invalid[name] += reasons[place] in INVALID
        if tried[name] >= config.gate.stop_after and invalid[name] > config.gate.stop_invalid * tried[name]:
            stopped.add(name)
    return stopped


def _select(
    ordered: Sequence[Attempt],
    reasons: list[str],
    quotas: Mapping[tuple[str, Purpose], int],
    config: Config,
    last: bool,
) -> None:
    """Write selection reasons over the valid attempts that are not kept (`judge`, rules 3 and 4)."""
    distances = _band_distances([a for a, reason in zip(ordered, reasons, strict=True) if not reason], config)
    places: dict[tuple[str, Purpose], list[int]] = defaultdict(list)
    for place, reason in enumerate(reasons):
        if not reason:
            places[ordered[place].assignment.slice, ordered[place].assignment.purpose].append(place)
    for key, valid in places.items():
        # By distance, then by index: all within the band are at distance 0.
        best_first = sorted(valid, key=lambda place: (distances[ordered[place].assignment.index], place))
        for number, place in enumerate(best_first):
            inside = distances[ordered[place].assignment.index] == 0
            if number >= quotas.get(key, 0):
                reasons[place] = FULL if inside else OUT_OF_BAND
            elif not (inside or last):
                reasons[place] = OUT_OF_BAND


def difficulty_ranks(valid: Sequence[Attempt], config: Config) -> dict[int, float]:
    """By index the rank of min(kappa, loss) among the valid attempts of the type, in [0, 1]."""
    by_type: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in valid:
        by_type[_key(attempt)].append(attempt)
    out: dict[int, float] = {}
    for attempts in by_type.values():
        losses = np.minimum([attempt.measure("loss") for attempt in attempts], config.wasm.kappa)
        ordered = np.sort(losses)
        below, upto = (np.searchsorted(ordered, losses, side) for side in ("left", "right"))
        ranks = (below + 0.5 * (upto - below)) / len(losses)
        ranks[np.isnan(losses)] = 0.0  # nothing is known of its difficulty
        out |= {a.assignment.index: float(rank) for a, rank in zip(attempts, ranks, strict=True)}
    return out


def _band_distances(valid: Sequence[Attempt], config: Config) -> dict[int, float]:
    """How far each valid attempt's difficulty lies outside its purpose's band, by index; 0 within."""
    ranks = difficulty_ranks(valid, config)
    distances = {}
    for attempt in valid:
        low, high = band(attempt.assignment.purpose, config)
        rank = ranks[attempt.assignment.index]
        distances[attempt.assignment.index] = max(0.0, low - rank, rank - high)
    return distances
