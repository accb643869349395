"""Train SAFE and the joint denoiser together; resumable, with averaged weights for sampling."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.errors import DataError
from cdiff.generator.model import Generator
from cdiff.generator.objective import flow_loss
from cdiff.generator.patches import Patches, augmented, balanced, cut_patches, regions
from cdiff.safe.tokens import scene_contrast
from cdiff.types import Target

TRAINING_STATE = "training-generator.safetensors"  # what a training that was cut off goes on from
Progress = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves behind."""

    revision: str
    losses: tuple[float, ...]  # mean over each tenth of the steps


def train_generator(
    dataset: Dataset,
    targets: list[Target],
    photos: list[str],
    config: Config,
    checkpoints: Path,
    progress: Progress | None = None,
    device: str = "cpu",
    stored: Callable[[str], None] | None = None,
) -> Trained:
    """Train on the given real targets; a run that was cut off goes on from its last checkpoint.

    Args:
        targets: training targets, of all categories and types together.
        photos: training photos that give target-free crops, normals or not.
        checkpoints: folder of revisions; the resumable state lies beside them as TRAINING_STATE.
        stored: called with the name under `checkpoints` of whatever was written there: the state, again and again, and in the end the
            revision; only then the state goes.
    Raises:
        DataError: there is no target to learn from.
    """
    if not targets:
        raise DataError(
            "no target to train the generator on. Check that the training split has photos with masks."
        )
    settings = config.generator
    torch.manual_seed(settings.seed)
    generator = Generator(settings, config.safe).to(device)
    average = Generator(settings, config.safe).to(device).requires_grad_(False)
    average.load_state_dict(generator.state_dict())
    optimiser = torch.optim.AdamW(generator.parameters(), lr=settings.lr, weight_decay=0.01)
    state = checkpoints / TRAINING_STATE
    tell = stored or (lambda name: None)
    done, losses = _resume(state, generator, average, optimiser)
    patches = cut_patches(dataset, targets, photos, settings, np.random.default_rng([settings.seed, 1]))
    for step in range(done, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * _schedule(step, settings.steps)
        loss = _train_step(generator, patches, config, step, device)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimiser.step()
        _average(average, generator, min(settings.ema, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if progress:
            progress(step + 1, settings.steps, losses[-1])
        if (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps:
            _checkpoint(state, step + 1, losses, generator, average, optimiser)
            tell(TRAINING_STATE)
    revision = average.eval().save(checkpoints)
    tell(revision)
    state.unlink(missing_ok=True)
    return Trained(
        revision, tuple(float(np.mean(part)) for part in np.array_split(losses, min(10, len(losses))))
    )


def _train_step(
    generator: Generator, patches: Patches, config: Config, step: int, device: str
) -> torch.Tensor:
    """Loss of one batch. Everything random comes from (seed, step): a resumed run draws the same batches."""
    settings = config.generator
    rng = np.random.default_rng([settings.seed, 2, step])
    noise = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    index = rng.choice(len(patches.kinds), settings.batch, p=balanced(patches.kinds))
    image, mask = (part.to(device) for part in augmented(patches, index, settings.resolution, rng))
    # The reference is another augmentation of the same target: the network cannot copy pixels.
    reference, reference_mask = (
        part.to(device) for part in augmented(patches, index, settings.resolution, rng)
    )
    region = regions(mask, rng)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=settings.bfloat16):
        kinds = [patches.kinds[i] for i in index]
        tokens = generator.safe(reference, reference_mask, kinds)
        loss = flow_loss(
            generator.denoiser,
            image,
            mask * 2 - 1,
            region,
            generator.safe.fused(generator.safe.dropped(tokens, config.safe.dropout, noise)),
            settings,
            noise,
        )
        if config.safe.contrast_weight and config.safe.tokens == "safe" and len(patches.empty):
            empty = patches.empty[rng.integers(len(patches.empty), size=settings.batch)].to(device)
            elsewhere = generator.safe(empty * (1 - mask) + image * mask, mask, kinds)
            nothing = generator.safe(empty, mask, kinds)
            describe = generator.safe.describe
            contrast = scene_contrast(
                describe(tokens).float(),
                describe(elsewhere).float(),
                describe(nothing).float(),
                kinds,
                config.safe.temperature,
            )
            loss = loss + config.safe.contrast_weight * contrast
    return loss


def _schedule(step: int, steps: int) -> float:
    warm = max(1, min(100, steps // 10))
    return min(1.0, (step + 1) / warm) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _average(average: Generator, generator: Generator, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 1 - decay)


def _checkpoint(
    path: Path,
    step: int,
    losses: list[float],
    generator: Generator,
    average: Generator,
    optimiser: torch.optim.AdamW,
) -> None:
    """Weights, averages and moments as one file, which is there whole or as it was before."""
    tensors = {f"model.{k}": v.cpu() for k, v in generator.state_dict().items()}
    tensors |= {f"average.{k}": v.cpu() for k, v in average.state_dict().items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{k}": v.cpu().contiguous() for k, v in moments.items()}
    temporary = path.with_name(f".{path.name}")
    note = {"step": str(step), "losses": json.dumps(losses)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, temporary, metadata=note)
    temporary.rename(path)


def _resume(
    path: Path, generator: Generator, average: Generator, optimiser: torch.optim.AdamW
) -> tuple[int, list[float]]:
    if not path.exists():
        return 0, []
    with safe_open(path, "pt") as file:
        note, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    generator.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    average.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("average.")})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(note["step"]), json.loads(note["losses"])
