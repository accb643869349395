"""Predicting at native size, and saying how the model did on every target and normal photo."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from cdiff.config import DownstreamConfig
from cdiff.data.dataset import Dataset
from cdiff.downstream.training import shrink
from cdiff.types import Outcome, Sample, Target

MULTIPLE = 16  # sides that the network sees are multiples of this
SMALLEST = 32  # and at least this: four halvings of less leave nothing to convolve
SURROUNDINGS = 0.5  # how far a target's surroundings reach beyond its box, in its longer sides ...
SURROUNDINGS_PIXELS = 8  # ... and at least this far
TOP_SHARE = 0.001  # the image-level score is the mean of this share of the highest pixel scores
EPSILON = 1e-6  # scores are kept this far from 0 and 1 in logarithms


@torch.no_grad()
def score_photo(model: nn.Module, image: NDArray[np.uint8], config: DownstreamConfig) -> NDArray[np.float32]:
    """How sure the model is of a target at each pixel: float32 [H, W] in [0, 1], at the photo's own size.

    The photo is shrunk to `config.longest_side` (never enlarged), mirrored at its right and lower edge up to a multiple of
    16 px, and its scores are enlarged bilinearly. With `config.mirror` they are means over the photo and its mirror images,
    upside down only where the segmenter was fitted so: what is not there rarely alarms in all of them.

    Args:
        image: uint8 [H, W, 3] of any size. The model is expected in evaluation mode.
    """
    small = shrink(image, config.longest_side)
    height, width = small.shape[:2]
    below, right = (max(SMALLEST, math.ceil(side / MULTIPLE) * MULTIPLE) - side for side in (height, width))
    padded = np.pad(small, ((0, below), (0, right), (0, 0)), mode="symmetric")
    device = next(model.parameters()).device
    batch = torch.from_numpy(padded.copy()).to(device).permute(2, 0, 1)[None].float().div(127.5).sub(1)
    scores = torch.stack([_scores(model, batch, axes) for axes in _mirrors(config)]).mean(0)
    scores = scores[..., :height, :width]
    if (height, width) != image.shape[:2]:
        scores = F.interpolate(scores, size=image.shape[:2], mode="bilinear", align_corners=False)
    return scores[0, 0].clamp(0, 1).cpu().numpy()


def _mirrors(config: DownstreamConfig) -> list[tuple[int, ...]]:
    """The axes of [B, C, H, W] along which a photo is mirrored, one entry per view; the first is the photo itself."""
    if not config.mirror:
        return [()]
    return [(), (3,), (2,), (2, 3)] if config.vertical_flip else [(), (3,)]


def _scores(model: nn.Module, batch: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    logits = model(batch.flip(axes).contiguous(memory_format=torch.channels_last)).float()
    return torch.sigmoid(logits).flip(axes)


def score_photos(
    model: nn.Module,
    dataset: Dataset,
    ids: Iterable[str],
    config: DownstreamConfig,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Score maps of several photos by id, as `score_photo` makes them; progress is called with (done, total)."""
    model.eval()
    wanted = list(ids)
    maps = {}
    for done, sample_id in enumerate(wanted, start=1):
        maps[sample_id] = score_photo(model, dataset.image(sample_id), config)
        if progress:
            progress(done, len(wanted))
    return maps


def image_score(scores: NDArray[np.floating]) -> float:
    """One number in [0, 1] for a photo: the mean of the highest TOP_SHARE of its pixels (one at least)."""
    flat = np.asarray(scores, dtype=np.float32).ravel()
    count = max(1, int(flat.size * TOP_SHARE))
    return float(np.partition(flat, flat.size - count)[-count:].mean(dtype=np.float64))


def outcomes(
    model: nn.Module, dataset: Dataset, ids: Iterable[str], config: DownstreamConfig, fold: int
) -> list[Outcome]:
    """How a model did, in order of the ids: one row per target, one per normal photo (fields: `cdiff.types.Outcome`)."""
    model.eval()
    rows: list[Outcome] = []
    for sample_id in ids:  # one map at a time: there may be thousands of large photos
        maps = {sample_id: score_photo(model, dataset.image(sample_id), config)}
        rows += outcomes_of(maps, dataset, [sample_id], fold)
    return rows


def outcomes_of(
    maps: Mapping[str, NDArray[np.float32]], dataset: Dataset, ids: Iterable[str], fold: int
) -> list[Outcome]:
    """The same from score maps at native size."""
    rows: list[Outcome] = []
    for sample_id in ids:
        image, sample, scores = dataset.image(sample_id), dataset.sample(sample_id), maps[sample_id]
        targets = dataset.targets(sample_id)
        if not targets:
            rows.append(_normal_outcome(sample, scores, fold))
        for target in targets:
            mask, every = dataset.target_mask(target.target_id), dataset.mask(sample_id)
            rows.append(target_outcome(target, image, mask, every, scores, fold))
    return rows


def target_outcome(
    target: Target,
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    every: NDArray[np.bool_],
    scores: NDArray[np.float32],
    fold: int,
) -> Outcome:
    """Measure one target within its surroundings, where pixels of other targets count for nothing.

    Args:
        image: uint8 [H, W, 3]. mask: bool [H, W] of the target. every: bool [H, W] of all targets. scores: [H, W].
    """
    place = _surroundings(target, mask.shape)
    inside, score = mask[place], scores[place].astype(np.float64)
    counted = inside | ~every[place]
    grey = image[place].mean(axis=2, dtype=np.float64)
    found = (score >= 0.5) & counted
    return Outcome(
        target_id=target.target_id,
        sample_id=target.sample_id,
        category=target.category,
        type=target.type,
        group=target.group,
        fold=fold,
        loss=float(_entropy(score, inside)[counted].mean()),
        soft_dice=float(2 * score[inside].sum() / (score[counted].sum() + inside.sum())),
        missed=float((~found[inside]).mean()),
        false_area=float((found & ~inside).sum() / inside.sum()),
        confidence=float(score[inside].mean()),
        boundary_error=_boundary_error(found, inside, target.longer_side),
        size=math.sqrt(target.area) / math.sqrt(mask.size),
        contrast=_contrast(grey, inside, counted, target.longer_side),
    )


def _normal_outcome(sample: Sample, scores: NDArray[np.float32], fold: int) -> Outcome:
    highest = float(scores.max())
    y, x = np.unravel_index(int(scores.argmax()), scores.shape)
    return Outcome(
        target_id=sample.sample_id,
        sample_id=sample.sample_id,
        category=sample.category,
        type="",
        group=sample.group,
        fold=fold,
        loss=float(_entropy(scores.astype(np.float64), np.zeros(scores.shape, dtype=bool)).mean()),
        soft_dice=1 - highest,
        missed=0.0,
        false_area=float((scores >= 0.5).mean()),
        confidence=highest,
        boundary_error=0.0,
        size=0.0,
        contrast=0.0,
        peak=(int(x), int(y)),
    )


def _surroundings(target: Target, shape: tuple[int, ...]) -> tuple[slice, slice]:
    reach = max(SURROUNDINGS_PIXELS, math.ceil(SURROUNDINGS * target.longer_side))
    left, top, right, bottom = target.box
    return (
        slice(max(0, top - reach), min(shape[0], bottom + reach)),
        slice(max(0, left - reach), min(shape[1], right + reach)),
    )


def _entropy(scores: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return -np.log(np.clip(np.where(mask, scores, 1 - scores), EPSILON, 1))


def _boundary_error(found: NDArray[np.bool_], mask: NDArray[np.bool_], longer_side: int) -> float:
    """Symmetric mean distance between the outlines, in longer sides of the target, at most 1; 1 if nothing is found."""
    if not found.any():
        return 1.0
    lines = [shape & ~ndimage.binary_erosion(shape) for shape in (found, mask)]
    distances = [ndimage.distance_transform_edt(~line) for line in lines]
    mean = (distances[1][lines[0]].mean() + distances[0][lines[1]].mean()) / 2
    return float(min(1.0, mean / longer_side))


def _contrast(
    grey: NDArray[np.float64], inside: NDArray[np.bool_], counted: NDArray[np.bool_], longer_side: int
) -> float:
    """|mean inside - mean of the ring around| / 255; the ring is a fifth of the longer side wide, at least 3 px."""
    width = max(3, round(longer_side / 5))
    ring = (ndimage.distance_transform_edt(~inside) <= width) & counted & ~inside
    return float(abs(grey[inside].mean() - grey[ring].mean()) / 255) if ring.any() else 0.0
