"""Where the photos of an annotation file lie: under names that were true on another machine, or in another folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cdiff.data.assembly import walk
from cdiff.data.folders import split_of


class Places:
    """The images under a folder, found by the names that its annotation files give them."""

    def __init__(self, source: Path, files: Iterable[Path]) -> None:
        folders = walk(source)
        self.images = [image for _, images in folders for image in images]
        self._source = source
        self._folders = {folder.name for folder, _ in folders}
        self._beside = {folder for folder, images in folders if images} & {file.parent for file in files}
        self._by_name: dict[str, list[Path]] = {}
        for image in self.images:
            self._by_name.setdefault(image.name, []).append(image)

    def of(self, name: PurePosixPath, file: Path) -> list[Path]:
        """The image that an annotation file means; none, or several where nothing tells them apart.

        Names that begin elsewhere ("/home/somebody/photos/1.jpg") count by as much of their end as agrees; where a folder that they
        name is here without the photo, another's photo of that name is not it. A file with photos beside it means its own.
        """
        found = self._by_name.get(name.name, [])
        if len(name.parts) == 1 and file.parent in self._beside:
            found = [path for path in found if path.is_relative_to(file.parent)]
        elif len(name.parts) > 1 and name.parts[-2] in self._folders:
            found = [path for path in found if path.parent.name == name.parts[-2]]
        scores = [(self._score(path, name, file), path) for path in found]
        best = max((score for score, _ in scores), default=None)
        return [path for score, path in scores if score == best]

    def _score(self, path: Path, name: PurePosixPath, file: Path) -> tuple[int, int, bool]:
        within = path.relative_to(self._source)
        return (
            _equal(reversed(path.parts), reversed(name.parts)),
            _equal(path.parts, file.parts),
            split_of(within.parent.parts) == split_of(file.relative_to(self._source).with_suffix("").parts),
        )


def _equal(one: Iterable[str], other: Iterable[str]) -> int:
    """How many of the first parts are the same."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
