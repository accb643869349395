"""Scores at native size, and what an outcome says."""

import numpy as np
import pytest
import torch
from torch import nn

from cdiff.config import DownstreamConfig
from cdiff.downstream.scoring import image_score, outcomes, score_photo, score_photos, target_outcome
from cdiff.downstream.segmenter import build_segmenter


class Brightness(nn.Module):
    """Marks what is brighter than a grey value: a model whose answers are known by hand."""

    def __init__(self, grey):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(grey / 127.5 - 1))

    def forward(self, batch):
        return 50 * (batch.mean(dim=1, keepdim=True) - self.level)


@pytest.mark.parametrize(
    "shape", [(100, 333), (17, 31), (1, 1), (3, 700), (700, 3), (64, 64), (5, 9), (601, 127)]
)
def test_a_photo_of_any_size_is_scored_at_its_own_size(shape):
    config = DownstreamConfig(longest_side=128)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    scores = score_photo(build_segmenter(config, seed=0).eval(), image, config)
    assert scores.shape == shape
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_enlarged_scores_lie_where_the_target_is():
    image = np.full((300, 500, 3), 40, dtype=np.uint8)
    image[100:160, 220:300] = 220
    scores = score_photo(Brightness(130).eval(), image, DownstreamConfig(longest_side=125))
    found = scores >= 0.5
    y, x = np.nonzero(found)
    assert (y.mean(), x.mean()) == pytest.approx((129.5, 259.5), abs=1.5)
    assert found.sum() == pytest.approx(60 * 80, rel=0.1)


class LeftHalf(nn.Module):
    """Sure of whatever lies in the left half of what it is shown."""

    def __init__(self):
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(50.0))  # a logit

    def forward(self, batch):
        column = torch.linspace(1, -1, batch.shape[-1]).expand_as(batch[:, :1])
        return self.sure * torch.sign(column)


def test_scores_are_means_over_the_mirror_images_that_the_fit_has_seen():
    image = np.zeros((64, 64, 3), dtype=np.uint8)

    def score(model, **settings):
        return score_photo(model.eval(), image, DownstreamConfig(**settings))

    alone = score(LeftHalf(), mirror=False)
    assert alone[:, :32].min() > 0.99 and alone[:, 32:].max() < 0.01
    np.testing.assert_allclose(score(LeftHalf(), vertical_flip=False), 0.5, atol=1e-6)

    class TopHalf(LeftHalf):
        def forward(self, batch):
            return super().forward(batch.transpose(2, 3)).transpose(2, 3)

    np.testing.assert_allclose(score(LeftHalf()), 0.5, atol=1e-6)
    np.testing.assert_allclose(score(TopHalf()), 0.5, atol=1e-6)
    # A photo that is never upside down is not turned for scoring.
    upright = score(TopHalf(), vertical_flip=False)
    assert upright[:32].min() > 0.99 and upright[32:].max() < 0.01


def test_scoring_repeats_bit_for_bit_whatever_was_scored_before(small_dataset):
    config = DownstreamConfig(longest_side=64)
    model = build_segmenter(config, seed=0).eval()
    seen = []
    maps = score_photos(
        model, small_dataset, ["metal/b", "metal/a"], config, lambda *event: seen.append(event)
    )
    assert list(maps) == ["metal/b", "metal/a"]
    assert seen == [(1, 2), (2, 2)]
    assert np.array_equal(maps["metal/a"], score_photo(model, small_dataset.image("metal/a"), config))


def test_the_image_score_follows_the_highest_pixels():
    quiet, spot = np.full((200, 200), 0.1, dtype=np.float32), np.full((200, 200), 0.1, dtype=np.float32)
    spot[50:60, 50:60] = 0.9
    assert image_score(quiet) == pytest.approx(0.1)
    assert image_score(spot) == pytest.approx(0.9)
    assert image_score(np.array([[0.2, 0.7]], dtype=np.float32)) == pytest.approx(0.7)


def test_outcomes_have_one_row_per_target_and_one_per_normal(small_dataset):
    model = Brightness(150).eval()
    rows = outcomes(model, small_dataset, ["metal/a", "metal/b", "metal/n"], DownstreamConfig(), fold=1)
    assert [(row.sample_id, row.type, row.fold) for row in rows] == [
        ("metal/a", "dent", 1),
        ("metal/b", "dent", 1),
        ("metal/b", "scratch", 1),
        ("metal/n", "", 1),
    ]
    for row in rows[:3]:
        assert row.soft_dice > 0.95
        assert row.missed == 0
        assert row.false_area == 0
        assert row.boundary_error == 0
        assert row.contrast == pytest.approx(60 / 255, abs=0.02)
        assert row.group == f"tile-{row.sample_id[-1]}"
    assert rows[0].size == pytest.approx(np.sqrt(10 * 12) / np.sqrt(60 * 80))
    assert rows[3].confidence < 0.5
    assert rows[3].soft_dice == pytest.approx(1 - rows[3].confidence)


def test_a_blind_model_misses_everything(small_dataset):
    rows = outcomes(Brightness(254).eval(), small_dataset, ["metal/a"], DownstreamConfig(), fold=0)
    assert rows[0].missed == 1
    assert rows[0].boundary_error == 1
    assert rows[0].soft_dice < 0.01
    assert rows[0].false_area == 0
    assert rows[0].loss > 1


def test_an_outcome_measures_half_found_and_overshooting_predictions(small_dataset):
    target = small_dataset.targets("metal/a")[0]  # 10 x 12 pixels at (10, 12)
    mask, image = small_dataset.mask("metal/a"), small_dataset.image("metal/a")
    half, over = np.zeros(mask.shape, dtype=np.float32), np.zeros(mask.shape, dtype=np.float32)
    half[12:18, 10:20] = 1
    over[12:24, 8:22] = 1
    found_half = target_outcome(target, image, mask, mask, half, 0)
    found_over = target_outcome(target, image, mask, mask, over, 0)
    assert found_half.missed == pytest.approx(0.5)
    assert found_half.soft_dice == pytest.approx(2 * 60 / (60 + 120))
    assert found_half.confidence == pytest.approx(0.5)
    assert found_over.missed == 0
    assert found_over.false_area == pytest.approx(48 / 120)
    assert 0 < found_over.boundary_error < found_half.boundary_error < 1


def test_pixels_of_other_targets_count_for_nothing(small_dataset):
    target = next(target for target in small_dataset.targets("metal/b") if target.type == "scratch")
    mask, every = small_dataset.target_mask(target.target_id), small_dataset.mask("metal/b")
    row = target_outcome(target, small_dataset.image("metal/b"), mask, every, every.astype(np.float32), 0)
    assert row.soft_dice == pytest.approx(1)
    assert row.false_area == 0
