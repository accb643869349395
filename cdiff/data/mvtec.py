"""Reader of the MVTec AD tree: one category, or a root of categories.

    category/train/good/*.png                   normals
    category/test/good/*.png                    more normals
    category/test/TYPE/NAME.png                 defects ...
    category/ground_truth/TYPE/NAME_mask.png    ... and their masks (also without the suffix)

The train and test folders of this tree split for anomaly detection: training holds no defects. They are therefore
no split for segmentation, and cdiff draws its own.
"""

from __future__ import annotations

from pathlib import Path

from cdiff.config import DataConfig
from cdiff.data.assembly import Entry, bare_stem, list_folder
from cdiff.data.run import safe_name
from cdiff.errors import DataError, offenders
from cdiff.types import content_hash

GOOD = "good"  # the folder of photos without a target
_PHOTO_FOLDERS = ("train", "validation", "test")


def pair_places(category: str, kind: str, number: int) -> tuple[str, str]:
    """Where photo and mask of a type's pair lie in such a tree, as relative paths that hold whatever the names do."""
    category, kind = safe_name(category), type_folder(kind)
    return f"{category}/test/{kind}/{number:03d}.png", f"{category}/ground_truth/{kind}/{number:03d}_mask.png"


def normal_place(category: str, number: int) -> str:
    """Where a photo without a target lies in such a tree; it has no mask."""
    return f"{safe_name(category)}/test/{GOOD}/{number:03d}.png"


def type_folder(kind: str) -> str:
    """A folder's name for a type, also for one that is itself called good: there it would be read as no target."""
    name = safe_name(kind)
    return f"{name}-{content_hash(kind)[:6]}" if name.lower() == GOOD else name


def is_category(folder: Path) -> bool:
    """Whether a folder is one MVTec category."""
    if any((folder / part / GOOD).is_dir() for part in _PHOTO_FOLDERS):
        return True
    truth, test = folder / "ground_truth", folder / "test"
    return truth.is_dir() and test.is_dir() and bool(list_folder(truth)[0]) and bool(list_folder(test)[0])


def categories(root: Path) -> list[Path]:
    """The MVTec categories directly under a folder."""
    return [folder for folder in list_folder(root)[0] if is_category(folder)]


def list_category(folder: Path, category: str, config: DataConfig) -> list[Entry]:
    """List the photos of one category with their masks.

    Sample ids are category/TYPE/NAME, category/good/NAME for train/good and category/test-good/NAME for test/good.

    Raises:
        DataError: a defect photo without mask (unless `data.skip_unpaired`), or with several of one name.
    """
    entries: list[Entry] = []
    missing: list[str] = []
    for part in _PHOTO_FOLDERS:
        for types in list_folder(folder / part)[0] if (folder / part).is_dir() else []:
            photos = list_folder(types)[1]
            if types.name == GOOD:
                name = GOOD if part == "train" else f"{part}-{GOOD}"
                entries += [Entry(photo, (), category, name) for photo in photos]
                continue
            masks = _masks(folder / "ground_truth" / types.name)
            for photo in photos:
                if photo.stem in masks:
                    mask = (masks[photo.stem], types.name)
                    entries.append(Entry(photo, (mask,), category, types.name, defect=True))
                else:
                    missing.append(f"{photo} (looked for ground_truth/{types.name}/{photo.stem}_mask.png)")
    if missing and not config.skip_unpaired:
        remedy = (
            "Add the masks, move photos without a defect to test/good, or leave these out with "
            "`data.skip_unpaired=true`."
        )
        raise DataError(offenders(missing, len(entries) + len(missing), "photos have no mask", remedy))
    return entries


def _masks(folder: Path) -> dict[str, Path]:
    """Photo stem -> mask."""
    found: dict[str, Path] = {}
    for path in list_folder(folder)[1] if folder.is_dir() else []:
        if bare_stem(path) in found:
            raise DataError(
                f"{found[bare_stem(path)]} and {path} are masks of one photo: remove one of them."
            )
        found[bare_stem(path)] = path
    return found
