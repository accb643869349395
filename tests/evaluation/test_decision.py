"""Pixel AP from counts, and when a candidate is accepted."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.evaluation.decision import decide, tally
from cdiff.evaluation.protocol import evaluate
from cdiff.types import MaskFile, Sample

SHAPE = (32, 40)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """24 photos, each its own object: eight with a dent, eight with a pit, eight normals."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    samples = []
    for index in range(24):
        type, stem = ("dent", "pit", "")[index % 3], f"p{index:02d}"
        mask = np.zeros(SHAPE, np.uint8)
        if type:
            top, left = rng.integers(2, 16, 2)
            mask[top : top + 9, left : left + 12] = 1
        for name, pixels in ((stem, np.full(SHAPE, 128, np.uint8)), (f"{stem}_mask", mask)):
            Image.fromarray(pixels).save(folder / f"{name}.png")
        files = (MaskFile(str(folder / f"{stem}_mask.png"), ((1, type),)),) if type else ()
        photo = str(folder / f"{stem}.png")
        samples.append(
            Sample(
                f"metal/{stem}",
                "metal",
                (type,) if type else (),
                stem,
                photo,
                files,
                SHAPE[1],
                SHAPE[0],
                "L",
                stem,
            )
        )
    return Dataset(samples, DataConfig())


def ids_of(dataset):
    return [sample.sample_id for sample in dataset.samples]


def maps_of(dataset, skill, seed, only=None):
    """Logits of noise plus `skill` inside targets (of the `only` type, if given)."""
    rng, out = np.random.default_rng(seed), {}
    for sample in dataset.samples:
        helped = skill * dataset.mask(sample.sample_id) * (only is None or only in sample.types)
        out[sample.sample_id] = (1 / (1 + np.exp(3 - helped - rng.normal(0, 1.5, SHAPE)))).astype(np.float32)
    return out


def tally_of(dataset, skill, seed=0, ids=None, **options):
    maps = maps_of(dataset, skill, seed, **options)
    return tally(((name, maps[name]) for name in ids or ids_of(dataset)), dataset)


def decided(candidate, best, real_only, seed=0):
    gain = float(candidate.pixel_ap()[0] - best.pixel_ap()[0])
    return decide(candidate, best, real_only, gain, seed)


@pytest.mark.parametrize("skill", [0.0, 1.0, 3.0, 9.0])
def test_pixel_ap_from_counts_is_near_the_exact_one(dataset, skill):
    maps = maps_of(dataset, skill, seed=4)
    exact = evaluate(maps, dataset, ids_of(dataset), 0.5)["pixel_ap"]
    assert tally(maps.items(), dataset).pixel_ap()[0] == pytest.approx(exact, abs=1e-3)


def test_a_draw_counts_objects_as_often_as_it_says(dataset):
    maps, ids = maps_of(dataset, 1.0, seed=4), ids_of(dataset)
    draws = np.array([[1.0] * 12 + [0.0] * 12, [2.0] * 12 + [0.0] * 12])
    half = evaluate({name: maps[name] for name in ids[:12]}, dataset, ids[:12], 0.5)["pixel_ap"]
    assert tally(maps.items(), dataset).pixel_ap(draws) == pytest.approx([half, half], abs=1e-3)


def test_a_type_that_a_draw_misses_is_left_out_of_its_mean(dataset):
    counted = tally_of(dataset, 9.0, only="dent")
    dents = np.array([[float(index % 3 != 1) for index in range(24)]])
    assert counted.pixel_ap(dents)[0] > 0.9 > counted.pixel_ap()[0]
    assert np.isnan(counted.pixel_ap(np.zeros((1, 24))))[0]


def test_a_candidate_is_refused_only_when_significantly_worse_than_either_rival(dataset):
    weak, strong, jitter = tally_of(dataset, 0.5), tally_of(dataset, 3.0), tally_of(dataset, 0.5, seed=1)
    assert decided(strong, weak, weak).stands
    assert decided(jitter, weak, weak).accepted
    worse_than_best, worse_than_real = decided(weak, strong, weak), decided(weak, weak, strong)
    assert not worse_than_best.accepted
    assert "best" in worse_than_best.reason
    assert not worse_than_real.accepted
    assert "real photos alone" in worse_than_real.reason
    assert worse_than_best.low <= worse_than_best.gain <= worse_than_best.high < 0


def test_what_is_accepted_becomes_the_best_unless_that_is_improbable(dataset):
    one, other = tally_of(dataset, 0.5), tally_of(dataset, 0.5, seed=1)
    there, back = decided(one, other, other), decided(other, one, one)
    assert there.accepted
    assert back.accepted
    assert there.chance + back.chance == pytest.approx(1)
    assert (there.stands, back.stands) == (there.chance >= 0.25, back.chance >= 0.25)
    doubtful = dataclasses.replace(there, chance=0.2)
    assert doubtful.accepted
    assert not doubtful.stands


def test_a_round_without_pairs_leaves_the_model_that_it_equals(dataset):
    one = tally_of(dataset, 0.5)
    assert decided(one, one, one).accepted
    assert not decided(one, one, one).stands


def test_the_chance_counts_against_real_photos_alone_too(dataset):
    low, candidate, real_only = (tally_of(dataset, skill) for skill in (0.5, 1.0, 1.1))
    alone = decided(candidate, low, low)
    assert alone.stands
    beside = decided(candidate, low, real_only)
    assert beside.chance < alone.chance
    assert beside.chance == decided(candidate, real_only, real_only).chance


def test_photos_of_one_object_do_not_count_as_independent_evidence(dataset):
    """Six objects of four photos each, of which a few got much better and the others worse."""
    owners = {sample_id: index // 4 for index, sample_id in enumerate(ids_of(dataset))}
    grouped = Dataset(
        [dataclasses.replace(s, group=f"object{owners[s.sample_id]}") for s in dataset.samples], DataConfig()
    )
    lift = np.random.default_rng(3).normal(0, 1.5, 6)
    base, candidate = maps_of(dataset, 2.0, seed=0), maps_of(dataset, 2.0, seed=0)
    for sample_id, scores in candidate.items():
        scores[dataset.mask(sample_id)] **= np.exp(lift[owners[sample_id]])
    wide, narrow = (
        decided(tally(candidate.items(), data), old, old)
        for data in (grouped, dataset)
        for old in [tally(base.items(), data)]
    )
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_a_decision_repeats_and_needs_the_same_photos(dataset):
    one, other = tally_of(dataset, 1.0), tally_of(dataset, 1.2, seed=1)
    assert decided(one, other, other, 5) == decided(one, other, other, 5)
    with pytest.raises(ValueError, match="same validation photos"):
        decided(one, tally_of(dataset, 1.0, ids=ids_of(dataset)[:20]), other)
    none = tally_of(dataset, 1.0, ids=[sample.sample_id for sample in dataset.samples if sample.is_normal])
    with pytest.raises(ValueError, match="with a target"):
        decide(none, none, none, 0.0, 5)
