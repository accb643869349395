"""The joint denoiser: image and mask in one network, each with its own time.

diffusers' UNet2DConditionModel takes the second time as `class_labels` (class_embed_type="timestep"), so no fork is
needed. The two times make four uses of one network: joint synthesis (t_x = t_m), mask first and then image, image for
a given mask (t_m = 0), and mask from image (t_x = 0), in the manner of UniDiffuser (2303.06555).
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from cdiff.config import GeneratorConfig, SafeConfig
from cdiff.generator.codec import PixelCodec

TIME_SCALE = 1000.0  # the sinusoidal embedding expects times of this range


class JointDenoiser(nn.Module):
    """Predicts the clean image and the clean mask.

    Clean ones, not velocities: a small network in pixel space that is short of training then errs by being smooth, not
    by leaving noise (Li and He, 2511.13720).
    """

    def __init__(self, config: GeneratorConfig, safe: SafeConfig) -> None:
        super().__init__()
        self.codec = PixelCodec(config.unshuffle)
        levels = len(config.channels)
        plain = levels - min(config.attention_levels, levels)
        down = ["DownBlock2D"] * plain + ["CrossAttnDownBlock2D"] * (levels - plain)
        up = ["CrossAttnUpBlock2D"] * (levels - plain) + ["UpBlock2D"] * plain
        width = self.codec.image_channels + self.codec.mask_channels
        self.unet = UNet2DConditionModel(
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

    def forward(
        self,
        image_B3RR: torch.Tensor,
        mask_B1RR: torch.Tensor,
        time_image_B: torch.Tensor,
        time_mask_B: torch.Tensor,
        background_B3RR: torch.Tensor,
        region_B1RR: torch.Tensor,
        tokens_BND: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean image [B, 3, R, R] and mask [B, 1, R, R] that are behind the noisy ones.

        Args:
            image_B3RR, mask_B1RR: noisy image and mask.
            time_image_B, time_mask_B: their times in [0, 1]; 0 is clean, 1 pure noise.
            background_B3RR: the photo in [-1, 1]; what lies inside the region is hidden here.
            region_B1RR: 1 where the generator may paint, else 0.
            tokens_BND: SAFE tokens.
        """
        encode = self.codec.encode
        known = background_B3RR * (1 - region_B1RR)
        codes = torch.cat([encode(part) for part in (image_B3RR, mask_B1RR, known, region_B1RR)], dim=1)
        clean = self.unet(  # type: ignore[operator]  # a torch module that its stubs hide
            codes,
            time_image_B * TIME_SCALE,
            encoder_hidden_states=tokens_BND,
            class_labels=time_mask_B * TIME_SCALE,
        ).sample
        image, mask = clean.split([self.codec.image_channels, self.codec.mask_channels], dim=1)
        return self.codec.decode(image), self.codec.decode(mask)
