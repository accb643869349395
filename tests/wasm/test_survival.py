"""Hard or only adversarial: what is left of the loss after slight treatments."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from cdiff.types import Outcome
from cdiff.wasm.quality import survival_bounds
from cdiff.wasm.survival import survival, with_survival

SIDE = 64


class Sees(nn.Module):
    """Finds a dark target, unless the pixels there alternate: a blind spot of one pixel's width."""

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.blind = blind

    def forward(self, photos):
        dark = -photos.mean(dim=1, keepdim=True) - 0.3
        checks = (photos - torch.roll(photos, 1, dims=3)).abs().mean(dim=1, keepdim=True)
        return self.scale * (dark - 4 * checks * self.blind)


@pytest.fixture
def scene(tiny_config):
    """A dark square on grey, and the same with a faint checkerboard on it."""
    downstream = tiny_config.downstream.model_copy(update={"crop": SIDE, "longest_side": SIDE})
    config = tiny_config.model_copy(update={"downstream": downstream})
    image, mask = np.full((SIDE, SIDE, 3), 150, np.uint8), np.zeros((SIDE, SIDE), bool)
    mask[20:40, 20:40] = True
    image[mask] = 40
    checked = image.copy()
    rows, columns = np.nonzero(mask)
    checked[rows, columns] = np.where((rows + columns)[:, None] % 2, 20, 60)
    return config, image, checked, mask


def test_a_blind_spot_for_single_pixels_does_not_survive(scene):
    config, image, checked, mask = scene
    assert survival(Sees(blind=True), checked, mask, mask, config) < 0.5
    assert survival(Sees(blind=False), image, mask, mask, config) == 1  # found: there is no hardness to lose


def test_a_target_that_is_hard_by_being_faint_survives(scene):
    config, image, _, mask = scene
    faint = image.copy()
    faint[mask] = 140
    assert survival(Sees(blind=False), faint, mask, mask, config) > 0.9


def test_a_further_treatment_counts(scene):
    config, image, _, mask = scene
    faint = image.copy()
    faint[mask] = 140
    assert survival(Sees(blind=False), faint, mask, mask, config, [image]) < 0.5


def test_bounds_come_from_real_targets_that_were_hard(photos, tiny_config):
    targets = photos.all_targets(s.sample_id for s in photos.samples)
    rows = [
        Outcome(
            t.target_id, t.sample_id, t.category, t.type, t.group, 0, 1.0, 0.2, 0.8, 0, 0.2, 0.5, 0.1, 0.1
        )
        for t in targets
    ]
    normal = dataclasses.replace(rows[0], target_id="n", type="")
    measured = with_survival([*rows, normal], Sees(blind=False), photos, tiny_config)
    assert all(0 <= row.survives <= 1 for row in measured) and measured[-1] == normal
    spread = [dataclasses.replace(row, survives=n / 10) for n, row in enumerate(rows)]
    bounds = {key: bound for name, key, bound in survival_bounds(spread, tiny_config) if name == "survives"}
    assert bounds[""] == pytest.approx(np.percentile([row.survives for row in spread], 5))
    assert survival_bounds([dataclasses.replace(row, loss=0.01) for row in rows], tiny_config) == ()
