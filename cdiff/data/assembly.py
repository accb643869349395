"""From listed files to checked samples: every photo and mask is decoded once, and a mask's values get their meaning.

The readers of the layouts (mvtec.py, folders.py, coco.py) only list entries: this photo, these masks or outlines. What a mask's values mean
is decided here, over all masks of one kind in a source together, because one mask alone may show too little of it:
- one value beside 0: binary;
- up to 32 values, not as the soft edge of a brighter one: ids, each a type ("1", "2", ...; colours by their hex code);
- more: a mask with grey edges (smoothing), which is cut above half of full scale.
JPEG keeps no ids: its masks, and what was saved again from them, are black and white, whatever few values are left.
Zero is always background; in palette masks 255 beside other ids is void (Pascal VOC), so background too.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cdiff.config import DataConfig
from cdiff.data.images import EXTENSIONS, Limits, PhotoFacts, is_jpeg, is_palette, probe, read_mask, tell_dark
from cdiff.errors import DataError, offenders
from cdiff.types import MaskFile, Sample

MASK_SUFFIXES = ("_mask", "-mask", "_gt", "_label", "_seg", "_segmentation")
MOST_IDS = 32
_SPECK = 4  # pixels
_NEAR = 16  # grey levels that JPEG or smoothing may put between a pixel and its true extreme

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Entry:
    """One photo as a layout lists it, nothing decoded yet."""

    image: Path
    masks: tuple[tuple[Path, str], ...]  # mask and type; type "": the mask's values tell
    category: str
    folder: str  # middle part of the sample_id
    split: str = ""
    # under an MVTec defect folder: the mask must not be empty, all its values are the one type
    defect: bool = False
    drawn: tuple[MaskFile, ...] = ()  # masks that the layout has in no files of their own

    @property
    def sample_id(self) -> str:
        return f"{self.category}/{self.folder}/{self.image.stem}"


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What one mask shows."""

    width: int
    height: int
    values: tuple[int, ...]  # other than 0, the first MOST_IDS + 1 of them
    checksum: str  # sha256 of the file
    lossy: bool  # compressed as JPEG is, which blurs ids
    bright: bool  # something lies above half of full scale
    area: int  # pixels above half of full scale, or where there are none: other than 0
    edged: bool  # values under the highest lie only between it and 0
    soft: float  # share of the non-zero pixels that are far from both extremes
    palette: bool
    coloured: bool


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Sorted subfolders and images of a folder; hidden ones left out. Raises DataError when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted(
                (entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name
            )
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}). Check the path and its permissions."
        ) from None
    folders = [Path(entry.path) for entry in visible if entry.is_dir()]
    images = [Path(entry.path) for entry in visible if Path(entry.name).suffix.lower() in EXTENSIONS]
    return folders, [path for path in images if path not in folders]


def walk(source: Path) -> list[tuple[Path, list[Path]]]:
    """A folder and all below it, each with the images that it holds itself; symbolic links are followed, but nothing is entered twice."""
    found, waiting, entered = [], [source], set()
    while waiting:
        folder = waiting.pop()
        if folder.resolve() in entered:
            continue
        entered.add(folder.resolve())
        subfolders, images = list_folder(folder)
        waiting += subfolders
        found.append((folder, images))
    return sorted(found)


def bare_stem(path: Path) -> str:
    """The stem of the photo that a mask file belongs to: without a `_mask` suffix."""
    for suffix in MASK_SUFFIXES:
        if path.stem.lower().endswith(suffix) and len(path.stem) > len(suffix):
            return path.stem[: -len(suffix)]
    return path.stem


def assemble(entries: Sequence[Entry], source: Path, config: DataConfig) -> list[Sample]:
    """Decode and check every listed file, and build the samples, sorted by id.

    Raises:
        DataError: one message for all offenders of each kind: unreadable files, two photos of one name, masks that
            differ from their photo in size, empty masks of defect photos, masks whose values mean nothing.
    """
    limits = Limits.of(config)
    _refuse_twins(entries)
    masks = sorted({path for entry in entries for path, _ in entry.masks})
    photos = in_parallel(lambda entry: probe(entry.image, limits), entries)
    looks = dict(zip(masks, in_parallel(lambda path: mask_facts(path, limits), masks), strict=True))
    damaged = [str(item) for item in (*photos, *looks.values()) if isinstance(item, DataError)]
    if damaged:
        total = len(photos) + len(masks)
        raise DataError(
            offenders(damaged, total, f"files under {source} cannot be used", "Replace or remove them.")
        )
    facts: dict[Path, MaskFacts] = {
        path: look for path, look in looks.items() if not isinstance(look, DataError)
    }
    meanings = _meanings(entries, facts, source)
    tell_dark([photo for photo in photos if not isinstance(photo, DataError)], source)
    samples, problems = [], _Problems()
    for entry, photo in zip(entries, photos, strict=True):
        assert not isinstance(photo, DataError)
        samples.append(_sample(entry, photo, facts, meanings, problems))
    problems.raise_any(len(entries), source)
    specks = [str(path) for path, look in facts.items() if 0 < look.area < _SPECK]
    if specks:
        log.warning(
            offenders(
                specks, len(facts), f"masks show under {_SPECK} pixels", "Look at them: are they slips?"
            )
        )
    return sorted(samples, key=lambda sample: sample.sample_id)


def mask_facts(path: Path, limits: Limits) -> MaskFacts:
    """Decode one mask and note what decides its meaning; errors as in `read_mask`."""
    values = read_mask(path, limits)
    found = np.unique(values)
    found = found[found != 0]
    scale = 255 if values.dtype == np.uint8 else 65535
    few = found.size <= MOST_IDS
    bright = bool(found.size and found[-1] > scale // 2)
    return MaskFacts(
        width=values.shape[1],
        height=values.shape[0],
        values=tuple(int(value) for value in found[: MOST_IDS + 1]),
        checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
        lossy=is_jpeg(path) or _compressed_once(found, scale),
        bright=bright,
        area=int((values > scale // 2).sum() if bright else (values != 0).sum()),
        edged=few and found.size > 1 and int(found[-1]) == scale and _edged(values, scale),
        soft=0.0 if few else _soft(values),
        palette=is_palette(path),
        coloured=bool(found.size and found[-1] > 65535),
    )


def _edged(values: NDArray[Any], full: int) -> bool:
    between = (values > 0) & (values < full)
    near_full = ndimage.binary_dilation(values == full, iterations=2)
    near_zero = ndimage.binary_dilation(values == 0, iterations=2)
    return float((near_full & near_zero)[between].mean()) > 0.9


def _compressed_once(found: NDArray[Any], scale: int) -> bool:
    """Whether the values other than 0 are those of black and white after JPEG: all near the extremes, and some that no id would be."""
    low, high = found <= _NEAR, found >= scale - _NEAR
    return bool(
        (low | high).all() and low.any() and (high & (found < scale)).any() and (found == scale).any()
    )


def _soft(values: NDArray[Any]) -> float:
    highest = int(values.max())
    shown = values > _NEAR
    return float(((values > _NEAR) & (values < highest - _NEAR)).sum() / max(1, shown.sum()))


def _meanings(
    entries: Sequence[Entry], facts: dict[Path, MaskFacts], source: Path
) -> dict[str, tuple[tuple[int, str], ...]]:
    """For each kind of mask (its type as listed) of the entries that are no MVTec defects: (value, type) pairs."""
    kinds: dict[str, list[Path]] = {}
    for entry in entries:
        for path, type in entry.masks if not entry.defect else ():
            kinds.setdefault(type, []).append(path)
    return {kind: _meaning(kind, [facts[path] for path in paths], source) for kind, paths in kinds.items()}


def _meaning(kind: str, facts: list[MaskFacts], source: Path) -> tuple[tuple[int, str], ...]:
    shown = [fact for fact in facts if fact.values]
    values = sorted({value for fact in shown for value in fact.values})
    several = [fact for fact in shown if len(fact.values) > 1]
    edged = sum(fact.edged for fact in several) * 2 > len(several) > 0
    if len(values) == 1:
        return ((values[0], kind or "target"),)
    coloured = any(fact.coloured for fact in shown)
    lossy = sum(fact.lossy for fact in shown) * 2 > len(shown)
    if lossy and not coloured and all(fact.bright for fact in shown if fact.lossy):
        return ((-1, kind or "target"),)
    if len(values) <= MOST_IDS and not edged:
        if 255 in values and any(fact.palette for fact in shown):
            values.remove(255)
        names = [f"{value:06x}" if coloured else str(value) for value in values]
        return tuple(
            (value, f"{kind}-{name}" if kind else name) for value, name in zip(values, names, strict=True)
        )
    vague = float(np.median([fact.soft for fact in shown])) > 0.6
    vague = vague or sum(_shows_ids(fact) for fact in shown) * 2 > len(shown)
    if vague or coloured or not any(fact.bright for fact in shown):
        raise DataError(
            f"the masks under {source} have {len(values)} or more different values, up to {values[-1]}: too many for "
            f"ids (at most {MOST_IDS}), and not black and white with grey edges.\n"
            "Save them as 0 and 255, or one small id per type (instances of one type share its id)."
        )
    return ((-1, kind or "target"),)


def _shows_ids(fact: MaskFacts) -> bool:
    """Few values, some of them far from both extremes, and not as an edge: one mask of many ids."""
    return (
        len(fact.values) <= MOST_IDS
        and not fact.edged
        and any(_NEAR < value < 255 - _NEAR for value in fact.values)
    )


class _Problems:
    """Offenders by kind, so that one run shows the user all of them."""

    def __init__(self) -> None:
        self.sizes: list[str] = []
        self.empty: list[str] = []

    def raise_any(self, total: int, source: Path) -> None:
        messages = []
        if self.sizes:
            remedy = (
                "Save photo and mask at one size. If only width and height are exchanged, the photo carries an EXIF "
                "orientation that its mask lacks: save the photo without it."
            )
            what = f"photos under {source} and their masks differ in size"
            messages.append(offenders(self.sizes, total, what, remedy))
        if self.empty:
            remedy = "Draw the masks, or move photos without a defect to a folder named good."
            what = f"photos in defect folders under {source} have an empty mask"
            messages.append(offenders(self.empty, total, what, remedy))
        if messages:
            raise DataError("\n".join(messages))


def _sample(
    entry: Entry,
    photo: PhotoFacts,
    facts: dict[Path, MaskFacts],
    meanings: dict[str, tuple[tuple[int, str], ...]],
    problems: _Problems,
) -> Sample:
    width, height = photo.width, photo.height
    files = list(entry.drawn)
    for path, kind in entry.masks:
        look = facts[path]
        if (look.width, look.height) != (width, height):
            sizes = f"{width} x {height}, mask {look.width} x {look.height}"
            problems.sizes.append(f"{entry.image} ({sizes})")
        shown = _defect_meaning(kind, look) if entry.defect else _present(meanings[kind], look)
        if shown:
            files.append(MaskFile(str(path), shown, look.checksum))
    if entry.defect and not files:
        problems.empty.append(str(entry.masks[0][0]))
    types = tuple(sorted({type for file in files for _, type in file.types}))
    identity = entry.sample_id
    return Sample(
        sample_id=identity,
        category=entry.category,
        types=types,
        group=identity,
        image=str(entry.image),
        masks=tuple(files),
        width=width,
        height=height,
        mode=photo.mode,
        checksum=photo.checksum,
        folder_split=entry.split,
    )


def _present(meaning: tuple[tuple[int, str], ...], look: MaskFacts) -> tuple[tuple[int, str], ...]:
    return tuple(pair for pair in meaning if (look.bright if pair[0] < 0 else pair[0] in look.values))


def _defect_meaning(type: str, look: MaskFacts) -> tuple[tuple[int, str], ...]:
    """In an MVTec tree the folder names the type: bright pixels, or where nothing is bright, or there are colours, any few ids."""
    if look.bright and not look.coloured:
        return ((-1, type),)
    return tuple((value, type) for value in look.values) if len(look.values) <= MOST_IDS else ()


def _refuse_twins(entries: Sequence[Entry]) -> None:
    seen: dict[str, Path] = {}
    twins = []
    for entry in entries:
        other = seen.setdefault(entry.sample_id, entry.image)
        if other is not entry.image:
            twins.append(f"{other} and {entry.image}")
    if twins:
        remedy = (
            "Rename or remove one of each: a photo is known by its folder and its name without extension."
        )
        raise DataError(offenders(twins, len(entries), "photos share their name with another", remedy))


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> list[R | DataError]:
    """Map in threads (Pillow decodes outside the interpreter lock), keeping errors as values, in order."""

    def attempt(item: T) -> R | DataError:
        try:
            return work(item)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(attempt, items))
