"""Settings of what is trained: SAFE, the generator and the downstream segmenter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cdiff.settings.base import Range, Settings, within


class SafeConfig(Settings):
    tokens: Literal["safe", "label"] = Field(
        "safe",
        description="What conditions the generator: SAFE tokens of the reference, or, as an ablation, its type's label alone.",
    )
    channels: tuple[Annotated[int, Field(multiple_of=8, ge=8)], ...] = Field(
        (32, 64, 128),
        min_length=2,
        description="Width of the encoder's levels, stride 2 each; multiples of 8.",
    )
    dim: int = Field(128, ge=16, description="Width of a token.")
    features: Literal["conv", "clip", "dinov2"] = Field(
        "conv",
        description="What SAFE pools: a small encoder trained with the generator, or a frozen pretrained one.",
    )
    weights: str = Field(
        "", description="Of the frozen encoder: a transformers folder, hub id@revision, or s3:// URL."
    )
    layers: tuple[int, ...] = Field(
        (4, 8, 12, 16, -1),
        min_length=2,
        description="Layers of the frozen encoder that are pooled; -1 is its last.",
    )
    side: int = Field(
        224,
        ge=28,
        le=1024,
        description="Side to which crops are resized for the frozen encoder, rounded to its patches.",
    )
    spatial: int = Field(
        2, ge=0, le=4, description="Spatial tokens: a grid of this side inside the target's box."
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of training items without tokens: classifier-free guidance."
    )
    contrast_weight: float = Field(
        0.05, ge=0, description="Weight of the InfoNCE term that makes tokens scene agnostic."
    )
    temperature: float = Field(0.1, gt=0, description="Temperature of the InfoNCE term.")


class GeneratorConfig(Settings):
    backbone: Literal["pixel", "latent"] = Field(
        "pixel",
        description="A small network on pixels, trained from scratch, for CPUs; or a Stable-Diffusion-class checkpoint, adapted, for GPUs.",
    )
    weights: str = Field(
        "", description="Of the latent backbone: a diffusers folder, hub id@revision, or s3:// URL."
    )
    weights_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="In which its frozen weights are kept; bfloat16 halves their memory."
    )
    vae_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="In which its autoencoder computes; float16 is faster on GPUs (docs/gpus.md).",
    )
    prompt: str = Field("", description="Text beside the SAFE tokens, for the latent backbone; empty: none.")
    lora_rank: int = Field(
        16, ge=1, le=256, description="Rank of the low-rank change of its attention (LoRA)."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Latent backbone: compute activations again in the backward pass instead of keeping them.",
    )
    attention: Literal["auto", "flash", "efficient", "math", "sliced"] = Field(
        "auto",
        description="Latent backbone: kernel of the attention; sliced takes the least memory, and the most time.",
    )
    views: int = Field(
        0,
        ge=0,
        description="Augmented crops per target that are encoded once and kept, latents and SAFE features alike; 0: new ones in every step.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Parts that a batch is cut into, one after the other, where memory is short; a part contrasts with itself alone.",
    )
    resolution: int = Field(
        64, multiple_of=16, ge=32, le=1024, description="Side of the crop that is denoised, pixels."
    )
    unshuffle: int = Field(2, ge=1, le=8, description="Pixel-unshuffle factor of the pixel codec.")
    channels: tuple[Annotated[int, Field(multiple_of=16, ge=16)], ...] = Field(
        (64, 128, 192), min_length=2, description="Width of the denoiser's levels; multiples of 16."
    )
    attention_levels: int = Field(
        2, ge=1, description="Lowest levels that have attention: 32x32 attention is slow on CPUs."
    )
    layers: int = Field(1, ge=1, le=4, description="Residual blocks per level.")
    steps: int = Field(1500, ge=1, description="Optimiser steps.")
    batch: int = Field(16, ge=2, description="Crops per step.")
    lr: float = Field(4e-4, gt=0, description="Peak learning rate (AdamW, warm-up, cosine).")
    ema: float = Field(0.995, ge=0, lt=1, description="Decay of the averaged weights that sample.")
    mask_weight: float = Field(0.5, ge=0, description="Weight of the mask term of the loss.")
    outside_weight: float = Field(0.1, ge=0, le=1, description="Weight of pixels outside the region.")
    margin: Annotated[Range, AfterValidator(within(1, 20))] = Field(
        (1.3, 2.2), description="Crop side in longer sides of the target, lowest and highest."
    )
    min_side: int = Field(
        24, ge=8, description="Smallest crop side in photo pixels: tiny targets need surroundings."
    )
    dilation: float = Field(
        0.12,
        gt=0,
        le=1,
        description="How far the region reaches beyond the mask, in longer sides of the target.",
    )
    checkpoint_every: int = Field(250, ge=1, description="Steps between resumable checkpoints.")
    bfloat16: bool = Field(
        True, description="Autocast to bfloat16 in training; sampling is float32, so that bytes repeat."
    )
    seed: int = Field(0, ge=0, description="Seed of weights and batches.")

    @model_validator(mode="after")
    def _codec(self) -> GeneratorConfig:
        if self.resolution % self.unshuffle:
            raise ValueError(
                f"generator.resolution={self.resolution} is no multiple of generator.unshuffle={self.unshuffle}"
            )
        return self


class DownstreamConfig(Settings):
    factory: str = Field(
        "cdiff.downstream.segmenter:unet", description="package.module:factory(in_channels) -> nn.Module."
    )
    weights: str = Field("", description="safetensors file to start from; empty: random start weights.")
    longest_side: int = Field(
        256, ge=32, description="Photos are shrunk to this longer side for the segmenter; never enlarged."
    )
    crop: int = Field(
        128, multiple_of=16, ge=32, description="Side of training crops, pixels after shrinking."
    )
    base_steps: int = Field(
        0, ge=0, description="Steps on real photos alone, taken once, from which every fit goes on; 0: none."
    )
    base_share: float = Field(
        0.5,
        gt=0,
        le=4,
        description="Crops of real targets beside each batch of the base, in batches, to its last step.",
    )
    steps: int = Field(1000, ge=1, description="Optimiser steps of a fit, after the base.")
    fold_share: float = Field(
        0.5, gt=0, le=1, description="Steps of a fold model as a share of `base_steps` + `steps`."
    )
    batch: int = Field(16, ge=2, description="Real crops per step; `synthetic_share` adds more.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate (AdamW, one cycle).")
    synthetic_share: float = Field(
        0.5,
        gt=0,
        le=4,
        description="Crops beside each batch of real ones, in batches: of pairs, without pairs of real targets.",
    )
    synthetic_mix: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the crops beside a batch that show pairs, where there are any; the rest show real targets.",
    )
    synthetic_apart: bool = Field(
        True,
        description="Crops beside the batch are normalised by themselves, and batch norm's running statistics do not know "
        "them; off: one batch with the real ones, where pairs are near enough to these.",
    )
    synthetic_until: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Share of `steps` in which crops stand beside the batch; the last have the batch alone.",
    )
    target_share: float = Field(
        0.7, ge=0, le=1, description="Share of crops centred on a target; the rest lie anywhere."
    )
    focal_gamma: float = Field(2.0, ge=0, description="Focusing of the focal loss.")
    dice_weight: float = Field(1.0, ge=0, description="Weight of the Dice term beside the focal term.")
    vertical_flip: bool = Field(True, description="Photos may be turned upside down in augmentation.")
    rotate: float = Field(15.0, ge=0, le=180, description="Largest random turn in augmentation, degrees.")
    mirror: bool = Field(
        True,
        description="Scores are means over mirror images (two, four with `vertical_flip`; as many passes): "
        "lone false alarms fade.",
    )
    bfloat16: bool = Field(True, description="Autocast to bfloat16 in training.")
    seed: int = Field(0, ge=0, description="Seed of start weights and batches; the run's seed is added.")
