"""Outlines in COCO's notation, read to masks and written from them: polygons, and run lengths plain or packed.

Run lengths count pixels down the columns, the first run outside: {"size": [H, W], "counts": [...]}; packed, the counts are one
string of six bits to a character. A polygon's coordinates run over the photo's plane, pixel (0, 0) being the square from 0 to 1.

The unpacking is cdiff's own: pycocotools 2.0.11 takes run lengths that end too early, and then reads what lies behind its memory.

Source: the notation of the COCO API (cocodataset/cocoapi, maskApi.c).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon

from cdiff.errors import DataError

Shape = tuple[int, int]  # height, width


def outline_mask(segmentation: Any, shape: Shape) -> NDArray[np.bool_]:
    """One annotation's mask.

    Args:
        segmentation: list of polygons [x0, y0, x1, y1, ...], whose union counts, or run lengths, plain or packed.
        shape: height and width of the photo.
    Returns:
        bool [H, W]: pixels whose centre lies inside or on the outline; polygons may hold none.
    Raises:
        ValueError: it is neither of them, of another size than the photo, or far off it.
    """
    if isinstance(segmentation, dict):
        return _runs_mask(segmentation, shape)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("is neither polygons nor run lengths")
    mask = np.zeros(shape, dtype=bool)
    for points in segmentation:
        mask[_inside(points, shape)] = True
    return mask


def packed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask's run lengths, packed: {"size": [H, W], "counts": text}."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    runs = [0, *counts.tolist()] if flat[0] else counts.tolist()
    return {"size": list(mask.shape), "counts": _pack(runs)}


def union(annotations: Iterable[tuple[int, Any]], shape: Shape) -> dict[int, NDArray[np.bool_]]:
    """Masks by category id of (category id, segmentation); errors as in `outline_mask`."""
    masks: dict[int, NDArray[np.bool_]] = {}
    for category, segmentation in annotations:
        mask = outline_mask(segmentation, shape)
        masks[category] = masks[category] | mask if category in masks else mask
    return masks


def read_annotated(
    path: str | Path, image: str, categories: Iterable[int], shape: Shape
) -> dict[int, NDArray[np.bool_]]:
    """What an annotation file says of one photo: category id -> bool [H, W], the union of its annotations.

    Raises:
        DataError: the file cannot be read, or was changed so that it does not say so any more.
    """
    file = Path(path)
    try:
        state = file.stat()
        masks = union(_index(str(file), state.st_mtime_ns, state.st_size)[image], shape)
        return {category: masks[category] for category in categories}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: the outlines of image {image} cannot be read any more ({error}). Start the run again with the file as it was."
        ) from None


@lru_cache(maxsize=8)  # of a run's few files; a photo is asked for again and again
def _index(path: str, changed: int, size: int) -> dict[str, list[tuple[int, Any]]]:
    """Image id -> (category id, segmentation) of its annotations."""
    content = json.loads(Path(path).read_bytes())
    found: dict[str, list[tuple[int, Any]]] = {str(image["id"]): [] for image in content["images"]}
    for annotation in content["annotations"]:
        if str(annotation["image_id"]) in found and annotation.get("segmentation"):
            found[str(annotation["image_id"])].append((annotation["category_id"], annotation["segmentation"]))
    return found


def _inside(points: Any, shape: Shape) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of a polygon's pixels."""
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        raise ValueError("has a polygon of fewer than three points")
    try:
        flat = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("has a polygon that is no list of numbers") from None
    x, y = flat[0::2], flat[1::2]
    if flat.ndim != 1 or not np.isfinite(flat).all():
        raise ValueError("has a polygon that is no list of numbers")
    height, width = shape
    if min(x.min() + width, y.min() + height, 2 * width - x.max(), 2 * height - y.max()) < 0:
        raise ValueError("has a polygon far off its photo")
    rows, columns = polygon(y - 0.5, x - 0.5, shape)
    return rows, columns


def _runs_mask(runs: dict[str, Any], shape: Shape) -> NDArray[np.bool_]:
    counts, size = runs.get("counts"), runs.get("size")
    if size != list(shape):
        raise ValueError(
            f"has run lengths for size {size}, where its photo has [height, width] {list(shape)}"
        )
    counts = _unpack(counts) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("has run lengths that are no counts")
    if sum(counts) != shape[0] * shape[1]:
        raise ValueError(
            f"has run lengths for {sum(counts)} pixels, where its photo has {shape[0] * shape[1]}"
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(shape, order="F")


def _unpack(text: str) -> list[int]:
    """Counts of the packed notation: little-endian groups of five bits, a sixth for "goes on"; from the fourth on, less the last but one."""
    counts: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError("has packed run lengths with a character that none has")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = bits = 0
    if bits:
        raise ValueError("has packed run lengths that break off")
    return counts


def _pack(counts: Sequence[int]) -> str:
    characters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            code, value = value & 31, value >> 5
            last = value == (-1 if code & 16 else 0)
            characters.append(chr((code if last else code | 32) + 48))
            if last:
                break
    return "".join(characters)
