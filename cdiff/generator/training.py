"""Train SAFE and the joint denoiser together; resumable, with averaged weights for sampling, by one process or by several.

Batches, noise and times are drawn for the whole batch from (seed, step) and cut among the workers, whose gradients are averaged: with equal
batches the losses are the same however many there are, and a training that lost some goes on with fewer.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.storage import rename_durably
from cdiff.errors import ConfigError, DataError, RunError
from cdiff.generator.model import Generator
from cdiff.generator.objective import flow_loss
from cdiff.generator.patches import cut_patches
from cdiff.generator.views import FreshViews, KeptViews, Views
from cdiff.safe.tokens import scene_contrast
from cdiff.types import Target, content_hash
from cdiff.workers import ALONE, Part, Workers

TRAINING_STATE = "training-generator.safetensors"  # what a training that was cut off goes on from
Progress = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves behind."""

    revision: str
    losses: tuple[float, ...]  # mean over each tenth of the steps
    # of all its steps, those before it was cut off included
    seconds: float = field(default=0.0, compare=False)


def train_generator(
    dataset: Dataset,
    targets: list[Target],
    photos: list[str],
    config: Config,
    checkpoints: Path,
    progress: Progress | None = None,
    device: str = "cpu",
    stored: Callable[[str], None] | None = None,
    workers: Workers = ALONE,
) -> Trained:
    """Train on the given real targets; a run that was cut off goes on from its last checkpoint.

    Args:
        targets: training targets, of all categories and types together.
        photos: training photos that give target-free crops, normals or not.
        checkpoints: folder of revisions; the resumable state lies beside them as TRAINING_STATE.
        stored: called with the name under `checkpoints` of whatever was written there: the state, again and again, and in the end the
            revision. The last state stays: whoever has noted the revision removes it, and whoever could not gets the same again.
        workers: that train together; the first writes and tells.
    Raises:
        DataError: there is no target to learn from.
        ConfigError: the batch cannot be cut among the workers.
    """
    if not targets:
        raise DataError(
            "no target to train the generator on. Check that the training split has photos with masks."
        )
    settings = config.generator
    if settings.batch % (settings.accumulate * workers.count):
        raise ConfigError(
            f"generator.batch={settings.batch} cannot be cut into {settings.accumulate} parts (generator.accumulate) for {workers.count} workers "
            "(train.workers): choose a multiple of both."
        )
    torch.manual_seed(settings.seed)
    generator = Generator(settings, config.safe).to(device)
    learned = generator.learned()
    average = {name: tensor.detach().clone() for name, tensor in learned.items()}
    optimiser = torch.optim.AdamW(learned.values(), lr=settings.lr, weight_decay=0.01)
    state = checkpoints / TRAINING_STATE
    tell = stored or (lambda name: None)
    asked = content_hash(
        [settings.model_dump(), config.safe.model_dump(), [t.target_id for t in targets], photos]
    )
    about = {"pretrained": json.dumps(generator.pretrained, sort_keys=True), "asked": asked}
    done, losses, seconds = _resume(state, learned, average, optimiser, about)
    views = _views(generator, dataset, targets, photos, config, workers, progress)
    objective = _Objective(generator, views, config, workers)
    unused = config.safe.tokens == "label" or not config.safe.spatial  # parts of SAFE that say nothing
    together = workers.together(objective, unused)
    began = time.perf_counter() - seconds
    for step in range(done, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * _schedule(step, settings.steps)
        optimiser.zero_grad(set_to_none=True)
        losses.append(_gradients(together, step, settings.accumulate, workers))
        torch.nn.utils.clip_grad_norm_(learned.values(), 1.0)
        optimiser.step()
        _average(average, learned, min(settings.ema, (1 + step) / (10 + step)))
        if progress:
            progress(step + 1, settings.steps, losses[-1])
        if workers.first and ((step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps):
            spent = time.perf_counter() - began
            _checkpoint(state, step + 1, losses, spent, learned, average, optimiser, about)
            tell(TRAINING_STATE)
    with torch.no_grad():
        for name, tensor in learned.items():
            tensor.copy_(average[name])
    revision = generator.eval().save(checkpoints) if workers.first else ""
    if workers.first:
        tell(revision)
    tenths = tuple(float(np.mean(part)) for part in np.array_split(losses, min(10, len(losses))))
    return Trained(revision, tenths, time.perf_counter() - began)


def _views(
    generator: Generator,
    dataset: Dataset,
    targets: list[Target],
    photos: list[str],
    config: Config,
    workers: Workers,
    progress: Progress | None,
) -> Views:
    settings = config.generator
    patches = cut_patches(dataset, targets, photos, settings, np.random.default_rng([settings.seed, 1]))
    if settings.views:
        encoded = (lambda done, total: progress(done, total, 0.0)) if progress else None
        return KeptViews(generator, patches, config, generator.feature_cache(workers.first), encoded)
    return FreshViews(generator, patches, config)


class _Objective(nn.Module):
    """The loss of a part of a step's batch."""

    def __init__(self, generator: Generator, views: Views, config: Config, workers: Workers) -> None:
        super().__init__()
        self.generator, self.views, self.config, self.workers = generator, views, config, workers

    def forward(self, step: int, turn: int) -> torch.Tensor:
        """Of the turn-th of the parts that a batch is cut into; this worker has its share of that."""
        settings, workers, safe = self.config.generator, self.workers, self.generator.safe
        turns = settings.accumulate
        part = Part(turn + turns * workers.own.number, turns * workers.count)
        noise = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        with torch.autocast(safe.idle.device.type, dtype=torch.bfloat16, enabled=settings.bfloat16):
            batch = self.views.draw(step, part)
            dropped = safe.dropped(batch.tokens_BND, self.config.safe.dropout, noise, part)
            tokens = safe.fused(dropped)
            loss = flow_loss(self.generator.denoiser, batch.clean, tokens, settings, noise, part)
            if batch.elsewhere_BND is None or batch.empty_BND is None:
                return loss
            described = (batch.tokens_BND, batch.elsewhere_BND, batch.empty_BND)
            here, elsewhere, empty = (safe.describe(tokens).float() for tokens in described)
            contrast = scene_contrast(
                here,
                workers.gathered(elsewhere),
                workers.gathered(empty),
                batch.kinds[turn::turns],
                self.config.safe.temperature,
                workers.own,
            )
        return loss + self.config.safe.contrast_weight * contrast


def _gradients(together: nn.Module, step: int, turns: int, workers: Workers) -> float:
    """Leave the gradients of a whole step, the workers' mean; returns its loss, likewise."""
    total = 0.0
    for turn in range(turns):
        more = isinstance(together, nn.parallel.DistributedDataParallel) and turn + 1 < turns
        with together.no_sync() if more else contextlib.nullcontext():  # type: ignore[operator]  # DDP's
            loss = together(step, turn) / turns
            loss.backward()
        total += loss.item()
    return workers.mean(total, next(together.parameters()).device)


def _schedule(step: int, steps: int) -> float:
    warm = max(1, min(100, steps // 10))
    return min(1.0, (step + 1) / warm) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _average(average: dict[str, torch.Tensor], learned: dict[str, torch.Tensor], decay: float) -> None:
    torch._foreach_lerp_(list(average.values()), list(learned.values()), 1 - decay)


def _checkpoint(
    path: Path,
    step: int,
    losses: list[float],
    seconds: float,
    learned: dict[str, torch.Tensor],
    average: dict[str, torch.Tensor],
    optimiser: torch.optim.AdamW,
    about: dict[str, str],
) -> None:
    """Weights, averages and moments as one file, which is there whole or as it was before."""
    tensors = {f"model.{k}": v.detach().cpu() for k, v in learned.items()}
    tensors |= {f"average.{k}": v.cpu() for k, v in average.items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{k}": v.cpu().contiguous() for k, v in moments.items()}
    temporary = path.with_name(f".{path.name}")
    note = {"step": str(step), "losses": json.dumps(losses), "seconds": str(seconds)} | about
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, temporary, metadata=note)
    rename_durably(temporary, path)


@torch.no_grad()
def _resume(
    path: Path,
    learned: dict[str, torch.Tensor],
    average: dict[str, torch.Tensor],
    optimiser: torch.optim.AdamW,
    about: dict[str, str],
) -> tuple[int, list[float], float]:
    """Steps done, their losses and seconds, the weights brought to where they were; none of them where nothing of this training is there."""
    if not path.exists():
        return 0, [], 0.0
    with safe_open(path, "pt") as file:
        note, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if note.get("asked") != about["asked"]:
        return 0, [], 0.0
    if note["pretrained"] != about["pretrained"]:
        raise RunError(
            f"{path} is of a training that changes other weights than those that are named now. Put the former back, or remove it to train anew."
        )
    for name in learned:
        learned[name].copy_(tensors[f"model.{name}"])
        average[name].copy_(tensors[f"average.{name}"])
    moments: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(note["step"]), json.loads(note["losses"]), float(note["seconds"])
