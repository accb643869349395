"""Hard or only adversarial: what is left of the loss after slight treatments."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

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


def with_gate(config, **changed):
    return config.model_copy(update={"gate": config.gate.model_copy(update=changed)})


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
    assert any(row.hard for row in measured) and all(row.hard or row.survives == 1 for row in measured)
    tiny_config = with_gate(tiny_config, min_targets=len(rows))
    spread = [dataclasses.replace(row, hard=True, survives=n / 10) for n, row in enumerate(rows)]
    bounds = {key: bound for name, key, bound in survival_bounds(spread, tiny_config) if name == "survives"}
    assert bounds[""] == pytest.approx(np.percentile([row.survives for row in spread], 5))
    assert survival_bounds(rows, tiny_config) == ()  # of none is it known that it was hard
    one_less = with_gate(tiny_config, min_targets=len(rows) + 1)
    assert survival_bounds(spread, one_less) == ()


def test_a_thin_target_that_is_missed_is_hard_though_its_surroundings_lose_little(photos, tiny_config):
    """The mean loss over the surroundings of a scratch is small: what counts is how much of the scratch is missed."""
    image = np.full((64, 64, 3), 140, np.uint8)
    mask = np.eye(64, dtype=bool)
    assert survival(Sees(blind=False), image, mask, mask, tiny_config) > 0.9
    target = photos.all_targets(s.sample_id for s in photos.samples)[0]

    scratch = SimpleNamespace(image=lambda _: image, mask=lambda _: mask, target_mask=lambda _: mask)
    about = (target.target_id, target.sample_id, target.category, target.type, target.group)
    row = Outcome(*about, 0, 0.05, 0.2, 0.8, 0, 0.2, 0.5, 0.1, 0.1)
    (measured,) = with_survival([row], Sees(blind=False), cast(Any, scratch), tiny_config)
    assert measured.hard
