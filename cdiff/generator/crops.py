"""Square crops of photos: where they lie, how they are cut and put back, and resized to the generator's resolution and back."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from cdiff.types import Box


def square_around(x: float, y: float, longer_side: float, margin: float, min_side: int, limit: int) -> Box:
    """The adaptive square crop: `margin` times the target's longer side, at least `min_side`, at most `limit` pixels."""
    side = int(round(min(max(longer_side * margin, longer_side + 8, min_side), max(limit, longer_side + 4))))
    left, top = int(round(x - side / 2)), int(round(y - side / 2))
    return left, top, left + side, top + side


def shift_inside(box: Box, width: int, height: int) -> Box:
    """Move a crop onto the photo as far as it fits: real surroundings beat mirrored ones."""
    left, top, right, bottom = box
    dx = _shift(left, right, width)
    dy = _shift(top, bottom, height)
    return left + dx, top + dy, right + dx, bottom + dy


def cut(array: np.ndarray, box: Box) -> np.ndarray:
    """Cut a box out of [H, W] or [H, W, C]; beyond the photo's border it is mirrored (masks: empty)."""
    left, top, right, bottom = box
    height, width = array.shape[:2]
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return array[top:bottom, left:right].copy()
    if array.dtype == bool:
        out = np.zeros((bottom - top, right - left), bool)
        inner = array[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
        out[max(0, -top) : max(0, -top) + inner.shape[0], max(0, -left) : max(0, -left) + inner.shape[1]] = (
            inner
        )
        return out
    rows, columns = _mirrored(np.arange(top, bottom), height), _mirrored(np.arange(left, right), width)
    return array[rows[:, None], columns[None, :]]


def put(full: np.ndarray, part: np.ndarray, box: Box) -> None:
    """The inverse of `cut`: write a box's pixels back, as far as they lie on the photo."""
    left, top, right, bottom = box
    x0, y0, x1, y1 = max(0, left), max(0, top), min(full.shape[1], right), min(full.shape[0], bottom)
    full[y0:y1, x0:x1] = part[y0 - top : y1 - top, x0 - left : x1 - left]


def to_resolution(array: np.ndarray, resolution: int) -> torch.Tensor:
    """D: [S, S, C] or [S, S] floats to [C, R, R]; averages when it shrinks, interpolates when it enlarges."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    tensor = tensor[None, None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)[None]
    return resized(tensor, resolution)[0]


def to_side(tensor: torch.Tensor, side: int) -> np.ndarray:
    """U: [C, R, R] back to [S, S, C], or [S, S] for one channel."""
    out = resized(tensor[None].float(), side)[0]
    return out[0].numpy() if out.shape[0] == 1 else out.permute(1, 2, 0).numpy()


def resized(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """[N, C, S, S] at another side; averages when it shrinks, interpolates when it enlarges."""
    if tensor.shape[-1] == size:
        return tensor
    if tensor.shape[-1] > size:
        return F.interpolate(tensor, size=(size, size), mode="area")
    return F.interpolate(tensor, size=(size, size), mode="bilinear", align_corners=False)


def _shift(low: int, high: int, size: int) -> int:
    if high - low >= size:
        return (size - high - low) // 2
    return max(0, -low) - max(0, high - size)


def _mirrored(index: np.ndarray, size: int) -> np.ndarray:
    period = np.mod(index, 2 * size)
    return np.where(period < size, period, 2 * size - 1 - period)
