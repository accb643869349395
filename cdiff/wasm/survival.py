"""Is a pair hard, or only adversarial? What is hard stays hard after a slight blur, a JPEG, and a look of the denoiser.

    survives = min over treatments of  loss(treated) / loss        1 where there was no hardness to lose

A segmenter's blind spot for a few pixels is gone after any of them; a faint crack is still faint. The bound is what real
targets show under models that never saw them.
Source: JPEG and blur against adversarial images: Dziugaite et al. (1608.00853); noise and denoise: Nie et al. (2205.07460).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter
from torch import nn

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.types import Outcome
from cdiff.wasm.view import local_loss

HARD = 0.3  # nats of `local_loss`; what is found has less, and no hardness that could be gone
_BLUR = 0.8  # standard deviation, pixels of the segmenter
_JPEG = 75


def survival(
    segmenter: nn.Module,
    image: np.ndarray,
    mask: np.ndarray,
    target: np.ndarray,
    config: Config,
    treated: Sequence[np.ndarray] = (),
) -> float:
    """Share of a target's capped loss that is left after the hardest treatment, in [0, 1]; 1 where it is not hard.

    Args:
        image: uint8 [H, W, 3]; mask: bool [H, W] all targets; target: the one that counts.
        treated: further versions of the image, beside its blur and its JPEG.
    """
    return _survival(segmenter, image, mask, target, config, treated)[1]


def _survival(segmenter, image, mask, target, config, treated=()):  # type: ignore[no-untyped-def]
    """Whether the target is hard, and what survives of that."""

    def loss(version: np.ndarray) -> float:
        return min(config.wasm.kappa, local_loss(segmenter, version, mask, target, config))

    if not target.any() or (whole := loss(image)) < HARD:
        return False, 1.0
    left = min(loss(version) for version in (_blurred(image, config), _jpeg(image), *treated))
    return True, float(np.clip(left / whole, 0, 1))


def with_survival(
    rows: Iterable[Outcome], segmenter: nn.Module, dataset: Dataset, config: Config
) -> list[Outcome]:
    """Outcomes of targets with what survives of their loss; those of normal photos as they are."""
    segmenter.eval()
    out = []
    for row in rows:
        if row.type:
            image, every = dataset.image(row.sample_id), dataset.mask(row.sample_id)
            own = dataset.target_mask(row.target_id)
            hard, survives = _survival(segmenter, image, every, own, config)
            row = replace(row, hard=hard, survives=survives)
        out.append(row)
    return out


def _blurred(image: np.ndarray, config: Config) -> np.ndarray:
    radius = _BLUR * max(1.0, max(image.shape[:2]) / config.downstream.longest_side)
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG)
    return np.asarray(Image.open(buffer))
