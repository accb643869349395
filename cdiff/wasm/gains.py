"""A budget that learns: what pairs of each slice have brought so far, and how the next ones are shared out.

    gain       of a slice: change of soft Dice on validation targets per 100 pairs, mean over source objects, and its standard error
    prior      N(m, spread^2), m in proportion to score^3 (1 - score): neither solved nor hopeless slices pay
    shrinkage  a category's slices share an offset from their priors, so that what is seen on one moves its neighbours
    posterior  normal, precision weighted; what was measured at a start strength that is not offered counts for the nearest one, less surely
    Thompson   each pair goes to the slice and start strength whose gain, drawn from its posterior, is highest; how a slice's pairs
               start in a round is one such draw among its own

State is the list of gains in the ledger, nothing else: a restart samples what it would have sampled.
Source: Thompson (1933); normal shrinkage as in Gelman et al., Bayesian Data Analysis (3rd ed.), chapter 5.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cdiff.config import WasmConfig
from cdiff.types import Gain, Outcome, Pair, Slice, Weakness
from cdiff.wasm.weakness import leaf_of, leaves_of

Option = tuple[str, float]  # slice name, start strength
_HIGHEST = 0.75**3 * 0.25  # of score^3 (1 - score)


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of one option's gain, soft Dice per 100 pairs."""

    mean: float
    spread: float  # standard deviation


def prior(score: float) -> float:
    """Expected gain of a slice before any was measured, as a share of the highest: 1 at a score of 0.75.

    score x (1 - score) would be all but even: soft Dice rarely passes 0.8, as every outline costs some of it, so that a
    solved slice scores 0.2. Spread evenly, pairs bring next to nothing (docs/decisions.md); the cube gathers them.
    """
    return score**3 * (1 - score) / _HIGHEST


def measured_gains(
    before: Iterable[Outcome],
    after: Iterable[Outcome],
    training: Sequence[Outcome],
    slices: Sequence[Weakness],
    pairs: Iterable[Pair],
) -> tuple[Gain, ...]:
    """Gains of the slices that got pairs and have validation targets. Photos of one object are not independent: its targets' mean counts
    once. Where people's pairs of the same type came along, nothing is measured:
    nobody can tell whose gain it is.

    The error is that of the mean over objects. How far chance in a fit moves all objects of a slice alike does not show in their spread, and is
    left out: only a second fit would tell.

    Args:
        before, after: outcomes of the same validation targets without and with the pairs.
        training: outcomes of the training targets; they say where the bins of size and contrast lie.
        pairs: the kept ones that made the difference. Where a slice's are of several start strengths (of more than one round), these
            share its gain.
    """
    paired = {row.target_id: row for row in before if row.type}
    changes: dict[str, dict[str, list[float]]] = {}  # by slice and source object
    edges = leaves_of(training)
    for row in after:
        if row.type and row.target_id in paired:
            name = _slice_of(leaf_of(row, edges), slices)
            if name is not None:
                change = row.soft_dice - paired[row.target_id].soft_dice
                changes.setdefault(name, {}).setdefault(row.group, []).append(change)
    pairs = list(pairs)
    by_people = {
        (p.attempt.category, p.attempt.type) for p in pairs if p.attempt.assignment.purpose == "human"
    }
    unclear = {
        w.slice.name
        for w in slices
        if any(w.slice.category == c and w.slice.type in ("", t) for c, t in by_people)
    }
    spent = Counter(
        (p.attempt.assignment.slice, p.attempt.assignment.task.strengths.start_strength)
        for p in pairs
        if p.attempt.assignment.purpose != "human" and p.attempt.assignment.slice not in unclear
    )
    of_objects = {name: [float(np.mean(v)) for v in groups.values()] for name, groups in changes.items()}
    everywhere = [value for values in of_objects.values() for value in values]
    if len({group for groups in changes.values() for group in groups}) < 2:
        return ()  # a lone object tells nothing of its own error, and would be believed outright
    typical = float(np.std(everywhere, ddof=1))
    out = []
    for (name, strength), number in sorted(spent.items()):
        if name in changes:
            values, all_of_slice = of_objects[name], sum(n for (s, _), n in spent.items() if s == name)
            targets = sum(len(of_object) for of_object in changes[name].values())
            # A slice's own spread is uncertain with few objects: that of all slices stands for the one square that is lost to their mean.
            noise = float(np.sqrt((np.var(values) * len(values) + typical**2) / len(values) / len(values)))
            per_100 = 100 / all_of_slice
            out.append(
                Gain(name, strength, number, targets, float(np.mean(values)) * per_100, noise * per_100)
            )
    return tuple(out)


def beliefs(
    slices: Sequence[Weakness], gains: Iterable[Gain], strengths: Sequence[float], config: WasmConfig
) -> dict[Option, Belief]:
    """The posterior of every slice and start strength.

    Args:
        strengths: start strengths that the budget may choose from.
    """
    found = _found(gains, strengths, config.gain_spread)
    out: dict[Option, Belief] = {}
    for category in sorted({weakness.slice.category for weakness in slices}):
        own = [weakness for weakness in slices if weakness.slice.category == category]
        means = {
            (weakness.slice.name, strength): config.gain_prior * prior(weakness.score)
            for weakness in own
            for strength in strengths
        }
        offset = _offset(means, found, config.gain_spread)
        for option, mean in means.items():
            out[option] = _updated(mean + offset, config.gain_spread, found.get(option))
    return out


def thompson(believed: Mapping[Option, Belief], pairs: int, rng: np.random.Generator) -> dict[Option, int]:
    """How many of the pairs each option gets: each pair goes where a draw from the posteriors is highest."""
    options = sorted(believed)
    means = np.array([believed[option].mean for option in options])
    spreads = np.array([believed[option].spread for option in options])
    drawn = rng.normal(means, spreads, (pairs, len(options)))
    won = Counter(int(place) for place in drawn.argmax(axis=1))
    return {options[place]: number for place, number in sorted(won.items())}


def _found(gains: Iterable[Gain], strengths: Sequence[float], spread: float) -> dict[Option, Belief]:
    """What was measured of every option. Measured at a start strength that is not offered (a sweep between rounds may change it), a gain
    speaks for the slice's nearest option that is, with an error as much larger as one option may lie off another."""
    measured: dict[Option, list[Belief]] = {}
    for gain in gains:
        told = Belief(gain.gain, max(gain.error, 1e-6))
        measured.setdefault((gain.slice, gain.start_strength), []).append(told)
    found: dict[Option, list[Belief]] = {}
    for (name, strength), own in measured.items():
        nearest = min(strengths, key=lambda offered: abs(offered - strength))
        told = _combined(own)  # they share how far the two lie apart: not so many draws of it
        off = spread if nearest != strength else 0.0
        found.setdefault((name, nearest), []).append(Belief(told.mean, math.hypot(told.spread, off)))
    return {option: _combined(own) for option, own in found.items()}


def _offset(means: Mapping[Option, float], found: Mapping[Option, Belief], spread: float) -> float:
    """How far a category's slices lie from their priors together, shrunk to 0."""
    precision = 1 / spread**2
    total = 0.0
    for option, mean in means.items():
        if option in found:
            weight = 1 / (found[option].spread ** 2 + spread**2)
            total += weight * (found[option].mean - mean)
            precision += weight
    return total / precision


def _updated(mean: float, spread: float, found: Belief | None) -> Belief:
    """Given the offset: its own error moves all options of a category alike, and decides nothing among them."""
    if found is None:
        return Belief(mean, spread)
    precision = 1 / spread**2 + 1 / found.spread**2
    return Belief((mean / spread**2 + found.mean / found.spread**2) / precision, precision**-0.5)


def _combined(measured: Sequence[Belief]) -> Belief:
    """What several measurements of one thing say together, precision weighted."""
    weights = np.array([one.spread**-2 for one in measured])
    mean = np.average([one.mean for one in measured], weights=weights)
    return Belief(float(mean), float(weights.sum() ** -0.5))


def _slice_of(leaf: Slice, slices: Sequence[Weakness]) -> str | None:
    """The finest slice that a leaf belongs to."""
    fitting = [w.slice for w in slices if w.slice.contains(leaf)]
    return max(fitting, key=lambda piece: (len(piece.name.split("/")), piece.name)).name if fitting else None
