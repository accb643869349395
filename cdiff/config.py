"""Every setting: its default, range, unit and reason, in one place. How they are read: cdiff.config_file."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from cdiff.types import Arm


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the lowest must not exceed the highest")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]  # lowest, highest


class DataConfig(Settings):
    demo: bool = Field(False, description="Use the procedural demo data set instead of --data.")
    demo_images: int = Field(60, ge=12, le=2000, description="Photos with targets per demo domain.")
    demo_side: int = Field(128, ge=64, le=1024, description="Side of a demo photo, pixels.")
    train_share: float = Field(0.4, gt=0, lt=1, description="Share of each type's groups that trains.")
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="Share that accepts or rejects rounds; the rest tests."
    )
    normal_share: float = Field(
        0, ge=0, lt=1, description="Share of the groups without targets that trains; 0: `train_share`."
    )
    calibration_share: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="Share of a type's training groups that the generator never sees: gate thresholds.",
    )
    split_seed: int = Field(0, ge=0, description="Seed of the split, and of the draw of `train_images`.")
    train_images: int = Field(
        0, ge=0, description="Train on this many photos with targets, drawn by seed; 0: on all."
    )
    rest: Literal["unused", "validation", "test"] = Field(
        "unused",
        description="Where the photos go that `train_images` leaves out, if nothing of their object trains.",
    )
    pool_below: int = Field(3, ge=1, description="Types with fewer training targets are pooled into one.")
    leaks: Literal["drop", "stop"] = Field(
        "drop", description="Near-identical photos across given splits: drop the train copy, or stop."
    )
    duplicate_distance: float = Field(
        0.02, ge=0, le=1, description="Mean absolute pixel difference under which two aligned photos are one."
    )
    skip_unpaired: bool = Field(False, description="Leave photos without a mask out instead of stopping.")
    max_pixels: int = Field(50_000_000, ge=1024, description="Refuse larger images before decoding: bombs.")
    max_bytes: int = Field(100_000_000, ge=1024, description="Refuse larger files.")
    cache_megabytes: int = Field(1500, ge=0, description="Decoded photos kept in memory per process.")

    @model_validator(mode="after")
    def _split(self) -> DataConfig:
        if self.train_share + self.validation_share >= 1:
            raise ValueError("train_share + validation_share must be under 1: the rest tests")
        return self


class SafeConfig(Settings):
    tokens: Literal["safe", "label"] = Field(
        "safe",
        description="What conditions the generator: SAFE tokens of the reference, or, as an ablation, its type's label alone.",
    )
    channels: tuple[int, ...] = Field(
        (32, 64, 128), min_length=2, description="Width of the encoder's levels, stride 2 each."
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
    channels: tuple[int, ...] = Field(
        (64, 128, 192), min_length=2, description="Width of the denoiser's levels."
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
    margin: Range = Field(
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


class SamplingConfig(Settings):
    mode: Literal["joint", "mask_first", "given_mask"] = Field(
        "mask_first", description="What is drawn in which order."
    )
    steps: int = Field(
        16,
        ge=1,
        le=1000,
        description="Denoising steps from pure noise; a start at tau runs the last tau of them.",
    )
    micro_batch: int = Field(
        8, ge=1, description="Fixed batch of the sampler, padded: bytes do not depend on neighbours."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="In which the denoiser computes; only in float32 on a CPU do bytes repeat."
    )
    safe_strength: float = Field(
        2.0, ge=0, le=20, description="Classifier-free guidance on the SAFE tokens; 1 is none."
    )
    guidance_interval: Range = Field(
        (0.0, 1.0),
        description="Part of the path on which there is guidance, from 0 (its clean end) to 1 (its noisy start); elsewhere one pass of the "
        "network instead of two.",
    )
    start_strength: float = Field(
        0.4, ge=0, le=1, description="Noise on the pasted real target: 0 copy-paste, 1 pure noise."
    )
    weakness_strength: float = Field(1.0, ge=0, le=10, description="Weight of the difficulty token (arm B3).")
    gradient_strength: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Root mean square by which each step moves the expected image uphill (arm B4), of [-1, 1].",
    )
    angle: float = Field(10.0, ge=0, le=180, description="Largest turn of a reference, degrees.")
    scale: Range = Field((0.8, 1.25), description="Range of a reference's scaling.")
    flip: bool = Field(True, description="References may be mirrored.")
    elastic: float = Field(
        0.05, ge=0, le=0.3, description="Elastic deformation, share of the target's longer side."
    )
    jitter: float = Field(
        0.1, ge=0, le=1, description="Shift from a real target's own position, share of the photo's side."
    )
    crowded: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Where a photo's own targets leave no room, a new one may be smaller by this factor, to lie beside them; 1: it "
        "keeps its size and meets them.",
    )
    repaint: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Where photos without targets lack: share that repaints the photo's own target.",
    )

    @model_validator(mode="after")
    def _parts(self) -> SamplingConfig:
        if not 0 <= self.guidance_interval[0] <= self.guidance_interval[1] <= 1:
            raise ValueError("guidance_interval: it lies between 0 and 1")
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


class WasmConfig(Settings):
    folds: int = Field(2, ge=2, description="Cross-fitting folds of the training split.")
    pairs: int = Field(64, ge=1, description="Accepted pairs per round.")
    budget: Literal["targets", "prior", "thompson"] = Field(
        "thompson",
        description="How slices share the budget: as many pairs for each target (no weakness counts), by their prior alone, or, "
        "once gains are measured, the weak share by Thompson sampling.",
    )
    gain_prior: float = Field(
        0.05, ge=0, description="Believed gain of the most promising slice, mean soft Dice per 100 pairs."
    )
    gain_spread: float = Field(0.05, gt=0, description="Standard deviation of that belief.")
    probe_steps: int = Field(
        0,
        ge=0,
        description="Steps of a short fit with pairs of every slice and of one without, from which a benchmark's budget learns "
        "gains before it is spent; 0: none.",
    )
    start_strengths: tuple[float, ...] = Field(
        (),
        description="Start strengths that the budget learns to choose from, slice by slice; empty: the one of sampling.",
    )
    uniform: float = Field(0.2, ge=0, le=1, description="Share drawn without regard to weakness.")
    easy: float = Field(0.2, ge=0, le=1, description="Share below the difficulty band.")
    band: Range = Field((0.4, 0.85), description="Wanted difficulty: rank among the valid pairs of a type.")
    min_targets: int = Field(8, ge=1, description="Smaller slices merge into their parent.")
    arm: Arm = Field(
        "B1",
        description="How hard samples are mined: B0 random seeds, B1 best of K, B2 noise miner, B3 difficulty token, "
        "B4 gradient; B3 also with B1 or B2.",
    )
    candidates: int = Field(3, ge=1, description="K of best-of-K.")
    fraction: float = Field(
        0.25, gt=0, le=1, description="Share of the steps run before candidates are judged."
    )
    kappa: float = Field(
        2.0,
        gt=0,
        description="Cap of the loss that counts as difficulty: beyond it a mask is likelier wrong than hard.",
    )
    miner_steps: int = Field(60, ge=1, description="Optimiser steps of the noise miner (B2), each round.")
    miner_lr: float = Field(2e-3, gt=0, description="Its learning rate (AdamW).")
    miner_beta: float = Field(
        0.2,
        ge=0,
        description="Weight of its divergence from plain noise, per pixel of the region, against nats of loss.",
    )
    token_steps: int = Field(
        100, ge=1, description="Optimiser steps of the difficulty token (B3), each round."
    )
    token_lr: float = Field(3e-3, gt=0, description="Its learning rate (AdamW).")
    negatives: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Hard negatives beside the pairs, as a share of these: false alarms shown again with an empty mask.",
    )
    oversample: float = Field(1.5, ge=1, description="Tasks planned per wanted pair.")
    pool: int = Field(200, ge=1, description="Candidates per type that a benchmark's arms choose from.")
    shard: int = Field(16, ge=1, description="Tasks per generator call, and per Parquet shard.")

    @model_validator(mode="after")
    def _shares(self) -> WasmConfig:
        if self.uniform + self.easy > 1:
            raise ValueError("uniform + easy must not exceed 1: the rest is aimed at weaknesses")
        return self


class GateConfig(Settings):
    checks: bool = Field(
        True,
        description="Turn away pairs that are not true; off, to measure what that is worth: only empty ones and broken pastes.",
    )
    percentile: float = Field(
        5.0, ge=0, le=50, description="Percentile of held-out real targets that sets the thresholds."
    )
    min_targets: int = Field(10, ge=1, description="Types with fewer held-out targets use pooled thresholds.")
    duplicate: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Mean absolute difference inside the crop under which a pair repeats another.",
    )
    stop_invalid: float = Field(
        1 / 3, gt=0, le=1, description="A slice stops when more than this share is invalid ..."
    )
    stop_after: int = Field(24, ge=1, description="... of at least this many attempts.")


class ResourceConfig(Settings):
    generators: int = Field(2, ge=1, description="Generator actors.")
    downstreams: int = Field(2, ge=1, description="Downstream actors: folds are fitted side by side.")
    cpus: float = Field(
        0.4,
        ge=0,
        description="CPUs reserved per generator, extractor and downstream actor; 0.4: five fit two cores.",
    )
    gpus: float = Field(0.0, ge=0, description="GPUs reserved per such actor; fractions share a card.")
    generator_gpus: float | None = Field(
        None, ge=0, description="Of a generator actor, where it wants another share than `gpus`."
    )
    downstream_gpus: float | None = Field(None, ge=0, description="Of a downstream actor, likewise.")
    threads: int = Field(
        1, ge=1, description="Torch threads per actor: two actors of one thread do more than one of two."
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where actors compute.")
    in_flight: int = Field(2, ge=1, description="Calls queued per actor.")
    retries: int = Field(2, ge=0, description="Further tries of a failed call.")
    wait_seconds: float = Field(
        60.0, gt=0, description="Longest wait for the cluster to offer the resources."
    )
    keep: Literal["all", "needed"] = Field(
        "all",
        description="Checkpoints that stay when a round is committed: all, or those that a kept pair, the best model or a step to come names.",
    )
    stall_timeout_s: float = Field(
        3600.0,
        gt=0,
        description="Seconds without a step or a result after which a run stops; the same command goes on. Above the time of what tells no "
        "steps: a shard of pairs, frames and tokens of all photos, the comparison of three models on validation.",
    )


class TrainConfig(Settings):
    workers: int = Field(
        1,
        ge=1,
        description="Processes that train the generator together, as Ray Train places them; 1: one actor. A batch is cut among them.",
    )
    least_workers: int = Field(
        1,
        ge=1,
        description="With fewer nodes left, training goes on with as few as this; the losses stay the same.",
    )
    segmenters: bool = Field(
        False,
        description="Also fits of segmenters, each by all workers; worth it for large networks of your own.",
    )
    cpus: float = Field(1.0, gt=0, description="CPUs reserved per worker.")
    gpus: float = Field(0.0, ge=0, description="GPUs reserved per worker.")
    failures: int = Field(3, ge=0, description="Times that a training starts again from its last checkpoint.")


class TrackingConfig(Settings):
    experiment: str = Field("cdiff", description="MLflow experiment.")
    name: str = Field("", description="Run name; empty: the run folder's.")
    uri: str = Field("", description="MLflow tracking URI; flag and MLFLOW_TRACKING_URI go before it.")

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, uri: str) -> str:
        """Settings are written to the run folder, MLflow and the report."""
        if re.search(r"//[^/@\s]*:[^/@\s]*@", uri):
            raise ValueError(
                "a password does not belong into settings: give the whole URI as MLFLOW_TRACKING_URI"
            )
        return uri


class Config(Settings):
    """The whole configuration of a run."""

    seed: int = Field(0, ge=0, description="Seed of the run: fits, plans and pairs.")
    rounds: int = Field(2, ge=1, description="Rounds of rank, plan, generate, gate, fit, commit.")
    data: DataConfig = DataConfig()
    safe: SafeConfig = SafeConfig()
    generator: GeneratorConfig = GeneratorConfig()
    sampling: SamplingConfig = SamplingConfig()
    downstream: DownstreamConfig = DownstreamConfig()
    wasm: WasmConfig = WasmConfig()
    gate: GateConfig = GateConfig()
    resources: ResourceConfig = ResourceConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _pretrained_parts(self) -> Config:
        generator, safe = self.generator, self.safe
        if (generator.backbone == "latent") != bool(generator.weights):
            raise ValueError(
                "generator.weights names the checkpoint of generator.backbone=latent: give both or none"
            )
        if (safe.features != "conv") != bool(safe.weights):
            raise ValueError(
                "safe.weights names the encoder of safe.features=clip or dinov2: give both or none"
            )
        latent_alone = ("prompt", "weights_dtype", "lora_rank", "gradient_checkpointing", "attention")
        for name in latent_alone:
            if generator.backbone != "latent" and getattr(generator, name) != getattr(
                GeneratorConfig(), name
            ):
                raise ValueError(f"generator.{name}: only generator.backbone=latent has it")
        if generator.batch % generator.accumulate:
            raise ValueError("generator.accumulate: generator.batch must be a multiple of it")
        if generator.views and safe.features == "conv":
            raise ValueError(
                "generator.views keeps features: take a frozen encoder, safe.features=clip or dinov2"
            )
        if generator.weights_dtype == "bfloat16" and not (
            self.sampling.dtype == "bfloat16" and generator.bfloat16
        ):
            raise ValueError(
                "generator.weights_dtype=bfloat16 computes in bfloat16 alone: set sampling.dtype=bfloat16 and generator.bfloat16=true"
            )
        return self

    @model_validator(mode="after")
    def _candidates_share_a_mask(self) -> Config:
        if self.sampling.mode == "joint" and self.wasm.arm not in ("B0", "B3"):
            raise ValueError(
                f"sampling.mode=joint draws a mask per candidate, arm {self.wasm.arm} compares or moves images of one mask: "
                "use B0 or B3"
            )
        return self
