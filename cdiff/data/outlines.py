"""Outlines in COCO's notation, read to masks and written from them: polygons, and run lengths plain or packed.

Run lengths count pixels down the columns, the first run outside: {"size": [H, W], "counts": [...]}; packed, the counts are one
string of six bits to a character. A polygon's coordinates run over the photo's plane, pixel (0, 0) being the square from 0 to 1.

The unpacking is cdiff's own: pycocotools 2.0.11 takes run lengths that end too early, and then reads what lies behind its memory.

Source: the notation of the COCO API (cocodataset/cocoapi, maskApi.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int]  # height, width


# edges of an outline times the rows that each crosses: in all, and held at once; bits of a packed run length
_CROSSINGS, _AT_ONCE, _BITS = 10_000_000, 2_000_000, 60


def outline_mask(segmentation: Any, shape: Shape) -> NDArray[np.bool_]:
    """One annotation's mask.

    Args:
        segmentation: polygons [x0, y0, x1, y1, ...], one or a list whose union counts, or run lengths, plain or packed.
        shape: height and width of the photo.
    Returns:
        bool [H, W]: pixels whose centre lies inside. Polygons may hold none; those of fewer than three points never do.
    Raises:
        ValueError: it is neither of them, of another size than the photo, or far off it.
    """
    if isinstance(segmentation, dict):
        return _runs_mask(segmentation, shape)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("is neither polygons nor run lengths")
    mask = np.zeros(shape, dtype=bool)
    for points in [segmentation] if isinstance(segmentation[0], int | float) else segmentation:
        _fill(mask, _points(points, shape))
    return mask


def pack(mask: NDArray[np.bool_]) -> str:
    """A mask's packed run lengths."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return _pack([0, *runs] if flat[0] else runs)


def unpack(counts: str, shape: Shape) -> NDArray[np.bool_]:
    """The mask, bool [H, W], of packed run lengths; ValueError for those of another size, or for what is none."""
    return _runs_mask({"size": list(shape), "counts": counts}, shape)


def _points(points: Any, shape: Shape) -> NDArray[np.float64]:
    """A polygon's corners, [N, 2] as x and y."""
    try:
        flat = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("has a polygon that is no list of numbers") from None
    if flat.ndim != 1 or flat.size % 2 or not np.isfinite(flat).all():
        raise ValueError("has a polygon that is no list of pairs of numbers")
    corners = flat.reshape(-1, 2)
    far = np.array([shape[1], shape[0]])
    if ((corners < -far) | (corners > 2 * far)).any():
        raise ValueError("has a polygon far off its photo")
    if flat.size and flat.max() <= 1 and max(shape) > 4:
        raise ValueError("has coordinates between 0 and 1, where COCO wants pixels")
    return corners


def _fill(mask: NDArray[np.bool_], corners: NDArray[np.float64]) -> None:
    """Set the pixels whose centre a polygon holds: those with an odd number of edges to their left."""
    if len(corners) < 3:
        return
    height, width = mask.shape
    ends = np.stack([corners, np.roll(corners, -1, axis=0)])
    low, high = ends[0], ends[1]
    down = low[:, 1] > high[:, 1]
    low[down], high[down] = high[down].copy(), low[down].copy()
    # an edge crosses the rows whose middle lies from its upper end to before its lower one
    first = np.clip(np.ceil(low[:, 1] - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(high[:, 1] - 0.5), 0, height).astype(int)
    total = (last - first).clip(0).cumsum()
    if not total[-1]:
        return
    if total[-1] > _CROSSINGS:
        raise ValueError(
            f"has an outline of {len(corners)} points that crosses {total[-1]} rows: more than a target can have"
        )
    slopes = (high[:, 0] - low[:, 0]) / np.where(high[:, 1] > low[:, 1], high[:, 1] - low[:, 1], 1.0)
    crossed = last > first
    top, bottom = int(first[crossed].min()), int(last[crossed].max())
    # a pixel more than its corners reach, since crossings are rounded
    left, right = (
        int(np.clip(edge, 0, width)) for edge in (corners[:, 0].min() - 2, corners[:, 0].max() + 2)
    )
    odd = np.zeros((bottom - top, right + 1 - left), dtype=bool)
    # few crossings are held at once
    ends_of = np.searchsorted(total, np.arange(_AT_ONCE, total[-1] + _AT_ONCE, _AT_ONCE))
    for some in np.split(np.arange(len(low)), np.unique(ends_of.clip(0, len(low) - 1)) + 1):
        if not (last[some] > first[some]).any():
            continue
        edges = np.repeat(some, last[some] - first[some])
        rows = np.concatenate([np.arange(first[edge], last[edge]) for edge in some])
        crossings = low[edges, 0] + (rows + 0.5 - low[edges, 1]) * slopes[edges]
        columns = np.clip(np.ceil(crossings - 0.5), left, right).astype(int)
        np.logical_xor.at(odd, (rows - top, columns - left), True)
    inside = np.logical_xor.accumulate(odd, axis=1)[:, : width - left]
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] |= inside


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
        if bits > _BITS:
            raise ValueError("has a packed run length that no photo has")
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
