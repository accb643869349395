"""Weakness-aware mining of hard samples that are still true. (WASM here is the Weakness Aware Sample Miner of
Crucial-Diff; the name has nothing to do with WebAssembly.)

"The loss of the segmenter against the mask made with the image" is highest where the mask is wrong. So the mask is
drawn first (or given) and shared by all candidates of a task, as are background, region and tokens; only the image
noise differs. Each candidate is pasted into its photo and judged as the segmenter sees it, in one view: mirror images
would cost four times.

    B0  random seeds: the control
    B1  best of K: a first part of the steps for K seeds, judged by their composites; the hardest valid one is finished
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.generator.model import Generator
from cdiff.generator.paste import Canvas, cut, lay_out, paste_back, to_resolution
from cdiff.generator.sampling import Condition, Sampler, State
from cdiff.safe.tokens import TokenBank
from cdiff.types import Box, GenerationTask, Recipe

READ_STEPS = 6  # steps in which a mask is read from a finished image
_FAINT = 0.1  # coverage in a read mask that is the network's unrest where no target is wanted
_BLURRED = 0.5  # a drawn mask of which less stands out, as a share of the real target's area, is not used

# Maps a composite photo, the mask of its new target and the crop to difficulty: higher is harder, -inf is invalid.
Judge = Callable[[np.ndarray, np.ndarray, "Layout"], float]


@dataclass(frozen=True, slots=True)
class Layout:
    """A task spelled out in pixels: what is painted, where, on what."""

    task: GenerationTask
    photo: np.ndarray  # uint8 [H, W, 3] background
    kept: np.ndarray  # bool [H, W] targets that the photo shows already and keeps
    grey: bool  # the photo has one channel: what is painted must not bring colour
    canvas: Canvas

    @property
    def box(self) -> Box:
        return self.canvas.box


@dataclass(frozen=True, slots=True)
class Produced:
    """A candidate pair before the gate."""

    layout: Layout
    image: np.ndarray  # uint8 [H, W, 3]
    target: np.ndarray  # bool [H, W], the new target alone
    label_iou: float  # the mask against the one that the denoiser reads from the image (`mask_agreement`)
    own_mask: bool  # the real target's own mask: given, or kept where the drawn one was a blur

    @property
    def mask(self) -> np.ndarray:
        """All targets of the finished photo, bool [H, W]."""
        return self.target | self.layout.kept


def make_pairs(
    generator: Generator,
    bank: TokenBank,
    tasks: Sequence[GenerationTask],
    dataset: Dataset,
    config: Config,
    judge: Judge | None = None,
) -> list[Produced]:
    """Make one candidate pair per task; same task, same bytes, whatever else is in the list.

    Args:
        judge: needed by arm B1.
    """
    layouts = [spell_out(task, dataset, config) for task in tasks]
    conditions = [condition_of(layout, generator, bank) for layout in layouts]
    recipe = tasks[0].recipe
    sampler = sampler_for(generator, recipe)
    seeds = [task.seed for task in tasks]
    if recipe.mode == "joint":
        finished = sampler.run(
            [sampler.start_joint(c, _noise(s, 0)) for c, s in zip(conditions, seeds, strict=True)]
        )
    else:
        masks = _masks(sampler, conditions, seeds, recipe.mode)
        if recipe.arm == "B1" and judge is not None:
            finished = _best_of_k(sampler, layouts, conditions, masks, judge, generator.config.resolution)
        else:
            starts = zip(conditions, masks, seeds, strict=True)
            finished = sampler.run([sampler.start_image(c, m, _noise(s, 1)) for c, m, s in starts])
    resolution = generator.config.resolution
    pasted = [
        _composite(layout, s.image_3RR, s.mask_1RR, resolution)
        for layout, s in zip(layouts, finished, strict=True)
    ]
    agreement = _label_check(sampler, layouts, conditions, pasted, resolution)
    own = [s.mask_1RR is c.start_mask_1RR for s, c in zip(finished, conditions, strict=True)]
    return [
        Produced(layout, image, target, iou, own_mask)
        for layout, (image, target), iou, own_mask in zip(layouts, pasted, agreement, own, strict=True)
    ]


def spell_out(task: GenerationTask, dataset: Dataset, config: Config) -> Layout:
    """Turn a task into pixels: crop, pasted real target, region. A target on its own photo is repainted in place."""
    target = dataset.target(task.reference)
    own = dataset.target_mask(target.target_id)
    photo = dataset.image(task.background)
    repaint = task.background == target.sample_id
    kept = dataset.mask(task.background)
    if repaint:
        kept = kept & ~own
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
    return Layout(task, photo, kept, dataset.sample(task.background).mode == "L", canvas)


def sampler_for(generator: Generator, recipe: Recipe) -> Sampler:
    """The sampler that a recipe names."""
    return Sampler(generator.denoiser, generator.safe.null[0].detach(), recipe.steps, recipe.micro_batch)


def detail_share(start_strength: float) -> float:
    """How much of the real target's fine detail returns after generation: all of it up to half noise, then less."""
    return float(np.clip(2 * (1 - start_strength), 0, 1))


def _masks(sampler: Sampler, conditions: list[Condition], seeds: list[int], mode: str) -> list[torch.Tensor]:
    """One mask per task, shared by its candidates: drawn with the image unknown, or the real target's own.

    What is hardly wider than a pixel of the generator (a scratch in a wide crop) it draws as a blur that no threshold
    finds again; there the real target's own mask, in its new pose, is kept. Its thin parts come back where the real
    detail does (`detail_share`); at high start strengths such a pair may still end without a mask, and is turned away.
    """
    own = [condition.start_mask_1RR for condition in conditions]
    if mode == "given_mask":
        return own
    starts = [sampler.start_mask(c, _noise(s, 0)) for c, s in zip(conditions, seeds, strict=True)]
    drawn = [state.mask_1RR.clamp(-1, 1) for state in sampler.run(starts, move_image=False)]
    return [o if _is_blur(d, o) else d for d, o in zip(drawn, own, strict=True)]


def _is_blur(drawn_1RR: torch.Tensor, own_1RR: torch.Tensor) -> bool:
    return float((drawn_1RR > 0).sum()) < _BLURRED * float(coverage(own_1RR).sum())


def coverage(mask_1RR: torch.Tensor) -> torch.Tensor:
    """A mask as the denoiser knows it, in [-1, 1], as share of each pixel, in [0, 1]."""
    return (mask_1RR.clamp(-1, 1) + 1) / 2


def _best_of_k(
    sampler: Sampler,
    layouts: list[Layout],
    conditions: list[Condition],
    masks: list[torch.Tensor],
    judge: Judge,
    resolution: int,
) -> list[State]:
    """Finish the hardest valid one of K seeds, judged early (arm B1).

    Source: oversampling before pruning, as in Deliberate Practice (2502.15588), but judged before the cost is paid.
    """
    recipe = layouts[0].task.recipe
    owners = [i for i in range(len(layouts)) for _ in range(recipe.candidates)]
    noises = [_noise(layouts[i].task.seed, 1 + n % recipe.candidates) for n, i in enumerate(owners)]
    starts = [
        sampler.start_image(conditions[i], masks[i], noise) for i, noise in zip(owners, noises, strict=True)
    ]
    early = sampler.run(starts, share=recipe.fraction) if recipe.fraction < 1 else sampler.run(starts)
    guesses = sampler.expected_images(early)
    best: dict[int, tuple[float, State]] = {}
    for i, state, guess in zip(owners, early, guesses, strict=True):
        image, target = _composite(layouts[i], guess, state.mask_1RR, resolution)
        difficulty = judge(image, target, layouts[i])
        if i not in best or difficulty > best[i][0]:
            best[i] = (difficulty, state)
    return sampler.run([best[i][1] for i in range(len(layouts))])


def _label_check(
    sampler: Sampler,
    layouts: list[Layout],
    conditions: list[Condition],
    pasted: list[tuple[np.ndarray, np.ndarray]],
    resolution: int,
) -> list[float]:
    """Agreement of each pair's mask with the mask that the same network reads from the finished crop."""
    images = [
        to_resolution(cut(im, la.box), resolution) / 127.5 - 1
        for (im, _), la in zip(pasted, layouts, strict=True)
    ]
    wanted = [to_resolution(cut(ma, la.box), resolution) for (_, ma), la in zip(pasted, layouts, strict=True)]
    return mask_agreement(sampler, conditions, images, wanted, [la.task.seed for la in layouts])


def mask_agreement(
    sampler: Sampler,
    conditions: Sequence[Condition],
    images: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor],
    seeds: Sequence[int],
) -> list[float]:
    """Soft IoU in [0, 1] of given masks [1, R, R], coverage in [0, 1], with masks read from the images [3, R, R].

    Read in few steps and without guidance: a clean image leaves the mask little freedom. Coverage is compared as it
    is, sum of minima by sum of maxima: above a threshold, nothing would be left of what is thinner than a pixel.
    """
    reader = Sampler(sampler.denoiser, sampler.null_ND, READ_STEPS, sampler.micro_batch)
    plain = [replace(condition, guidance=1.0) for condition in conditions]
    starts = [
        reader.start_mask_from_image(c, image.to(c.background_3RR.device), _noise(seed, 2))
        for c, image, seed in zip(plain, images, seeds, strict=True)
    ]
    read = [coverage(state.mask_1RR).cpu() for state in reader.run(starts, move_image=False)]
    return [_soft_iou(r, mask.cpu()) for r, mask in zip(read, masks, strict=True)]


def _soft_iou(read: torch.Tensor, wanted: torch.Tensor) -> float:
    read = torch.where((read < _FAINT) & (wanted < _FAINT), 0.0, read)
    return float(torch.minimum(read, wanted).sum() / torch.maximum(read, wanted).sum().clamp_min(1e-6))


def condition_of(layout: Layout, generator: Generator, bank: TokenBank) -> Condition:
    """What the sampler needs to know of a layout."""
    canvas, resolution = layout.canvas, generator.config.resolution
    region = to_resolution(canvas.region, resolution) > 0.25
    device = next(generator.parameters()).device
    return Condition(
        background_3RR=(to_resolution(canvas.background, resolution) / 127.5 - 1).to(device),
        region_1RR=region.float().to(device),
        tokens_ND=bank[layout.task.reference].to(device),
        start_image_3RR=(to_resolution(canvas.pasted, resolution) / 127.5 - 1).to(device),
        start_mask_1RR=(to_resolution(canvas.mask, resolution) * 2 - 1).to(device),
        guidance=layout.task.strengths.safe_strength,
        tau=layout.task.strengths.start_strength,
    )


def _composite(
    layout: Layout, image_3RR: torch.Tensor, mask_1RR: torch.Tensor, resolution: int
) -> tuple[np.ndarray, np.ndarray]:
    if layout.grey:
        image_3RR = image_3RR.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return paste_back(
        layout.photo,
        layout.canvas,
        image_3RR.cpu(),
        mask_1RR.cpu(),
        resolution=resolution,
        detail=detail_share(layout.task.strengths.start_strength),
    )


def _noise(seed: int, stream: int) -> torch.Generator:
    """One generator per image and purpose: 0 the mask, 1.. the candidates."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)
    )
