"""Entry to the readers: tells which layout a folder has, reads one source or several, and applies groups files."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from cdiff.config import DataConfig
from cdiff.data.assembly import assemble, list_folder
from cdiff.data.coco import annotation_files, list_annotated
from cdiff.data.folders import has_masks, list_pairs
from cdiff.data.groups import apply_groups
from cdiff.data.mvtec import categories, is_category, list_category
from cdiff.errors import DataError, offenders
from cdiff.types import UPLOAD, Sample

log = logging.getLogger(__name__)

GROUPS_FILE = "groups.json"


def read_source(path: str, config: DataConfig) -> list[Sample]:
    """Read one folder: an MVTec category, a root of MVTec categories, photos with COCO annotation files, or image + mask folders.

    Every file is decoded once; the category is the folder's name (or each category folder's). A groups.json in the
    folder is not applied here, but by `read_sources`.

    Returns:
        Samples sorted by id; each is its own group.
    Raises:
        DataError: what cannot be used, with the first offenders and the remedy.
    """
    return [sample for samples in _read(Path(path), config).values() for sample in samples]


def read_sources(paths: list[str], groups: str | None, config: DataConfig) -> list[Sample]:
    """Read several folders into one data set.

    Args:
        paths: folders as in `read_source`; equal folder names are told apart by a number.
        groups: JSON or CSV file, photo -> source object; None: each source's own groups.json where there is one. That of a root of
            MVTec categories counts for all of them, and its categories then have none of their own.
    Returns:
        Samples sorted by id. `group` differs from `sample_id` only where a groups file named the photo.
    Raises:
        DataError: as in `read_source`, the same folder twice, a groups file that does not fit, or a groups.json both at a root and
            in its categories.
    """
    if not paths:
        raise DataError("no data given. Name a folder with --data, or use the demo data (`data.demo=true`).")
    resolved = [str(Path(path).resolve()) for path in paths]
    twice = [path for path, count in Counter(resolved).items() if count > 1]
    if twice:
        raise DataError(f"{twice[0]} is given twice. Name each folder once.")
    samples: list[Sample] = []
    taken: set[str] = set()
    for path in paths:
        found = _read(Path(path), config, taken)
        found = _with_own_groups(found, Path(path).resolve()) if groups is None else found
        samples += [sample for members in found.values() for sample in members]
    if groups is not None:
        samples = apply_groups(samples, Path(groups), "groups")
    log.info("%d photos, %d without targets", len(samples), sum(sample.is_normal for sample in samples))
    return sorted(samples, key=lambda sample: sample.sample_id)


def _with_own_groups(found: dict[Path, list[Sample]], source: Path) -> dict[Path, list[Sample]]:
    """What `_read` found of one source, with the groups of the groups.json that lies in it."""
    own = [folder / GROUPS_FILE for folder in found if (folder / GROUPS_FILE).is_file()]
    above = source / GROUPS_FILE
    if source in found or not above.is_file():
        return {
            folder: apply_groups(samples, folder / GROUPS_FILE, samples[0].category)
            if folder / GROUPS_FILE in own
            else samples
            for folder, samples in found.items()
        }
    if own:
        # neither goes first: an object that both name would lie on two sides
        what = f"categories have a {GROUPS_FILE} beside the one of all, {above}"
        remedy = f"Leave one for all categories or one in each, or name a file with --groups; names in {above} may begin with the category."
        raise DataError(offenders([str(path) for path in own], len(found), what, remedy))
    samples = [sample for members in found.values() for sample in members]
    # roots may share their name, categories do not
    return {source: apply_groups(samples, above, samples[0].category)}


def _read(path: Path, config: DataConfig, taken: set[str] | None = None) -> dict[Path, list[Sample]]:
    """Folder -> its samples, one folder per category."""
    taken = set() if taken is None else taken
    source = path.resolve()
    if not source.is_dir():
        what = "is a file" if source.exists() else "does not exist"
        raise DataError(f"{path} {what}. Give the folder that holds the photos and masks.")
    if is_category(source):
        if passed := annotation_files(source, config):
            log.warning("%s is read as an MVTec category, without %s", source, ", ".join(map(str, passed)))
        entries = list_category(source, _free(source.name, taken), config)
        return {source: _nonempty(assemble(entries, source, config), source)}
    inner = categories(source)
    if inner:
        others = [folder.name for folder in list_folder(source)[0] if folder not in inner]
        if others:
            log.warning("%s: left out, no MVTec categories: %s", source, ", ".join(others))
        found = {}
        for folder in inner:
            found.update(_read(folder, config, taken))
        return found
    name, annotated = _free(source.name, taken), annotation_files(source, config)
    if annotated and has_masks(source):
        log.warning(
            "%s has masks, which are read, and %s, which is not", source, ", ".join(map(str, annotated))
        )
        annotated = {}
    if annotated:
        entries = list_annotated(annotated, source, name, config)
    else:
        entries = list_pairs(source, name, config)
    return {source: _nonempty(assemble(entries, source, config), source)}


def _free(name: str, taken: set[str]) -> str:
    # ids that begin with the latter are of photos that people bring to the service
    number, free, reserved = 1, name, UPLOAD.rstrip("/")
    while free in taken or free == reserved:
        number += 1
        free = f"{name}-{number}"
    taken.add(free)
    return free


def _nonempty(samples: list[Sample], source: Path) -> list[Sample]:
    if not samples:
        raise DataError(f"{source} holds no photo. Formats are PNG, JPEG and BMP.")
    return samples
