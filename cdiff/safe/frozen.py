"""Frozen image features for SAFE: CLIP or DINOv2, several layers, at any size of crop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cdiff.config import SafeConfig
from cdiff.errors import ConfigError

# Mean and standard deviation of what the encoders were trained on, of [0, 1].
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FrozenEncoder(nn.Module):
    """A pretrained vision transformer as feature maps [B, C, h, w], one per layer; h x w are its patches.

    Source: CLIP (Radford et al., 2103.00020), DINOv2 (Oquab et al., 2304.07193).

    Args:
        folder: that transformers' save_pretrained wrote.
    Raises:
        ConfigError: transformers is not installed, the folder holds no such encoder, or it has no such layer.
    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, config: SafeConfig, folder: Path) -> None:
        super().__init__()
        self.network: Any = _network(config.features, folder).requires_grad_(False).eval()
        known = self.network.config
        self.clip = config.features == "clip"
        self.patch = int(known.patch_size)
        self.side = max(1, round(config.side / self.patch)) * self.patch
        # tokens that are no patches come first
        self.extra = 1 + int(getattr(known, "num_register_tokens", 0))
        deepest = int(known.num_hidden_layers)
        for layer in config.layers:
            if not -deepest <= layer <= deepest or layer == 0:
                raise ConfigError(
                    f"safe.layers: {folder} has layers 1 to {deepest}, or -1 for its last, not {layer}."
                )
        self.layers = tuple(layer if layer > 0 else deepest + 1 + layer for layer in config.layers)
        self.widths = (int(known.hidden_size),) * len(self.layers)
        mean, spread = (torch.tensor(part).view(1, 3, 1, 1) for part in (_CLIP if self.clip else _IMAGENET))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("spread", spread, persistent=False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """It never trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
        """Of crops in [-1, 1]."""
        # in float32 also where training computes in less: what is kept, and what a bank holds, must be the same
        with torch.autocast(image_B3HW.device.type, enabled=False):
            return self._maps(image_B3HW)

    def _maps(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
        image = F.interpolate(
            image_B3HW.float(), (self.side, self.side), mode="bilinear", antialias=True, align_corners=False
        )
        pixels = ((image + 1) / 2 - self.mean) / self.spread
        options = {"interpolate_pos_encoding": True} if self.clip else {}
        hidden = self.network(pixels, output_hidden_states=True, **options).hidden_states
        cells = self.side // self.patch
        return [
            hidden[layer][:, self.extra :].transpose(1, 2).unflatten(2, (cells, cells))
            for layer in self.layers
        ]


def _network(kind: str, folder: Path) -> Any:
    try:
        from transformers import AutoModel, CLIPVisionModel  # here: only who asks for such features needs it
    except ImportError:
        raise ConfigError(f"safe.features={kind} needs transformers: pip install 'cdiff[latent]'.") from None
    known = CLIPVisionModel if kind == "clip" else AutoModel
    try:
        network: Any = known.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"safe.weights: {folder} holds no {kind} encoder: {error}\nGive a folder that transformers' save_pretrained wrote, with safetensors."
        ) from None
    wanted = {"clip": ("clip_vision_model",), "dinov2": ("dinov2", "dinov2_with_registers")}[kind]
    if network.config.model_type not in wanted:
        raise ConfigError(f"safe.weights: {folder} holds a {network.config.model_type}, not {kind}.")
    return network
