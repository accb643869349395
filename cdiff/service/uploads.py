"""Photos that come with a request, as members of a data set; nothing of them touches the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.data.images import Limits, decode_mask_upload, decode_upload
from cdiff.errors import DataError, RequestError
from cdiff.service.requests import MaskRequest, PairRequest, SegmentRequest
from cdiff.types import UPLOAD, Box, Sample, Target

# Crops are squares, as long as a photo at most: of a strip of few pixels one could fill the memory.
MOST_SIDE = 8_000


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """A photo, with or without targets, under an id that its content decides."""

    sample: Sample
    image: NDArray[np.uint8]  # [H, W, 3]
    mask: NDArray[np.bool_]  # [H, W]

    @property
    def sample_id(self) -> str:
        return self.sample.sample_id


def upload_of(
    image: bytes, mask: bytes | None, category: str, type: str, limits: Limits, also: str = ""
) -> Upload:
    """Decode what a request holds.

    Args:
        image: PNG or JPEG. mask: the same, of the image's size, with one target at least; None: a photo without targets.
        also: what else makes it another photo than the same bytes elsewhere.
    Raises:
        RequestError: no PNG or JPEG, damaged, over a limit, a mask of another size, or one without a target.
    """
    with _told():
        pixels, mode = decode_upload(image, "image", limits)
    height, width = pixels.shape[:2]
    if min(height, width) < 16:
        raise RequestError(f"image: {width} x {height} pixels; at least 16 x 16 are needed.")
    if max(height, width) > MOST_SIDE:
        raise RequestError(
            f"image: {width} x {height} pixels; {MOST_SIDE} is the longest side. Cut it into parts."
        )
    with _told():
        shown = np.zeros((height, width), bool) if mask is None else decode_mask_upload(mask, "mask", limits)
    if shown.shape != (height, width):
        raise RequestError(
            f"mask: {shown.shape[1]} x {shown.shape[0]} pixels, but the image has {width} x {height}."
        )
    if mask is not None and not shown.any():
        raise RequestError("mask: nothing in it is white; it shows no target.")
    types = (type,) if mask is not None else ()
    sample = Sample("", category, types, "", "", (), width, height, mode, "")
    return known_as(Upload(sample, pixels, shown), image, mask, type, also)


def known_as(upload: Upload, image: bytes, mask: bytes | None, type: str, also: str) -> Upload:
    """The same pixels under another name, without another copy of them; arguments as of `upload_of`."""
    parts = (image, mask or b"", upload.sample.category.encode(), type.encode(), also.encode())
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    checksum = digest.hexdigest()
    name = f"{UPLOAD}{checksum}"
    sample = replace(upload.sample, sample_id=name, group=name, checksum=checksum)
    return replace(upload, sample=sample)


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a picture is the sender's to know; of other files nothing is told."""
    try:
        yield
    except DataError as error:
        raise RequestError(str(error)) from None


def check_pictures(request: PairRequest | MaskRequest | SegmentRequest, limits: Limits) -> None:
    """RequestError for the first picture of a request that cannot be used, as `upload_of` finds it, before anything is made of it."""
    pictures: list[tuple[bytes, bytes | None]] = []
    if isinstance(request, PairRequest):
        if request.reference:
            pictures.append((request.reference.image, request.reference.mask))
        if request.background:
            pictures.append((request.background, request.mask))
    else:
        pictures.append((request.image, None))
    for image, mask in pictures:
        upload_of(image, mask, "", "t", limits)


class WithUploads(Dataset):
    """A run's photos and some requests' together."""

    def __init__(self, base: Dataset, uploads: Iterable[Upload], config: DataConfig) -> None:
        known = {upload.sample_id: upload for upload in uploads}
        super().__init__([upload.sample for upload in known.values()], config)
        self._base, self._uploads = base, known

    def sample(self, sample_id: str) -> Sample:
        return super().sample(sample_id) if sample_id in self._uploads else self._base.sample(sample_id)

    def image(self, sample_id: str) -> NDArray[np.uint8]:
        return self._uploads[sample_id].image if sample_id in self._uploads else self._base.image(sample_id)

    def mask(self, sample_id: str) -> NDArray[np.bool_]:
        return self._uploads[sample_id].mask if sample_id in self._uploads else self._base.mask(sample_id)

    def targets(self, sample_id: str) -> tuple[Target, ...]:
        return super().targets(sample_id) if sample_id in self._uploads else self._base.targets(sample_id)

    def target_mask(self, target_id: str) -> NDArray[np.bool_]:
        own = target_id.startswith(UPLOAD)
        return super().target_mask(target_id) if own else self._base.target_mask(target_id)

    def target(self, target_id: str) -> Target:
        return super().target(target_id) if target_id.startswith(UPLOAD) else self._base.target(target_id)

    def _parts(self, sample_id: str) -> list[tuple[str, Box, NDArray[np.bool_]]]:
        """What a user draws is one target, in however many pieces."""
        upload = self._uploads[sample_id]
        if not upload.sample.types:
            return []
        rows, columns = np.flatnonzero(upload.mask.any(axis=1)), np.flatnonzero(upload.mask.any(axis=0))
        left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        return [(upload.sample.types[0], (left, top, right, bottom), upload.mask[top:bottom, left:right])]
