"""Intervals of paired differences over seeds and source objects."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from cdiff.evaluation.comparison import Resampled, paired_targets, resample, smallest_detectable
from cdiff.evaluation.protocol import evaluate
from cdiff.evaluation.tally import Tally, swapped_masks, tally


@pytest.fixture(scope="module")
def arms(tally_of):
    skills = {"weak": (1.0, range(5)), "again": (1.0, range(10, 15)), "strong": (3.0, range(5))}
    return {arm: [tally_of(skill, seed) for seed in seeds] for arm, (skill, seeds) in skills.items()}


def test_a_better_arm_is_found_and_chance_alone_is_not(arms):
    found = resample(arms, [0] * 5, seed=0, replicates=300)
    better = found.compare("pixel_ap", "strong", "weak")
    assert better.low > 0.05 and better.low < better.mean < better.high and better.excludes_zero
    chance = found.compare("pixel_ap", "again", "weak")
    assert chance.low < 0 < chance.high and not chance.excludes_zero
    assert found.compare("type:metal/pit", "strong", "weak").low > 0


def test_the_mean_is_that_of_the_exact_pixel_ap_to_a_thousandth(arms, dataset, ids, maps_of):
    exact = [
        evaluate(maps_of(3.0, s), dataset, ids, 0.5)["pixel_ap"]
        - evaluate(maps_of(1.0, s), dataset, ids, 0.5)["pixel_ap"]
        for s in range(5)
    ]
    found = resample(arms, [0] * 5, seed=0, replicates=10).compare("pixel_ap", "strong", "weak")
    assert found.per_seed == pytest.approx(exact, abs=1e-3)
    assert found.mean == pytest.approx(np.mean(exact), abs=1e-3)


def test_a_replicate_pools_pixel_ap_anew_within_a_thousandth_of_the_exact_one(dataset, ids, maps_of):
    maps, rng = maps_of(2.0, 0), np.random.default_rng(3)
    counted = tally(((name, maps[name]) for name in ids), dataset)
    objects = list(counted.objects)
    for _ in range(5):
        draw = rng.multinomial(len(objects), np.full(len(objects), 1 / len(objects)))
        scores: dict[str, list] = {}
        labels: dict[str, list] = {}
        for name in ids:
            sample = dataset.sample(name)
            times = draw[objects.index(sample.group)]
            for key in sample.types or ("dent", "pit"):
                scores.setdefault(key, []).extend([maps[name].ravel()] * times)
                labels.setdefault(key, []).extend([dataset.mask(name).ravel()] * times)
        exact = np.mean(
            [
                average_precision_score(np.concatenate(labels[key]), np.concatenate(scores[key]))
                for key in scores
                if np.concatenate(labels[key]).any()
            ]
        )
        assert counted.pixel_ap(draw[None].astype(np.float32))[0] == pytest.approx(exact, abs=1e-3)


def test_seeds_count_as_a_level_of_their_own(tally_of):
    """Five equal seeds say no more about seeds, but a spread between seeds widens the interval."""
    steady = {
        "a": [tally_of(3.0)] * 4,
        "b": [tally_of(2.0)] * 4,
    }
    mixed = [tally_of(skill) for skill in (1.0, 2.0, 4.0, 6.0)]
    one = resample(steady, [0] * 4, seed=0, replicates=300).compare("pixel_ap", "a", "b")
    two = resample({"a": mixed, "b": steady["b"]}, [0] * 4, seed=0, replicates=300).compare(
        "pixel_ap", "a", "b"
    )
    assert two.high - two.low > 2 * (one.high - one.low)


def test_seeds_of_two_splits_draw_their_own_objects(ids, tally_of):
    def half(skill, seed, part):
        return tally_of(skill, seed, only_ids=ids[part::2])

    arms = {arm: [half(skill, s, s % 2) for s in range(4)] for arm, skill in (("a", 3.0), ("b", 1.0))}
    assert resample(arms, [0, 1, 0, 1], seed=0, replicates=100).compare("pixel_ap", "a", "b").low > 0
    with pytest.raises(ValueError, match="other photos of split 0"):
        resample(arms, [0, 0, 0, 0], seed=0, replicates=10)
    with pytest.raises(ValueError, match="arm a has 4 tallies, the seeds are 3"):
        resample(arms, [0, 1, 0], seed=0, replicates=10)


def test_a_tally_is_read_as_it_was_written(arms, tmp_path, ids):
    written = arms["weak"][0]
    written.save(tmp_path / "deep" / "one.npz")
    read = Tally.load(tmp_path / "deep" / "one.npz")
    assert read.ids == written.ids and read.objects == written.objects
    draw = np.random.default_rng(0).integers(0, 3, (4, len(read.objects))).astype(float)
    assert np.array_equal(read.pixel_ap(draw), written.pixel_ap(draw), equal_nan=True)
    assert np.array_equal(read.mdice(draw), written.mdice(draw), equal_nan=True)


def test_scores_at_random_reach_the_level_that_is_told_for_chance(dataset, ids, tally_of):
    """Which is each type's share of target pixels among its own photos and the normals."""
    counted = tally_of(0.0, seed=4)
    shown = {kind: [i for i in ids if dataset.sample(i).types in ((kind,), ())] for kind in ("dent", "pit")}
    shares = [np.mean([dataset.mask(i) for i in names]) for names in shown.values()]
    assert counted.chance() == pytest.approx(np.mean(shares), rel=1e-5)
    assert counted.pixel_ap()[0] == pytest.approx(counted.chance(), rel=0.15)
    assert tally_of(3.0).chance() == pytest.approx(counted.chance(), rel=1e-5)  # no matter of skill


def test_mean_dice_is_that_of_the_protocol(arms, dataset, ids, maps_of):
    told = evaluate(maps_of(3.0, 2), dataset, ids, 0.5)["mdice"]
    assert arms["strong"][2].mdice()[0] == pytest.approx(told)


def test_the_smallest_detectable_difference_is_found_with_the_power_it_promises():
    rng, sd, seeds = np.random.default_rng(0), 0.03, 8
    nothing = rng.normal(0, sd, 400)
    smallest = smallest_detectable(nothing.tolist(), seeds) or 0.0
    tried = rng.normal(smallest, sd, (2000, seeds))
    found = np.mean([stats.ttest_1samp(row, 0).pvalue < 0.05 for row in tried])
    assert found == pytest.approx(0.8, abs=0.05)
    assert 0 < (smallest_detectable(nothing.tolist(), 32) or 0.0) < smallest / 1.8
    assert smallest_detectable([0.1], 8) is None and smallest_detectable(nothing.tolist(), 1) is None


def test_a_gain_vanishes_against_the_masks_of_other_photos(dataset, ids, maps_of, arms):
    """Skill that finds targets is worth nothing where the masks are another photo's: the negative control."""
    swapped = swapped_masks(dataset, ids, seed=0)
    assert all(dataset.sample(a).group != dataset.sample(b).group for a, b in swapped.items())
    assert all(dataset.sample(a).types == dataset.sample(b).types for a, b in swapped.items())

    def against(skill, seeds):
        return [tally(maps_of(skill, s).items(), dataset, swapped) for s in seeds]

    control = resample({"a": against(3.0, range(5)), "b": against(1.0, range(5, 10))}, [0] * 5, 0, 300)
    lost = control.compare("pixel_ap", "a", "b")
    kept = resample(arms, [0] * 5, 0, 300).compare("pixel_ap", "strong", "weak")
    assert abs(lost.mean) < 0.25 * kept.mean


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.9), (5, 0.92), (8, 0.93)])
def test_few_seeds_cover_a_difference_as_often_as_promised(seeds, least):
    """Differences that vary between seeds alone, around a true one of 0.02."""
    rng, covered = np.random.default_rng(seeds), 0
    for _ in range(300):
        exact = rng.normal(0.02, 0.03, seeds)
        counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=500).astype(float)
        arm = {"pixel_ap": np.repeat(exact[:, None], 500, axis=1)}
        zero = {"pixel_ap": np.zeros((seeds, 500))}
        found = Resampled(
            {"a": {"pixel_ap": exact}, "b": {"pixel_ap": np.zeros(seeds)}},
            {"a": arm, "b": zero},
            counts,
            {"pixel_ap": 40},
        ).compare("pixel_ap", "a", "b")
        covered += found.low <= 0.02 <= found.high
    assert least <= covered / 300 <= 0.99


@pytest.mark.parametrize(("objects", "least"), [(3, 0.88), (6, 0.9)])
def test_few_objects_cover_a_difference_as_often_as_promised(objects, least):
    """Targets whose differences are those of their object, around a true one of 0.02; all seeds say the same."""
    covered = 0
    for number in range(300):
        rng = np.random.default_rng(number)
        own = {f"t{i}": float(value) for i, value in enumerate(rng.normal(0.02, 0.1, objects))}
        _, low, high = paired_targets([own] * 3, {t: t for t in own}, seed=number, replicates=400)
        covered += low <= 0.02 <= high
    assert least <= covered / 300 <= 0.995


def test_a_comparison_says_of_how_many_objects_it_is(arms, dataset, ids):
    found = resample(arms, [0] * 5, seed=0, replicates=20)
    photos = [dataset.sample(name) for name in ids]
    pits = {photo.group for photo in photos if "pit" in photo.types}
    every = {photo.group for photo in photos if photo.types}
    assert found.compare("type:metal/pit", "strong", "weak").objects == len(pits)
    assert found.compare("pixel_ap", "strong", "weak").objects == len(every) > len(pits)


def test_an_object_that_two_splits_test_is_one_observation(dataset, ids, tally_of):
    """The same photos under two split numbers say no more than one of them."""
    one = resample({"a": [tally_of(3.0)] * 4, "b": [tally_of(2.0)] * 4}, [0] * 4, seed=0, replicates=400)
    two = resample({"a": [tally_of(3.0)] * 4, "b": [tally_of(2.0)] * 4}, [0, 1, 0, 1], seed=0, replicates=400)
    widths = [found.high - found.low for found in (r.compare("pixel_ap", "a", "b") for r in (one, two))]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


def test_differences_by_target_have_the_interval_of_their_objects_and_seeds() -> None:
    rng = np.random.default_rng(0)
    targets = [f"t{number}" for number in range(60)]
    alone = {target: target for target in targets}
    clumped = {target: f"o{number // 10}" for number, target in enumerate(targets)}
    shared = {name: float(rng.normal(0, 0.2)) for name in set(clumped.values())}
    seeds = [{t: 0.1 + shared[clumped[t]] + float(rng.normal(0, 0.02)) for t in targets} for _ in range(4)]
    mean, low, high = paired_targets(seeds, alone, seed=0)
    _, wider_low, wider_high = paired_targets(seeds, clumped, seed=0)
    assert mean == pytest.approx(np.mean([list(own.values()) for own in seeds]))
    assert low < mean < high
    assert wider_high - wider_low > 1.5 * (high - low), "targets of one object are not independent"
    covered = 0
    for number in range(100):  # of a true difference of zero
        draw = np.random.default_rng(number)
        null = [{t: float(draw.normal(0, 0.1)) for t in targets} for _ in range(3)]
        _, low, high = paired_targets(null, alone, seed=number, replicates=400)
        covered += low <= 0 <= high
    assert covered >= 90
    with pytest.raises(ValueError, match="same targets"):
        paired_targets([{"a": 0.1}, {"b": 0.1}], {"a": "a", "b": "b"}, seed=0)
