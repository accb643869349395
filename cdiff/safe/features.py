"""Image features for SAFE, and their pooling inside and outside a mask (design: F_l and M)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class ConvEncoder(nn.Module):
    """A small convolutional encoder, trained with the generator: one feature map per level, stride 2 each."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(channels)
        widths = [3, *channels]
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            )
            for before, after in pairwise(widths)
        )

    def forward(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
        features = []
        hidden = image_B3HW
        for level in self.levels:
            hidden = level(hidden)
            features.append(hidden)
        return features


def masked_mean(features_BCHW: torch.Tensor, mask_B1HW: torch.Tensor) -> torch.Tensor:
    """sum(M F) / sum(M) per item, [B, C]; the mask is averaged down to the features' size.

    A mask that vanishes (an empty one) gives zeros, not NaN.
    """
    height, width = features_BCHW.shape[-2:]
    weight = F.adaptive_avg_pool2d(mask_B1HW, (height, width))
    total = weight.sum(dim=(2, 3))
    pooled = (features_BCHW * weight).sum(dim=(2, 3))
    return pooled / total.clamp_min(1e-4)


def grid_weights(mask_B1HW: torch.Tensor, grid: int) -> torch.Tensor:
    """Cut each mask into grid x grid parts of its own bounding box: [B, grid * grid, H, W].

    Where a part holds nothing of the mask, its whole cell of the box counts instead.
    """
    batch, _, height, width = mask_B1HW.shape
    solid = mask_B1HW[:, 0] > 0.5
    rows = _cells(solid.any(dim=2), grid)  # [B, H]: which row of cells, -1 outside the box
    columns = _cells(solid.any(dim=1), grid)
    index = torch.arange(grid, device=mask_B1HW.device)
    in_row = (rows[:, None, :] == index[None, :, None]).float()  # [B, g, H]
    in_column = (columns[:, None, :] == index[None, :, None]).float()
    cells = (in_row[:, :, None, :, None] * in_column[:, None, :, None, :]).reshape(
        batch, grid * grid, height, width
    )
    inside = cells * mask_B1HW
    hollow = inside.sum(dim=(2, 3), keepdim=True) < 1e-3
    return torch.where(hollow, cells, inside)


def _cells(occupied_BN: torch.Tensor, grid: int) -> torch.Tensor:
    length = occupied_BN.shape[1]
    position = torch.arange(length, device=occupied_BN.device)
    empty = ~occupied_BN.any(dim=1, keepdim=True)
    first = torch.where(occupied_BN, position, length).amin(dim=1, keepdim=True).masked_fill(empty, 0)
    last = torch.where(occupied_BN, position, -1).amax(dim=1, keepdim=True).masked_fill(empty, length - 1)
    cell = ((position - first) * grid).div((last - first + 1).clamp_min(1), rounding_mode="floor")
    return torch.where((position >= first) & (position <= last), cell, torch.full_like(cell, -1))
