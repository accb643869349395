"""Photos that show the same thing: exact copies, and near-identical ones.

Near-duplicates are found in three sieves, since usual hashes mistake any two photos of one kind of product for copies
(on 480 screws a 64-bit difference hash flags 360 of them):
1. candidates by hash: a 16 x 16 brightness-free thumbnail, compared by correlation for all pairs at once;
2. pixels at 64 x 64, aligned by small shifts and matched in brightness: `data.duplicate_distance`;
3. detail at 256 x 256 (between two blurs), aligned again, as a whole and in the median of its blocks: another object
   in the same jig reaches 0.87 as a whole (capsules, pills) or 0.86 in blocks (transistors), never both; a copy that
   was compressed, shrunk, brightened or cut by a few pixels at least 0.93 and 0.54, but for nearly textureless photos.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from cdiff.config import DataConfig
from cdiff.data.images import Limits, read_thumbnail
from cdiff.errors import LeakError, offenders
from cdiff.types import Sample

SPLIT_ORDER = ("", "train", "validation", "test")  # of two copies the one later in this order stays

_SIDE = 64
_SHIFT = 3  # pixels at 64 x 64: about 5 % of the photo's side
_HASH_AGREEMENT = 0.85
_DETAIL_SIDE = 256
_DETAIL_AGREEMENT = 0.9
_CERTAIN = 0.93
_DETAIL_BAND = (0.7, 3.0)  # blurs at 256 x 256: finer is noise that compression takes, coarser is outline
_BLOCK = 32
_BLOCK_AGREEMENT = 0.5
_ASPECT = 0.05  # largest difference of log(width / height)
_ROWS = 512  # photos, and pairs, compared at a time: bounds memory


@dataclass(frozen=True, slots=True)
class Near:
    """Two near-identical photos; exact copies have distance 0 and agreement 1."""

    first: str
    second: str
    distance: float  # mean absolute difference of the aligned 64 x 64 photos, in [0, 1]
    agreement: float  # correlation of their fine structure, in [0, 1]

    @property
    def certain(self) -> bool:
        """Copies of one photo, beyond doubt."""
        return self.agreement >= _CERTAIN


def near_duplicates(samples: Sequence[Sample], config: DataConfig, progress: bool = False) -> list[Near]:
    """All pairs of near-identical photos that are not of one group already, sorted by ids.

    Args:
        progress: show a bar on stderr.
    Raises:
        DataError: a photo that can no longer be decoded.
    """
    limits = Limits.of(config)
    found = _exact_copies(samples)
    with ThreadPoolExecutor(max_workers=4) as pool:
        read = pool.map(lambda sample: read_thumbnail(sample.image, limits, _SIDE), samples)
        bar = tqdm(read, total=len(samples), desc="near-duplicates", disable=not progress, leave=False)
        pixels = np.array(list(bar), dtype=np.float32).reshape(-1, _SIDE, _SIDE) / np.float32(255)
    detail = lru_cache(maxsize=512)(lambda path: _detail(read_thumbnail(path, limits, _DETAIL_SIDE)))
    known = {(pair.first, pair.second) for pair in found}
    for pairs in _batches(_candidates(pixels, samples)):
        distances = _distances(pixels[pairs[:, 0]], pixels[pairs[:, 1]], config.duplicate_distance)
        for (i, j), distance in zip(pairs, distances, strict=True):
            one, other = sorted((samples[i].sample_id, samples[j].sample_id))
            if distance > config.duplicate_distance or (one, other) in known:
                continue
            agreement = _agreement(detail(samples[i].image), detail(samples[j].image))
            if agreement >= _DETAIL_AGREEMENT:
                found.append(Near(one, other, float(distance), agreement))
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def check_overlap(samples: Sequence[Sample]) -> None:
    """Refuse splits given by folders that share a file or a source object.

    Raises:
        LeakError: naming the first offenders.
    """
    for what, key in (("files", "checksum"), ("groups", "group")):
        sides: dict[str, dict[str, Sample]] = defaultdict(dict)
        for sample in samples:
            if sample.folder_split:
                sides[getattr(sample, key)].setdefault(sample.folder_split, sample)
        shared = [
            " and ".join(f"{sample.image} ({split})" for split, sample in sorted(splits.items()))
            for splits in sides.values()
            if len(splits) > 1
        ]
        if shared:
            remedy = "What trains must not test: leave each object in one of the folders train, validation and test."
            raise LeakError(offenders(shared, len(sides), f"{what} stand in several split folders", remedy))


def drop_copies(
    samples: Sequence[Sample], pairs: Iterable[Near], config: DataConfig
) -> tuple[list[Sample], list[str]]:
    """Of near-identical photos in different given splits keep the one nearest to the test split.

    Returns:
        The samples that stay, and a note on each that was left out.
    Raises:
        LeakError: there are such photos and `data.leaks` is "stop".
    """
    by_id = {sample.sample_id: sample for sample in samples}
    kin: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        kin[pair.first].add(pair.second)
        kin[pair.second].add(pair.first)
    notes, dropped = [], set()
    for family in _families(kin):
        splits = {by_id[member].folder_split for member in family} - {""}
        if len(splits) < 2:
            continue
        kept_split = max(splits, key=SPLIT_ORDER.index)
        kept = min(member for member in family if by_id[member].folder_split == kept_split)
        for member in sorted(family):
            if by_id[member].folder_split not in ("", kept_split):
                dropped.add(member)
                notes.append(f"left out {member}: near-identical to {kept} in another split")
    if notes and config.leaks == "stop":
        remedy = "Remove them, or let cdiff leave them out with `data.leaks=drop`."
        raise LeakError(offenders(notes, len(samples), "photos leak between the given splits", remedy))
    return [sample for sample in samples if sample.sample_id not in dropped], notes


def join_groups(samples: Sequence[Sample], pairs: Iterable[Near]) -> tuple[list[Sample], list[str]]:
    """Put near-identical photos into one group, so that no split can part them.

    Groups from a groups file are trusted: two of them are joined by copies beyond doubt only, never by likeness.
    Photos of different given splits stay apart (`drop_copies` goes first).
    """
    by_id = {sample.sample_id: sample for sample in samples}
    parent = {sample.group: sample.group for sample in samples}
    trusted = {sample.group: sample.group for sample in samples if sample.group != sample.sample_id}
    sides = {sample.group: {sample.folder_split} - {""} for sample in samples}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    joined = 0
    refused: list[str] = []
    for pair in sorted(pairs, key=lambda pair: (-pair.agreement, pair.first, pair.second)):
        if pair.first not in by_id or pair.second not in by_id:
            continue
        one, other = sorted((root(by_id[pair.first].group), root(by_id[pair.second].group)))
        if one == other:
            continue
        if len(sides[one] | sides[other]) > 1 or (one in trusted and other in trusted and not pair.certain):
            refused.append(f"{pair.first} and {pair.second}")
            continue
        keep, gone = (other, one) if other in trusted and one not in trusted else (one, other)
        parent[gone] = keep
        sides[keep] |= sides[gone]
        joined += 1
    notes = [f"joined {joined} group{'s' if joined > 1 else ''} of near-identical photos"] if joined else []
    if refused:
        shown = "; ".join(refused[:3]) + ("; ..." if len(refused) > 3 else "")
        notes.append(
            f"left {len(refused)} near-identical pairs in the groups that the groups file gives: {shown}"
        )
    return [dataclasses.replace(sample, group=root(sample.group)) for sample in samples], notes


def _exact_copies(samples: Sequence[Sample]) -> list[Near]:
    first: dict[str, Sample] = {}
    found = []
    for sample in sorted(samples, key=lambda sample: sample.sample_id):
        other = first.setdefault(sample.checksum, sample)
        if other is not sample and other.group != sample.group:
            found.append(Near(other.sample_id, sample.sample_id, 0.0, 1.0))
    return found


def _candidates(pixels: NDArray[np.float32], samples: Sequence[Sample]) -> Iterable[NDArray[np.int64]]:
    """First sieve: index pairs [n, 2], i < j, of other groups with like hashes and like proportions."""
    blocks = (
        pixels.reshape(len(pixels), 16, _SIDE // 16, 16, _SIDE // 16)
        .mean(axis=(2, 4))
        .reshape(len(pixels), -1)
    )
    hashes = blocks - blocks.mean(axis=1, keepdims=True)
    # A photo of one flat grey has no hash: it matches nothing, rather than every other flat photo.
    hashes /= np.maximum(np.linalg.norm(hashes, axis=1, keepdims=True), 1e-3)
    aspects = np.log([sample.width / sample.height for sample in samples])
    groups = np.unique([sample.group for sample in samples], return_inverse=True)[1]
    for start in range(0, len(pixels), _ROWS):
        rows = slice(start, start + _ROWS)
        like = hashes[rows] @ hashes.T > _HASH_AGREEMENT
        like &= np.abs(aspects[rows, None] - aspects[None]) < _ASPECT
        like &= groups[rows, None] != groups[None]
        first, second = np.nonzero(like)
        pairs = np.stack([first + start, second], axis=1)
        yield pairs[pairs[:, 0] < pairs[:, 1]]


def _batches(parts: Iterable[NDArray[np.int64]]) -> Iterable[NDArray[np.int64]]:
    for part in parts:
        for start in range(0, len(part), _ROWS):
            yield part[start : start + _ROWS]


def _distances(first: NDArray[np.float32], second: NDArray[np.float32], limit: float) -> NDArray[np.floating]:
    """Second sieve: least mean absolute difference over all small shifts, brightness matched, [n]; far ones are inf.

    Half-size photos with half the shifts are compared first: most pairs are so far apart that this settles them.
    """
    coarse = _aligned(_halved(first), _halved(second), (_SHIFT + 1) // 2)
    near = np.flatnonzero(coarse <= 1.5 * limit + 0.005)
    best = np.full(len(first), np.inf)
    best[near] = _aligned(first[near], second[near], _SHIFT)
    return best


def _halved(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    half = pixels.shape[1] // 2
    return pixels.reshape(len(pixels), half, 2, half, 2).mean(axis=(2, 4))


def _aligned(first: NDArray[np.float32], second: NDArray[np.float32], reach: int) -> NDArray[np.floating]:
    size = first.shape[1] - 2 * reach
    fixed = first[:, reach : reach + size, reach : reach + size]
    fixed = fixed - fixed.mean(axis=(1, 2), keepdims=True)
    best = np.full(len(first), np.inf)
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            moved = second[:, down : down + size, right : right + size]
            difference = np.abs(fixed - (moved - moved.mean(axis=(1, 2), keepdims=True)))
            best = np.minimum(best, difference.mean(axis=(1, 2)))
    return best


def _detail(grey: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """Spectrum of a photo's fine structure, of norm one; the border fades out, so that shifts may wrap around."""
    values = grey.astype(np.float32) / 255
    fine, coarse = _DETAIL_BAND
    values = ndimage.gaussian_filter(values, fine) - ndimage.gaussian_filter(values, coarse)
    fade = np.hanning(_DETAIL_SIDE).astype(np.float32) ** 0.25
    values = (values - values.mean()) * fade[:, None] * fade[None]
    return np.fft.rfft2(values / max(float(np.linalg.norm(values)), 1e-6)).astype(np.complex64)


def _agreement(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> float:
    """Third sieve: highest correlation of the fine structures over small shifts; 0 where it is the outlines' alone."""
    shape = (_DETAIL_SIDE, _DETAIL_SIDE)
    reach = _SHIFT * _DETAIL_SIDE // _SIDE
    correlation = np.fft.irfft2(first * np.conj(second), s=shape)
    near = np.roll(correlation, (reach, reach), axis=(0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    agreement = float(near.max())
    if agreement < _DETAIL_AGREEMENT:
        return agreement
    down, right = np.unravel_index(int(near.argmax()), near.shape)
    moved = np.roll(np.fft.irfft2(second, s=shape), (int(down) - reach, int(right) - reach), axis=(0, 1))
    # A few strong edges of a part in its jig can carry the whole correlation, but only in the blocks that they cross.
    one, other = _blocks(np.fft.irfft2(first, s=shape)), _blocks(moved)
    return agreement if float(np.median((one * other).sum(axis=1))) >= _BLOCK_AGREEMENT else 0.0


def _blocks(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cut into blocks of _BLOCK pixels without the faded border; each of mean 0 and norm 1, [blocks, pixels]."""
    border, count = _BLOCK // 2, _DETAIL_SIDE // _BLOCK - 1
    inner = values[border : border + count * _BLOCK, border : border + count * _BLOCK]
    rows = inner.reshape(count, _BLOCK, count, _BLOCK).swapaxes(1, 2).reshape(count * count, -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _families(kin: dict[str, set[str]]) -> Iterable[set[str]]:
    """Connected sets of a symmetric relation."""
    seen: set[str] = set()
    for start in sorted(kin):
        family: set[str] = set()
        waiting = [] if start in seen else [start]
        while waiting:
            member = waiting.pop()
            if member not in family:
                family.add(member)
                waiting += kin[member]
        seen |= family
        if family:
            yield family
