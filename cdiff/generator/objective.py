"""The training objective: rectified flow on image and mask with independent times, weighted to the region.

    x_t = (1 - t) x_0 + t noise,    v = noise - x_0 = (x_t - x_0) / t     (Liu et al., 2209.03003)

The network on pixels predicts x_0; the loss is that of v, |x_0-hat - x_0|^2 / t^2, bounded at small t. A pretrained one is
weighted so that its loss is that of what it predicts itself (`Denoiser.weight`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cdiff.config import GeneratorConfig
from cdiff.generator.denoiser import SMALL_TIME, Denoiser, hide
from cdiff.workers import WHOLE, Part

# How often each use of the network is practised: joint, independent times, given mask, mask from image, mask first.
_USES = torch.tensor([0.35, 0.15, 0.25, 0.125, 0.125])


def draw_times(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Times of image and mask, [count] each in [0, 1], over the network's uses."""
    use = torch.multinomial(_USES, count, replacement=True, generator=generator)
    image, mask = torch.rand(2, count, generator=generator)
    mask = torch.where(use == 0, image, mask)
    mask = torch.where(use == 2, torch.zeros(()), mask)
    image = torch.where(use == 3, torch.zeros(()), image)
    image = torch.where(use == 4, torch.ones(()), image)
    return image, mask


def noised(clean: torch.Tensor, noise: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
    """x_t on the straight path from data (0) to noise (1)."""
    time = time_B.view(-1, 1, 1, 1)
    return (1 - time) * clean + time * noise


@dataclass(frozen=True)
class Clean:
    """What is to be learned, on a denoiser's canvas."""

    canvas_BCSS: torch.Tensor
    mask_B1RR: torch.Tensor  # in [-1, 1]
    known_BKSS: torch.Tensor
    region_B1RR: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, denoiser: Denoiser, image_B3RR: torch.Tensor, mask_B1RR: torch.Tensor, region_B1RR: torch.Tensor
    ) -> Clean:
        """Crops in [-1, 1], masks in [0, 1] and regions in {0, 1}, encoded."""
        known = denoiser.canvas(hide(image_B3RR, region_B1RR))
        return cls(denoiser.canvas(image_B3RR), mask_B1RR * 2 - 1, known, region_B1RR)


def flow_loss(
    denoiser: Denoiser,
    clean: Clean,
    tokens_BND: torch.Tensor,
    config: GeneratorConfig,
    generator: torch.Generator,
    part: Part = WHOLE,
) -> torch.Tensor:
    """Squared error of what the denoiser expects, inside the region 1 and outside `outside_weight`, normalised by area per item.

    Args:
        part: of a batch, that the items are: noise and times are drawn for the whole, and means of the parts' losses are the loss of the whole.
    """
    device, batch = clean.canvas_BCSS.device, len(clean.canvas_BCSS) * part.of_parts
    times = draw_times(batch, generator)
    time_image, time_mask = (part.cut(time).to(device) for time in times)
    noise_canvas = part.cut(torch.randn((batch, *clean.canvas_BCSS.shape[1:]), generator=generator)).to(
        device
    )
    noise_mask = part.cut(torch.randn((batch, *clean.mask_B1RR.shape[1:]), generator=generator)).to(device)
    clean_canvas, clean_mask = denoiser(
        noised(clean.canvas_BCSS, noise_canvas, time_image),
        noised(clean.mask_B1RR, noise_mask, time_mask),
        time_image,
        time_mask,
        clean.known_BKSS,
        clean.region_B1RR,
        tokens_BND,
    )
    canvas_error = _weighted(
        clean_canvas.float() - clean.canvas_BCSS, _weights(denoiser.place(clean.region_B1RR), config)
    ) * denoiser.weight(time_image)
    mask_error = (
        _weighted(clean_mask.float() - clean.mask_B1RR, _weights(clean.region_B1RR, config))
        / time_mask.clamp_min(SMALL_TIME).square()
    )
    # What goes in clean (time 0) has nothing to learn; parts of a batch may have more or less of it.
    most_canvas, most_mask = (max(1, int((time > 0).sum())) for time in times)
    canvas_loss = (canvas_error * (time_image > 0)).sum() / most_canvas
    mask_loss = (mask_error * (time_mask > 0)).sum() / most_mask
    return part.of_parts * (canvas_loss + config.mask_weight * mask_loss)


def _weights(region_B1SS: torch.Tensor, config: GeneratorConfig) -> torch.Tensor:
    return region_B1SS + config.outside_weight * (1 - region_B1SS)


def _weighted(error: torch.Tensor, weight_B1SS: torch.Tensor) -> torch.Tensor:
    """Means by item; 0 where nothing counts, as in a crop without a target under `generator.outside_weight=0`."""
    weighted = error.square().mean(dim=1, keepdim=True) * weight_B1SS
    return weighted.sum(dim=(1, 2, 3)) / weight_B1SS.sum(dim=(1, 2, 3)).clamp_min(1e-6)
