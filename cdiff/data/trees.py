"""What exported pairs lie in: an MVTec AD tree, photos with a COCO annotation file, image + mask folders, or one Parquet file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import ndimage

from cdiff.data.dataset import components
from cdiff.data.images import OWN, decode_mask_png
from cdiff.data.mvtec import GOOD, normal_place, pair_places, type_folder
from cdiff.data.outlines import pack
from cdiff.data.run import safe_name
from cdiff.data.store import ROW_GROUP_BYTES
from cdiff.types import Attempt

ANNOTATIONS = "annotations.json"
PAIRS = "pairs.parquet"
_UNNAMED = "target"  # of a mask that shows targets where the pair itself has no type

Mask = NDArray[np.bool_]
Files = Mapping[str, str | None]


class Tree(Protocol):
    """Takes pairs one by one."""

    def add(self, attempt: Attempt, photo: bytes, mask: bytes) -> Files:
        """Write a pair, PNG bytes; returns its files as relative paths, by what they are: None for one that it has not.

        Raises:
            DataError: the mask is no PNG.
        """

    def close(self) -> str:
        """Write what is known only at the end; returns what the user should know, "" for nothing."""


class MvtecTree:
    """CATEGORY/test/TYPE/NNN.png and CATEGORY/ground_truth/TYPE/NNN_mask.png, as they were made.

    Photos whose mask shows nothing, as those of hard negatives, lie in CATEGORY/test/good and have no mask.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._numbers: Counter[tuple[str, str]] = Counter()

    def add(self, attempt: Attempt, photo: bytes, mask: bytes) -> Files:
        """As in `Tree`."""
        kind = _kind(attempt, decode_mask_png(mask, OWN))
        number = self._numbers[attempt.category, kind]
        self._numbers[attempt.category, kind] += 1
        if not kind:
            place = normal_place(attempt.category, number)
            _write(self._out / place, photo)
            return {"image": place, "mask": None}
        image, masked = pair_places(attempt.category, kind, number)
        _write(self._out / image, photo)
        _write(self._out / masked, mask)
        return {"image": image, "mask": masked}

    def close(self) -> str:
        """As in `Tree`."""
        return ""


class CocoTree:
    """images/CATEGORY-TYPE-NNN.png, and annotations.json with an entry for each target on them, as packed run lengths.

    The types are its categories, and their supercategory is the category of cdiff. Targets that the background photo showed before
    have their own type where that photo showed one type alone; where it showed several, nobody can tell them apart without it, and
    they have the pair's. A photo without a target has no entry.

    Args:
        before: types that photos of the run show, by sample_id.
    """

    def __init__(self, out: Path, before: Mapping[str, Sequence[str]]) -> None:
        self._out, self._before = out, before
        self._guessed = 0
        self._numbers: Counter[str] = Counter()
        self._kinds: dict[tuple[str, str], int] = {}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, attempt: Attempt, photo: bytes, mask: bytes) -> Files:
        """As in `Tree`."""
        shown = decode_mask_png(mask, OWN)
        kind = _kind(attempt, shown)
        # no folder of the category's name: readers take words such as SEG or test in it for what it holds
        stem = f"{safe_name(attempt.category)}-{_label(kind)}"
        place = f"images/{stem}-{self._numbers[stem]:03d}.png"
        self._numbers[stem] += 1
        height, width = shown.shape
        image = {"id": len(self._images) + 1, "file_name": place, "height": height, "width": width}
        self._images.append(image)
        for type, part in self._parts(attempt, shown):
            for target in _targets(part):
                self._annotate(target, image["id"], attempt.category, type)
        _write(self._out / place, photo)
        return {"image": place, "mask": ANNOTATIONS}

    def close(self) -> str:
        """Write the annotation file, with what is to be known in it; as in `Tree`."""
        # products may have types of one name
        several = len({category for category, _ in self._kinds}) > 1
        kinds = [
            {"id": number, "name": f"{category}/{type}" if several else type, "supercategory": category}
            for (category, type), number in self._kinds.items()
        ]
        note = ""
        if self._guessed:
            note = (
                f"{self._guessed} of {len(self._images)} photos may have targets under a wrong type: their backgrounds showed others "
                "before, which the run does not tell from the new one or from each other. Look at them before you train several types."
            )
        content = {
            "info": {"description": note},
            "images": self._images,
            "annotations": self._annotations,
            "categories": kinds,
        }
        _write(self._out / ANNOTATIONS, json.dumps(content).encode())
        return note

    def _parts(self, attempt: Attempt, shown: Mask) -> list[tuple[str, Mask]]:
        """A mask's parts by type; those whose type is a guess are counted."""
        kind, before = _kind(attempt, shown), self._before.get(attempt.assignment.task.background)
        if before is not None and set(before) <= {kind}:
            return [(kind, shown)]
        # the new target fills its box: what lies beyond was there before
        left, top, right, bottom = attempt.box if attempt.type else (0, 0, 0, 0)
        own = shown.copy()
        own[top:bottom, left:right] = False
        new = shown & ~own
        parts = len(components(new)), len(components(own))
        known = before is not None and len(before) == 1
        # several in the box, or one that its border cuts: more than the new target reaches into it
        mixed = parts[0] > 1 or sum(parts) > len(components(shown))
        self._guessed += mixed or (parts[1] > 0 and not known)
        return [(kind, new), (before[0], own)] if before is not None and known else [(kind, shown)]

    def _annotate(self, target: Mask, image: Any, category: str, kind: str) -> None:
        rows, columns = (np.flatnonzero(target.any(axis=axis)) for axis in (1, 0))
        self._annotations.append(
            {
                "id": len(self._annotations) + 1,
                "image_id": image,
                "category_id": self._kinds.setdefault((category, kind), len(self._kinds) + 1),
                "segmentation": {"size": list(target.shape), "counts": pack(target)},
                "area": int(target.sum()),
                "bbox": [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
                "iscrowd": 0,
            }
        )


class FolderTree:
    """CATEGORY/images/TYPE-NNN.png, and CATEGORY/masks of the same names: 0, and 255 for targets of any type.

    Photos without a target, named good-NNN.png, have a black mask.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._numbers: Counter[tuple[str, str]] = Counter()

    def add(self, attempt: Attempt, photo: bytes, mask: bytes) -> Files:
        """As in `Tree`."""
        category = safe_name(attempt.category)
        label = _label(_kind(attempt, decode_mask_png(mask, OWN)))
        name = f"{label}-{self._numbers[category, label]:03d}.png"
        self._numbers[category, label] += 1
        places = {"image": f"{category}/images/{name}", "mask": f"{category}/masks/{name}"}
        _write(self._out / places["image"], photo)
        _write(self._out / places["mask"], mask)
        return places

    def close(self) -> str:
        """As in `Tree`."""
        return ""


class ParquetTree:
    """pairs.parquet: a row per pair with its provenance, and photo and mask as PNG bytes; a mask without a target is black.

    It is written in row groups of some megabytes, and has its name when it is whole.

    Args:
        provenance: a row per pair, in the order in which they are added; task_id comes first.
    """

    def __init__(self, out: Path, provenance: pa.Table) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path, self._part = out / PAIRS, out / f"{PAIRS}.part"
        self._provenance, self._written = provenance, 0
        self._waiting: list[tuple[bytes, bytes]] = []
        names = provenance.column_names
        self._writer = pq.ParquetWriter(
            self._part,
            with_files(provenance.slice(0, 0), [], [], pa.binary()).schema,
            use_dictionary=names,
            write_statistics=names,
            # PNGs are compressed already
            compression={**dict.fromkeys(names, "ZSTD"), "image": "NONE", "mask": "NONE"},
        )

    def add(self, attempt: Attempt, photo: bytes, mask: bytes) -> Files:
        """As in `Tree`; a pair has no files of its own."""
        if (
            sum(len(part) for pair in self._waiting for part in pair) + len(photo) + len(mask)
            > ROW_GROUP_BYTES
        ):
            self._flush()
        self._waiting.append((photo, mask))
        return {}

    def close(self) -> str:
        """As in `Tree`."""
        self._flush()
        self._writer.close()
        self._part.replace(self._path)
        return ""

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = self._provenance.slice(self._written, len(self._waiting))
        photos, masks = zip(*self._waiting, strict=True)
        self._writer.write_table(with_files(rows, photos, masks, pa.binary()))
        self._written += len(self._waiting)
        self._waiting = []


def with_files(
    provenance: pa.Table, images: Sequence[Any], masks: Sequence[Any], kind: pa.DataType
) -> pa.Table:
    """Provenance with the columns image and mask behind task_id: where they lie, or what they hold."""
    table = provenance.add_column(1, "image", pa.array(images, kind))
    return table.add_column(2, "mask", pa.array(masks, kind))


def _kind(attempt: Attempt, shown: Mask) -> str:
    """The type that a pair goes under; "" where its photo shows no target, whatever it was made for."""
    return (attempt.type or _UNNAMED) if shown.any() else ""


def _label(kind: str) -> str:
    return type_folder(kind) if kind else GOOD


def _targets(shown: Mask) -> list[Mask]:
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
