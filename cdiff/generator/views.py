"""What a training step sees: augmented crops of targets, new ones in every step or a few that are encoded once and kept.

Small networks that are trained from scratch need new crops every step. With a pretrained autoencoder and frozen features, encoding takes
longer than what is learned from it: there, `generator.views` crops per target are kept as latents and pooled features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cdiff.config import Config
from cdiff.generator.model import Generator
from cdiff.generator.objective import Clean
from cdiff.generator.patches import Patches, augmented, balanced, regions
from cdiff.safe.cache import FeatureCache
from cdiff.workers import Part

_AT_ONCE = 8  # crops that are encoded together


@dataclass(frozen=True)
class Batch:
    """A part of one step's crops, on the generator's device."""

    clean: Clean
    kinds: list[str]  # of the whole batch
    tokens_BND: torch.Tensor  # of another augmentation of the same targets: the network cannot copy pixels
    elsewhere_BND: torch.Tensor | None = (
        None  # of the targets pasted on other photos; None: nothing is contrasted
    )
    empty_BND: torch.Tensor | None = None  # of those photos without them


class Views(Protocol):
    """Crops by step: everything random comes from (seed, step), so that a resumed run draws the same batches."""

    def draw(self, step: int, part: Part) -> Batch: ...


class FreshViews:
    """New crops in every step."""

    def __init__(self, generator: Generator, patches: Patches, config: Config) -> None:
        self.generator, self.patches, self.config = generator, patches, config

    def draw(self, step: int, part: Part) -> Batch:
        settings, safe, patches = self.config.generator, self.generator.safe, self.patches
        device = safe.idle.device
        rng = np.random.default_rng([settings.seed, 2, step])
        index = rng.choice(len(patches.kinds), settings.batch, p=balanced(patches.kinds))
        image, mask = (t.to(device) for t in augmented(patches, index, settings.resolution, rng, part))
        other, other_mask = (t.to(device) for t in augmented(patches, index, settings.resolution, rng, part))
        region = regions(mask, rng, part)
        kinds = [patches.kinds[i] for i in index]
        own = part.cut(kinds)
        clean = Clean.of(self.generator.denoiser, image, mask, region)
        tokens = safe(other, other_mask, own)
        if not contrasts(self.config, patches):
            return Batch(clean, kinds, tokens)
        empty = patches.empty[part.cut(rng.integers(len(patches.empty), size=settings.batch))].to(device)
        pasted = empty * (1 - mask) + image * mask
        return Batch(clean, kinds, tokens, safe(pasted, mask, own), safe(empty, mask, own))


class KeptViews:
    """`generator.views` crops per target, drawn and encoded once.

    Args:
        cache: of pooled features, where the encoder is frozen.
        progress: crops encoded, crops in all.
    Raises:
        ValueError: the encoder is trained, so that what it sees changes.
    """

    def __init__(
        self,
        generator: Generator,
        patches: Patches,
        config: Config,
        cache: FeatureCache | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if not generator.safe.frozen:
            raise ValueError("features of an encoder that is trained cannot be kept")
        self.generator, self.config, self.kinds = generator, config, patches.kinds
        self.views, self._contrasts = config.generator.views, contrasts(config, patches)
        self.kept: list[torch.Tensor] = []
        total = self.views * len(patches.kinds)
        for view in range(self.views):
            rng = np.random.default_rng([config.generator.seed, 5, view])
            for first in range(0, len(patches.kinds), _AT_ONCE):
                index = np.arange(first, min(first + _AT_ONCE, len(patches.kinds)))
                place = view * len(patches.kinds) + first
                self._keep(place, total, self._encoded(patches, index, rng, cache))
                if progress:
                    progress(place + len(index), total)
        if cache is not None:
            cache.flush()

    def _keep(self, place: int, total: int, rows: tuple[torch.Tensor, ...]) -> None:
        """Columns: canvas, known, mask, region, and features of the target, of it pasted elsewhere, and of that place without it."""
        if not self.kept:  # filled in place: thousands of crops would not bear being copied
            self.kept = [torch.empty((total, *part.shape[1:]), dtype=part.dtype) for part in rows]
        for column, part in zip(self.kept, rows, strict=True):
            column[place : place + len(part)] = part

    @torch.no_grad()
    def _encoded(
        self, patches: Patches, index: np.ndarray, rng: np.random.Generator, cache: FeatureCache | None
    ) -> tuple[torch.Tensor, ...]:
        safe, resolution = self.generator.safe, self.config.generator.resolution
        device = safe.idle.device
        image, mask = (t.to(device) for t in augmented(patches, index, resolution, rng))
        clean = Clean.of(self.generator.denoiser, image, mask, regions(mask, rng))
        rows = [safe.remembered(image, mask, cache).flat()]
        if self._contrasts:
            empty = patches.empty[rng.integers(len(patches.empty), size=len(index))].to(device)
            pasted = empty * (1 - mask) + image * mask
            rows += [safe.remembered(scene, mask, cache).flat() for scene in (pasted, empty)]
        whole = (
            clean.canvas_BCSS,
            clean.known_BKSS,
            _bytes(clean.mask_B1RR),
            clean.region_B1RR.bool(),
            *rows,
        )
        return tuple(part.cpu() for part in whole)

    def draw(self, step: int, part: Part) -> Batch:
        settings, safe = self.config.generator, self.generator.safe
        rng = np.random.default_rng([settings.seed, 2, step])
        index = rng.choice(len(self.kinds), settings.batch, p=balanced(self.kinds))
        view = rng.integers(self.views, size=settings.batch)
        other = (view + rng.integers(min(1, self.views - 1), self.views, size=settings.batch)) % self.views
        here, there = (torch.from_numpy(part.cut(v * len(self.kinds) + index)) for v in (view, other))
        device = safe.idle.device
        canvas, known, mask, region = (column[here].to(device) for column in self.kept[:4])
        kinds = [self.kinds[i] for i in index]

        def tokens(column: int, rows: torch.Tensor) -> torch.Tensor:
            return safe.words(safe.unflat(self.kept[column][rows].to(device)), part.cut(kinds))

        clean = Clean(canvas, mask.float() / 127.5 - 1, known, region.float())
        if not self._contrasts:
            return Batch(clean, kinds, tokens(4, there))
        return Batch(clean, kinds, tokens(4, there), tokens(5, here), tokens(6, here))


def contrasts(config: Config, patches: Patches) -> bool:
    """Whether training has the term that makes SAFE scene agnostic."""
    return bool(config.safe.contrast_weight) and config.safe.tokens == "safe" and len(patches.empty) > 0


def _bytes(mask_B1RR: torch.Tensor) -> torch.Tensor:
    """A mask in [-1, 1] in a quarter of its size."""
    return ((mask_B1RR + 1) * 127.5).round().to(torch.uint8)
