"""A fit learns, repeats, and compares fairly."""

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss, FocalLoss

from cdiff.config import DownstreamConfig
from cdiff.downstream.scoring import score_photo
from cdiff.downstream.segmenter import build_segmenter
from cdiff.downstream.training import (
    Batches,
    TrainingItem,
    batch_seed,
    fit,
    real_items,
    segmentation_loss,
    shrink,
    synthetic_item,
)
from cdiff.evaluation.metrics import pixel_ap

CPU = torch.device("cpu")


def blob(seed, type="dark", side=64):
    """A noisy grey photo with a disc: darker or brighter by a fifth of the range."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centre, radius = rng.integers(12, side - 12, 2), rng.integers(5, 10)
    mask = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    grey = 128 + 10 * rng.standard_normal((side, side)) + (50 if type == "bright" else -50) * mask
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2), mask


def items_of(count, config, type="dark", first=0):
    found = [
        synthetic_item(image, mask, config)
        for image, mask in (blob(first + seed, type) for seed in range(count))
    ]
    return [TrainingItem(i.image, i.mask, i.boxes, f"metal/{type}") for i in found]


def beside(batches):
    found = batches.draw_beside(CPU)
    assert found is not None
    return found


@pytest.fixture
def config():
    return DownstreamConfig(crop=32, batch=8, longest_side=64)


def test_a_short_fit_learns_to_segment_unseen_photos(config):
    model = build_segmenter(config, seed=0)
    history = fit(model, items_of(12, config), [], config, steps=60, seed=0)
    scores = [
        pixel_ap(score_photo(model, image, config), mask) or 0.0 for image, mask in map(blob, range(100, 106))
    ]
    assert len(history["loss"]) == 60
    assert np.mean(history["loss"][-10:]) < 0.85 * np.mean(history["loss"][:10])
    assert np.mean(scores) > 0.8
    assert not model.training


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(config):
    def weights(seed):
        model = build_segmenter(config, seed=0)
        fit(model, items_of(4, config), items_of(3, config, "bright"), config, steps=4, seed=seed)
        return torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_real_batches_are_the_same_whatever_pairs_stand_beside_them(config):
    real = items_of(5, config)
    without = Batches(real, [], config, seed=3)
    few = Batches(real, items_of(1, config, "bright"), config, seed=3)
    many = Batches(real, items_of(9, config, "bright", first=50), config, seed=3)
    for _ in range(5):
        expected = without.draw(CPU)
        for batches in (few, many):
            batches.draw_beside(CPU)
            for ours, theirs in zip(batches.draw(CPU), expected, strict=True):
                assert torch.equal(ours, theirs)


def test_a_repetition_has_the_same_real_batches_and_other_crops_beside_them(config):
    real = items_of(5, config)
    first, again = (Batches(real, [], config, seed=3, again=again) for again in (0, 1))
    ours, theirs = first.draw(CPU)[0], again.draw(CPU)[0]
    assert torch.equal(ours, theirs)
    assert not torch.equal(beside(first)[0], beside(again)[0])


def test_pairs_add_the_configured_share_of_a_batch_to_each_step(config):
    pairs = items_of(2, config, "bright")
    for share, expected in ((0.01, 2), (0.5, 4), (1.0, 8)):
        changed = config.model_copy(update={"synthetic_share": share})
        photos, masks = beside(Batches(items_of(5, config), pairs, changed, seed=0))
        assert photos.shape == (expected, 3, 32, 32) and masks.shape == (expected, 1, 32, 32)


def test_pairs_may_share_their_place_with_real_targets(config):
    """The first rows show pairs, here white ones, the others what a fit without pairs has."""
    white = synthetic_item(np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64), dtype=bool), config)
    for mix, expected in ((1.0, 4), (0.5, 2), (0.01, 1)):
        changed = config.model_copy(update={"synthetic_mix": mix})
        masks = beside(Batches(items_of(5, config), [white], changed, seed=0))[1]
        assert (masks.sum(dim=(1, 2, 3)) > 0).tolist() == [False] * expected + [True] * (4 - expected)
        assert len(beside(Batches([white], [white], changed, seed=0))[1]) == 4


def test_without_pairs_as_many_further_crops_of_real_targets_stand_there(config):
    """So a gain is that of the pairs, not of more crops per step."""
    real = items_of(5, config)
    normal = TrainingItem(blob(9)[0], np.zeros((64, 64), dtype=bool), (), "metal/")
    without = beside(Batches([*real, normal], [], config, 3))
    with_pairs = beside(Batches([*real, normal], items_of(2, config, "bright"), config, 3))
    assert without[0].shape == with_pairs[0].shape
    assert (without[1].sum(dim=(1, 2, 3)) > 0).all()  # targets, not crops from anywhere
    assert Batches([normal], [], config, 3).draw_beside(CPU) is None


def test_batch_norm_knows_real_photos_alone(config):
    """Two steps without a learning rate: weights stay, so running statistics tell which photos were seen."""
    still = config.model_copy(update={"lr": 1e-30, "synthetic_until": 1.0})

    def statistics(pairs):
        model = build_segmenter(still, seed=0)
        fit(model, items_of(4, still), pairs, still, steps=2, seed=0)
        return {name: value.clone() for name, value in model.named_buffers()}

    white = synthetic_item(np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64), dtype=bool), still)
    without, beside = statistics([]), statistics([white])
    assert without
    for name, value in without.items():
        assert torch.allclose(value.float(), beside[name].float(), atol=1e-6), name
    still = still.model_copy(update={"synthetic_apart": False})
    mixed = statistics([white])
    assert any(not torch.allclose(without[name].float(), mixed[name].float()) for name in without)


def test_the_last_steps_of_a_fit_are_on_real_photos_alone(config):
    def weights(pairs, until):
        model, changed = build_segmenter(config, 0), config.model_copy(update={"synthetic_until": until})
        fit(model, items_of(4, config), pairs, changed, steps=4, seed=0)
        return torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])

    pairs = items_of(3, config, "bright")
    assert torch.equal(weights(pairs, 0.0), weights([], 0.0))
    assert not torch.equal(weights(pairs, 0.5), weights([], 0.5))
    assert not torch.equal(weights(pairs, 0.5), weights(pairs, 1.0))


def test_types_share_the_target_crops_evenly(config):
    config = config.model_copy(update={"batch": 64, "target_share": 1.0})
    items = items_of(30, config, "dark") + items_of(2, config, "bright")
    photos, masks = Batches(items, [], config, seed=0).draw(CPU)
    inside = (photos * masks).sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3))
    outside = (photos * (1 - masks)).sum(dim=(1, 2, 3)) / (1 - masks).sum(dim=(1, 2, 3))
    assert 0.3 < float((inside > outside).float().mean()) < 0.7


def test_pairs_are_drawn_evenly_so_that_the_budget_decides_between_types(config):
    config = config.model_copy(update={"batch": 64, "synthetic_share": 1.0})
    pairs = [
        synthetic_item(np.full((64, 64, 3), level, np.uint8), np.zeros((64, 64), dtype=bool), config)
        for level in (40, 40, 40, 215)
    ]
    batches = Batches(items_of(2, config), pairs, config, seed=0)
    bright = np.mean([float((beside(batches)[0].mean(dim=(1, 2, 3)) > 0).float().mean()) for _ in range(5)])
    assert 0.15 < bright < 0.35


def test_a_fit_that_goes_on_sees_other_batches_than_the_fit_before():
    seeds = [batch_seed(seed, further) for seed in range(5) for further in (False, True)]
    assert len(set(seeds)) == len(seeds)


def test_a_fit_on_normals_alone_runs_and_one_on_nothing_is_refused(config):
    normal = TrainingItem(blob(0)[0], np.zeros((64, 64), dtype=bool), (), "metal/")
    model = build_segmenter(config, seed=0)
    assert np.isfinite(fit(model, [normal], [], config, steps=2, seed=0)["loss"]).all()
    with pytest.raises(ValueError, match="at least one real photo"):
        fit(model, [], items_of(2, config), config, steps=2, seed=0)


def test_the_loss_agrees_with_monai(config):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 1, 16, 16, generator=rng)
    masks = (torch.rand(4, 1, 16, 16, generator=rng) < 0.2).float()
    masks[0] = 0  # a crop without a target has no Dice
    focal = FocalLoss(gamma=config.focal_gamma)(logits, masks)
    dice = DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1)(logits[1:], masks[1:])
    assert segmentation_loss(logits, masks, config).item() == pytest.approx(
        (focal + config.dice_weight * dice).item(), abs=1e-5
    )


def test_photos_shrink_to_the_longest_side_and_never_grow():
    assert shrink(np.zeros((100, 400, 3), dtype=np.uint8), 200).shape == (50, 200, 3)
    assert shrink(np.zeros((2, 900, 3), dtype=np.uint8), 90).shape == (1, 90, 3)
    assert shrink(np.zeros((30, 40, 3), dtype=np.uint8), 200).shape == (30, 40, 3)


def test_a_thin_crack_survives_shrinking(config):
    mask = np.zeros((128, 128), dtype=bool)
    mask[64, 10:100] = True
    item = synthetic_item(np.zeros((128, 128, 3), dtype=np.uint8), mask, config)
    assert item.mask.shape == (64, 64)
    assert item.mask.sum() >= 40


@pytest.mark.parametrize("row", range(64, 72))
def test_no_target_is_so_thin_that_its_mask_vanishes(config, row):
    """Of a line of one pixel on a photo that is shrunk by eight no pixel keeps a third; a crop on it must not be called empty."""
    mask = np.zeros((512, 512), dtype=bool)
    mask[row, 40:400] = True
    mask[300:340, 300:340] = True  # another target is no help to it
    item = synthetic_item(np.zeros((512, 512, 3), dtype=np.uint8), mask, config)
    assert item.mask.shape == (64, 64)
    assert item.mask[8].sum() >= 40 and item.mask[:30].sum() <= 50


def test_crops_may_be_centred_on_some_targets_alone(config):
    image, mask = blob(3, side=128)
    new = np.zeros_like(mask)
    new[100:110, 100:110] = True
    item = synthetic_item(image, mask | new, config, centred_on=new)
    assert item.boxes == ((50, 50, 55, 55),) and item.mask.sum() > 25 + 5


def test_a_pair_is_cropped_where_it_was_painted(config):
    image, mask = blob(3, side=128)
    mask[100:110, 100:110] = True
    assert len(synthetic_item(image, mask, config).boxes) == 2
    assert synthetic_item(image, mask, config, (100, 100, 110, 110)).boxes == ((50, 50, 55, 55),)


def test_progress_counts_every_step(config):
    seen = []
    model = build_segmenter(config, seed=0)
    fit(
        model,
        items_of(2, config),
        [],
        config,
        steps=3,
        seed=0,
        progress=lambda *event: seen.append(event[:2]),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_photos_of_two_types_count_for_both_and_normals_have_no_boxes(config, small_dataset):
    items = real_items(small_dataset, [sample.sample_id for sample in small_dataset.samples], config)
    keys = sorted(item.weight_key for item in items)
    assert keys == ["metal/", "metal/dent", "metal/dent", "metal/scratch"]
    both = [item for item in items if item.mask.sum() > 300]
    assert {item.weight_key for item in both} == {"metal/dent", "metal/scratch"}
    assert all(not item.boxes for item in items if item.weight_key == "metal/")


def test_photos_that_an_earlier_fit_shrank_are_not_decoded_again(config, small_dataset, monkeypatch):
    ids = [sample.sample_id for sample in small_dataset.samples]
    kept: dict = {}
    first = real_items(small_dataset, ids[:-1], config, kept)
    monkeypatch.setattr(small_dataset, "image", lambda name: {ids[-1]: np.zeros((4, 4, 3), np.uint8)}[name])
    again = real_items(small_dataset, ids[:-1], config, kept)
    assert [a.image is b.image and a.boxes == b.boxes for a, b in zip(first, again, strict=True)] == [
        True
    ] * len(first)
    with pytest.raises(KeyError):
        real_items(small_dataset, ids[:-1], config.model_copy(update={"longest_side": 48}), kept)
