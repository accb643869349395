"""Types of which there are too few targets to learn from alone are one type, "other", of their category."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.types import Sample

POOLED = "other"


def pool_rare(
    samples: Sequence[Sample], counted: Sequence[Sample], config: DataConfig
) -> tuple[list[Sample], list[str]]:
    """Rename types of a category with fewer than `data.pool_below` targets among `counted` to "other"."""
    shown: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in counted:
        for type in sample.types:
            shown[sample.category, type].append(sample)
    data = Dataset(counted, config)
    pooled: dict[tuple[str, str], int] = {}
    for (category, type), photos in sorted(shown.items()):
        if type == POOLED or len(photos) >= config.pool_below:  # every photo has at least one target
            continue
        targets = [
            target for photo in photos for target in data.targets(photo.sample_id) if target.type == type
        ]
        if len(targets) < config.pool_below:
            pooled[category, type] = len(targets)
    notes = [
        f"pooled {category}/{type} into {category}/{POOLED}: {count} targets, data.pool_below={config.pool_below}"
        for (category, type), count in pooled.items()
    ]
    return [
        renamed(sample, {type for category, type in pooled if category == sample.category})
        for sample in samples
    ], notes


def renamed(sample: Sample, pooled: set[str]) -> Sample:
    """The sample with these types called "other", in its masks too."""
    if not pooled & set(sample.types):
        return sample
    masks = tuple(
        dataclasses.replace(
            mask, types=tuple((value, POOLED if type in pooled else type) for value, type in mask.types)
        )
        for mask in sample.masks
    )
    types = tuple(sorted({POOLED if type in pooled else type for type in sample.types}))
    return dataclasses.replace(sample, masks=masks, types=types)
