"""Crops and paired augmentation. Every draw comes from a generator that is passed in, in a fixed number per crop.

A crop is cut by slicing with a border to spare, then the whole batch is turned, scaled and flipped in one affine
resampling: cheap enough for CPUs, where augmenting crop by crop took longer than the optimiser step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cdiff.config import DownstreamConfig
from cdiff.types import Box
from cdiff.workers import Part

SCALE = 1.25  # crops show between 1 / SCALE and SCALE times their side of the photo
BORDER = 1.5  # what is sliced, in crop sides: room for the turn and the scale
BRIGHTNESS = 0.15  # largest shift, in halves of the value range
CONTRAST = 0.3  # largest change of contrast, as a factor's distance from 1
GAMMA = 0.3  # largest |log| of the exponent


@dataclass(frozen=True)
class Moves:
    """One random draw per crop of a batch; [B] each."""

    # [B, 2, 3] from output to input coordinates, both in [-1, 1] over the sliced border
    theta: NDArray[np.float32]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    gamma: NDArray[np.float32]

    def cut(self, part: Part) -> Moves:
        """Those of a part of the batch."""
        return Moves(
            *(part.cut(values) for values in (self.theta, self.brightness, self.contrast, self.gamma))
        )


def sliced_side(crop: int) -> int:
    """Side of what is sliced for a crop, pixels; even."""
    return 2 * math.ceil(crop * BORDER / 2)


def draw_moves(rng: np.random.Generator, count: int, config: DownstreamConfig) -> Moves:
    """Draw turns, scales, flips and changes of light for `count` crops.

    The number of draws depends on `count` alone, so that a batch never disturbs the next one.
    """
    draws = rng.random((count, 7))
    turn = np.radians(config.rotate) * (2 * draws[:, 0] - 1)
    scale = SCALE ** (2 * draws[:, 1] - 1) * config.crop / sliced_side(config.crop)
    horizontal = np.where(draws[:, 2] < 0.5, -1.0, 1.0)
    vertical = np.where((draws[:, 3] < 0.5) & config.vertical_flip, -1.0, 1.0)
    theta = np.zeros((count, 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 0, 1] = np.cos(turn) * scale * horizontal, -np.sin(turn) * scale * vertical
    theta[:, 1, 0], theta[:, 1, 1] = np.sin(turn) * scale * horizontal, np.cos(turn) * scale * vertical
    return Moves(
        theta,
        (BRIGHTNESS * (2 * draws[:, 4] - 1)).astype(np.float32),
        (1 + CONTRAST * (2 * draws[:, 5] - 1)).astype(np.float32),
        np.exp(GAMMA * (2 * draws[:, 6] - 1)).astype(np.float32),
    )


def crop_centre(
    draws: NDArray[np.float64], shape: tuple[int, int], box: Box | None, crop: int
) -> tuple[int, int]:
    """Where a crop's centre lies, (x, y) in pixels.

    Args:
        draws: [2] in [0, 1).
        shape: (height, width) of the photo.
        box: the target that the crop shows, off its centre by up to a quarter of the crop or, for a target that is larger
            than the crop, anywhere on it; None for anywhere on the photo.
    """
    centre = []
    for axis in (1, 0):
        length = shape[axis]
        low, high = 0.0, float(length)
        if box is not None:
            start, stop = (box[0], box[2]) if axis == 1 else (box[1], box[3])
            reach = max(crop / 4, (stop - start) / 2 - crop / 4)
            low, high = (start + stop) / 2 - reach, (start + stop) / 2 + reach
        # Drawn first, then moved inside: drawn from the inside alone, a photo's edge is hardly ever shown, and alarms.
        inside = min(crop / 2, length / 2), max(length - crop / 2, length / 2)
        centre.append(int(np.clip(low + draws[1 - axis] * (high - low), *inside)))
    return centre[0], centre[1]


def slice_around(array: NDArray[np.uint8], centre: tuple[int, int], side: int) -> NDArray[np.uint8]:
    """Cut a square out of [H, W, C]; beyond the photo's edge it is mirrored."""
    left, top = centre[0] - side // 2, centre[1] - side // 2
    height, width = array.shape[:2]
    inner = array[max(top, 0) : min(top + side, height), max(left, 0) : min(left + side, width)]
    missing = (
        (max(-top, 0), max(top + side - height, 0)),
        (max(-left, 0), max(left + side - width, 0)),
    )
    if not any(sum(missing, ())):
        return inner
    return np.pad(inner, (*missing, (0, 0)), mode="symmetric")


def apply_moves(stacked: torch.Tensor, moves: Moves, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment a batch of sliced squares.

    Args:
        stacked: uint8 [B, S, S, 4], three channels of the photo and the mask as 0 or 255.
    Returns:
        Photos [B, 3, crop, crop] in [-1, 1] and masks [B, 1, crop, crop], 0 or 1, float32.
    """
    batch = stacked.permute(0, 3, 1, 2).float().div_(255)
    theta = torch.from_numpy(moves.theta).to(batch.device)
    grid = F.affine_grid(theta, [batch.shape[0], 4, crop, crop], align_corners=False)
    batch = F.grid_sample(batch, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    photo, mask = batch[:, :3], (batch[:, 3:] > 0.5).float()
    gamma, contrast, brightness = (
        torch.from_numpy(values).to(batch.device).view(-1, 1, 1, 1)
        for values in (moves.gamma, moves.contrast, moves.brightness)
    )
    photo = photo.clamp(0, 1).pow(gamma)
    mean = photo.mean(dim=(1, 2, 3), keepdim=True)
    photo = (photo - mean) * contrast + mean
    return (photo * 2 - 1 + brightness).clamp(-1, 1), mask
