"""Gains by slice, what is believed of them, and where the next pairs go."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cdiff.config import WasmConfig
from cdiff.types import Gain, Outcome, Slice, Weakness
from cdiff.wasm.gains import Belief, beliefs, measured_gains, prior, thompson
from cdiff.wasm.weakness import rank

CONFIG = WasmConfig()


def outcome(number: int, type: str, dice: float, size: float = 0.1) -> Outcome:
    name = f"tile/{type}/{number:03d}"
    return Outcome(
        f"{name}#0", name, "tile", type, str(number), 0, 1 - dice, dice, 1 - dice, 0.0, dice, 0.1, size, 0.1
    )


def weak(name: str, score: float) -> Weakness:
    return Weakness(Slice("tile", name), (), 1.0, 1 - score, 0.5, score)


def made(name: str, strength: float = 0.3, purpose: str = "weak") -> Any:
    """A kept pair, as far as gains look at it."""
    task = SimpleNamespace(strengths=SimpleNamespace(start_strength=strength))
    category, type = name.split("/")[:2]
    assignment = SimpleNamespace(slice=name, task=task, purpose=purpose)
    return SimpleNamespace(attempt=SimpleNamespace(assignment=assignment, category=category, type=type))


def test_the_prior_gathers_pairs_where_much_is_missed() -> None:
    assert prior(0.0) == prior(1.0) == 0
    assert prior(0.5) > 3 * prior(0.25) > 3 * prior(0.999)
    assert max(np.linspace(0, 1, 101), key=prior) == pytest.approx(0.75)
    assert prior(0.75) == 1


def test_a_gain_is_the_change_of_a_slices_soft_dice_per_hundred_pairs() -> None:
    training = [outcome(n, "crack" if n < 10 else "stain", 0.5, size=n / 20) for n in range(20)]
    slices = rank(training, min_targets=8)
    before = [outcome(100 + n, "crack", 0.4, size=0.2) for n in range(6)]
    after = [dataclasses.replace(row, soft_dice=row.soft_dice + 0.1) for row in before]
    name = next(
        w.slice.name
        for w in slices
        if w.slice.type in ("crack", "") and w.slice.contains(Slice("tile", "crack", "medium", "clear"))
    )
    pairs = [made(name)] * 30 + [made(name, 0.6)] * 20 + [made("tile/stain")] * 5
    found = measured_gains(before, after, training, slices, pairs)
    assert {(g.slice, g.start_strength, g.pairs, g.targets) for g in found} == {
        (name, 0.3, 30, 6),
        (name, 0.6, 20, 6),
    }
    assert all(g.gain == pytest.approx(0.1 * 100 / 50) for g in found)  # the pairs of a slice share its gain
    assert all(g.error < 0.01 for g in found)


def test_where_people_made_pairs_of_a_type_no_gain_of_it_is_told() -> None:
    training = [outcome(n, "crack" if n < 10 else "stain", 0.5) for n in range(20)]
    slices = rank(training, min_targets=8)
    names = {t: next(w.slice.name for w in slices if w.slice.type == t) for t in ("crack", "stain")}
    before = [outcome(100 + n, ("crack", "stain")[n % 2], 0.4) for n in range(12)]
    after = [dataclasses.replace(row, soft_dice=row.soft_dice + 0.1) for row in before]
    pairs = [made(name) for name in names.values()] * 20
    theirs = [made("tile/crack", purpose="human")] * 30
    assert {g.slice for g in measured_gains(before, after, training, slices, pairs)} == set(names.values())
    found = measured_gains(before, after, training, slices, pairs + theirs)
    assert {g.slice for g in found} == {names["stain"]}


def test_a_lone_target_tells_no_gain() -> None:
    training = [outcome(n, "crack", 0.5) for n in range(10)]
    slices = rank(training, min_targets=8)
    before, after = [outcome(100, "crack", 0.4)], [outcome(100, "crack", 0.6)]
    assert measured_gains(before, after, training, slices, [made(slices[0].slice.name)] * 20) == ()


def test_photos_of_one_object_are_not_independent() -> None:
    """Of five objects in six photos each, the error is that of five, over many repetitions."""
    rng = np.random.default_rng(0)
    training = [outcome(n, "crack", 0.5) for n in range(10)]
    slices = rank(training, min_targets=8)
    found: list[Gain] = []
    for _ in range(200):
        before = [dataclasses.replace(outcome(n, "crack", 0.4), group=str(n // 6)) for n in range(30)]
        of_object = np.repeat(rng.normal(0, 0.1, 5), 6)
        after = [
            dataclasses.replace(row, soft_dice=0.4 + change)
            for row, change in zip(before, of_object, strict=True)
        ]
        found += measured_gains(before, after, training, slices, [made(slices[0].slice.name)] * 100)
    assert {gain.targets for gain in found} == {30}
    true, told = np.std([g.gain for g in found]), np.sqrt(np.mean([g.error**2 for g in found]))
    assert told == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("few", [1, 2, 3])
def test_the_error_of_a_slice_of_few_objects_is_true_on_average(few) -> None:
    """Beside another of thirty, in which objects differ as much."""
    rng = np.random.default_rng(few)
    training = [outcome(n, "crack" if n < 10 else "stain", 0.5) for n in range(20)]
    slices = rank(training, min_targets=8)
    names = {t: next(w.slice.name for w in slices if w.slice.type == t) for t in ("crack", "stain")}
    before = [outcome(n, "crack" if n < 30 else "stain", 0.4) for n in range(30 + few)]
    found: list[Gain] = []
    for _ in range(1000):
        changes = rng.normal(0, 0.1, len(before))
        after = [dataclasses.replace(row, soft_dice=0.4 + d) for row, d in zip(before, changes, strict=True)]
        found += measured_gains(before, after, training, slices, [made(n) for n in names.values()] * 100)
    own = [gain for gain in found if gain.slice == names["stain"]]
    assert len(own) == 1000 and {gain.targets for gain in own} == {few}
    true, told = 0.1 / few**0.5, np.sqrt(np.mean([gain.error**2 for gain in own]))
    assert told == pytest.approx(true, rel=0.03)
    assert np.std([gain.gain for gain in own]) == pytest.approx(true, rel=0.06)


def test_one_object_tells_no_gain_however_many_photos_there_are() -> None:
    training = [outcome(n, "crack", 0.5) for n in range(10)]
    slices = rank(training, min_targets=8)
    before = [dataclasses.replace(outcome(n, "crack", 0.4), group="a") for n in range(30)]
    after = [dataclasses.replace(row, soft_dice=0.6) for row in before]
    assert measured_gains(before, after, training, slices, [made(slices[0].slice.name)] * 20) == ()


def test_few_targets_leave_a_gain_uncertain() -> None:
    rng = np.random.default_rng(0)
    training = [outcome(n, "crack" if n < 10 else "stain", 0.5) for n in range(20)]
    slices = rank(training, min_targets=8)
    before = [outcome(n, "crack", 0.4) for n in range(40)] + [outcome(50 + n, "stain", 0.4) for n in range(2)]
    after = [dataclasses.replace(row, soft_dice=row.soft_dice + float(rng.normal(0, 0.1))) for row in before]
    names = {t: next(w.slice.name for w in slices if w.slice.type == t) for t in ("crack", "stain")}
    found = {
        g.slice: g
        for g in measured_gains(before, after, training, slices, [made(n) for n in names.values()] * 50)
    }
    assert found[names["stain"]].error > 2 * found[names["crack"]].error


def test_what_is_measured_well_overrules_the_prior_and_what_is_not_does_not() -> None:
    slices = [weak("crack", 0.75), weak("stain", 0.2)]
    sure = [Gain("tile/crack", 0.3, 50, 40, -0.1, 0.005), Gain("tile/stain", 0.3, 50, 40, 0.1, 0.005)]
    vague = [dataclasses.replace(gain, error=1.0) for gain in sure]
    believed = beliefs(slices, sure, [0.3], CONFIG)
    assert believed["tile/crack", 0.3].mean == pytest.approx(-0.1, abs=0.01)
    assert believed["tile/stain", 0.3].mean > 0.08
    held = beliefs(slices, vague, [0.3], CONFIG)
    assert held["tile/crack", 0.3].mean > held["tile/stain", 0.3].mean


def test_slices_of_a_category_learn_from_each_other() -> None:
    slices = [weak("crack", 0.6), weak("stain", 0.6)]
    paid = [Gain("tile/crack", 0.3, 50, 40, 0.3, 0.01)]
    unseen = beliefs(slices, paid, [0.3], CONFIG)["tile/stain", 0.3]
    assert unseen.mean > beliefs(slices, [], [0.3], CONFIG)["tile/stain", 0.3].mean + 0.05
    assert unseen.spread == CONFIG.gain_spread


def test_one_slice_measured_often_says_no_more_of_its_neighbours_than_measured_well() -> None:
    """Its own distance from the prior is one draw, however often it is measured. The limit is by algebra: half of that distance."""
    slices = [weak("crack", 0.6), weak("stain", 0.6)]
    before = beliefs(slices, [], [0.3], CONFIG)["tile/stain", 0.3].mean
    gain = Gain("tile/crack", 0.3, 50, 40, 0.3, 0.002)
    for times in (1, 8):
        unseen = beliefs(slices, [gain] * times, [0.3], CONFIG)["tile/stain", 0.3]
        assert unseen.mean == pytest.approx(before + (0.3 - before) / 2, rel=0.01)


def test_what_was_measured_at_another_start_strength_still_counts_though_for_less() -> None:
    """As after a sweep between rounds, which moves the start strength of all that comes."""
    slices = [weak("crack", 0.75), weak("stain", 0.2)]
    sure = [Gain("tile/crack", 0.3, 50, 40, -0.1, 0.005), Gain("tile/stain", 0.3, 50, 40, 0.1, 0.005)]
    there, moved = (beliefs(slices, sure, [strength], CONFIG) for strength in (0.3, 0.1869))
    crack, stain = moved["tile/crack", 0.1869], moved["tile/stain", 0.1869]
    assert stain.mean > crack.mean + 0.05
    assert CONFIG.gain_spread > stain.spread > 3 * there["tile/stain", 0.3].spread
    spent = thompson(moved, 240, np.random.default_rng(0))
    assert spent["tile/stain", 0.1869] > 200
    # it is the nearest option's alone, of those that are offered
    both = beliefs(slices, sure, [0.6, 0.1869], CONFIG)
    assert both["tile/stain", 0.1869].spread < both["tile/stain", 0.6].spread == CONFIG.gain_spread
    assert beliefs(slices, sure, [0.3, 0.2], CONFIG)["tile/stain", 0.3].spread < 0.01


def test_measured_often_at_another_start_strength_a_gain_is_no_surer_than_the_two_are_alike() -> None:
    slices = [weak("crack", 0.6)]
    gain = Gain("tile/crack", 0.3, 50, 40, 0.3, 0.002)
    once, often = (beliefs(slices, [gain] * n, [0.2], CONFIG)["tile/crack", 0.2] for n in (1, 50))
    assert once.spread == pytest.approx(CONFIG.gain_spread / 2**0.5, rel=0.01)
    assert often.spread == pytest.approx(once.spread, rel=0.01)
    assert often.mean == pytest.approx(once.mean, rel=0.01)


def test_thompson_sampling_finds_what_pays_and_goes_on_trying() -> None:
    """Three slices with true gains; after some rounds most pairs go to the best one."""
    truth = {"tile/a": 0.02, "tile/b": 0.12, "tile/c": 0.05}
    slices = [weak(name.split("/")[1], 0.5) for name in truth]
    rng = np.random.default_rng(0)
    gains: list[Gain] = []
    spent: dict = {}
    for number in range(6):
        spent = thompson(beliefs(slices, gains, [0.3], CONFIG), 100, np.random.default_rng(number))
        assert sum(spent.values()) == 100
        for (name, strength), pairs in spent.items():
            error = 0.3 / np.sqrt(pairs)
            gains.append(
                Gain(name, strength, pairs, 20, truth[name] + float(rng.normal(0, error)), float(error))
            )
    assert spent["tile/b", 0.3] > 60
    doubtful = {("a", 0.3): Belief(0.1, 0.1), ("b", 0.3): Belief(0.08, 0.1)}
    assert thompson(doubtful, 200, np.random.default_rng(0))["b", 0.3] > 60
