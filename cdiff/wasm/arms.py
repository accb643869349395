"""How the image of a pair is finished once its mask is settled: the mining arms B0, B1, B2 and B4, behind one interface.

All candidates of a task share mask, background, region and tokens; only the image noise differs, or is moved. No gradient
reaches the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from cdiff.config import Config
from cdiff.generator.sampling import Sampler, shown
from cdiff.generator.states import Condition, State
from cdiff.wasm.layout import Layout, composite, noise_of
from cdiff.wasm.noise import NoiseMiner
from cdiff.wasm.view import Job, View, difficulty, seen_by

# Maps a composite photo, the mask of its new target and the crop to difficulty: higher is harder, -inf is invalid.
Judge = Callable[[np.ndarray, np.ndarray, Layout], float]


class MiningArm(Protocol):
    """Finishes the images of some jobs, one state per job, in their order."""

    def finish(self, sampler: Sampler, jobs: Sequence[Job]) -> list[State]: ...


class RandomSeeds:
    """B0, the control: the first noise."""

    def finish(self, sampler: Sampler, jobs: Sequence[Job]) -> list[State]:
        return sampler.run([_start(sampler, job) for job in jobs])


@dataclass(frozen=True)
class BestOfK:
    """B1: finish the hardest valid one of K seeds, judged early.

    Source: oversampling before pruning, as in Deliberate Practice (2502.15588), but judged before the cost is paid.
    """

    judge: Judge
    candidates: int  # K
    fraction: float  # of the steps, before the composites are judged

    def finish(self, sampler: Sampler, jobs: Sequence[Job]) -> list[State]:
        owners = [i for i in range(len(jobs)) for _ in range(self.candidates)]
        starts = [_start(sampler, jobs[i], n % self.candidates) for n, i in enumerate(owners)]
        early = sampler.run(starts, share=self.fraction)
        best: dict[int, tuple[float, State]] = {}
        for i, state, guess in zip(owners, early, sampler.expected_images(early), strict=True):
            image, target = composite(jobs[i].layout, guess, state.mask_1RR)
            hardness = self.judge(image, target, jobs[i].layout)
            if i not in best or hardness > best[i][0]:
                best[i] = (hardness, state)
        return sampler.run([best[i][1] for i in range(len(jobs))])


@dataclass(frozen=True)
class MinedNoise:
    """B2: the noise miner shifts and spreads the first noise; the denoiser stays as it is.

    Source: Native Adversariality Mining (CVPR 2026), as cdiff.wasm.noise says.
    """

    miner: NoiseMiner

    def finish(self, sampler: Sampler, jobs: Sequence[Job]) -> list[State]:
        starts = [_start(sampler, job) for job in jobs]
        mined = [self.miner.moved(s.condition, s.mask_1RR, s.noise_CSS) for s in starts]
        return sampler.run(
            [sampler.start_image_from(j.condition, j.mask_1RR, n) for j, n in zip(jobs, mined, strict=True)]
        )


@dataclass(frozen=True)
class Gradient:
    """B4: in every step, the expected image climbs the segmenter's loss. For comparison; it is published to harm dense prediction.

    x_0-hat <- x_0-hat + gradient_strength * g / |g|,    g = d min(kappa, loss) / d x_0-hat, inside the region, on the canvas,
    |g| = root mean square, over the region's cells, of the length of g across channels
    Source: universal guidance (Bansal et al., 2302.07121), forward part; the verdict is that of Native Adversariality Mining.
    """

    segmenter: nn.Module
    config: Config

    def finish(self, sampler: Sampler, jobs: Sequence[Job]) -> list[State]:
        self.segmenter.to(jobs[0].condition.background_3RR.device)
        views = {id(job.condition): (job, seen_by(job, self.config)) for job in jobs}

        def guide(conditions: Sequence[Condition], clean_BCSS: torch.Tensor) -> torch.Tensor:
            mine = [views[id(condition)] for condition in conditions]
            strengths = [job.layout.task.strengths.gradient_strength for job, _ in mine]
            return self._climbed(sampler, conditions, clean_BCSS, [view for _, view in mine], strengths)

        return sampler.run([_start(sampler, job) for job in jobs], guide=guide)

    def _climbed(
        self,
        sampler: Sampler,
        conditions: Sequence[Condition],
        clean_BCSS: torch.Tensor,
        views: Sequence[View],
        strengths: Sequence[float],
    ) -> torch.Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            canvases = sampler.denoiser.bounded(clean_BCSS.clone()).requires_grad_()
            images = shown(sampler.denoiser, conditions, canvases)
            loss = difficulty(self.segmenter, views, images, self.config.wasm.kappa)
            (slope,) = torch.autograd.grad(loss.sum(), canvases)
        region = torch.stack([condition.scene.region_1SS for condition in conditions])
        slope = slope * region
        size = slope.square().sum(dim=(1, 2, 3), keepdim=True) / region.sum(
            dim=(1, 2, 3), keepdim=True
        ).clamp_min(1)
        step = clean_BCSS.new_tensor(list(strengths)).view(-1, 1, 1, 1) * slope / size.sqrt().clamp_min(1e-8)
        return clean_BCSS + step


def _start(sampler: Sampler, job: Job, candidate: int = 0) -> State:
    generator = noise_of(job.layout.task.seed, 1 + candidate)
    return sampler.start_image(job.condition, job.mask_1RR, generator)
