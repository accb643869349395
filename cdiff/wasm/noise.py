"""Arm B2, the noise miner: a small network moves the first noise of an image to where the segmenter finds it hard.

    q(x_T) = N(mu, sigma^2),    sigma = 1 + 0.95 tanh(s)          (mu, s) = network(start, mask, region, background)
    maximise  min(kappa, loss of f) - beta KL(q || N(0, 1))

The denoiser is frozen and outside the gradient: the loss is that of the expected image after one look of the denoiser, and
its slope is passed straight through to the noise, as if the noise stood in the image at the strength tau that it starts with.
Close to the prior by the KL term, the noise stays what the denoiser knows, and so the image stays true.
Source: Native Adversariality Mining (CVPR 2026), whose shifted noise leaves fidelity as it was where gradients on x_0-hat
harm it; straight-through: Bengio et al. (1308.3432). That paper's network sees text; this one sees the paste.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from cdiff.config import Config
from cdiff.data.storage import rename_durably
from cdiff.generator.model import weights_hash
from cdiff.generator.sampling import Sampler, shown
from cdiff.generator.states import Condition
from cdiff.wasm.layout import noise_of
from cdiff.wasm.view import Job, difficulty, seen_by

_WIDTH = 32
_SPREAD = 0.95  # bounds sigma to [0.05, 1.95]


class NoiseMiner(nn.Module):
    """Mean and spread of the first noise for a paste; starts as the standard normal one.

    Args:
        channels: C of the denoiser's canvas.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.into = nn.Conv2d(2 * channels + 2, _WIDTH, 3, stride=2, padding=1)
        self.down = nn.Conv2d(_WIDTH, 2 * _WIDTH, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(2 * _WIDTH, 2 * _WIDTH, 3, padding=1)
        self.up = nn.Conv2d(3 * _WIDTH, _WIDTH, 3, padding=1)
        self.out = nn.Conv2d(_WIDTH, 2 * channels, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, n * _WIDTH) for n in (1, 2, 2, 1))
        nn.init.zeros_(self.out.weight)
        self.out.bias.data.zero_()  # type: ignore[union-attr]  # it has one
        self.revision = ""

    def forward(self, inputs_BNSS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the noise, [B, C, S, S] each; 0 and 1 outside the region, which is not painted.

        Args:
            inputs_BNSS: start, mask, region and background, as `inputs_of` stacks them.
        """
        first = F.silu(self.norms[0](self.into(inputs_BNSS)))
        second = F.silu(self.norms[1](self.down(first)))
        second = F.silu(self.norms[2](self.deep(second)))
        wide = F.interpolate(second, scale_factor=2.0)
        joined = F.silu(self.norms[3](self.up(torch.cat([wide, first], dim=1))))
        mean, spread = self.out(F.interpolate(joined, scale_factor=2.0)).chunk(2, dim=1)
        region = inputs_BNSS[:, mean.shape[1] + 1][:, None]
        return mean * region, 1 + _SPREAD * torch.tanh(spread) * region

    @torch.inference_mode()
    def moved(self, condition: Condition, mask_1RR: torch.Tensor, noise_CSS: torch.Tensor) -> torch.Tensor:
        """A draw of q that a standard normal draw [C, S, S] becomes."""
        self.to(condition.background_3RR.device)
        mean, spread = self(inputs_of([condition], [mask_1RR]))
        return mean[0] + spread[0] * noise_CSS

    def save(self, checkpoints: Path) -> str:
        """Write to checkpoints/REVISION.safetensors; returns the revision."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        self.revision = "miner-" + weights_hash(state)
        temporary = checkpoints / f".{self.revision}.tmp"
        save_file(state, temporary)
        rename_durably(temporary, checkpoints / f"{self.revision}.safetensors")
        return self.revision

    @classmethod
    def load(cls, path: Path) -> NoiseMiner:
        state = load_file(path)
        miner = cls(state["out.weight"].shape[0] // 2)
        miner.load_state_dict(state)
        miner.revision = path.stem
        return miner.eval()


def inputs_of(conditions: Sequence[Condition], masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the miner looks at, [B, 2 C + 2, S, S]: masks as coverage of the canvas's cells."""
    rows = []
    for scene, mask in zip((c.scene for c in conditions), masks, strict=True):
        here = F.adaptive_avg_pool2d(mask, scene.start_CSS.shape[-1])
        rows.append(torch.cat([scene.start_CSS, here, scene.region_1SS, scene.background_CSS]))
    return torch.stack(rows)


def train_noise_miner(
    sampler: Sampler,
    segmenter: nn.Module,
    jobs: Sequence[Job],
    config: Config,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> NoiseMiner:
    """Fit a miner on a round's own pastes; the same jobs and seed give the same weights.

    Raises:
        ValueError: there is no job.
    """
    jobs = [job for job in jobs if bool(job.condition.region_1RR.any())]  # a paste may fall off its photo
    if not jobs:
        raise ValueError("a noise miner needs pastes to learn from")
    settings, rng = config.wasm, np.random.default_rng([seed, 41])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        miner = NoiseMiner(len(jobs[0].condition.scene.start_CSS))
    device = jobs[0].condition.background_3RR.device
    miner.to(device)
    optimiser = torch.optim.AdamW(miner.parameters(), lr=settings.miner_lr)
    segmenter = segmenter.eval().to(device)
    views = [seen_by(job, config) for job in jobs]
    for step in range(settings.miner_steps):
        chosen = rng.choice(len(jobs), sampler.micro_batch)
        loss = _loss(
            miner, sampler, segmenter, [jobs[i] for i in chosen], [views[i] for i in chosen], config, step
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(miner.parameters(), 1.0)
        optimiser.step()
        if progress:
            progress(step + 1, settings.miner_steps)
    return miner.eval()


def _loss(miner, sampler, segmenter, jobs, views, config, step):  # type: ignore[no-untyped-def]
    conditions, masks = [job.condition for job in jobs], [job.mask_1RR for job in jobs]
    mean, spread = miner(inputs_of(conditions, masks))
    seeds = [noise_of(job.layout.task.seed, 1000 + step) for job in jobs]
    plain = torch.stack([torch.randn(m.shape, generator=g) for m, g in zip(mean, seeds, strict=True)])
    noise = mean + spread * plain.to(mean.device)
    starts = [
        sampler.start_image_from(c, mask, n)
        for c, mask, n in zip(conditions, masks, noise.detach(), strict=True)
    ]
    expected = torch.stack(sampler.expected(starts)).clone()
    tau = expected.new_tensor([c.tau for c in conditions]).view(-1, 1, 1, 1)
    canvases = expected + tau * (noise - noise.detach())  # straight through
    images = shown(sampler.denoiser, conditions, canvases)
    hardness = difficulty(segmenter, views, images, config.wasm.kappa)
    regions = torch.stack([c.scene.region_1SS for c in conditions])
    divergence = 0.5 * (spread.square() + mean.square() - 1 - 2 * spread.log())
    per_job = (divergence.mean(dim=1, keepdim=True) * regions).sum(dim=(1, 2, 3)) / regions.sum(dim=(1, 2, 3))
    return (config.wasm.miner_beta * per_job - hardness).mean()
