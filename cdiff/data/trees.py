"""What exported pairs lie in: an MVTec AD tree, or a folder of photos with a COCO annotation file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cdiff.data.dataset import components
from cdiff.data.images import Limits, decode_mask_png
from cdiff.data.mvtec import pair_places
from cdiff.data.outlines import pack
from cdiff.data.run import safe_name

ANNOTATIONS = "annotations.json"


class Tree(Protocol):
    """Takes pairs one by one."""

    def add(self, category: str, type: str, photo: bytes, mask: bytes) -> dict[str, str]:
        """Write a pair, PNG bytes; returns its files as relative paths, by what they are."""

    def close(self) -> None:
        """Write what is known only at the end."""


class MvtecTree:
    """CATEGORY/test/TYPE/NNN.png and CATEGORY/ground_truth/TYPE/NNN_mask.png, as they were made."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._numbers: Counter[tuple[str, str]] = Counter()

    def add(self, category: str, type: str, photo: bytes, mask: bytes) -> dict[str, str]:
        """As in `Tree`."""
        image, masked = pair_places(category, type, self._numbers[category, type])
        self._numbers[category, type] += 1
        for place, data in ((image, photo), (masked, mask)):
            _write(self._out / place, data)
        return {"image": image, "mask": masked}

    def close(self) -> None:
        """Nothing is left to write."""


class CocoTree:
    """images/CATEGORY/TYPE-NNN.png, and annotations.json with an entry for each target on them, as packed run lengths.

    The types are its categories, and their supercategory is the category of cdiff. All targets on a photo are of the pair's type,
    those that its background showed before among them, as in an MVTec tree.
    """

    def __init__(self, out: Path, limits: Limits) -> None:
        self._out, self._limits = out, limits
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._kinds: dict[tuple[str, str], int] = {}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, category: str, type: str, photo: bytes, mask: bytes) -> dict[str, str]:
        """As in `Tree`. Raises DataError for a mask that is no PNG."""
        kind = self._kinds.setdefault((category, type), len(self._kinds) + 1)
        place = f"images/{safe_name(category)}/{safe_name(type)}-{self._numbers[category, type]:03d}.png"
        self._numbers[category, type] += 1
        shown = decode_mask_png(mask, self._limits)
        image = {
            "id": len(self._images) + 1,
            "file_name": place,
            "height": shown.shape[0],
            "width": shown.shape[1],
        }
        self._images.append(image)
        for target in _targets(shown):
            rows, columns = (np.flatnonzero(target.any(axis=axis)) for axis in (1, 0))
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image["id"],
                    "category_id": kind,
                    "segmentation": {"size": list(target.shape), "counts": pack(target)},
                    "area": int(target.sum()),
                    "bbox": [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
                    "iscrowd": 0,
                }
            )
        _write(self._out / place, photo)
        return {"image": place, "mask": ANNOTATIONS}

    def close(self) -> None:
        """Write the annotation file."""
        # products may have types of one name
        several = len({category for category, _ in self._kinds}) > 1
        kinds = [
            {"id": number, "name": f"{category}/{type}" if several else type, "supercategory": category}
            for (category, type), number in self._kinds.items()
        ]
        content = {"images": self._images, "annotations": self._annotations, "categories": kinds}
        _write(self._out / ANNOTATIONS, json.dumps(content).encode())


def _targets(shown: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The targets of a mask, each bool [H, W]; specks, which are none of their own, belong to the nearest."""
    labels = np.zeros(shown.shape, dtype=int)
    found = components(shown)
    for number, ((left, top, right, bottom), shape) in enumerate(found):
        labels[top:bottom, left:right][shape] = number + 1
    if (shown & (labels == 0)).any():
        nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
        labels = labels[tuple(nearest)]
    return [shown & (labels == number + 1) for number in range(len(found))]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
