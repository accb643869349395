"""From listed files to checked samples: every photo and mask is decoded once, and a mask's values get their meaning.

The readers of the layouts (mvtec.py, folders.py, coco.py) only list entries: this photo, these masks or outlines; masks.py says what a
mask's values mean.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cdiff.config import DataConfig
from cdiff.data.images import EXTENSIONS, Limits, PhotoFacts, probe, tell_dark
from cdiff.data.masks import MaskFacts, Meaning, defect_meaning, mask_facts, meaning_of
from cdiff.errors import DataError, offenders
from cdiff.types import MaskFile, Sample

MASK_SUFFIXES = ("_mask", "-mask", "_gt", "_label", "_seg", "_segmentation")
_SPECK = 4  # pixels

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


def _meanings(entries: Sequence[Entry], facts: dict[Path, MaskFacts], source: Path) -> dict[str, Meaning]:
    """For each kind of mask (its type as listed) of the entries that are no MVTec defects."""
    kinds: dict[str, list[Path]] = {}
    for entry in entries:
        for path, type in entry.masks if not entry.defect else ():
            kinds.setdefault(type, []).append(path)
    return {
        kind: meaning_of(kind, {path: facts[path] for path in paths}, source) for kind, paths in kinds.items()
    }


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
    meanings: dict[str, Meaning],
    problems: _Problems,
) -> Sample:
    width, height = photo.width, photo.height
    files = list(entry.drawn)
    for path, kind in entry.masks:
        look = facts[path]
        if (look.width, look.height) != (width, height):
            sizes = f"{width} x {height}, mask {look.width} x {look.height}"
            problems.sizes.append(f"{entry.image} ({sizes})")
        shown = defect_meaning(kind, look) if entry.defect else meanings[kind].of(look)
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
