"""Groups files: which photos show the same source object, told by someone who knows.

A JSON mapping {"crack/017.png": 5, ...} or a CSV with the columns photo and group. A photo is named by the end of its
path, as much of it as makes it unique.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cdiff.errors import DataError, offenders
from cdiff.types import Sample

log = logging.getLogger(__name__)


def apply_groups(samples: Sequence[Sample], path: Path, scope: str) -> list[Sample]:
    """Give samples the groups of a file; photos that it does not name, or names without a group, stay their own.

    Args:
        path: JSON or CSV file.
        scope: put before the ids, so that group 5 of one source is not group 5 of another.
    Raises:
        DataError: unreadable file, a name that fits several photos, names of one photo with different groups, no name that fits any.
    """
    wanted = {name: group for name, group in read_groups(path).items() if group}
    by_name: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        by_name[Path(sample.image).name].append(index)
    found: dict[int, str] = {}
    vague, torn = [], []
    for key, group in wanted.items():
        parts = PurePosixPath(key.replace("\\", "/")).parts
        fits = [
            index
            for index in by_name.get(parts[-1], ())
            if Path(samples[index].image).parts[-len(parts) :] == parts
        ]
        if len(fits) > 1:
            vague.append(f"{key} fits {' and '.join(samples[index].image for index in fits[:2])}")
        for index in fits:
            if found.setdefault(index, group) != group:
                torn.append(f"{samples[index].image}: {found[index]} and {group}")
    if torn:
        raise DataError(
            offenders(torn, len(wanted), f"photos have two groups in {path}", "Leave one line for each.")
        )
    if vague:
        raise DataError(
            offenders(vague, len(wanted), f"names in {path} fit several photos", "Name more of their path.")
        )
    if not found:
        first = next(iter(wanted), "nothing")
        raise DataError(
            f"{path} names none of the {len(samples)} photos (first name: {first}, first photo: {samples[0].image}).\n"
            "Name photos by the end of their path, with extension."
        )
    log.info("%s: %d of %d photos in %d groups", path, len(found), len(samples), len(set(found.values())))
    if len(found) < len(samples):
        log.warning("%s does not name %d photos: each is its own group", path, len(samples) - len(found))
    return [
        dataclasses.replace(sample, group=f"{scope}:{found[index]}") if index in found else sample
        for index, sample in enumerate(samples)
    ]


def read_groups(path: Path) -> dict[str, str]:
    """Photo name -> group. Raises DataError when the file is neither a JSON mapping nor a CSV with two columns."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"groups file {path} cannot be read ({error}). Give a JSON or CSV file.") from None
    if path.suffix.lower() == ".json":
        return _read_json(path, text)
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if any(len(row) < 2 for row in rows) or not rows:
        raise DataError(f"groups file {path} must have two columns, photo and group, separated by a comma.")
    if "." not in rows[0][0]:  # a photo's name has an extension, a column's has none
        rows = rows[1:]
    return _without_contradiction(path, [(row[0].strip(), row[1].strip()) for row in rows])


def _read_json(path: Path, text: str) -> dict[str, str]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"groups file {path} is not valid JSON: {error}") from None
    flat = isinstance(pairs, list) and all(
        isinstance(pair, tuple) and isinstance(pair[1], str | int | float) for pair in pairs
    )
    if not flat or not pairs:
        raise DataError(f'groups file {path} must be one mapping like {{"crack/017.png": 5}}.')
    return _without_contradiction(path, [(name, str(group)) for name, group in pairs])


def _without_contradiction(path: Path, pairs: list[tuple[str, str]]) -> dict[str, str]:
    groups: dict[str, str] = {}
    twice = [name for name, group in pairs if groups.setdefault(name, group) != group]
    if twice:
        raise DataError(
            offenders(twice, len(pairs), f"names in {path} have two groups", "Leave one line for each.")
        )
    if "" in groups:
        raise DataError(f"groups file {path} has a line without a photo. Remove it.")
    return groups
