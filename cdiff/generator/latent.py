"""The latent backbone: a Stable-Diffusion-class checkpoint that denoises image latents and a pixel mask together.

    canvas   latents of the checkpoint's autoencoder, [B, 4, R/8, R/8]
    mask     full resolution; enters and leaves by pixel-unshuffle (8 x 8 -> 64 channels): thin cracks survive
    network  the checkpoint's UNet with more input columns (0 at first), more output channels, a second time (its last layer 0 at
             first), LoRA on its attention (0 at first), and trained keys and values of the cross-attention: it begins as the original

The sampler walks the straight path x_t = (1 - t) x_0 + t noise. A checkpoint was trained on sqrt(a) x_0 + sqrt(1 - a) noise: the
same picture at another scale, at the step where noise and signal stand in the same ratio, sigma = t / (1 - t). So one Euler step on the
path is one of DDIM (Song et al., 2010.02502), and what the checkpoint predicts (noise, velocity or sample) gives x_0-hat.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cdiff.config import GeneratorConfig, SafeConfig
from cdiff.errors import ConfigError
from cdiff.generator.codec import PixelCodec
from cdiff.generator.compiling import Compiled
from cdiff.generator.denoiser import TIME_SCALE, Denoiser
from cdiff.generator.pretrained import (
    InOneType,
    adapted_unet,
    attend_by,
    autoencoder,
    merged,
    noise_levels,
    prompt_tokens,
)


class LatentDenoiser(Denoiser):
    """As `Denoiser`, on the latents of a checkpoint in a diffusers folder.

    Args:
        folder: with unet, vae and scheduler; text_encoder and tokenizer where a prompt is given.
    Raises:
        ConfigError: it is no checkpoint of this class, or does not fit the resolution.
    """

    lossy = True
    _at_once = 1  # images that pass the autoencoder together: that bounds its memory
    sigmas: torch.Tensor
    text: torch.Tensor | None

    def __init__(self, config: GeneratorConfig, safe: SafeConfig, folder: Path) -> None:
        super().__init__()
        self.vae = autoencoder(folder, getattr(torch, config.vae_dtype))
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.codec = PixelCodec(factor)
        self.unet = adapted_unet(folder, self.codec.mask_channels, config)
        self.inpaints = self.unet.config.cdiff_inpaints
        halvings = 2 ** (len(self.unet.config.block_out_channels) - 1)
        if config.resolution % (factor * halvings):
            raise ConfigError(
                f"generator.resolution={config.resolution}: this checkpoint takes multiples of {factor * halvings}."
            )
        levels, self.predicts = noise_levels(folder)
        self.register_buffer("sigmas", ((1 - levels) / levels).sqrt(), persistent=False)
        self.words = nn.Linear(safe.dim, self.unet.config.cross_attention_dim)
        text = prompt_tokens(folder, config.prompt) if config.prompt else None
        self.register_buffer("text", text, persistent=False)  # [1, T, D]
        attend_by(self.unet, config.attention)

    def for_sampling(self, dtype: torch.dtype, compiled: bool) -> None:
        """As of all backbones; LoRA is added to the weights that it changes, and these are cast once instead of in every step."""
        self.unet = merged(self.unet, dtype)
        super().for_sampling(dtype, compiled)
        self.unet = InOneType(self.unet, dtype)
        if compiled:  # images pass it one by one: its halves meet a single size
            self.vae.encoder, self.vae.decoder = Compiled(self.vae.encoder), Compiled(self.vae.decoder)
        elif self.sigmas.is_cuda:  # the three of a task take the time of two
            self._at_once = 3

    def canvas(self, image_B3RR: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), _exact(image_B3RR):
            parts = image_B3RR.to(self.vae.dtype).split(self._at_once)
            latents = torch.cat([self.vae.encode(part).latent_dist.mode() for part in parts]).float()
        return self._finite(latents, image_B3RR) * self.vae.config.scaling_factor

    def image(self, canvas_BCSS: torch.Tensor) -> torch.Tensor:
        with _exact(canvas_BCSS):
            latents = canvas_BCSS.float() / self.vae.config.scaling_factor
            parts = latents.to(self.vae.dtype).split(self._at_once)
            image = torch.cat([self.vae.decode(part).sample for part in parts]).float()
        return self._finite(image, canvas_BCSS).clamp(-1, 1)

    def bounded(self, canvas_BCSS: torch.Tensor) -> torch.Tensor:
        return canvas_BCSS

    def place(self, region_B1RR: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(region_B1RR, self.codec.factor)

    def weight(self, time_B: torch.Tensor) -> torch.Tensor:
        """So that the error is that of what the checkpoint predicts."""
        sigma = self._sigma(time_B)
        if self.predicts == "epsilon":
            return sigma.square().reciprocal()
        return 1 + sigma.square().reciprocal() if self.predicts == "v_prediction" else torch.ones_like(sigma)

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
        time, sigma = (part.view(-1, 1, 1, 1) for part in (time_image_B, self._sigma(time_image_B)))
        noisy = canvas_BCSS / ((1 - time).square() + time.square()).sqrt()
        seen = [noisy, self.place(region_B1RR), known_BKSS] if self.inpaints else [noisy, known_BKSS]
        codes = torch.cat([*seen, self.codec.encode(mask_B1RR), self.codec.encode(region_B1RR)], dim=1)
        words = self.words(tokens_BND)
        if self.text is not None:
            words = torch.cat([self.text.expand(len(words), -1, -1).to(words.dtype), words], dim=1)
        out = self.unet(
            codes,
            self.step_of(sigma.flatten()),
            encoder_hidden_states=words,
            class_labels=time_mask_B * TIME_SCALE,
        ).sample.float()
        channels = canvas_BCSS.shape[1]
        return self._clean(noisy, out[:, :channels], sigma), self.codec.decode(out[:, channels:])

    def step_of(self, sigma_B: torch.Tensor) -> torch.Tensor:
        """The checkpoint's own step, a real number, at which noise and signal stand in this ratio."""
        table = self.sigmas.log()
        wanted = sigma_B.log()
        upper = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        below, above = table[upper - 1], table[upper]
        return (upper - 1) + ((wanted - below) / (above - below)).clamp(0, 1)

    def _finite(self, made: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        lost = self.vae.dtype != torch.float32 and not torch.isfinite(made).all()
        if lost and torch.isfinite(given).all():  # otherwise it was lost before
            raise ConfigError(
                "generator.vae_dtype=float16: this checkpoint's autoencoder leaves the range of that type. Set generator.vae_dtype=float32."
            )
        return made

    def _sigma(self, time_B: torch.Tensor) -> torch.Tensor:
        """Noise by signal at a time, within what the checkpoint has seen."""
        return (time_B / (1 - time_B).clamp_min(1e-6)).clamp(self.sigmas[0], self.sigmas[-1])

    def _clean(self, noisy: torch.Tensor, told: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """x_0-hat from what the checkpoint predicts for a noisy canvas of unit variance."""
        signal = (1 + sigma.square()).rsqrt()
        noise = sigma * signal
        if self.predicts == "epsilon":
            return (noisy - noise * told) / signal
        return signal * noisy - noise * told if self.predicts == "v_prediction" else told


def _exact(tensor: torch.Tensor) -> torch.autocast:
    """The autoencoder works in its own type, whatever the sampler's: bfloat16 leaves grain that a segmenter could learn (docs/gpus.md)."""
    return torch.autocast(tensor.device.type, enabled=False)
