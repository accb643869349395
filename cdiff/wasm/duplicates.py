"""Which attempts show nearly what an earlier valid one shows.

Comparing each with all that went before takes the square of their number. Here an attempt is compared with those alone that could be alike:

    sixteen sums of a thumbnail's pixels, each with a sign: the whole, left less right, top less bottom, ... (Walsh functions)
    two thumbnails of which the absolute differences sum to less than d differ by less than d in every such sum
    so a repetition lies in the same cell of a grid over the six sums that vary most, or just across its border; and there all its sums
    are near

The verdict is that of comparing with all. Source of the sums: Walsh (1923); of cells over such projections: near neighbours by hashing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np

from cdiff.types import Attempt, Box
from cdiff.wasm.measures import THUMBNAIL

_TOUCHING = 0.5  # share of the smaller box from which targets on one photo lie in one place
_WIDE = 2  # width of a cell in distances of duplicates: wider ones are fewer to look into, and hold more
# Walsh functions along rows and columns whose sums make a cell: those by which thumbnails of photos differ most, light, its slopes, and
# the middle against the edges.
_CELL = ((0, 0), (2, 2), (2, 0), (0, 2), (1, 0), (0, 1))
_AT_ONCE = 4096  # thumbnails whose sums are taken together: memory
_Cell = tuple[float, ...]  # whole numbers


class Earlier:
    """The attempts that were found valid so far, by reference and by background, each in the cell of its thumbnail.

    Args:
        attempts: all that will be asked about or added, by number.
        duplicate: mean absolute difference of thumbnails, share of full scale, under which one repeats the other.
    """

    def __init__(self, attempts: Sequence[Attempt], duplicate: float) -> None:
        # attempts whose sums, and those whose thumbnails were compared, so far
        self.looked, self.compared = 0, 0
        self._attempts, self._duplicate = attempts, duplicate
        pixels = b"".join(attempt.fingerprint for attempt in attempts)
        self._thumbnails = np.frombuffer(pixels, np.uint8).reshape(-1, THUMBNAIL**2)
        # In distances of duplicates. A little more than the bound: that one is tested in float32.
        self._sums = _sums(self._thumbnails) / max(1.0, 1.001 * duplicate * 255 * THUMBNAIL**2)
        self._cells: dict[str, dict[_Cell, list[int]]] = defaultdict(dict)

    def repeated(self, number: int) -> bool:
        """Whether an attempt shows what one of the earlier shows: of the same reference, or in the same place of its background."""
        sums = self._sums[number, : len(_CELL)].tolist()
        near = list(product(*(sorted({(v - 1) // _WIDE, (v + 1) // _WIDE}) for v in sums)))
        others: list[int] = []
        for name in _names(self._attempts[number]):
            cells = self._cells[name]
            for cell in near if cells else ():
                others += cells.get(cell, ())
        self.looked += len(others)
        return any(self._same_place(number, other) for other in self._alike(number, others))

    def add(self, number: int) -> None:
        """One more valid attempt."""
        cell = tuple(value // _WIDE for value in self._sums[number, : len(_CELL)].tolist())
        for name in _names(self._attempts[number]):
            self._cells[name].setdefault(cell, []).append(number)

    def _alike(self, number: int, others: Sequence[int]) -> list[int]:
        """Those of the others whose thumbnails differ by less than the bound."""
        if not others:
            return []
        told = np.array(others)
        could = told[np.abs(self._sums[told] - self._sums[number]).max(axis=1) <= 1]
        self.compared += len(could)
        there, here = self._thumbnails[could].astype(np.float32), self._thumbnails[number].astype(np.float32)
        alike = np.abs(there - here).mean(axis=1) / 255 < self._duplicate
        return could[alike].tolist()

    def _same_place(self, number: int, other: int) -> bool:
        """On one background two alike are one only in one place: plain surface repeats by itself."""
        mine, its = self._attempts[number], self._attempts[other]
        same_reference = mine.assignment.task.reference == its.assignment.task.reference
        return same_reference or _overlap(mine.box, its.box) >= _TOUCHING


def _names(attempt: Attempt) -> tuple[str, str]:
    task = attempt.assignment.task
    return f"of {task.reference}", f"on {task.background}"


def _overlap(first: Box, second: Box) -> float:
    """Common area as a share of the smaller box."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return max(0, wide) * max(0, high) / max(1, smaller)


def _sums(thumbnails: np.ndarray) -> np.ndarray:
    """float32 [n, 16] of uint8 [n, THUMBNAIL^2]: those of `_CELL` first. Whole numbers below 2^24, and so exact."""
    quarter = np.arange(THUMBNAIL) * 4 // THUMBNAIL
    walsh = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]])[:, quarter]
    others = [(rows, columns) for rows in range(4) for columns in range(4) if (rows, columns) not in _CELL]
    signs = np.stack([np.outer(walsh[r], walsh[c]).ravel() for r, c in (*_CELL, *others)], axis=1)
    out = np.empty((len(thumbnails), signs.shape[1]), np.float32)
    for first in range(0, len(thumbnails), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        out[part] = thumbnails[part].astype(np.float32) @ signs.astype(np.float32)
    return out
