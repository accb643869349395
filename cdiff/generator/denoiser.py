"""The joint denoiser: image and mask in one network, each with its own time.

diffusers' UNet2DConditionModel takes the second time as `class_labels` (class_embed_type="timestep"), so no fork is
needed. The two times make four uses of one network: joint synthesis (t_x = t_m), mask first and then image, image for
a given mask (t_m = 0), and mask from image (t_x = 0), in the manner of UniDiffuser (2303.06555).

Images are denoised on a canvas: pixels here, the latents of an autoencoder in cdiff.generator.latent. Masks always have
the crop's own resolution R. Times lie in [0, 1]; 0 is clean, 1 pure noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cdiff.config import GeneratorConfig, SafeConfig
from cdiff.generator.codec import PixelCodec
from cdiff.generator.compiling import Compiled
from cdiff.generator.recorded import Recorded

TIME_SCALE = 1000.0  # the sinusoidal embedding expects times of this range
SMALL_TIME = 0.25  # below it the weight 1 / t^2 grows no further: almost clean inputs teach little


def hide(image: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """What a network is shown of a photo: what lies in the region, 1 where may be painted, is hidden."""
    return image * (1 - region)


class Denoiser(nn.Module):
    """What sampler and objective ask of a backbone. As it stands, the canvas is the image itself, [B, 3, R, R]."""

    unet: Any
    lossy = False  # whether an image on its way to a canvas and back is another one
    _recorded: Recorded | None = None

    def for_sampling(self, dtype: torch.dtype, compiled: bool) -> None:
        """Make it ready to be sampled from, and never trained again: on a card, recorded; if wanted, compiled.

        Args:
            dtype: in which the sampler computes.
            compiled: by torch.compile, whenever a new size of batch is met: minutes once, and faster from then on.
        """
        self.requires_grad_(False).eval()
        # what a training left, in another type than the weights, keeps a network from being compiled
        self.zero_grad(set_to_none=True)
        if compiled:
            self.unet = Compiled(self.unet)
        if next(self.parameters()).is_cuda:
            self._recorded = Recorded()

    def forget_recordings(self, above: int = 0) -> None:
        """Free what recordings hold of a card's memory, if there is one of a larger batch than this."""
        if self._recorded is not None:
            self._recorded.forget(above)

    def canvas(self, image_B3RR: torch.Tensor) -> torch.Tensor:
        """What of an image is denoised, [B, C, S, S]; images in [-1, 1]."""
        return image_B3RR

    def image(self, canvas_BCSS: torch.Tensor) -> torch.Tensor:
        """The image [B, 3, R, R] of a canvas; differentiable."""
        return canvas_BCSS

    def bounded(self, canvas_BCSS: torch.Tensor) -> torch.Tensor:
        """An expected canvas without values that no image has."""
        return canvas_BCSS.clamp(-1, 1)

    def place(self, region_B1RR: torch.Tensor) -> torch.Tensor:
        """The region on the canvas, [B, 1, S, S] in {0, 1}: all that has a pixel in it."""
        return region_B1RR

    def weight(self, time_B: torch.Tensor) -> torch.Tensor:
        """By which the squared error of an expected canvas counts in training, from the time of its noise."""
        return time_B.clamp_min(SMALL_TIME).square().reciprocal()

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `evaluate`; recorded on a card, once it is ready for sampling and where no gradient is wanted."""
        if self._recorded is None or torch.is_grad_enabled():
            return self.evaluate(*given)
        canvas, mask = self._recorded(self.evaluate, *given)
        return canvas, mask

    def evaluate(
        self,
        canvas_BCSS: torch.Tensor,
        mask_B1RR: torch.Tensor,
        time_image_B: torch.Tensor,
        time_mask_B: torch.Tensor,
        known_BKSS: torch.Tensor,
        region_B1RR: torch.Tensor,
        tokens_BND: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean canvas and the clean mask [B, 1, R, R] that are behind noisy ones.

        Args:
            known_BKSS, region_B1RR: the surroundings, a canvas of what `hide` leaves, and where may be painted.
            tokens_BND: SAFE tokens.
        """
        raise NotImplementedError


class PixelDenoiser(Denoiser):
    """A network of its own on pixels, for CPUs: predicts the clean image and the clean mask.

    Clean ones, not velocities: a small network in pixel space that is short of training then errs by being smooth, not
    by leaving noise (Li and He, 2511.13720).
    """

    def __init__(self, config: GeneratorConfig, safe: SafeConfig) -> None:
        super().__init__()
        from diffusers import (
            UNet2DConditionModel,  # here: it takes seconds, and who makes no network is spared them
        )

        self.codec = PixelCodec(config.unshuffle)
        levels = len(config.channels)
        plain = levels - min(config.attention_levels, levels)
        down = ["DownBlock2D"] * plain + ["CrossAttnDownBlock2D"] * (levels - plain)
        up = ["CrossAttnUpBlock2D"] * (levels - plain) + ["UpBlock2D"] * plain
        width = self.codec.image_channels + self.codec.mask_channels
        self.unet: Any = UNet2DConditionModel(
            sample_size=config.resolution // config.unshuffle,
            in_channels=2 * width,  # noisy image and mask, background and region
            out_channels=width,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=tuple(config.channels),
            layers_per_block=config.layers,
            cross_attention_dim=safe.dim,
            attention_head_dim=4,
            norm_num_groups=16,
            class_embed_type="timestep",
        )

    def evaluate(
        self,
        canvas_BCSS: torch.Tensor,
        mask_B1RR: torch.Tensor,
        time_image_B: torch.Tensor,
        time_mask_B: torch.Tensor,
        known_BKSS: torch.Tensor,
        region_B1RR: torch.Tensor,
        tokens_BND: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        encode = self.codec.encode
        codes = torch.cat([encode(part) for part in (canvas_BCSS, mask_B1RR, known_BKSS, region_B1RR)], dim=1)
        clean = self.unet(
            codes,
            time_image_B * TIME_SCALE,
            encoder_hidden_states=tokens_BND,
            class_labels=time_mask_B * TIME_SCALE,
        ).sample
        image, mask = clean.split([self.codec.image_channels, self.codec.mask_channels], dim=1)
        return self.codec.decode(image), self.codec.decode(mask)
