"""Pairs as pictures: the real target, the photo with the region, the result, and its mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cdiff.data.images import OWN, decode_mask_png, decode_png
from cdiff.data.run import Run
from cdiff.data.store import read_crops, read_pair
from cdiff.evaluation.pictures import (
    PAIR_HEADER,
    folded,
    pair_tiles,
)
from cdiff.generator.crops import cut
from cdiff.types import Pair
from cdiff.wasm.quality import INVALID

if TYPE_CHECKING:
    from jobs.session import Session

_SHOWN = 12  # pairs per grid
_SIDE = 128


def grids(run: Run, session: Session, pairs: Sequence[Pair]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Grids of kept and of turned-away pairs, spread evenly over slices and reasons."""
    kept = [pair for pair in pairs if pair.kept]
    invalid = [pair for pair in pairs if pair.reason in INVALID]
    selected = [pair for pair in pairs if not pair.kept and pair.reason not in INVALID]
    away = _spread(invalid, _SHOWN) or _spread(selected, _SHOWN)
    return _grid(run, session, _spread(kept, _SHOWN)), _grid(run, session, away)


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    ordered = sorted(
        pairs, key=lambda pair: (pair.attempt.category, pair.attempt.type, pair.reason, pair.task_id)
    )
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int))
    return [ordered[i] for i in places]


def pair_grid(session: Session, pairs: Sequence[Pair]) -> np.ndarray | None:
    """Some of the pairs as tiles, spread evenly over types; None without any."""
    return _grid(session.run, session, _spread(pairs, _SHOWN))


def _grid(run: Run, session: Session, pairs: Iterable[Pair]) -> np.ndarray | None:
    rows, captions = [], []
    for pair in pairs:
        crop, reference, region = read_crops(run, pair.attempt)
        result = decode_png(crop, OWN)
        mask = decode_mask_png(read_pair(run, pair.attempt)[1], OWN)
        box = _box(session, pair, result.shape[0])
        background = cut(session.dataset.image(pair.attempt.assignment.task.background), box)
        inside = decode_mask_png(region, OWN)
        rows.append(pair_tiles(decode_png(reference, OWN), background, inside, result, cut(mask, box), _SIDE))
        loss = dict(pair.attempt.measures).get("loss")
        told = "" if loss is None else f"loss {loss:.2f}  "
        captions.append(f"{pair.attempt.category}/{pair.attempt.type}  {told}{pair.reason or 'kept'}")
    return folded(rows, captions, PAIR_HEADER) if rows else None


def _box(session: Session, pair: Pair, side: int) -> tuple[int, int, int, int]:
    left, top = (int(pair.attempt.measure(name)) for name in ("crop_left", "crop_top"))
    return left, top, left + side, top + side
