"""Reader of image + mask folders of any names.

Words in the folder names say what a folder holds: `images`, `masks`, `train`, `val`, `good` and their like, in any
order and depth (train/images, images/train, train_masks). Names that say nothing are told apart by their content.
What the words leave of a path must agree between photos and masks (images/patient7, masks/patient7); one name more
on the side of the masks is a type (masks/crack, masks/hole). Masks carry the stem of their photo, with or without a
`_mask` suffix, and may lie beside the photos. With one kind of mask the type is "target".
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cdiff.config import DataConfig
from cdiff.data.assembly import Entry, bare_stem, walk
from cdiff.data.images import Limits, read_mask
from cdiff.data.masks import MOST_IDS
from cdiff.errors import DataError, offenders

log = logging.getLogger(__name__)

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# TrainDataset, testA, val2017: a split's word grown together with another; the rest of such a name stays
_JOINED_SPLIT = re.compile(rf"((?i:{'|'.join(_SPLITS)}))(?=[A-Z]|(?:19|20)\d\d$)")
_IMAGE_WORDS = frozenset(
    [
        "image",
        "images",
        "img",
        "imgs",
        "photo",
        "photos",
        "frame",
        "frames",
        "picture",
        "pictures",
        "jpegimages",
    ]
)
_MASK_WORDS = frozenset(
    [
        "mask",
        "masks",
        "label",
        "labels",
        "gt",
        "gts",
        "ground",
        "truth",
        "groundtruth",
        "annotation",
        "annotations",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "seg",
    ]
)
_NORMAL_WORDS = frozenset(["good", "normal", "normals"])
_KNOWN = "|".join(sorted({*_SPLITS, *_IMAGE_WORDS, *_MASK_WORDS, *_NORMAL_WORDS}, key=len, reverse=True))
_FAR = "[^\x00-\u024f]"  # of no Latin script
_GROWN = re.compile(rf"(?<={_FAR})((?i:{_KNOWN}))(?![A-Za-z0-9])|(?<![A-Za-z0-9])((?i:{_KNOWN}))(?={_FAR})")
_LOOKED_AT = 5  # files that are opened to tell photos from masks where no name does


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    files: tuple[Path, ...]
    split: str
    role: str  # "image", "mask", "normal" or "" (the name does not say)
    rest: tuple[str, ...]  # what the words leave of the path


def list_pairs(source: Path, category: str, config: DataConfig) -> list[Entry]:
    """List the photos under a folder with their masks.

    Sample ids are category/FOLDER/NAME, where FOLDER is the split and what the words leave of the path (or the
    photo folder's own name).

    Raises:
        DataError: no photos, no masks, a photo without mask (unless `data.skip_unpaired`).
    """
    described = [_describe(source, path, files) for path, files in walk(source) if files]
    folders = _roles(described, source, config)
    photos = [folder for folder in folders if folder.role in ("image", "normal")]
    masks = [folder for folder in folders if folder.role == "mask"]
    if not photos or not masks:
        found = ", ".join(f"{folder.path} ({len(folder.files)})" for folder in folders) or "no image at all"
        raise DataError(
            f"{source} holds no {'masks' if photos else 'photos'} that cdiff can tell: found {found}.\n"
            "Name the folders images and masks, use an MVTec tree, or add a COCO file with outlines; formats are PNG, JPEG and BMP."
        )
    claims = _claims(photos, masks)
    kinds = {type for claimed in claims.values() for _, type in claimed}
    entries: list[Entry] = []
    missing: list[str] = []
    for folder in photos:
        entries += _entries(folder, source, category, claims[folder.path], len(kinds) > 1, missing)
    if missing and not config.skip_unpaired:
        where = ", ".join(str(folder.path) for folder in masks[:3])
        remedy = (
            f"Looked for masks of the same name, or with _mask at its end, in {where}. Add them (an all-black mask "
            "marks a photo without target), or leave these photos out with `data.skip_unpaired=true`."
        )
        raise DataError(offenders(missing, len(entries) + len(missing), "photos have no mask", remedy))
    return entries


def split_of(parts: Sequence[str]) -> str:
    """The split that names say: the last one's word counts; "" for none."""
    split = ""
    for word in (word for part in parts for word in _words(part)):
        joined = _JOINED_SPLIT.match(word)
        split = _SPLITS.get(joined[1].lower() if joined else word.lower(), split)
    return split


def has_masks(source: Path) -> bool:
    """Whether names of folders or files under a folder say that masks lie there."""
    described = [_describe(source, path, files) for path, files in walk(source) if files]
    return any(part.role == "mask" for folder in described for part in _part_masks(folder))


def _words(name: str) -> list[str]:
    """Letters, their marks and digits of any script make words; one that cdiff knows may have grown together with another script's."""
    name = unicodedata.normalize("NFC", name)
    whole = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in name).split(" ")
    return [part for word in whole for part in _GROWN.split(word) if part is not None]


def _describe(source: Path, path: Path, files: list[Path]) -> _Folder:
    parts = path.relative_to(source).parts
    rest, words = [], set()
    for part in parts:
        left = []
        for word in _words(part):
            low = word.lower()
            if low in _SPLITS:
                continue
            if low in _IMAGE_WORDS | _MASK_WORDS:
                words.add(low)
            elif word:
                words.add(low)
                left.append(word)
        rest += ["_".join(left)] if left else []
    role = "mask" if words & _MASK_WORDS else "normal" if words & _NORMAL_WORDS else ""
    role = role or ("image" if words & _IMAGE_WORDS else "")
    return _Folder(path, tuple(files), split_of(parts), role, tuple(rest))


def _roles(folders: list[_Folder], source: Path, config: DataConfig) -> list[_Folder]:
    """Give every folder its role, first by suffixes, then by what other folders are called, then by content."""
    folders = [part for folder in folders for part in _part_masks(folder)]
    named = {folder.role for folder in folders}
    unknown = [folder for folder in folders if not folder.role]
    if "mask" not in named and unknown:
        return [_by_content(folder, config) if not folder.role else folder for folder in folders]
    if "image" in named and unknown:
        log.warning(
            "left out, since images lie elsewhere: %s", ", ".join(str(folder.path) for folder in unknown)
        )
        return [folder for folder in folders if folder.role]
    return [folder if folder.role else replace(folder, role="image") for folder in folders]


def _part_masks(folder: _Folder) -> list[_Folder]:
    """Take files with a mask suffix out of a photo folder: they are masks beside their photos."""
    if folder.role == "mask":
        return [folder]
    stems = {path.stem for path in folder.files}
    suffixed = tuple(path for path in folder.files if bare_stem(path) != path.stem)
    beside = tuple(path for path in suffixed if bare_stem(path) in stems)
    if not folder.role and len(suffixed) == len(folder.files):
        return [replace(folder, role="mask")]
    if not beside:
        return [folder]
    others = tuple(path for path in folder.files if path not in set(beside))
    return [
        replace(folder, files=others, role=folder.role or "image"),
        replace(folder, files=beside, role="mask"),
    ]


def _by_content(folder: _Folder, config: DataConfig) -> _Folder:
    limits = Limits.of(config)
    votes = [_masklike(path, limits) for path in folder.files[:: max(1, len(folder.files) // _LOOKED_AT)]]
    is_mask = sum(votes) * 2 > len(votes)
    # The name said nothing about the role, so it cannot be expected to agree with the other side's.
    return replace(folder, role="mask" if is_mask else "image")


def _masklike(path: Path, limits: Limits) -> bool:
    values = read_mask(path, limits)
    if np.unique(values[::2, ::2]).size <= MOST_IDS:
        return True
    if values.dtype != np.uint8:
        return False
    return float(((values <= 16) | (values >= 239)).mean()) > 0.9


def _claims(photos: list[_Folder], masks: list[_Folder]) -> dict[Path, list[tuple[_Folder, str]]]:
    """For each photo folder the mask folders that belong to it, with the type that their place tells."""
    claims: dict[Path, list[tuple[_Folder, str]]] = {}
    for folder in photos:
        same = [(mask, _relation(folder.rest, mask.rest)) for mask in masks if mask.split == folder.split]
        claims[folder.path] = [(mask, type) for mask, type in same if type is not None]
    taken = {mask.path for claimed in claims.values() for mask, _ in claimed}
    for folder in photos:
        free = [mask for mask in masks if mask.path not in taken and mask.split in (folder.split, "")]
        if not claims[folder.path] and folder.role == "image":
            claims[folder.path] = [(mask, mask.rest[-1] if mask.rest else "") for mask in free]
    return claims


def _relation(photo: tuple[str, ...], mask: tuple[str, ...]) -> str | None:
    if photo == mask:
        return ""
    if len(mask) == len(photo) + 1:
        if mask[:-1] == photo:
            return mask[-1]
        if mask[1:] == photo:
            return mask[0]
    return None


def _entries(
    folder: _Folder,
    source: Path,
    category: str,
    claimed: list[tuple[_Folder, str]],
    typed: bool,
    missing: list[str],
) -> list[Entry]:
    found: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for mask_folder, type in claimed:
        stems = {path.stem for path in folder.files}
        for path in mask_folder.files:
            # A photo may itself end in _mask or _gt: the full stem goes first.
            stem = path.stem if path.stem in stems and mask_folder.path != folder.path else bare_stem(path)
            found[stem].append((path, type if typed else ""))
    name = "/".join(part for part in (folder.split, *folder.rest) if part)
    name = name or (folder.path.name if folder.path != source else "images")
    entries = []
    for photo in folder.files:
        masks = tuple(found.get(photo.stem, ()))
        if len({path.parent for path, _ in masks}) < len(masks):
            raise DataError(f"{masks[0][0]} and {masks[1][0]} are masks of one photo: remove one of them.")
        if masks or folder.role == "normal":
            entries.append(Entry(photo, masks, category, name, folder.split))
        else:
            missing.append(str(photo))
    return entries
