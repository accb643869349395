"""Pixel AP from counts, and when a candidate is accepted."""

import dataclasses

import numpy as np
import pytest

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.evaluation.decision import decide
from cdiff.evaluation.protocol import evaluate
from cdiff.evaluation.tally import Pool, Tally, tally


def decided(candidate, best, real_only, seed=0):
    gain = float(candidate.pixel_ap()[0] - best.pixel_ap()[0])
    return decide(candidate, best, real_only, gain, seed)


@pytest.mark.parametrize("skill", [0.0, 1.0, 3.0, 9.0])
def test_pixel_ap_from_counts_is_near_the_exact_one(dataset, skill, ids, maps_of):
    maps = maps_of(skill, seed=4)
    exact = evaluate(maps, dataset, ids, 0.5)["pixel_ap"]
    assert tally(maps.items(), dataset).pixel_ap()[0] == pytest.approx(exact, abs=1e-3)


def test_a_draw_counts_objects_as_often_as_it_says(dataset, ids, maps_of):
    maps = maps_of(1.0, seed=4)
    draws = np.array([[1.0] * 12 + [0.0] * 12, [2.0] * 12 + [0.0] * 12])
    half = evaluate({name: maps[name] for name in ids[:12]}, dataset, ids[:12], 0.5)["pixel_ap"]
    assert tally(maps.items(), dataset).pixel_ap(draws) == pytest.approx([half, half], abs=1e-3)


def test_a_type_that_a_draw_misses_is_left_out_of_its_mean(tally_of):
    counted = tally_of(9.0, only="dent")
    dents = np.array([[float(index % 3 != 1) for index in range(24)]])
    assert counted.pixel_ap(dents)[0] > 0.9 > counted.pixel_ap()[0]
    assert np.isnan(counted.pixel_ap(np.zeros((1, 24))))[0]


def test_a_candidate_is_refused_only_when_significantly_worse_than_either_rival(tally_of):
    weak, strong, jitter = tally_of(0.5), tally_of(3.0), tally_of(0.5, seed=1)
    assert decided(strong, weak, weak).stands
    assert decided(jitter, weak, weak).accepted
    worse_than_best, worse_than_real = decided(weak, strong, weak), decided(weak, weak, strong)
    assert not worse_than_best.accepted
    assert "best" in worse_than_best.reason
    assert not worse_than_real.accepted
    assert "real photos alone" in worse_than_real.reason
    assert worse_than_best.low <= worse_than_best.gain <= worse_than_best.high < 0


def test_what_is_accepted_becomes_the_best_unless_that_is_improbable(tally_of):
    one, other = tally_of(0.5), tally_of(0.5, seed=1)
    there, back = decided(one, other, other), decided(other, one, one)
    assert there.accepted
    assert back.accepted
    assert there.chance + back.chance == pytest.approx(1)
    assert (there.stands, back.stands) == (there.chance >= 0.25, back.chance >= 0.25)
    doubtful = dataclasses.replace(there, chance=0.2)
    assert doubtful.accepted
    assert not doubtful.stands


def test_a_round_without_pairs_leaves_the_model_that_it_equals(tally_of):
    one = tally_of(0.5)
    assert decided(one, one, one).accepted
    assert not decided(one, one, one).stands


def test_the_chance_counts_against_real_photos_alone_too(tally_of):
    low, candidate, real_only = (tally_of(skill) for skill in (0.5, 1.0, 1.1))
    alone = decided(candidate, low, low)
    assert alone.stands
    beside = decided(candidate, low, real_only)
    assert beside.chance < alone.chance
    assert beside.chance == decided(candidate, real_only, real_only).chance


@pytest.mark.parametrize("objects", [1, 2])
def test_one_or_two_objects_that_show_targets_refuse_nothing_that_is_slightly_worse(
    dataset, tally_of, objects
):
    """On each of them it is worse: chance alone does that to every second or fourth candidate."""
    dents = [sample.sample_id for sample in dataset.samples if "dent" in sample.types]
    normals = [sample.sample_id for sample in dataset.samples if sample.is_normal]
    best, candidate = (tally_of(skill, only_ids=dents[:objects] + normals) for skill in (2.0, 1.9))
    alone = np.array(
        [[name == of for name in best.objects] for of in best.objects if best.dice[best.objects.index(of), 1]]
    )
    assert (candidate.pixel_ap(alone) < best.pixel_ap(alone)).all() and len(alone) == objects
    found = decided(candidate, best, best)
    assert found.accepted and not found.stands
    if objects == 1:
        assert (found.low, found.high, found.chance) == (None, None, 0)
        assert "one source object" in found.reason
    else:
        assert found.low < found.gain < 0 < found.high


def _made_up(rng, skills):
    """Counts of objects of one type, whose targets stand out from the rest by their skill; few bins, for speed."""
    edges = np.linspace(-4, 8, 25)[1:-1]

    def counted(level, pixels):
        return np.bincount(np.digitize(rng.normal(level, 1, pixels), edges), minlength=24)

    names = tuple(f"object{number}" for number in range(len(skills)))
    pixels = [[counted(skill, 60) for skill in skills], [counted(0, 600) for _ in skills]]
    shown = Pool(np.arange(len(skills)), *np.array(pixels, np.float32))
    return Tally(names, names, {"metal/dent": shown}, {}, np.ones((len(skills), 2)))


@pytest.mark.parametrize("objects", [1, 2, 3, 5])
def test_a_candidate_that_is_no_worse_is_refused_as_rarely_as_promised_however_few_objects_there_are(objects):
    """Percentiles as they are refused half of them with one object, a quarter with two, an eighth with three; meant is 2.5 %."""
    rng, refused = np.random.default_rng(objects), 0
    for number in range(400):
        level = rng.normal(2, 0.5, objects)
        one, other = (_made_up(rng, level + rng.normal(0, 0.3, objects)) for _ in range(2))
        refused += not decided(one, other, other, number).accepted
    assert refused <= (0 if objects == 1 else 0.05 * 400)


def test_photos_of_one_object_do_not_count_as_independent_evidence(dataset, ids, maps_of):
    """Six objects of four photos each, of which a few got much better and the others worse."""
    owners = {sample_id: index // 4 for index, sample_id in enumerate(ids)}
    grouped = Dataset(
        [dataclasses.replace(s, group=f"object{owners[s.sample_id]}") for s in dataset.samples], DataConfig()
    )
    lift = np.random.default_rng(3).normal(0, 1.5, 6)
    base, candidate = maps_of(2.0, seed=0), maps_of(2.0, seed=0)
    for sample_id, scores in candidate.items():
        scores[dataset.mask(sample_id)] **= np.exp(lift[owners[sample_id]])
    wide, narrow = (
        decided(tally(candidate.items(), data), old, old)
        for data in (grouped, dataset)
        for old in [tally(base.items(), data)]
    )
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_a_decision_repeats_and_needs_the_same_photos(dataset, ids, tally_of):
    one, other = tally_of(1.0), tally_of(1.2, seed=1)
    assert decided(one, other, other, 5) == decided(one, other, other, 5)
    with pytest.raises(ValueError, match="same validation photos"):
        decided(one, tally_of(1.0, only_ids=ids[:20]), other)
    none = tally_of(1.0, only_ids=[sample.sample_id for sample in dataset.samples if sample.is_normal])
    with pytest.raises(ValueError, match="with a target"):
        decide(none, none, none, 0.0, 5)
