"""The training objective: rectified flow on image and mask with independent times, weighted to the region.

    x_t = (1 - t) x_0 + t noise,    v = noise - x_0 = (x_t - x_0) / t     (Liu et al., 2209.03003)

The network predicts x_0; the loss is that of v, |x_0-hat - x_0|^2 / t^2, bounded at small t.
"""

from __future__ import annotations

import torch

from cdiff.config import GeneratorConfig
from cdiff.generator.denoiser import JointDenoiser

# How often each use of the network is practised: joint, independent times, given mask, mask from image, mask first.
_USES = torch.tensor([0.35, 0.15, 0.25, 0.125, 0.125])
_SMALL_TIME = 0.25  # below it the weight 1 / t^2 grows no further: almost clean inputs teach little


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


def flow_loss(
    denoiser: JointDenoiser,
    image_B3RR: torch.Tensor,
    mask_B1RR: torch.Tensor,
    region_B1RR: torch.Tensor,
    tokens_BND: torch.Tensor,
    config: GeneratorConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the velocity, inside the region 1 and outside `outside_weight`, normalised by area per item.

    Args:
        image_B3RR, mask_B1RR: clean, in [-1, 1]; region_B1RR in {0, 1}.
    """
    batch, device = image_B3RR.shape[0], image_B3RR.device
    time_image, time_mask = (time.to(device) for time in draw_times(batch, generator))
    noise_image = torch.randn(image_B3RR.shape, generator=generator).to(device)
    noise_mask = torch.randn(mask_B1RR.shape, generator=generator).to(device)
    clean_image, clean_mask = denoiser(
        noised(image_B3RR, noise_image, time_image),
        noised(mask_B1RR, noise_mask, time_mask),
        time_image,
        time_mask,
        image_B3RR,
        region_B1RR,
        tokens_BND,
    )
    weight = region_B1RR + config.outside_weight * (1 - region_B1RR)
    image_error = (
        _weighted(clean_image.float() - image_B3RR, weight) / time_image.clamp_min(_SMALL_TIME).square()
    )
    mask_error = _weighted(clean_mask.float() - mask_B1RR, weight) / time_mask.clamp_min(_SMALL_TIME).square()
    # What goes in clean (time 0) has nothing to learn.
    image_on, mask_on = (time_image > 0).float(), (time_mask > 0).float()
    return (image_error * image_on).sum() / image_on.sum().clamp_min(1) + config.mask_weight * (
        (mask_error * mask_on).sum() / mask_on.sum().clamp_min(1)
    )


def _weighted(error: torch.Tensor, weight_B1RR: torch.Tensor) -> torch.Tensor:
    return (error.square().mean(dim=1, keepdim=True) * weight_B1RR).sum(dim=(1, 2, 3)) / weight_B1RR.sum(
        dim=(1, 2, 3)
    )
