"""Weakness-aware mining of hard samples that are still true. (WASM here is the Weakness Aware Sample Miner of
Crucial-Diff; the name has nothing to do with WebAssembly.)

"The loss of the segmenter against the mask made with the image" is highest where the mask is wrong. So the mask is
drawn first (or given) and shared by all candidates of a task, as are background, region and tokens; only the image
noise differs. Each candidate is pasted into its photo and judged as the segmenter sees it, in one view: mirror images
would cost four times.

    B0  random seeds: the control                                                   cdiff.wasm.arms
    B1  best of K: a first part of the steps for K seeds, the hardest valid one is finished
    B2  noise miner: a small network moves the first noise towards what is hard     cdiff.wasm.noise
    B3  difficulty token: what is known of the reference's difficulty joins its SAFE tokens   cdiff.wasm.token
    B4  gradient of the segmenter's loss on the expected image: for comparison

B3 says what is wanted and the others how an image is found, so that "B3+B1" and "B3+B2" are arms as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.generator.model import Generator
from cdiff.generator.sampling import Sampler
from cdiff.generator.states import Condition, State
from cdiff.safe.tokens import TokenBank
from cdiff.types import GenerationTask, Recipe
from cdiff.wasm.arms import BestOfK, Gradient, Judge, MinedNoise, MiningArm, RandomSeeds
from cdiff.wasm.labels import label_check
from cdiff.wasm.layout import Layout, composite, condition_of, coverage, noise_of, spell_out
from cdiff.wasm.noise import NoiseMiner
from cdiff.wasm.token import WeaknessToken
from cdiff.wasm.view import Job

_Part = TypeVar("_Part")
_CLIMBING = ("B2", "B4")  # arms that move an image towards the segmenter's loss
_LOOK = 0.2  # noise of the look that the denoiser takes at what they made
_BLURRED = 0.5  # a drawn mask of which less stands out, as a share of the real target's area, is not used


@dataclass(frozen=True)
class Miners:
    """What the mining arms need beside the generator; None where the recipe's arm needs none."""

    judge: Judge | None = None  # B1
    segmenter: nn.Module | None = None  # B4
    noise: NoiseMiner | None = None  # B2
    token: WeaknessToken | None = None  # B3


@dataclass(frozen=True, slots=True)
class Produced:
    """A candidate pair before the gate."""

    layout: Layout
    image: np.ndarray  # uint8 [H, W, 3]
    target: np.ndarray  # bool [H, W], the new target alone
    label_iou: float  # the mask against the one that the denoiser reads from the image (`mask_agreement`)
    own_mask: bool  # the real target's own mask: given, or kept where the drawn one was a blur
    # the photo after a look of the denoiser, where the arm climbed the loss
    treated: tuple[np.ndarray, ...] = ()

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
    miners: Miners | None = None,
) -> list[Produced]:
    """Make one candidate pair per task; same task, same bytes, whatever else is in the list.

    Args:
        tasks: of one recipe.
        miners: what the recipe's arm needs.
    Raises:
        ValueError: the arm lacks what it needs.
    """
    miners, recipe = miners or Miners(), tasks[0].recipe
    layouts = [spell_out(task, dataset, config) for task in tasks]
    conditions = [condition_for(layout, generator, bank, miners) for layout in layouts]
    sampler = sampler_for(generator, recipe, config)
    seeds = [task.seed for task in tasks]
    if recipe.mode == "joint":
        starts = zip(conditions, seeds, strict=True)
        finished = sampler.run([sampler.start_joint(c, noise_of(s, 0)) for c, s in starts])
    else:
        jobs = settle_masks(sampler, layouts, conditions, recipe.mode)
        finished = arm_of(recipe, miners, config).finish(sampler, jobs)
    pasted = [_pasted(sampler, layout, state) for layout, state in zip(layouts, finished, strict=True)]
    agreement = label_check(sampler, layouts, conditions, pasted, generator.config.resolution)
    own = [s.mask_1RR is c.start_mask_1RR for s, c in zip(finished, conditions, strict=True)]
    looked = (
        _looked_over(sampler, layouts, finished) if recipe.arm.endswith(_CLIMBING) else [()] * len(layouts)
    )
    return [
        Produced(layout, image, target, iou, own_mask, treated)
        for layout, (image, target), iou, own_mask, treated in zip(
            layouts, pasted, agreement, own, looked, strict=True
        )
    ]


def _looked_over(
    sampler: Sampler, layouts: Sequence[Layout], finished: Sequence[State]
) -> list[tuple[np.ndarray, ...]]:
    """Each photo again after its crop was noised a little and denoised: what only fools the segmenter is gone then."""
    starts = []
    for layout, state in zip(layouts, finished, strict=True):
        scene = replace(state.condition.scene, start_CSS=state.canvas_CSS)
        condition = replace(state.condition, scene=scene, tau=_LOOK)
        starts.append(sampler.start_image(condition, state.mask_1RR, noise_of(layout.task.seed, 4)))
    again = sampler.run(starts)
    return [(_pasted(sampler, layout, state)[0],) for layout, state in zip(layouts, again, strict=True)]


def _pasted(sampler: Sampler, layout: Layout, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Photo and mask of a finished state, as `composite` gives them."""
    return composite(layout, sampler.image(state.condition, state.canvas_CSS), state.mask_1RR)


def arm_of(recipe: Recipe, miners: Miners, config: Config) -> MiningArm:
    """How the recipe's arm finishes images; B3 is in the tokens, and finishes as what it is joined with.

    Raises:
        ValueError: the arm lacks what it needs.
    """
    how = recipe.arm.replace("B3+", "")
    if how == "B1":
        return BestOfK(_given(miners.judge, "a judge", how), recipe.candidates, recipe.fraction)
    if how == "B2":
        return MinedNoise(_given(miners.noise, "a noise miner", how))
    if how == "B4":
        return Gradient(_given(miners.segmenter, "a segmenter", how), config)
    return RandomSeeds()


def _given(part: _Part | None, what: str, arm: str) -> _Part:
    if part is None:
        raise ValueError(f"arm {arm} needs {what}")
    return part


def condition_for(layout: Layout, generator: Generator, bank: TokenBank, miners: Miners) -> Condition:
    """A layout with the tokens of its reference, joined by what arm B3 asks for."""
    task, extra = layout.task, None
    if layout.negative:  # no target, no tokens
        return condition_of(layout, generator, generator.safe.fused(generator.safe.null)[0].detach())
    if task.recipe.arm.startswith("B3"):
        token = _given(miners.token, "a difficulty token", "B3")
        extra = token.wanted(task.reference, task.difficulty, task.strengths.weakness_strength)[None]
        extra = extra.to(_device(generator))
    tokens = generator.safe.fused(bank[task.reference][None].to(_device(generator)), extra)
    return condition_of(layout, generator, tokens[0].detach())


def _device(generator: Generator) -> torch.device:
    return next(generator.parameters()).device


def sampler_for(generator: Generator, recipe: Recipe, config: Config) -> Sampler:
    """The sampler that a recipe names; with smaller micro-batches where the configuration asks for them, memory being short."""
    null = generator.safe.fused(generator.safe.null)[0].detach()
    batch = min(recipe.micro_batch, config.sampling.micro_batch)
    return Sampler(generator.denoiser, null, recipe.steps, batch, recipe.dtype)


def settle_masks(
    sampler: Sampler, layouts: Sequence[Layout], conditions: Sequence[Condition], mode: str
) -> list[Job]:
    """Each task with its one mask, shared by its candidates: drawn with the image unknown, or the real target's own.

    What is hardly wider than a pixel of the generator (a scratch in a wide crop) it draws as a blur that no threshold
    finds again; there the real target's own mask, in its new pose, is kept. Its thin parts come back where the real
    detail does (`detail_share`); at high start strengths such a pair may still end without a mask, and is turned away.
    """
    masks = [condition.start_mask_1RR for condition in conditions]
    if mode == "negative":
        masks = [torch.full_like(mask, -1.0) for mask in masks]
    elif mode != "given_mask":
        seeds = [layout.task.seed for layout in layouts]
        starts = [sampler.start_mask(c, noise_of(s, 0)) for c, s in zip(conditions, seeds, strict=True)]
        drawn = [state.mask_1RR.clamp(-1, 1) for state in sampler.run(starts, move_image=False)]
        masks = [own if _is_blur(d, own) else d for d, own in zip(drawn, masks, strict=True)]
    return [Job(*parts) for parts in zip(layouts, conditions, masks, strict=True)]


def _is_blur(drawn_1RR: torch.Tensor, own_1RR: torch.Tensor) -> bool:
    return float((drawn_1RR > 0).sum()) < _BLURRED * float(coverage(own_1RR).sum())
