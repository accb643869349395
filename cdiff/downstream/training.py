"""Fitting a segmenter on real photos and, beside them, synthetic ones.

What must be comparable is comparable by construction: the real crops of every batch and their augmentation come from a
generator of their own, so that a fit with pairs sees exactly the real batches of the fit without. Beside them it has crops
of its pairs; the fit without has as many further crops of real targets there, so that neither computes more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from cdiff.config import DownstreamConfig
from cdiff.data.dataset import Dataset, components
from cdiff.downstream.augment import apply_moves, crop_centre, draw_moves, slice_around, sliced_side
from cdiff.downstream.norms import shared_norms
from cdiff.errors import ConfigError
from cdiff.types import Box
from cdiff.workers import ALONE, Workers

WARM_UP = 0.15  # share of the steps in which the learning rate rises
WEIGHT_DECAY = 1e-2
CLIP = 5.0  # largest norm of the gradient: one odd batch must not throw a short fit


@dataclass(frozen=True)
class TrainingItem:
    """A photo ready for cropping, shrunk to `longest_side`. Arrays may be shared between items."""

    image: NDArray[np.uint8]  # [H, W, 3]
    mask: NDArray[np.bool_]  # [H, W], every target of the photo
    boxes: tuple[Box, ...]  # what target crops are centred on; () for a normal
    weight_key: str  # real items of one key share one part in the draw: "category/type"; pairs have none


def shrink(image: NDArray[np.uint8], longest_side: int) -> NDArray[np.uint8]:
    """Shrink [H, W, 3] so that its longer side is at most `longest_side` pixels; never enlarge."""
    height, width = image.shape[:2]
    if max(height, width) <= longest_side:
        return image
    size = tuple(max(1, round(side * longest_side / max(height, width))) for side in (width, height))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


Shrunk = tuple[
    NDArray[np.uint8], NDArray[np.bool_], tuple[float, float]
]  # photo, mask, and factors as of `_shrunk_pair`


def real_items(
    dataset: Dataset,
    sample_ids: Iterable[str],
    config: DownstreamConfig,
    kept: dict[tuple[str, int], Shrunk] | None = None,
) -> list[TrainingItem]:
    """One item per photo and type; one per normal photo.

    Args:
        kept: shrunk photos of earlier fits, which learns those of this one: large ones take a third of a second each to decode.
    """
    items = []
    known = {} if kept is None else kept
    for sample_id in sample_ids:
        sample, name = dataset.sample(sample_id), (sample_id, config.longest_side)
        if name not in known:
            places = [target.box for target in dataset.targets(sample_id)]
            known[name] = _shrunk_pair(
                dataset.image(sample_id), dataset.mask(sample_id), places, config.longest_side
            )
        image, mask, scale = known[name]
        if sample.is_normal:
            items.append(TrainingItem(image, mask, (), f"{sample.category}/"))
        for type in sample.types:
            boxes = tuple(
                _scaled(target.box, scale) for target in dataset.targets(sample_id) if target.type == type
            )
            items.append(TrainingItem(image, mask, boxes, f"{sample.category}/{type}"))
    return items


def synthetic_item(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    config: DownstreamConfig,
    box: Box | None = None,
    centred_on: NDArray[np.bool_] | None = None,
) -> TrainingItem:
    """An item of a generated pair.

    Args:
        image: uint8 [H, W, 3], the whole photo. mask: bool [H, W]; empty for a hard negative.
        box: what crops are centred on, the painted place; without it, each target of the mask.
        centred_on: bool [H, W], the targets that crops are centred on, where the mask shows others as well.
    """
    places = [found for found, _ in components(mask)]
    small, small_mask, scale = _shrunk_pair(image, mask, places, config.longest_side)
    new = places if centred_on is None else [found for found, _ in components(centred_on)]
    boxes = [box] if box else new
    return TrainingItem(small, small_mask, tuple(_scaled(b, scale) for b in boxes), weight_key="")


def batch_seed(seed: int, further: bool, cycle: int = 0) -> int:
    """Seed of a fit's batches: one that goes on from a fitted model sees other batches than that model did.

    Args:
        cycle: number of a fit that goes on from fits that went on themselves.
    """
    return 2 * (seed + 100_003 * cycle) + further


def fit(
    model: nn.Module,
    real: Sequence[TrainingItem],
    synthetic: Sequence[TrainingItem],
    config: DownstreamConfig,
    *,
    steps: int,
    seed: int,
    again: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
    workers: Workers = ALONE,
) -> dict[str, list[float]]:
    """Train a segmenter in place for a fixed number of optimiser steps (AdamW, one cycle), leaving it in evaluation mode.

    `config.target_share` of each batch are crops on targets, with even parts for the types; the rest lie anywhere on real
    photos, normals included. Beside the batch stand crops of the synthetic items, `config.synthetic_share` times as many as
    it has, each item as often as any other: the budget has said already which slice gets how many. Where
    `config.synthetic_mix` leaves room, and without synthetic items everywhere, real targets stand there, so that a gain is
    that of the pairs and not of more crops. With
    `config.synthetic_apart` they pass through the network by themselves, weigh as much as the batch, and leave no trace in
    running statistics: batch norm knows the batches of real photos alone. They take part in the first
    `config.synthetic_until` of the steps.
    The same seed, items and number of threads give the same weights.

    Args:
        again: fits that differ in this alone have the same real batches and other crops beside them.
        progress: called with (step, steps, loss) after each step.
        workers: that train together. Batches are drawn whole and cut among them: weights and losses are those of one process, but for
            rounding.
    Returns:
        {"loss": one value per step}.
    Raises:
        ValueError: there is no real item.
        ConfigError: a batch cannot be cut among the workers.
    Source: Smith and Topin, one cycle (1708.07120); Lin et al., focal loss (1708.02002); Milletari et al., Dice (1606.04797);
        Xie et al., statistics of real and made images apart (1911.09665).
    """
    if not real:
        raise ValueError("a fit needs at least one real photo")
    device = next(model.parameters()).device
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # fused: the plain loop over small tensors took a tenth of a step on CPUs
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _one_cycle(step, steps))
    batches = Batches(real, synthetic, config, seed, again, workers)
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]), shared_norms(model, workers):
        torch.manual_seed(seed)  # a user's network may use dropout
        for step in range(steps):
            optimiser.zero_grad(set_to_none=True)
            loss = _gradient(model, batches, config, device, step < config.synthetic_until * steps)
            losses.append(workers.mean(loss, device))
            workers.average_gradients(model.parameters())
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            if progress:
                progress(step + 1, steps, losses[-1])
    model.eval()
    return {"loss": losses}


def _gradient(
    model: nn.Module, batches: Batches, config: DownstreamConfig, device: torch.device, more: bool
) -> float:
    """The gradient of one step, with or without crops beside the batch; return the loss of what holds the batch."""
    real = batches.draw(device)
    beside = batches.draw_beside(device) if more else None
    workers = batches.workers
    if beside is None:
        return _backward(model, *real, config, workers)
    if not config.synthetic_apart:
        both = torch.cat([real[0], beside[0]]), torch.cat([real[1], beside[1]])
        return _backward(model, *both, config, workers)
    loss = _backward(model, *real, config, workers)
    with _statistics_kept(model):
        _backward(model, *beside, config, workers)
    return loss


def _backward(
    model: nn.Module, photos: torch.Tensor, masks: torch.Tensor, config: DownstreamConfig, workers: Workers
) -> float:
    """Add the gradient of one batch's loss to what is there; return the loss."""
    with torch.autocast(photos.device.type, torch.bfloat16, enabled=config.bfloat16):
        logits = model(photos.contiguous(memory_format=torch.channels_last))
    loss = segmentation_loss(logits.float(), masks, config, workers)
    loss.backward()
    return float(loss.detach())


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batches seen meanwhile are normalised by themselves, and the running statistics of batch norms stay."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def segmentation_loss(
    logits: torch.Tensor, masks: torch.Tensor, config: DownstreamConfig, workers: Workers = ALONE
) -> torch.Tensor:
    """Focal loss plus `dice_weight` x soft Dice loss, logits and masks [B, 1, H, W].

    Dice is the mean over the crops that show a target, so that a blowhole counts as much as a stain: taken over the batch,
    the largest targets ruled it and small types were never learned. Crops without a target have the focal term. Of several workers,
    the mean of their losses is that of the whole batch.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    # exp(-entropy) is the probability of the true class
    focal = ((1 - torch.exp(-entropy)) ** config.focal_gamma * entropy).mean()
    scores, dims = torch.sigmoid(logits), (1, 2, 3)
    areas = masks.sum(dim=dims)
    dice = 1 - (2 * (scores * masks).sum(dim=dims) + 1) / (scores.sum(dim=dims) + areas + 1)
    shows = (areas > 0).float()
    shown = workers.sum(shows.sum()).clamp(min=1) / workers.count
    return focal + config.dice_weight * (dice * shows).sum() / shown


def crops_of(config: DownstreamConfig, base: bool = False) -> tuple[int, int]:
    """How many real crops a batch has, and how many stand beside it; of a base of real photos alone, or of a fit."""
    # One alone could not be normalised by itself where the network has shrunk it to a pixel.
    return config.batch, max(2, round(config.batch * (config.base_share if base else config.synthetic_share)))


class Batches:
    """Endless batches; the real draws never depend on the synthetic items."""

    def __init__(
        self,
        real: Sequence[TrainingItem],
        synthetic: Sequence[TrainingItem],
        config: DownstreamConfig,
        seed: int,
        again: int = 0,
        workers: Workers = ALONE,
    ) -> None:
        self._config, self.workers = config, workers
        self._targets = _Balanced([item for item in real if item.boxes])
        self._anywhere = list(real)
        self._synthetic = list(synthetic)
        self._real_rng, self._beside_rng = (
            np.random.default_rng([seed, stream]) for stream in (1, 2 + again)
        )
        self._target_crops = round(config.batch * config.target_share) if self._targets else 0

    def draw(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Real photos [B, 3, crop, crop] in [-1, 1] and masks [B, 1, crop, crop]."""

        def pick(row: int, draws: NDArray[np.float64]) -> tuple[TrainingItem, Box | None]:
            if row < self._target_crops:
                return self._targets.pick(draws)
            return self._anywhere[int(draws[0] * len(self._anywhere))], None

        return self._draw(self._real_rng, self._config.batch, pick, device)

    def draw_beside(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Crops of pairs, without pairs of real targets, in the shapes of `draw`; None where there is neither."""
        if not (self._synthetic or self._targets):
            return None
        count = crops_of(self._config)[1]
        mix = self._config.synthetic_mix if self._targets else 1.0
        pairs = max(1, round(count * mix)) if self._synthetic else 0

        def pick(row: int, draws: NDArray[np.float64]) -> tuple[TrainingItem, Box | None]:
            return _pick(self._synthetic, draws) if row < pairs else self._targets.pick(draws)

        return self._draw(self._beside_rng, count, pick, device)

    def _draw(
        self,
        rng: np.random.Generator,
        count: int,
        pick: Callable[[int, NDArray[np.float64]], tuple[TrainingItem, Box | None]],
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        side = sliced_side(self._config.crop)
        if count % self.workers.count:
            raise ConfigError(
                f"{count} crops (downstream.batch, and downstream.synthetic_share of it) cannot be cut among {self.workers.count} workers "
                "(train.workers): choose a multiple."
            )
        rows, moves = rng.random((count, 5)), draw_moves(rng, count, self._config)
        own = self.workers.own.cut(range(count))
        stacked = np.empty((len(own), side, side, 4), dtype=np.uint8)
        for place, row in enumerate(own):
            item, box = pick(row, rows[row])
            _cut(item, box, rows[row, 3:], self._config.crop, stacked[place])
        return apply_moves(
            torch.from_numpy(stacked).to(device), moves.cut(self.workers.own), self._config.crop
        )


class _Balanced:
    """Draws a key evenly, then an item of it, then one of the item's boxes."""

    def __init__(self, items: Sequence[TrainingItem]) -> None:
        keys: dict[str, list[TrainingItem]] = {}
        for item in items:
            keys.setdefault(item.weight_key, []).append(item)
        self._keys = [keys[key] for key in sorted(keys)]

    def __len__(self) -> int:
        return len(self._keys)

    def pick(self, draws: NDArray[np.float64]) -> tuple[TrainingItem, Box | None]:
        return _pick(self._keys[int(draws[0] * len(self._keys))], draws)


def _pick(items: Sequence[TrainingItem], draws: NDArray[np.float64]) -> tuple[TrainingItem, Box | None]:
    item = items[int(draws[1] * len(items))]
    return item, item.boxes[int(draws[2] * len(item.boxes))] if item.boxes else None


def _cut(
    item: TrainingItem, box: Box | None, draws: NDArray[np.float64], crop: int, out: NDArray[np.uint8]
) -> None:
    height, width = item.mask.shape
    centre = crop_centre(draws, (height, width), box, crop)
    out[..., :3] = slice_around(item.image, centre, out.shape[0])
    out[..., 3:] = slice_around(item.mask[..., None].view(np.uint8), centre, out.shape[0]) * 255


def _shrunk_pair(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], places: Iterable[Box], longest_side: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[float, float]]:
    """Photo, mask, and (x, y) factors from native to shrunk pixels.

    Args:
        places: boxes of the mask's targets.
    """
    small = shrink(image, longest_side)
    height, width = small.shape[:2]
    if small.shape == image.shape:
        return image, mask, (1.0, 1.0)
    scale = width / image.shape[1], height / image.shape[0]
    share = np.asarray(
        Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    )
    # A third, not a half: a crack of one pixel must survive shrinking to half size.
    small_mask = share > 85
    for left, top, right, bottom in (_scaled(box, scale) for box in places):
        place = np.s_[top:bottom, left:right]
        if not small_mask[place].any():  # thinner still: a crop would show it, and its mask would deny it
            small_mask[place] = (share[place] > 0) & (2 * share[place] >= share[place].max())
    return small, small_mask, scale


def _scaled(box: Box, scale: tuple[float, float]) -> Box:
    left, top = int(box[0] * scale[0]), int(box[1] * scale[1])
    return left, top, max(left + 1, math.ceil(box[2] * scale[0])), max(top + 1, math.ceil(box[3] * scale[1]))


def _one_cycle(step: int, steps: int) -> float:
    """Factor on the peak learning rate: cosine up from 1/25 over WARM_UP of the steps, cosine down to 0."""
    rise = max(1.0, WARM_UP * steps)
    if step < rise:
        return 0.04 + 0.96 * 0.5 * (1 - float(np.cos(np.pi * step / rise)))
    return 0.5 * (1 + float(np.cos(np.pi * min(1.0, (step - rise) / max(1.0, steps - rise)))))
