"""Settings of a round: how pairs are sampled, how hard ones are mined, what is turned away."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cdiff.settings.base import Range, Settings, ShareRange, within
from cdiff.types import Arm


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
        8,
        ge=1,
        description="Fixed batch of the sampler, padded: bytes do not depend on neighbours. On a card, guidance doubles it.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="In which the denoiser computes; only in float32 on a CPU do bytes repeat."
    )
    safe_strength: float = Field(
        2.0, ge=0, le=20, description="Classifier-free guidance on the SAFE tokens; 1 is none."
    )
    guidance_interval: ShareRange = Field(
        (0.0, 1.0),
        description="Part of the path on which there is guidance, from 0 (its clean end) to 1 (its noisy start); elsewhere half of the "
        "network's work.",
    )
    start_strength: float = Field(
        0.4, ge=0, le=1, description="Noise on the pasted real target: 0 copy-paste, 1 pure noise."
    )
    weakness_strength: float = Field(1.0, ge=0, le=10, description="Weight of the difficulty token (arm B3).")
    gradient_strength: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Length by which each step moves the expected image's colours, of [-1, 1], uphill (arm B4): root mean square over pixels.",
    )
    angle: float = Field(10.0, ge=0, le=180, description="Largest turn of a reference, degrees.")
    scale: Annotated[Range, AfterValidator(within(0.05, 20))] = Field(
        (0.8, 1.25), description="Range of a reference's scaling."
    )
    size: Literal["pixels", "share"] = Field(
        "pixels",
        description="What a reference keeps on a photo of another size, before it is scaled: its pixels, as on photos of one camera, or its share of the photo, or of the object where one stands out.",
    )
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


def _unlike_shares(values: tuple[float, ...]) -> tuple[float, ...]:
    """Refuses a value outside [0, 1], and one that is there twice."""
    if not all(0 <= value <= 1 for value in values):
        raise ValueError("each must lie between 0 and 1")
    if len(set(values)) < len(values):
        raise ValueError("each must differ from the others: give it once")
    return values


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
        description="Steps of a short fit with pairs of every slice and of one without, from which the budgets of all rounds learn "
        "gains before the first is spent; 0: none.",
    )
    start_strengths: Annotated[tuple[float, ...], AfterValidator(_unlike_shares)] = Field(
        (),
        description="Start strengths that the budget learns to choose from, slice by slice; empty: the one of sampling.",
    )
    uniform: float = Field(0.2, ge=0, le=1, description="Share drawn without regard to weakness.")
    easy: float = Field(0.2, ge=0, le=1, description="Share below the difficulty band.")
    band: ShareRange = Field(
        (0.4, 0.85),
        description="Wanted difficulty: rank among the valid pairs of a type, 0 the easiest, 1 the hardest.",
    )
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
        300, ge=1, description="Optimiser steps of the difficulty token (B3), each round."
    )
    token_lr: float = Field(1e-2, gt=0, description="Its learning rate (AdamW).")
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
            raise ValueError(
                f"wasm.uniform={self.uniform:g} + wasm.easy={self.easy:g} must not exceed 1: the rest is aimed at weaknesses"
            )
        return self


class GateConfig(Settings):
    checks: bool = Field(
        True,
        description="Turn away pairs that are not true; off, to measure what that is worth: only empty ones and broken pastes.",
    )
    percentile: float = Field(
        5.0,
        ge=0,
        le=50,
        description="Percentile of real training targets that sets the thresholds; for label agreement, of those that the generator "
        "did not see, where a type has enough of them.",
    )
    min_targets: int = Field(
        10, ge=1, description="Types with fewer targets that a threshold can come from use pooled thresholds."
    )
    duplicate: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Mean absolute difference inside the crop under which a pair repeats another.",
    )
    stop_invalid: float = Field(
        0.75,
        gt=0,
        le=1,
        description="A slice stops when more than this share is invalid (of copies of real targets it is up to 0.64) ...",
    )
    stop_after: int = Field(24, ge=1, description="... of at least this many attempts.")
