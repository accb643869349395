"""Photos, masks and targets by id, decoded when asked for and kept in a bounded cache.

Everything here is a pure function of the samples and the files behind them, so that a copy in another process
(which travels without its cache) gives the same targets with the same ids.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cdiff.config import DataConfig
from cdiff.data.images import Limits, read_image, read_mask
from cdiff.data.masks import ANY_CHANNEL, QUARTER
from cdiff.data.outlines import unpack
from cdiff.errors import DataError
from cdiff.types import Box, MaskFile, Sample, Target

if TYPE_CHECKING:
    from cdiff.data.origin import Origin  # whoever has only folders need not import boto3

JOIN_SHARE = (
    0.02  # parts of one type nearer than this share of the photo's longer side are one target: cracks break
)
MIN_AREA = 4  # pixels; smaller specks are slips of the annotator unless the photo has nothing else


_PLACE = re.compile(r".+@\d+-\d+-\d+")  # a place without a target


def select(values: NDArray[Any], value: int) -> NDArray[np.bool_]:
    """Where a raw mask shows one of its meanings: an id, with -1 everything above half of full scale, with -2 some channel above a quarter.

    Args:
        values: [H, W] as `read_mask` gives them; full scale is 255 for uint8 and 65535 for int32, which with -2 are colours.
        value: the pixel value of `MaskFile.types`.
    """
    if value >= 0:
        return values == value
    if value == ANY_CHANNEL:
        return (values & QUARTER) != 0
    return values > (127 if values.dtype == np.uint8 else 32767)


def components(mask: NDArray[np.bool_]) -> list[tuple[Box, NDArray[np.bool_]]]:
    """Cut a mask into its targets.

    Parts nearer than JOIN_SHARE of the photo's longer side are one. Targets under MIN_AREA pixels are left out,
    unless nothing else is left: then the largest stays.

    Args:
        mask: bool [H, W].
    Returns:
        Box and mask inside the box (bool [h, w]) of each, from top to bottom, then left to right.
    """
    if not mask.any():
        return []
    gap = JOIN_SHARE * max(mask.shape)
    reach = int(np.ceil(gap)) + 1
    top, left = (max(0, int(np.flatnonzero(mask.any(axis=axis))[0]) - reach) for axis in (1, 0))
    bottom, right = (int(np.flatnonzero(mask.any(axis=axis))[-1]) + 1 + reach for axis in (1, 0))
    inner = mask[top:bottom, left:right]
    # Neighbouring pixels are at distance 1: two parts join when the empty way between them is at most `gap` long.
    near = ndimage.distance_transform_edt(~inner) <= gap / 2
    labels, count = ndimage.label(near, structure=np.ones((3, 3)))
    labels = np.where(inner, labels, 0)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = np.flatnonzero(areas >= MIN_AREA)
    kept = kept if kept.size else np.array([int(areas.argmax())])
    found = []
    for index, place in enumerate(ndimage.find_objects(labels)):
        if place is None or index not in kept:
            continue
        rows, columns = place
        box = (left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
        found.append((box, labels[place] == index + 1))
    return sorted(found, key=lambda item: (item[0][1], item[0][0], item[0]))


class Dataset:
    """The samples of a run. Arrays that it hands out are shared with its cache and therefore read-only."""

    def __init__(self, samples: Iterable[Sample], config: DataConfig, origins: Sequence[Origin] = ()) -> None:
        """Take samples in order of their ids; nothing is decoded yet.

        Args:
            origins: folders whose files are fetched where a machine lacks them.
        Raises:
            DataError: two samples of one id.
        """
        self.samples: tuple[Sample, ...] = tuple(sorted(samples, key=lambda sample: sample.sample_id))
        self._by_id = {sample.sample_id: sample for sample in self.samples}
        if len(self._by_id) != len(self.samples):
            raise DataError("two samples have the same id; each photo may be given once.")
        self._limits, self._origins = Limits.of(config), tuple(origins)
        self._cache = _Cache(config.cache_megabytes * 1_000_000)
        self._targets: dict[str, tuple[Target, ...]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, sample_id: str) -> Sample:
        """Raises DataError for an id that is not in the set."""
        try:
            return self._by_id[sample_id]
        except KeyError:
            raise DataError(f"no sample {sample_id!r} in this data set of {len(self.samples)}.") from None

    def image(self, sample_id: str) -> NDArray[np.uint8]:
        """The photo, uint8 [H, W, 3]."""
        sample = self.sample(sample_id)
        return self._cache.get(("image", sample_id), lambda: self._read_image(sample))

    def mask(self, sample_id: str) -> NDArray[np.bool_]:
        """Where any target is, bool [H, W]."""
        return self._cache.get(("mask", sample_id), lambda: self._stack(sample_id).any(axis=0))

    def type_mask(self, sample_id: str, type: str) -> NDArray[np.bool_]:
        """Where targets of one type are, bool [H, W]; all false for a type that the photo does not show."""
        sample = self.sample(sample_id)
        if type not in sample.types:
            return np.zeros((sample.height, sample.width), dtype=bool)
        return self._stack(sample_id)[sample.types.index(type)]

    def targets(self, sample_id: str) -> tuple[Target, ...]:
        """The photo's targets, by type, then from top to bottom; `components` says what a target is."""
        if sample_id not in self._targets:
            sample = self.sample(sample_id)
            # The shapes come from the same walk over the mask and are small: kept for target_mask.
            parts = self._parts(sample_id)
            self._targets[sample_id] = tuple(
                Target(
                    f"{sample_id}#{index}",
                    sample_id,
                    sample.category,
                    type,
                    sample.group,
                    box,
                    int(shape.sum()),
                )
                for index, (type, box, shape) in enumerate(parts)
            )
        return self._targets[sample_id]

    def target(self, target_id: str) -> Target:
        """A target, or a place without one (SAMPLE@X-Y-SIDE, `place_of`). Raises DataError for an id that is not in the set."""
        if _PLACE.fullmatch(target_id):
            return place_of(self.sample(target_id.rpartition("@")[0]), target_id)
        sample_id, _, index = target_id.rpartition("#")
        found = self.targets(sample_id)
        if not index.isdigit() or int(index) >= len(found):
            raise DataError(f"no target {target_id!r} in this data set.")
        return found[int(index)]

    def target_mask(self, target_id: str) -> NDArray[np.bool_]:
        """Where one target is, bool [H, W]; a fresh array. A place without a target is a disc."""
        target = self.target(target_id)
        sample = self.sample(target.sample_id)
        if _PLACE.fullmatch(target_id):
            return _disc(sample, target)
        _, box, shape = self._parts(target.sample_id)[int(target_id.rpartition("#")[2])]
        mask = np.zeros((sample.height, sample.width), dtype=bool)
        mask[box[1] : box[3], box[0] : box[2]] = shape
        return mask

    def all_targets(self, sample_ids: Iterable[str]) -> list[Target]:
        """The targets of several photos, in the order of the ids."""
        return [target for sample_id in sample_ids for target in self.targets(sample_id)]

    def _read_image(self, sample: Sample) -> NDArray[np.uint8]:
        return read_image(self.here(sample.image), self._limits)

    def here(self, path: str) -> str:
        """The path of a file, brought to this machine if it lies elsewhere."""
        for origin in self._origins:
            origin.bring(Path(path))
        return path

    def _stack(self, sample_id: str) -> NDArray[np.bool_]:
        """One mask per type of the sample, bool [types, H, W]."""
        return self._cache.get(("stack", sample_id), lambda: self._read_stack(self.sample(sample_id)))

    def _read_stack(self, sample: Sample) -> NDArray[np.bool_]:
        stack = np.zeros((len(sample.types), sample.height, sample.width), dtype=bool)
        for file in sample.masks:
            layers = self._layers(file, stack.shape[1:])
            for value, type in file.types:
                if type in sample.types:
                    stack[sample.types.index(type)] |= layers[value]
        return stack

    def _layers(self, file: MaskFile, shape: tuple[int, ...]) -> dict[int, NDArray[np.bool_]]:
        """Where each value of `MaskFile.types` is."""
        if file.drawn:
            return {value: unpack(file.drawn[value], (shape[0], shape[1])) for value, _ in file.types}
        values = read_mask(self.here(file.path), self._limits)
        if values.shape != shape:
            raise DataError(
                f"{file.path}: its size changed since the data set was read; start the run again."
            )
        return {value: select(values, value) for value, _ in file.types}

    def _parts(self, sample_id: str) -> list[tuple[str, Box, NDArray[np.bool_]]]:
        def cut() -> list[tuple[str, Box, NDArray[np.bool_]]]:
            types, stack = self.sample(sample_id).types, self._stack(sample_id)
            return [
                (type, *part) for type, layer in zip(types, stack, strict=True) for part in components(layer)
            ]

        return self._cache.get(("parts", sample_id), cut)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": _Cache(self._cache.limit)}


def place_of(sample: Sample, target_id: str) -> Target:
    """A place of a photo that shows no target, as if it were one of no type: X and Y are its centre, SIDE its box's."""
    x, y, side = (int(part) for part in target_id.rpartition("@")[2].split("-"))
    left, top = (
        max(0, min(at - side // 2, room - side)) for at, room in ((x, sample.width), (y, sample.height))
    )
    box = (left, top, min(sample.width, left + side), min(sample.height, top + side))
    area = (box[2] - box[0]) * (box[3] - box[1])
    return Target(target_id, sample.sample_id, sample.category, "", sample.group, box, area)


def _disc(sample: Sample, place: Target) -> NDArray[np.bool_]:
    left, top, right, bottom = place.box
    rows, columns = np.mgrid[: sample.height, : sample.width]
    x, y = (left + right - 1) / 2, (top + bottom - 1) / 2
    inside: NDArray[np.bool_] = ((columns - x) / (right - left) * 2) ** 2 + (
        (rows - y) / (bottom - top) * 2
    ) ** 2 <= 1
    return inside


class _Cache:
    """Least recently used first out, bounded by bytes. A value larger than the bound is passed through."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._values: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def get(self, key: tuple[str, str], make: Any) -> Any:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        size = _bytes(value)
        if size <= self.limit:
            self._values[key] = value
            self.size += size
            while self.size > self.limit:
                self.size -= _bytes(self._values.popitem(last=False)[1])
        return value


def _bytes(value: Any) -> int:
    return int(value.nbytes) if isinstance(value, np.ndarray) else sum(part[2].nbytes + 200 for part in value)
