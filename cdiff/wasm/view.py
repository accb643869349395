"""A crop on its way, as the segmenter would see it: what difficulty can be differentiated through.

Pasting back works on the photo's own pixels and has no gradient. A view is its differentiable shadow at the segmenter's
scale: the background around the new target, plus the crop's change of it under the feathered region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cdiff.config import Config
from cdiff.generator.crops import cut, to_resolution
from cdiff.generator.paste import given_back
from cdiff.generator.states import Condition
from cdiff.types import Box
from cdiff.wasm.layout import Layout, coverage, detail_share

NEAR = 8  # how far a target's surroundings reach, pixels of the segmenter


@dataclass(frozen=True, slots=True)
class View:
    """One layout at the segmenter's scale; S is the side of its crops, R the generator's resolution."""

    photo_3SS: torch.Tensor  # background in [-1, 1]
    truth_1SS: torch.Tensor  # coverage of all targets
    target_1SS: torch.Tensor  # coverage of the new one
    counted_1SS: torch.Tensor  # 1 on the photo, 0 beyond its border
    weight_1SS: torch.Tensor  # of the crop's change: the feathered region
    grid_SS2: torch.Tensor  # where each pixel lies on the crop, in [-1, 1]
    background_3RR: torch.Tensor  # the crop before the change, in [-1, 1]
    paste_3RR: torch.Tensor  # the real target's change of it
    pasted_1RR: torch.Tensor  # coverage of the real target
    detail: float  # how far pasting gives back what the generator fades of the real target


@dataclass(frozen=True, slots=True)
class Job:
    """One task whose mask is settled: what a mining arm finishes."""

    layout: Layout
    condition: Condition
    mask_1RR: torch.Tensor  # in [-1, 1]


def seen_by(job: Job, config: Config) -> View:
    """The view of a job."""
    layout, mask_1RR, background_3RR = job.layout, job.mask_1RR, job.condition.background_3RR
    crop, side = layout.box, layout.box[2] - layout.box[0]
    place = F.interpolate((mask_1RR[None].cpu() + 1) / 2, size=(side, side), mode="bilinear")[0, 0].numpy()
    target = np.zeros(layout.kept.shape, np.float32)
    feather = np.zeros(layout.kept.shape, np.float32)
    _lay(target, place, crop)
    _lay(feather, layout.canvas.feather() * layout.canvas.region, crop)
    shown = next((part for part in (target > 0.5, feather > 0) if part.any()), None)
    box = crop if shown is None else around(shown, config)  # a paste may fall off its photo
    size = config.downstream.crop
    everywhere = np.ones(target.shape, np.float32)
    photo, truth, one, counted, weight = (
        to_resolution(cut_plain(part, box), size)
        for part in (layout.photo, np.maximum(target, layout.kept), target, everywhere, feather)
    )
    centres = (torch.arange(size) + 0.5) * (box[2] - box[0]) / size
    u, v = ((centres + box[i] - crop[i]) / side * 2 - 1 for i in (0, 1))
    grid = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)
    parts = (photo / 127.5 - 1, truth, one, counted, weight, grid)
    photo, truth, one, counted, weight, grid = (part.float().to(background_3RR.device) for part in parts)
    paste = job.condition.start_image_3RR - background_3RR
    detail = detail_share(layout.task.strengths.start_strength)
    real = coverage(job.condition.start_mask_1RR)
    return View(photo, truth, one, counted, weight, grid, background_3RR, paste, real, detail)


def difficulty(
    segmenter: nn.Module, views: Sequence[View], images_B3RR: torch.Tensor, kappa: float
) -> torch.Tensor:
    """min(kappa, loss of the segmenter around the new target) [B], differentiable in the generated crops.

    Args:
        images_B3RR: in [-1, 1].
    """
    grids = torch.stack([view.grid_SS2 for view in views])
    change = images_B3RR - torch.stack([view.background_3RR for view in views])
    detail = change.new_tensor([view.detail for view in views]).view(-1, 1, 1, 1)
    pastes = torch.stack([view.paste_3RR for view in views])
    change = change + detail * given_back(change, pastes, torch.stack([view.pasted_1RR for view in views]))
    seen = F.grid_sample(change, grids, padding_mode="zeros", align_corners=False)
    weight = torch.stack([view.weight_1SS for view in views])
    photos = torch.stack([view.photo_3SS for view in views]) + weight * seen
    logits = segmenter(photos.clamp(-1, 1)).float()
    truth = torch.stack([view.truth_1SS for view in views])
    target = torch.stack([view.target_1SS for view in views])
    counted = torch.stack([view.counted_1SS for view in views])
    return loss_around(logits, truth, target, counted).clamp(max=kappa)


def loss_around(
    logits_B1SS: torch.Tensor,
    truth_B1SS: torch.Tensor,
    target_B1SS: torch.Tensor,
    counted_B1SS: torch.Tensor,
) -> torch.Tensor:
    """Binary cross-entropy [B] around one target: the mean of that inside it and that in its surroundings, nats.

    Args:
        counted_B1SS: 1 on the photo, 0 beyond its border. There the photo is mirrored, and a target at the border stands twice: a
            segmenter that finds the mirrored one as well is not wrong.
    """
    loss = F.binary_cross_entropy_with_logits(logits_B1SS, truth_B1SS, reduction="none")
    near = F.max_pool2d(target_B1SS, 2 * NEAR + 1, stride=1, padding=NEAR) - target_B1SS
    inside, outside = (
        (loss * part).sum(dim=(1, 2, 3)) / part.sum(dim=(1, 2, 3)).clamp_min(1e-3)
        for part in (target_B1SS, near * counted_B1SS)
    )
    return (inside + outside) / 2


@torch.inference_mode()
def local_loss(
    segmenter: torch.nn.Module, image: np.ndarray, mask: np.ndarray, target: np.ndarray, config: Config
) -> float:
    """Binary cross-entropy of the segmenter around one target, half of it inside and half outside the target.

    Args:
        image: uint8 [H, W, 3]; mask: bool [H, W] all targets; target: bool [H, W] the one that counts.
    Returns:
        Mean of the loss inside the target and of the loss in its surroundings, nats.
    """
    if not target.any():
        return 0.0
    size, box = config.downstream.crop, around(target, config)
    device = next(segmenter.parameters()).device
    photo = to_resolution(cut(image, box), size)[None].to(device) / 127.5 - 1
    maps = (mask, target, np.ones(mask.shape, bool))
    truth, one, counted = (to_resolution(cut(part, box), size)[None].to(device) for part in maps)
    return float(loss_around(segmenter(photo).float(), truth, one, counted))


def around(mask: np.ndarray, config: Config) -> Box:
    """A square of photo pixels around a mask's centre, that the segmenter sees as one of its training crops."""
    side = round(config.downstream.crop * max(1.0, max(mask.shape) / config.downstream.longest_side))
    rows, columns = np.nonzero(mask)
    left, top = int(columns.mean() - side / 2), int(rows.mean() - side / 2)
    return left, top, left + side, top + side


def cut_plain(array: np.ndarray, box: Box) -> np.ndarray:
    """`crops.cut` where beyond a photo's border maps are empty, and photos mirrored."""
    if array.ndim == 3:
        return cut(array, box)
    left, top, right, bottom = box
    out = np.zeros((bottom - top, right - left), np.float32)
    inner = array[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    y, x = max(0, -top), max(0, -left)
    out[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return out


def _lay(full: np.ndarray, part: np.ndarray, box: Box) -> None:
    left, top, right, bottom = box
    x0, y0, x1, y1 = max(0, left), max(0, top), min(full.shape[1], right), min(full.shape[0], bottom)
    full[y0:y1, x0:x1] = part[y0 - top : y1 - top, x0 - left : x1 - left]
