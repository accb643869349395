"""A task spelled out: in pixels for pasting, in tensors for the sampler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.generator.crops import to_resolution
from cdiff.generator.model import Generator
from cdiff.generator.paste import Canvas, lay_out, paste_back
from cdiff.generator.states import Condition
from cdiff.types import Attempt, Box, GenerationTask

_SHOWN = 0.5  # share of a new target that must lie beside the photo's own: nothing new is seen of the rest


@dataclass(frozen=True, slots=True)
class Layout:
    """A task spelled out in pixels: what is painted, where, on what."""

    task: GenerationTask
    photo: np.ndarray  # uint8 [H, W, 3] background
    kept: np.ndarray  # bool [H, W] targets that the photo shows already and keeps
    grey: bool  # the photo has no colour, in one channel or in three equal ones: what is painted must bring none
    canvas: Canvas

    @property
    def box(self) -> Box:
        return self.canvas.box

    @property
    def negative(self) -> bool:
        """No target is painted here, only what looks like one."""
        return self.task.recipe.mode == "negative"


def spell_out(task: GenerationTask, dataset: Dataset, config: Config) -> Layout:
    """Turn a task into pixels: crop, pasted real target, region. A target on its own photo is repainted in place."""
    target = dataset.target(task.reference)
    own = dataset.target_mask(target.target_id)
    photo = dataset.image(task.background)
    repaint = task.background == target.sample_id
    kept = kept_targets(task, dataset)
    canvas = lay_out(
        photo,
        dataset.image(target.sample_id),
        own,
        target,
        task.pose,
        min_side=config.generator.min_side,
        dilation=config.generator.dilation,
        repaint=repaint,
        rng=np.random.default_rng([task.seed, 3]),
    )
    return Layout(task, photo, kept, is_grey(photo), canvas)


def is_grey(photo: np.ndarray) -> bool:
    """Whether a photo, uint8 [H, W, 3], shows greys alone, however its file stores them."""
    return bool((photo == photo[..., :1]).all())


def kept_targets(task: GenerationTask, dataset: Dataset) -> np.ndarray:
    """The targets that the background photo shows already and keeps, bool [H, W]; without the one that is repainted."""
    kept, target = dataset.mask(task.background), dataset.target(task.reference)
    if task.background == target.sample_id:
        kept = kept & ~dataset.target_mask(target.target_id)
    return kept


def new_target(attempt: Attempt, mask: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The new target alone, bool [H, W], of a stored pair's mask of all targets."""
    left, top, right, bottom = attempt.box
    own = np.zeros_like(mask)
    own[top:bottom, left:right] = mask[top:bottom, left:right]
    return own & ~kept_targets(attempt.assignment.task, dataset)


def condition_of(layout: Layout, generator: Generator, tokens_ND: torch.Tensor) -> Condition:
    """What the sampler needs to know of a layout, with the tokens that it is conditioned on."""
    canvas, resolution = layout.canvas, generator.config.resolution
    region = to_resolution(canvas.region, resolution) > 0.25
    device = next(generator.parameters()).device
    return Condition.of(
        generator.denoiser,
        background_3RR=(to_resolution(canvas.background, resolution) / 127.5 - 1).to(device),
        region_1RR=region.float().to(device),
        tokens_ND=tokens_ND.to(device),
        start_image_3RR=(to_resolution(canvas.pasted, resolution) / 127.5 - 1).to(device),
        start_mask_1RR=(to_resolution(canvas.mask, resolution) * 2 - 1).to(device),
        guidance=1.0 if layout.negative else layout.task.strengths.safe_strength,
        tau=layout.task.strengths.start_strength,
        guided=(layout.task.recipe.guided_from, layout.task.recipe.guided_to),
    )


def composite(
    layout: Layout, image_3RR: torch.Tensor, mask_1RR: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Paste a generated crop and mask back: uint8 [H, W, 3] photo and bool [H, W] mask of the new target.

    Where it meets a target that the photo keeps, that one's pixels are not counted to it; one that is hidden for the most part
    has an empty mask.
    """
    if layout.grey:
        image_3RR = image_3RR.mean(dim=0, keepdim=True).expand(3, -1, -1)
    if layout.negative:  # the look-alike's fine detail belongs where the look-alike is, which no mask tells
        mask_1RR = to_resolution(layout.canvas.mask, image_3RR.shape[-1]) * 2 - 1
    image, mask = paste_back(
        layout.photo,
        layout.canvas,
        image_3RR.cpu(),
        mask_1RR.cpu(),
        resolution=image_3RR.shape[-1],
        detail=detail_share(layout.task.strengths.start_strength),
    )
    if layout.grey:  # the reference's own detail may be coloured
        changed = (image != layout.photo).any(axis=2)
        image[changed] = np.rint(image[changed].mean(axis=1, keepdims=True)).astype(np.uint8)
    new = mask & ~layout.kept
    if layout.negative or new.sum() < _SHOWN * mask.sum():
        new = np.zeros_like(mask)
    return image, new


def detail_share(start_strength: float) -> float:
    """How much of the real target's fine detail returns after generation: all of it up to half noise, then less."""
    return float(np.clip(2 * (1 - start_strength), 0, 1))


def coverage(mask_1RR: torch.Tensor) -> torch.Tensor:
    """A mask as the denoiser knows it, in [-1, 1], as share of each pixel, in [0, 1]."""
    return (mask_1RR.clamp(-1, 1) + 1) / 2


def noise_of(seed: int, stream: int) -> torch.Generator:
    """One generator per image and purpose: 0 the mask, 1.. the candidates."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)
    )
