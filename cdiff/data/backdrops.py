"""Which photos are painted on: normal ones, as far as there are enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cdiff.types import Sample

ENOUGH = 8  # source objects that normal photos show; of fewer, every pair would have one of a few scenes


def backdrops(photos: Iterable[Sample]) -> list[Sample]:
    """The photos to paint on, in their order: of each category normal ones alone where they show enough objects, else all.

    A lone photo with an empty mask, as where somebody forgot to mark it, would otherwise bear every pair.
    """
    photos = list(photos)
    rich = {category for category, shown in _objects(photos).items() if shown >= ENOUGH}
    return [photo for photo in photos if photo.is_normal or photo.category not in rich]


def plain(photos: Sequence[Sample]) -> list[Sample]:
    """Normal photos of the categories that have enough of them, in their order."""
    few = scarce(photos)
    return [photo for photo in photos if photo.is_normal and photo.category not in few]


def scarce(photos: Sequence[Sample]) -> dict[str, int]:
    """Categories that have normal photos, and too few of them: how many objects these show."""
    return {category: shown for category, shown in _objects(photos).items() if shown < ENOUGH}


def _objects(photos: Iterable[Sample]) -> dict[str, int]:
    """By category, the source objects that its normal photos show; categories without any are left out."""
    shown: dict[str, set[str]] = {}
    for photo in photos:
        if photo.is_normal:
            shown.setdefault(photo.category, set()).add(photo.group)
    return {category: len(groups) for category, groups in sorted(shown.items())}
