"""Reader of photos with COCO annotation files, wherever labelling tools put them.

    train/_annotations.coco.json, train/1.jpg, valid/...        beside their photos, a file per split
    annotations/instances_val2017.json, val2017/1.jpg           in a folder of their own
    result.json, images/1.jpg                                   above them

A file is taken for one by its three lists (images, annotations, categories), not by its name. Categories are the types; a photo
that is listed without annotations is a normal one. A split's word (train, valid, test) in the path of the file, or in a folder of the
photo, splits; a photo's own name does not.
Outlines are drawn once, here, and travel with their samples.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cdiff.config import DataConfig
from cdiff.data.assembly import Entry, in_parallel, walk
from cdiff.data.coco_places import Places
from cdiff.data.folders import split_of
from cdiff.data.images import EXTENSIONS, Limits, read_size
from cdiff.data.outlines import Shape, outline_mask, pack
from cdiff.errors import DataError, offenders
from cdiff.types import MaskFile

log = logging.getLogger(__name__)

_LISTS = ("images", "annotations", "categories")
_FEW = 4  # pixels


@dataclass(frozen=True, slots=True)
class _Photo:
    """One photo of an annotation file."""

    file: Path
    name: PurePosixPath  # as the file calls it
    size: Shape | None  # as the file has it
    outlines: tuple[tuple[str, Any], ...]  # type and segmentation; None: a box alone

    def __str__(self) -> str:
        return f"{self.name} of {self.file}"


def annotation_files(source: Path, config: DataConfig) -> dict[Path, dict[str, Any]]:
    """COCO annotation files with outlines under a folder, and their content; those above `data.max_bytes` are passed over.

    Raises:
        DataError: one that breaks off, or cannot be read.
    """
    found = {}
    for folder, images in walk(source):
        stems = {image.stem for image in images}
        for path in sorted(folder.glob("[!.]*.json")):
            # labelling tools also write one file per photo, in other notations
            content = _content(path, config) if path.is_file() and path.stem not in stems else None
            if content is None:
                continue
            if any(isinstance(a, dict) and a.get("segmentation") for a in content["annotations"]):
                found[path] = content
            else:
                log.warning("%s is passed over: it outlines no target", path)
    if len(found) > 1:  # the COCO set lists its people twice
        others = {path: content for path, content in found.items() if not _of_points(content)}
        found = others or found
    return found


def list_annotated(
    files: dict[Path, dict[str, Any]], source: Path, category: str, config: DataConfig
) -> list[Entry]:
    """List the photos that annotation files name, with their outlines.

    Sample ids are category/FOLDER/NAME, FOLDER being the photo's own below the source.

    Raises:
        DataError: photos that are not there or may be several, and outlines that mean nothing (unless `data.skip_unpaired`, which
            leaves such photos out).
    """
    problems = _Problems(config.skip_unpaired)
    photos = [photo for path, content in files.items() for photo in _photos(path, content, problems)]
    places = Places(source, files)
    limits = Limits.of(config)

    def drawn(item: tuple[_Photo, Path]) -> tuple[MaskFile, ...]:
        return _drawn(*item, limits)

    found = _found(photos, places, problems)
    entries = []
    for (photo, place), masks in zip(found, in_parallel(drawn, found), strict=True):
        named = photo.file.with_suffix(""), place.parent
        splits = {split_of(path.relative_to(source).parts) for path in named} - {""}
        if isinstance(masks, DataError):
            problems.outlines.append(str(masks))
        elif len(splits) > 1:
            problems.unclear.append(f"{photo} lies at {place}: {' or '.join(sorted(splits))}?")
        else:
            folder = place.parent.relative_to(source).as_posix()
            name = "images" if folder == "." else folder
            entries.append(Entry(place, (), category, name, "".join(splits), drawn=masks))
    problems.raise_any(len(photos), f"annotations under {source}")
    _tell_others(entries, places.images, source)
    return entries


def _content(path: Path, config: DataConfig) -> dict[str, Any] | None:
    """What an annotation file holds; None for other JSON."""
    try:
        if path.stat().st_size > config.max_bytes:
            log.warning("%s is passed over: larger than %d bytes (`data.max_bytes`)", path, config.max_bytes)
            return None
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data), errors="replace")
        if not all(f'"{name}"' in text for name in _LISTS):
            return None
        content = json.loads(text)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from None
    except RecursionError:
        raise DataError(
            f"{path}: lists within lists without end. Export it again, or take it out of the folder."
        ) from None
    except ValueError as error:
        if str(error).startswith("Extra data"):  # a value in each line
            return None
        raise DataError(
            f"{path}: damaged or truncated ({error}). Export it again, or take it out of the folder."
        ) from None
    listed = isinstance(content, dict) and all(isinstance(content.get(name), list) for name in _LISTS)
    return content if listed else None


def _of_points(content: dict[str, Any]) -> bool:
    return any(isinstance(kind, dict) and "keypoints" in kind for kind in content["categories"])


def _photos(path: Path, content: dict[str, Any], problems: _Problems) -> Iterable[_Photo]:
    annotations: dict[str, list[tuple[str, Any]]] = {}
    try:
        types = {
            identity: _type(item["name"]) for identity, item in _by_id(content["categories"], "categories")
        }
        images = dict(_by_id(content["images"], "images"))
        for item in content["annotations"]:
            outline = types[_identity(item["category_id"])], item.get("segmentation") or None
            annotations.setdefault(_identity(item["image_id"]), []).append(outline)
        photos = [
            _Photo(
                path,
                PurePosixPath(image["file_name"].replace("\\", "/")),
                (int(image["height"]), int(image["width"]))
                if image.get("height") and image.get("width")
                else None,
                tuple(annotations.pop(identity, ())),
            )
            for identity, image in images.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: an entry is not as COCO has it ({type(error).__name__}: {error}): images want an id and file_name, annotations "
            "the image_id and category_id of listed ones, categories an id and a name, each id once. Export it again, or take it out "
            "of the folder."
        ) from None
    problems.outlines += [f"image {identity}, which {path} does not list" for identity in annotations]
    return photos


def _by_id(items: Sequence[dict[str, Any]], what: str) -> list[tuple[str, dict[str, Any]]]:
    found = [(_identity(item["id"]), item) for item in items]
    twice = [identity for identity, count in Counter(identity for identity, _ in found).items() if count > 1]
    if twice:
        raise ValueError(f"two {what} have the id {twice[0]}")
    return found


def _identity(value: Any) -> str:
    """Ids are numbers, in some exports with a point, in others text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no id")
    return str(value).strip()


def _type(name: Any) -> str:
    shown = " ".join(str(name).replace("/", "_").split())
    if not shown:
        raise ValueError("a category has no name")
    return shown


def _found(photos: list[_Photo], places: Places, problems: _Problems) -> list[tuple[_Photo, Path]]:
    """Those of the photos that lie in one place, and in no other's."""
    found = []
    where = [(photo, places.of(photo.name, photo.file)) for photo in photos]
    claims: dict[Path, list[_Photo]] = {}
    for photo, candidates in where:
        if len(candidates) == 1:
            claims.setdefault(candidates[0], []).append(photo)
    for photo, candidates in where:
        if not candidates:
            known = photo.name.suffix.lower() in EXTENSIONS
            problems.gone.append(str(photo) if known else f"{photo} (cdiff reads PNG, JPEG and BMP)")
        elif len(candidates) > 1:
            problems.unclear.append(f"{photo} may be {candidates[0]} or {candidates[1]}")
        elif len(own := claims[candidates[0]]) > 1:  # which of them has all of its targets, nobody knows
            if photo is own[0]:
                problems.unclear.append(f"{candidates[0]} is listed twice, as {own[0]} and as {own[1]}")
        else:
            found.append((photo, candidates[0]))
    return found


def _drawn(photo: _Photo, place: Path, limits: Limits) -> tuple[MaskFile, ...]:
    """A photo's outlines as its one mask file; () for a normal photo. Raises DataError: they mean nothing."""
    shape = read_size(place, limits)
    if photo.size not in (None, shape):
        assert photo.size is not None
        sizes = f"{photo.size[1]} x {photo.size[0]}, and the photo has {shape[1]} x {shape[0]}"
        raise DataError(f"{photo}: outlines for {sizes} (if exchanged: save it without EXIF orientation)")
    boxes = sum(segmentation is None for _, segmentation in photo.outlines)
    if boxes:
        raise DataError(f"{photo}: {boxes} of {len(photo.outlines)} annotations have no outline")
    masks: dict[str, Any] = {}
    for type, segmentation in photo.outlines:
        try:
            mask = outline_mask(segmentation, shape)
        except ValueError as error:
            raise DataError(f"{photo}: an annotation {error}") from None
        if not mask.any():
            log.warning("%s: an outline of %s that holds no pixel is left out", photo, type)
        masks[type] = masks[type] | mask if type in masks else mask
    shown = sorted(type for type, mask in masks.items() if mask.any())
    if photo.outlines and not shown:
        raise DataError(f"{photo}: its outlines hold no pixel")
    if not shown:
        return ()
    few = [type for type in shown if np.count_nonzero(masks[type]) < _FEW]
    if few:
        log.warning("%s: under %d pixels of %s: is that a slip?", photo, _FEW, ", ".join(few))
    counts = tuple(pack(masks[type]) for type in shown)
    checksum = hashlib.sha256(json.dumps([shape, shown, counts]).encode()).hexdigest()
    return (MaskFile(str(photo.file), tuple(enumerate(shown)), checksum, counts),)


def _tell_others(entries: list[Entry], images: Sequence[Path], source: Path) -> None:
    listed = {entry.image for entry in entries}
    others = [str(image) for image in images if image not in listed]
    if others:
        remedy = "They are left out. List those without a target, too, with no annotation: they are normals."
        what = f"images under {source} are not among the photos of its annotation files"
        log.warning(offenders(others, len(images), what, remedy))


class _Problems:
    """Offenders by kind, so that one run shows the user all of them."""

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self.gone: list[str] = []
        self.unclear: list[str] = []
        self.outlines: list[str] = []

    def raise_any(self, total: int, where: str) -> None:
        """DataError that names all of them, or a warning where they may be left out."""
        out = "or leave what is named out with `data.skip_unpaired=true`."
        told = [
            (self.gone, "photos are not there", f"Put them beside the annotation file, {out}"),
            (
                self.unclear,
                "photos cannot be told",
                f"Take one of each two out, give each split a folder, {out}",
            ),
            (
                self.outlines,
                "photos have outlines that cannot be used",
                f"Outline all targets and export again, {out}",
            ),
        ]
        messages = [
            offenders(items, total, f"{what}, by the {where}", remedy)
            for items, what, remedy in told
            if items
        ]
        if messages and not self._skip:
            raise DataError("\n".join(messages))
        for message in messages:
            log.warning("%s", message)
