"""Pixels counted by source object and score, so that pixel AP can be computed again for any draw of objects.

Pixel AP is pooled over photos, so no photo has a value of its own that could be resampled. Instead the pixels of each source
object are counted by score; the counts of any draw of objects add up, and pixel AP follows from the sums. Mean Dice is a
mean over photos: of each object its sum and its number are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdiff.data.dataset import Dataset
from cdiff.data.storage import rename_durably
from cdiff.evaluation.metrics import dice
from cdiff.evaluation.protocol import MASK_THRESHOLD
from cdiff.types import Sample

BINS = 2048  # of the scores' logits: pixel AP stays within a thousandth of the exact one
LOGIT = 16.0  # scores beyond are as sure as float32 tells

Counts = NDArray[np.float32]  # [objects, BINS], scores ascending
Draws = NDArray[np.floating]  # [R, objects], how often each object is counted


@dataclass(frozen=True)
class Pool:
    """Pixels that are pooled for one type, or the normals of one category: counted by source object and score."""

    objects: NDArray[np.intp]  # [n], places in `Tally.objects`
    positives: Counts  # [n, BINS]
    negatives: Counts  # [n, BINS]


@dataclass(frozen=True)
class Tally:
    """The pixels of a split under one model."""

    ids: tuple[str, ...]
    objects: tuple[str, ...]
    types: dict[str, Pool]  # by "category/type"
    normals: dict[str, Pool]  # by category; no positives
    # [objects, 2]: sum of the Dice of its photos with targets, and how many they are
    dice: NDArray[np.float64]

    def pixel_ap(self, draws: Draws | None = None) -> NDArray[np.float64]:
        """Pixel AP as the strict protocol has it (mean over types, normals pooled), from the counts.

        Args:
            draws: without it each object counts once.
        Returns:
            [R]; a type without a pixel in a draw is left out of that draw's mean, and a draw without any type is nan.
        """
        values = np.stack(list(self.per_type(draws).values()))
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)

    def per_type(self, draws: Draws | None = None) -> dict[str, NDArray[np.float64]]:
        """Pixel AP [R] of each type; nan where a draw has no pixel of it."""
        weights = self._weights(draws)
        quiet = {
            key: weights[:, pool.objects].astype(np.float32) @ pool.negatives
            for key, pool in self.normals.items()
        }
        out = {}
        for key, pool in self.types.items():
            counted = weights[:, pool.objects].astype(np.float32)
            negatives = counted @ pool.negatives + quiet.get(key.rsplit("/", 1)[0], 0)
            out[key] = _average_precision(counted @ pool.positives, negatives)
        return out

    def mdice(self, draws: Draws | None = None) -> NDArray[np.float64]:
        """Mean Dice [R] over photos with targets, at a score of 0.5; nan for a draw without one."""
        sums = self._weights(draws).astype(np.float64) @ self.dice
        with np.errstate(invalid="ignore"):
            return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)

    def chance(self) -> float:
        """Pixel AP of scores at random: the share of target pixels among all, in the mean over types."""
        shares = []
        for key, pool in self.types.items():
            quiet = self.normals.get(key.rsplit("/", 1)[0])
            found = float(pool.positives.sum(dtype=np.float64))
            rest = float(pool.negatives.sum(dtype=np.float64))
            rest += float(quiet.negatives.sum(dtype=np.float64)) if quiet else 0.0
            shares.append(found / (found + rest))
        return float(np.mean(shares))

    def save(self, path: Path) -> None:
        """Write as one compressed file; most counts are zero."""
        pools = {f"type:{key}": pool for key, pool in self.types.items()}
        pools |= {f"normal:{key}": pool for key, pool in self.normals.items()}
        arrays = {"dice": self.dice}
        for number, pool in enumerate(pools.values()):
            arrays |= {f"{name}{number}": getattr(pool, name) for name in _PARTS}
        note = json.dumps({"ids": self.ids, "objects": self.objects, "pools": list(pools)})
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez_compressed(temporary, note=np.frombuffer(note.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        rename_durably(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Tally:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            note = json.loads(file["note"].tobytes())
            pools = {
                key: Pool(*(file[f"{name}{number}"] for name in _PARTS))
                for number, key in enumerate(note["pools"])
            }
            kinds: dict[str, dict[str, Pool]] = {"type": {}, "normal": {}}
            for key, pool in pools.items():
                kind, _, name = key.partition(":")
                kinds[kind][name] = pool
            return cls(
                tuple(note["ids"]), tuple(note["objects"]), kinds["type"], kinds["normal"], file["dice"]
            )

    def _weights(self, draws: Draws | None) -> Draws:
        return np.ones((1, len(self.objects))) if draws is None else draws


_PARTS = ("objects", "positives", "negatives")


def tally(
    scored: Iterable[tuple[str, NDArray[np.floating]]],
    dataset: Dataset,
    swapped: Mapping[str, str] | None = None,
) -> Tally:
    """Count the pixels of a split photo by photo, so that one score map at a time need be in memory.

    Args:
        scored: sample_id and score map [H, W] in [0, 1] at native size, each photo once.
        swapped: for a negative control, whose masks a photo with targets is scored against (`swapped_masks`); those that are not
            in it are left out. Without, each is scored against its own.
    """
    types: dict[str, list[tuple[str, Counts, Counts]]] = {}
    normals: dict[str, list[tuple[str, Counts, Counts]]] = {}
    found: dict[str, list[float]] = {}
    ids = []
    for sample_id, scores in scored:
        sample, bins = dataset.sample(sample_id), _bins(scores)
        if swapped is not None and not sample.is_normal and sample_id not in swapped:
            continue
        owner = (swapped or {}).get(sample_id, sample_id)
        mask = _fitted(dataset.mask(owner), scores.shape)
        ids.append(sample_id)
        found.setdefault(sample.group, [])
        negatives = _count(bins[~mask])
        if sample.is_normal:
            normals.setdefault(sample.category, []).append(
                (sample.group, np.zeros_like(negatives), negatives)
            )
        for type in sample.types:
            positives = _count(bins[_fitted(dataset.type_mask(owner, type), scores.shape)])
            types.setdefault(f"{sample.category}/{type}", []).append((sample.group, positives, negatives))
        if mask.any():
            found[sample.group].append(dice(scores >= MASK_THRESHOLD, mask) or 0.0)
    objects = tuple(sorted(found))
    return Tally(
        tuple(sorted(ids)),
        objects,
        {key: _pool(types[key], objects) for key in sorted(types)},
        {key: _pool(normals[key], objects) for key in sorted(normals)},
        np.array([(sum(found[name]), len(found[name])) for name in objects], np.float64).reshape(-1, 2),
    )


def swapped_masks(dataset: Dataset, ids: Iterable[str], seed: int) -> dict[str, str]:
    """Whose masks each photo with targets gets: those of a photo of another object with the same types.

    What a model gains against such masks it gains by where and how large targets are, not by finding them. A photo without
    such another is left out.
    """
    rng = np.random.default_rng([seed, 29])
    alike: dict[tuple[str, tuple[str, ...]], list[Sample]] = {}
    for sample in (dataset.sample(sample_id) for sample_id in sorted(ids)):
        if not sample.is_normal:
            alike.setdefault((sample.category, sample.types), []).append(sample)
    out: dict[str, str] = {}
    for members in alike.values():
        for sample in members:
            others = [other.sample_id for other in members if other.group != sample.group]
            if others:
                out[sample.sample_id] = others[int(rng.integers(len(others)))]
    return out


def _fitted(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask at another photo's size, nearest pixel."""
    if mask.shape == shape:
        return mask
    rows, columns = (np.arange(n) * side // n for n, side in zip(shape, mask.shape, strict=True))
    return mask[rows][:, columns]


def _average_precision(
    positives: NDArray[np.floating], negatives: NDArray[np.floating]
) -> NDArray[np.float64]:
    """[R] from counts [R, BINS]; nan without a positive.

    A bin's pixels are taken to be mixed, and its positives to stand in their middle: entering all together would cost
    them precision.
    """
    found = np.cumsum(positives[:, ::-1], axis=1, dtype=np.float64)
    shown = found + np.cumsum(negatives[:, ::-1], axis=1, dtype=np.float64)
    own = positives[:, ::-1]
    behind = np.maximum(own - 1, 0) / 2  # of the bin's other positives, half come later
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(own > 0, (found - behind) / (shown - behind - negatives[:, ::-1] / 2), 0)
        out: NDArray[np.float64] = (own * precision).sum(axis=1) / found[:, -1]
    return out


def _bins(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    certain = np.clip(scores.astype(np.float64), 1e-9, 1 - 1e-9)
    logits = np.log(certain / (1 - certain))
    return np.clip((logits + LOGIT) * (BINS / (2 * LOGIT)), 0, BINS - 1).astype(np.intp)


def _count(bins: NDArray[np.intp]) -> Counts:
    return np.bincount(bins, minlength=BINS).astype(np.float32)


def _pool(rows: list[tuple[str, Counts, Counts]], objects: tuple[str, ...]) -> Pool:
    names, place = np.unique([name for name, _, _ in rows], return_inverse=True)
    positives, negatives = np.zeros((2, len(names), BINS), np.float32)
    np.add.at(positives, place, np.stack([row[1] for row in rows]))
    np.add.at(negatives, place, np.stack([row[2] for row in rows]))
    return Pool(np.searchsorted(objects, names), positives, negatives)
