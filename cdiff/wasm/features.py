"""Frozen features of real targets and of made ones, for the fidelity of a set of pairs (cdiff.evaluation.fidelity)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from cdiff.data.dataset import Dataset
from cdiff.data.images import OWN, decode_mask_png, decode_png
from cdiff.data.store import Run, read_pair
from cdiff.generator.model import Generator, crop_around, target_crop
from cdiff.types import Attempt, Target
from cdiff.wasm.layout import new_target


def real_features(generator: Generator, dataset: Dataset, targets: Iterable[Target]) -> np.ndarray:
    """[N, F], plain pooled features of real targets, each in its own crop."""
    margin = sum(generator.config.margin) / 2
    crops = (target_crop(dataset, target, margin, generator.config) for target in targets)
    return _stacked([generator.pooled(image, mask) for image, mask in crops])


def pair_features(
    generator: Generator, run: Run, dataset: Dataset, attempts: Sequence[Attempt]
) -> np.ndarray:
    """[N, F], the same of the new targets of stored pairs; what its photo shows beside the new one is left out."""
    margin = sum(generator.config.margin) / 2
    rows = []
    for attempt in attempts:
        image, every = read_pair(run, attempt)
        photo, mask = decode_png(image, OWN), decode_mask_png(every, OWN)
        own = new_target(attempt, mask, dataset)
        rows.append(generator.pooled(*crop_around(photo, own, attempt.box, margin, generator.config)))
    return _stacked(rows)


def _stacked(rows: list[torch.Tensor]) -> np.ndarray:
    return np.stack([row.numpy() for row in rows]) if rows else np.zeros((0, 1), np.float32)
