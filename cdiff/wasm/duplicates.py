"""Which attempts show nearly what an earlier valid one shows.

Comparing each with all that went before takes the square of their number. Here an attempt is compared with those alone that could be alike:

    eight sums of a thumbnail's pixels, each with a sign: the whole, left less right, top less bottom, ... (Walsh functions)
    two thumbnails of which the absolute differences sum to less than d differ by less than d in every such sum
    so a repetition lies in the same cell of a grid over the eight sums, or just across its border, and there its sums are near

The verdict is that of comparing with all. Source of the sums: Walsh (1923); of cells over such projections: near neighbours by hashing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from cdiff.types import Attempt, Box
from cdiff.wasm.measures import THUMBNAIL

_TOUCHING = 0.5  # share of the smaller box from which targets on one photo lie in one place
_WIDE = 4  # width of a cell in distances of duplicates: fewer cells to look into, or fewer attempts in each
_AT_ONCE = 4096  # thumbnails whose sums are taken together: memory
_Cell = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thumbnail lies among all thumbnails."""

    sums: tuple[float, ...]  # in distances of duplicates
    cell: _Cell
    near: tuple[tuple[int, ...], ...]  # along each sum, the cells that hold what could be alike


class Earlier:
    """Valid attempts by reference and by background, each in the cell of its thumbnail.

    Args:
        duplicate: mean absolute difference of thumbnails, share of full scale, under which one repeats the other.
    """

    def __init__(self, duplicate: float) -> None:
        self.looked, self.compared = (
            0,
            0,
        )  # attempts whose sums, and those whose thumbnails were compared, so far
        self._duplicate = duplicate
        self._cells: dict[str, dict[_Cell, list[tuple[Place, Attempt]]]] = defaultdict(dict)

    def repeated(self, attempt: Attempt, place: Place) -> bool:
        """Whether an attempt shows what one of the earlier shows: of the same reference, or in the same place of its background."""
        for name in _names(attempt):
            cells = self._cells[name]
            for cell in product(*place.near) if cells else ():
                for other, earlier in cells.get(cell, ()):
                    self.looked += 1
                    if not _could_repeat(place, other):
                        continue
                    self.compared += 1
                    if _repeats(attempt, earlier, self._duplicate):
                        return True
        return False

    def add(self, attempt: Attempt, place: Place) -> None:
        """One more valid attempt."""
        for name in _names(attempt):
            self._cells[name].setdefault(place.cell, []).append((place, attempt))


def places(attempts: Sequence[Attempt], duplicate: float) -> Iterator[Place]:
    """Where each attempt's thumbnail lies among the others, in order."""
    # A little more than the bound: that one is tested in float32.
    distance = max(1.0, 1.001 * duplicate * 255 * THUMBNAIL**2)
    for first in range(0, len(attempts), _AT_ONCE):
        pixels = b"".join(attempt.fingerprint for attempt in attempts[first : first + _AT_ONCE])
        thumbnails = np.frombuffer(pixels, np.uint8).reshape(-1, THUMBNAIL**2)
        sums = (
            thumbnails.astype(np.float32) @ _SIGNS / distance
        )  # before the division whole numbers below 2^24: exact
        own, low, high = (np.floor((sums + shift) / _WIDE).astype(int).tolist() for shift in (0, -1, 1))
        for told, cell, lowest, highest in zip(sums.tolist(), own, low, high, strict=True):
            near = tuple((a,) if a == b else (a, b) for a, b in zip(lowest, highest, strict=True))
            yield Place(tuple(told), tuple(cell), near)


def _could_repeat(one: Place, other: Place) -> bool:
    return all(-1 <= mine - its <= 1 for mine, its in zip(one.sums, other.sums, strict=True))


def _names(attempt: Attempt) -> tuple[str, str]:
    task = attempt.assignment.task
    return f"of {task.reference}", f"on {task.background}"


def _repeats(attempt: Attempt, earlier: Attempt, duplicate: float) -> bool:
    """Do two attempts show nearly the same crop? On one background only in one place: plain surface repeats by itself."""
    same_reference = attempt.assignment.task.reference == earlier.assignment.task.reference
    if not same_reference and _overlap(attempt.box, earlier.box) < _TOUCHING:
        return False
    here, there = (np.frombuffer(a.fingerprint, np.uint8).astype(np.float32) for a in (attempt, earlier))
    return bool(np.abs(here - there).mean() / 255 < duplicate)


def _overlap(first: Box, second: Box) -> float:
    """Common area as a share of the smaller box."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return max(0, wide) * max(0, high) / max(1, smaller)


def _signs() -> np.ndarray:
    """float32 [THUMBNAIL^2, 8] of 1 and -1: the products of Walsh functions of lowest frequency."""
    quarter = np.arange(THUMBNAIL) * 4 // THUMBNAIL
    walsh = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1]])[:, quarter]
    orders = [(rows, columns) for rows in range(3) for columns in range(3)][:-1]
    return np.stack([np.outer(walsh[r], walsh[c]).ravel() for r, c in orders], axis=1).astype(np.float32)


_SIGNS = _signs()
