"""Crops and paired augmentation."""

import numpy as np
import pytest
import torch

from cdiff.config import DownstreamConfig
from cdiff.downstream.augment import apply_moves, crop_centre, draw_moves, slice_around, sliced_side


def squares(count, side):
    """White squares on black, with the mask on them: photo and mask must stay together."""
    stacked = np.zeros((count, side, side, 4), dtype=np.uint8)
    stacked[:, side // 3 : side // 2, side // 3 : side // 2 + 6] = 255
    return torch.from_numpy(stacked)


def test_photo_and_mask_move_together():
    config = DownstreamConfig(crop=64, rotate=180)
    photos, masks = apply_moves(
        squares(32, sliced_side(64)), draw_moves(np.random.default_rng(0), 32, config), 64
    )
    bright = photos.mean(dim=1, keepdim=True) > photos.mean(dim=(1, 2, 3), keepdim=True) + 0.2
    agreement = (bright == (masks > 0.5)).float().mean(dim=(1, 2, 3))
    assert photos.shape == (32, 3, 64, 64)
    assert masks.shape == (32, 1, 64, 64)
    assert agreement.min() > 0.97


def test_photos_stay_in_range_and_masks_stay_binary():
    config = DownstreamConfig(crop=32)
    noise = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (16, 48, 48, 4), dtype=np.uint8))
    photos, masks = apply_moves(noise, draw_moves(np.random.default_rng(2), 16, config), 32)
    assert photos.min() >= -1
    assert photos.max() <= 1
    assert set(masks.unique().tolist()) <= {0.0, 1.0}


def test_upside_down_and_turned_photos_can_be_ruled_out():
    config = DownstreamConfig(crop=32, vertical_flip=False, rotate=0)
    moves = draw_moves(np.random.default_rng(3), 64, config)
    assert (moves.theta[:, 1, 1] > 0).all()
    assert not moves.theta[:, 0, 1].any()
    assert (moves.theta[:, 0, 0] < 0).any()
    assert (moves.theta[:, 0, 0] > 0).any()


def test_the_draws_of_a_batch_do_not_depend_on_the_settings():
    one, other = np.random.default_rng(4), np.random.default_rng(4)
    draw_moves(one, 8, DownstreamConfig())
    draw_moves(other, 8, DownstreamConfig(vertical_flip=False, rotate=0, crop=64))
    assert one.random() == other.random()


@pytest.mark.parametrize("shape", [(200, 300), (40, 300), (20, 20), (1, 90)])
def test_a_target_crop_shows_its_target(shape):
    rng = np.random.default_rng(5)
    for _ in range(200):
        left, top = int(rng.integers(0, shape[1])), int(rng.integers(0, shape[0]))
        box = (
            left,
            top,
            min(shape[1], left + int(rng.integers(1, 200))),
            min(shape[0], top + int(rng.integers(1, 100))),
        )
        x, y = crop_centre(rng.random(2), shape, box, 64)
        assert max(box[0], x - 32) < min(box[2], x + 32)
        assert max(box[1], y - 32) < min(box[3], y + 32)


@pytest.mark.parametrize("shape", [(200, 300), (30, 300), (7, 5), (1, 1)])
def test_a_square_can_be_cut_anywhere_from_a_photo_of_any_size(shape):
    photo = np.random.default_rng(6).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for centre in ((0, 0), (shape[1] - 1, shape[0] - 1), (shape[1] // 2, shape[0] // 2)):
        assert slice_around(photo, centre, 96).shape == (96, 96, 3)


def test_a_square_inside_the_photo_is_its_pixels():
    photo = np.arange(60 * 80 * 3, dtype=np.uint64).astype(np.uint8).reshape(60, 80, 3)
    assert np.array_equal(slice_around(photo, (40, 30), 20), photo[20:40, 30:50])
