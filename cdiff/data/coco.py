"""Reader of photos with COCO annotation files, wherever labelling tools put them.

    train/_annotations.coco.json, train/1.jpg, valid/...        beside their photos, a file per split
    annotations/instances_val2017.json, val2017/1.jpg           in a folder of their own
    result.json, images/1.jpg                                   above them

A file is taken for one by its three lists (images, annotations, categories), not by its name. A split's word in its path
(train, valid, test) splits. Categories are the types; a photo without annotations is a normal one.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cdiff.config import DataConfig
from cdiff.data.assembly import Entry, in_parallel, walk
from cdiff.data.folders import split_of
from cdiff.data.outlines import union
from cdiff.errors import DataError, offenders
from cdiff.types import MaskFile

log = logging.getLogger(__name__)

_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class _Listed:
    """One photo of an annotation file."""

    file: Path
    split: str
    identity: str
    name: PurePosixPath  # as the file calls it
    size: tuple[int, int]  # height, width
    annotations: tuple[dict[str, Any], ...]
    types: dict[int, str]  # of all the file's categories


def annotation_files(source: Path) -> dict[Path, dict[str, Any]]:
    """COCO annotation files under a folder, with their content.

    Raises:
        DataError: one that breaks off, or cannot be read.
    """
    found = {}
    for folder, images in walk(source):
        stems = {image.stem for image in images}
        for path in sorted(folder.glob("[!.]*.json")):
            # labelling tools also write one file per photo, in other notations
            content = None if path.stem in stems else _content(path)
            if content is not None:
                found[path] = content
    return found


def list_annotated(
    files: dict[Path, dict[str, Any]], source: Path, category: str, config: DataConfig
) -> list[Entry]:
    """List the photos that annotation files name, with their outlines.

    Sample ids are category/FOLDER/NAME, FOLDER being the photo's own below the source.

    Raises:
        DataError: a photo that is not there, two annotations of it in several files, or outlines that mean nothing (unless
            `data.skip_unpaired`, which leaves such photos out).
    """
    listed = [photo for path, content in files.items() for photo in _photos(path, content, source)]
    places = _places(listed, source)
    problems = _Problems(len(listed), config.skip_unpaired)
    drawn = in_parallel(_drawn, listed)
    entries = []
    for photo, place, masks in zip(listed, places, drawn, strict=True):
        if place is None:
            problems.gone.append(f"{photo.name} of {photo.file}")
        elif isinstance(masks, DataError):
            problems.outlines.append(str(masks))
        else:
            folder = place.parent.relative_to(source).as_posix()
            name = "images" if folder == "." else folder
            entries.append(Entry(place, (), category, name, photo.split, drawn=masks, size=photo.size))
    problems.raise_any()
    _tell_others(entries, source)
    return entries


def _content(path: Path) -> dict[str, Any] | None:
    """What an annotation file holds; None for other JSON."""
    try:
        data = path.read_bytes()
        if not all(f'"{name}"'.encode() in data for name in _LISTS):
            return None
        content = json.loads(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from None
    except ValueError as error:
        raise DataError(
            f"{path}: damaged or truncated ({error}). Export it again, or take it out of the folder."
        ) from None
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in _LISTS):
        return None
    return content


def _photos(path: Path, content: dict[str, Any], source: Path) -> Iterable[_Listed]:
    split = split_of(path.relative_to(source).with_suffix("").parts)
    annotations: dict[str, list[dict[str, Any]]] = {}
    try:
        types = {
            item["id"]: " ".join(item["name"].replace("/", "-").split()) for item in content["categories"]
        }
        for annotation in content["annotations"]:
            annotations.setdefault(str(annotation["image_id"]), []).append(annotation)
        listed = [
            _Listed(
                file=path,
                split=split,
                identity=str(image["id"]),
                name=PurePosixPath(image["file_name"].replace("\\", "/")),
                size=(int(image["height"]), int(image["width"])),
                annotations=tuple(annotations.pop(str(image["id"]), ())),
                types=types,
            )
            for image in content["images"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: an entry lacks what COCO asks for, or has it otherwise ({type(error).__name__}: {error}): images want id, "
            "file_name, width and height, annotations image_id and category_id, categories id and name. Export it again."
        ) from None
    if annotations:
        log.warning("%s: annotations of %d images that it does not list are left out", path, len(annotations))
    return listed


def _places(listed: list[_Listed], source: Path) -> list[Path | None]:
    """Where each photo lies: the file whose path ends as the annotation file has it; of several the one beside it, or of its split."""
    by_name: dict[str, list[Path]] = {}
    for _, images in walk(source):
        for image in images:
            by_name.setdefault(image.name, []).append(image)
    places: list[Path | None] = []
    taken: dict[Path, _Listed] = {}
    for photo in listed:
        found = _nearest(photo, by_name.get(photo.name.name, []), source)
        if len(found) > 1:
            raise DataError(
                f"{photo.name} of {photo.file} may be {found[0]} or {found[1]}: give each split's photos and annotation file a folder."
            )
        places += found or [None]
        for place in found:
            other = taken.setdefault(place, photo)
            if other is not photo:
                raise DataError(
                    f"{place} is listed twice, by {other.file} and {photo.file}: leave one of the files, or one of the entries, in the folder."
                )
    return places


def _nearest(photo: _Listed, found: list[Path], source: Path) -> list[Path]:
    """Those of the files that the name may mean, as few as can be told apart."""
    parts = photo.name.parts
    tests = (
        lambda path: path.parts[-len(parts) :] == parts,
        lambda path: path.parent.is_relative_to(photo.file.parent),
        lambda path: split_of(path.relative_to(source).parent.parts) == photo.split,
    )
    for test in tests:
        if len(found) > 1:
            found = [path for path in found if test(path)] or found
    return found


def _drawn(photo: _Listed) -> tuple[MaskFile, ...]:
    """A photo's outlines as its one mask file; () for a normal photo. Raises DataError: they mean nothing."""
    if not photo.annotations:
        return ()
    where = f"{photo.name} of {photo.file}"
    boxes = sum(not annotation.get("segmentation") for annotation in photo.annotations)
    if boxes:
        raise DataError(f"{where}: {boxes} of {len(photo.annotations)} annotations have no outline")
    unknown = {a.get("category_id") for a in photo.annotations} - set(photo.types)
    if unknown:
        raise DataError(f"{where}: category {unknown.pop()} is not in the list of categories")
    try:
        masks = union(((a["category_id"], a["segmentation"]) for a in photo.annotations), photo.size)
    except ValueError as error:
        raise DataError(f"{where}: an annotation {error}") from None
    shown = tuple((value, photo.types[value]) for value in sorted(masks) if masks[value].any())
    if not shown:
        raise DataError(f"{where}: its outlines hold no pixel")
    content = [[photo.types[a["category_id"]], a["segmentation"]] for a in photo.annotations]
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (MaskFile(str(photo.file), shown, checksum, photo.identity),)


def _tell_others(entries: list[Entry], source: Path) -> None:
    listed = {entry.image for entry in entries}
    others = [str(image) for _, images in walk(source) for image in images if image not in listed]
    if others:
        total = len(others) + len(listed)
        remedy = "They are left out; list those without a target with no annotation."
        log.warning(offenders(others, total, f"images under {source} are in no annotation file", remedy))


class _Problems:
    """Offenders by kind, so that one run shows the user all of them."""

    def __init__(self, total: int, skip: bool) -> None:
        self._total, self._skip = total, skip
        self.gone: list[str] = []
        self.outlines: list[str] = []

    def raise_any(self) -> None:
        out = "or leave these photos out with `data.skip_unpaired=true`."
        told = [
            (self.gone, "photos of annotation files are not there", f"Put them beside the file, {out}"),
            (
                self.outlines,
                "photos have annotations that cannot be used",
                f"Outline all targets as polygons or masks, {out}",
            ),
        ]
        messages = [offenders(items, self._total, what, remedy) for items, what, remedy in told if items]
        if messages and not self._skip:
            raise DataError("\n".join(messages))
        for message in messages:
            log.warning("%s", message)
