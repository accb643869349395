"""Is SAFE scene agnostic? The same targets on their own photo and pasted elsewhere, described by SAFE and by plain pooling.

likeness    cosine of a target's features in the two scenes, less that of unlike targets
retrieval   share of targets on their own photo whose nearest target of another object, pasted, is of the same type
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cdiff.data.dataset import Dataset
from cdiff.evaluation.fidelity import retrieval_at_1, same_target_likeness, standardised
from cdiff.generator.model import Generator, crop_around, target_crop
from cdiff.types import Target


@dataclass(frozen=True)
class Scenes:
    """Features [N, F] of the same targets in two scenes, under both descriptions."""

    kinds: list[str]  # "category/type"
    groups: list[str]  # source objects
    safe: tuple[np.ndarray, np.ndarray]  # here, elsewhere
    plain: tuple[np.ndarray, np.ndarray]

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Likeness and retrieval at 1, by description; retrieval is None where no type has two objects."""
        return {
            name: {
                "likeness": same_target_likeness(here, elsewhere),
                "retrieval_at_1": retrieval_at_1(here, elsewhere, self.kinds, self.groups),
            }
            for name, (here, elsewhere) in (("safe", self.safe), ("plain", self.plain))
        }


@torch.inference_mode()
def describe_scenes(
    generator: Generator,
    dataset: Dataset,
    targets: Sequence[Target],
    backgrounds: Sequence[str],
    rng: np.random.Generator,
) -> Scenes:
    """Describe each target in its own crop, and pasted by its mask on a crop of one of the backgrounds.

    Args:
        targets: best such that the generator never saw.
        backgrounds: sample_ids; of those of the target's category, but never its own photo, the least covered place is taken.
    Raises:
        ValueError: under two targets, or no background but a target's own photo.
    """
    if len(targets) < 2:
        raise ValueError("scenes are compared between at least two targets")
    margin = sum(generator.config.margin) / 2
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in ("safe", "safe'", "plain", "plain'")}
    for target in targets:
        image, mask = target_crop(dataset, target, margin, generator.config)
        other = _empty_crop(generator, dataset, target, backgrounds, margin, rng)
        pasted = other * (1 - mask) + image * mask
        kinds = [f"{target.category}/{target.type}"]
        for scene, mark in ((image, ""), (pasted, "'")):
            tokens = generator.safe(scene[None], mask[None], kinds)
            rows[f"safe{mark}"].append(generator.safe.describe(tokens)[0])
            rows[f"plain{mark}"].append(generator.pooled(scene, mask))
    stacked = {name: torch.stack(found).numpy() for name, found in rows.items()}
    about = [f"{target.category}/{target.type}" for target in targets], [target.group for target in targets]
    pairs = {name: standardised(stacked[name], stacked[f"{name}'"]) for name in ("safe", "plain")}
    return Scenes(*about, (pairs["safe"][0], pairs["safe"][1]), (pairs["plain"][0], pairs["plain"][1]))


def _empty_crop(
    generator: Generator,
    dataset: Dataset,
    target: Target,
    backgrounds: Sequence[str],
    margin: float,
    rng: np.random.Generator,
) -> torch.Tensor:
    """A crop as large as the target's own, of another photo, where that shows least of its targets."""
    others = [
        name
        for name in backgrounds
        if name != target.sample_id and dataset.sample(name).category == target.category
    ]
    if not others:
        raise ValueError(f"no background but {target.target_id}'s own photo")
    name = others[int(rng.integers(len(others)))]
    photo, shown = dataset.image(name), dataset.mask(name)
    side = min(target.longer_side, *shown.shape)
    corners = [
        (int(rng.integers(shown.shape[1] - side + 1)), int(rng.integers(shown.shape[0] - side + 1)))
        for _ in range(16)
    ]
    x, y = min(corners, key=lambda c: shown[c[1] : c[1] + side, c[0] : c[0] + side].mean())
    box = (x, y, x + side, y + side)
    return crop_around(photo, np.zeros_like(shown), box, margin, generator.config)[0]
