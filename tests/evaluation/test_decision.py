"""Pixel AP from counts, and when a candidate is accepted."""

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
    """24 photos of 12 objects: eight with a dent, eight with a pit, eight normals."""
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
                f"object{index // 6}",
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


def tally_of(dataset, skill, seed=0, alone=True, **options):
    groups = {} if alone else {sample.sample_id: sample.group for sample in dataset.samples}
    return tally(maps_of(dataset, skill, seed, **options), dataset, ids_of(dataset), groups)


@pytest.mark.parametrize("skill", [0.0, 1.0, 3.0, 9.0])
def test_pixel_ap_from_counts_is_the_exact_one_within_a_thousandth(dataset, skill):
    maps = maps_of(dataset, skill, seed=4)
    exact = evaluate(maps, dataset, ids_of(dataset), 0.5)["pixel_ap"]
    assert tally(maps, dataset, ids_of(dataset), {}).pixel_ap()[0] == pytest.approx(exact, abs=1e-3)


def test_a_draw_counts_objects_as_often_as_it_says(dataset):
    maps, ids = maps_of(dataset, 1.0, seed=4), ids_of(dataset)
    counted = tally(maps, dataset, ids, {})
    draws = np.array([[1.0] * 12 + [0.0] * 12, [2.0] * 12 + [0.0] * 12])
    half = evaluate({name: maps[name] for name in ids[:12]}, dataset, ids[:12], 0.5)["pixel_ap"]
    assert counted.pixel_ap(draws) == pytest.approx([half, half], abs=1e-3)


def test_a_type_that_a_draw_misses_is_left_out_of_its_mean(dataset):
    counted = tally_of(dataset, 9.0, only="dent")
    dents = np.array([[float(index % 3 != 1) for index in range(24)]])
    assert counted.pixel_ap(dents)[0] > 0.9 > counted.pixel_ap()[0]
    assert np.isnan(counted.pixel_ap(np.zeros((1, 24))))[0]


def test_a_candidate_is_refused_only_when_significantly_worse_than_either_rival(dataset):
    weak, strong, jitter = tally_of(dataset, 0.5), tally_of(dataset, 3.0), tally_of(dataset, 0.5, seed=1)
    assert decide(strong, weak, weak, 0).better
    assert decide(jitter, weak, weak, 0).accepted
    worse_than_best, worse_than_real = decide(weak, strong, weak, 0), decide(weak, weak, strong, 0)
    assert not worse_than_best.accepted
    assert "best" in worse_than_best.reason
    assert not worse_than_real.accepted
    assert "real photos alone" in worse_than_real.reason
    assert worse_than_best.low <= worse_than_best.gain <= worse_than_best.high < 0


def test_what_is_accepted_is_the_best_only_if_it_gained(dataset):
    one, other = tally_of(dataset, 0.5), tally_of(dataset, 0.5, seed=1)
    there, back = decide(one, other, other, 0), decide(other, one, one, 0)
    assert there.accepted
    assert back.accepted
    assert there.better != back.better


def test_photos_of_one_object_do_not_count_as_independent_evidence(dataset):
    rng = np.random.default_rng(3)
    base, candidate = maps_of(dataset, 2.0, seed=0), maps_of(dataset, 2.0, seed=0)
    lift = dict.fromkeys((sample.group for sample in dataset.samples), 0.0)
    lift = {group: rng.normal(0, 1.5) for group in lift}
    for sample in dataset.samples:
        mask = dataset.mask(sample.sample_id)
        candidate[sample.sample_id][mask] **= np.exp(lift[sample.group])
    wide, narrow = (
        decide(tally(candidate, dataset, ids_of(dataset), groups), old, old, 0)
        for groups in ({sample.sample_id: sample.group for sample in dataset.samples}, {})
        for old in [tally(base, dataset, ids_of(dataset), groups)]
    )
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_a_decision_repeats_and_needs_the_same_photos(dataset):
    one, other = tally_of(dataset, 1.0), tally_of(dataset, 1.2, seed=1)
    assert decide(one, other, other, 5) == decide(one, other, other, 5)
    fewer = tally(maps_of(dataset, 1.0, 0), dataset, ids_of(dataset)[:20], {})
    with pytest.raises(ValueError, match="same validation photos"):
        decide(one, fewer, other, 5)
    normals = [sample.sample_id for sample in dataset.samples if sample.is_normal]
    none = tally(maps_of(dataset, 1.0, 0), dataset, normals, {})
    with pytest.raises(ValueError, match="with a target"):
        decide(none, none, none, 5)
