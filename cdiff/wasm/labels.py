"""Does a pair's mask fit its image? The same network reads a mask from the finished crop, and the two are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cdiff.generator.crops import cut, to_resolution
from cdiff.generator.sampling import Sampler
from cdiff.generator.states import Condition
from cdiff.wasm.layout import Layout, coverage, noise_of

READ_STEPS = 6  # steps in which a mask is read from a finished image
_FAINT = 0.1  # coverage in a read mask that is the network's unrest where no target is wanted


def label_check(
    sampler: Sampler,
    layouts: list[Layout],
    conditions: list[Condition],
    pasted: list[tuple[np.ndarray, np.ndarray]],
    resolution: int,
) -> list[float]:
    """Agreement of each pair's mask with the mask that the same network reads from the finished crop."""
    images = [
        to_resolution(cut(im, la.box), resolution) / 127.5 - 1
        for (im, _), la in zip(pasted, layouts, strict=True)
    ]
    wanted = [to_resolution(cut(ma, la.box), resolution) for (_, ma), la in zip(pasted, layouts, strict=True)]
    kept = [not_compared(la, resolution) for la in layouts]
    return mask_agreement(sampler, conditions, images, wanted, [la.task.seed for la in layouts], kept)


def mask_agreement(
    sampler: Sampler,
    conditions: Sequence[Condition],
    images: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor],
    seeds: Sequence[int],
    kept: Sequence[torch.Tensor] = (),
) -> list[float]:
    """Soft IoU in [0, 1] of given masks [1, R, R], coverage in [0, 1], with masks read from the images [3, R, R].

    Read in few steps and without guidance: a clean image leaves the mask little freedom. Coverage is compared as it
    is, sum of minima by sum of maxima: above a threshold, nothing would be left of what is thinner than a pixel.

    Args:
        kept: what `not_compared` says, if anything.
    """
    reader = sampler.of_steps(READ_STEPS)
    plain = [replace(condition, guidance=1.0) for condition in conditions]
    starts = [
        reader.start_mask_from_image(c, image.to(c.background_3RR.device), noise_of(seed, 2))
        for c, image, seed in zip(plain, images, seeds, strict=True)
    ]
    read = [coverage(state.mask_1RR).cpu() for state in reader.run(starts, move_image=False)]
    others = kept or [torch.zeros_like(mask) for mask in masks]
    return [
        _soft_iou((r - other.cpu()).clamp_min(0), (mask.cpu() - other.cpu()).clamp_min(0))
        for r, mask, other in zip(read, masks, others, strict=True)
    ]


def not_compared(layout: Layout, resolution: int) -> torch.Tensor:
    """Coverage [1, R, R] of where a reader may well see a target that is not the new one: the photo's own targets, and what lies
    beyond its border, where it is mirrored and its targets with it.
    """
    known = cut(~layout.kept, layout.box)  # beyond the border: no
    return to_resolution(~known, resolution)


def _soft_iou(read: torch.Tensor, wanted: torch.Tensor) -> float:
    read = torch.where((read < _FAINT) & (wanted < _FAINT), 0.0, read)
    return float(torch.minimum(read, wanted).sum() / torch.maximum(read, wanted).sum().clamp_min(1e-6))
