"""Bounded decoding and encoding of photos and masks. Nothing else in cdiff opens an image file.

Every decode is limited twice: by the size of the file before it is read, and by the pixels that its header promises
before they are decoded (a kilobyte of PNG can promise gigabytes). The EXIF orientation is applied to photos and masks
alike, so that width and height are always those that a viewer shows; a damaged one is none.
"""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cdiff.config import DataConfig
from cdiff.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP")
UPLOADED = ("PNG", "JPEG")
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp"})

# What Pillow raises on a damaged file: SyntaxError for broken PNG chunks, zlib and struct errors from the decoders.
_JPEG, _SCAN, _SCANS = b"\xff\xd8", b"\xff\xda", 100  # ordinary progressive ones have ten
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_SIXTEEN_BIT = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_DARK = 65536 // 8  # 16-bit photos that all stay below it were filled to 12 bits or fewer
_ORIENTATION = 0x0112
# What shows a photo upright, by its EXIF orientation; from 5 on, width and height change places.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# JPEG stores colour apart from brightness: channels of a grey mask may come back this far apart.
_GREY_TOLERANCE = 24
_BLUR = 32  # how far JPEG moves a full colour inside its area, channel by channel
_FULL = 0.05  # share of pixels in full colours that even thin targets keep: of those drawn in others it is 0
_EDGE = 4  # how far in from an edge it moves it further, pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused before it is decoded."""

    max_pixels: int
    max_bytes: int

    @classmethod
    def of(cls, config: DataConfig) -> Limits:
        return cls(config.max_pixels, config.max_bytes)


OWN = Limits(sys.maxsize, sys.maxsize)  # of what a run wrote itself, whose shards have checksums


class PhotoFacts(NamedTuple):
    """What one photo is."""

    width: int  # EXIF orientation applied
    height: int
    mode: str  # "L" or "RGB": what a generated neighbour is saved in
    checksum: str  # sha256 of the file
    highest: int | None  # value of a 16-bit photo; None for others


def probe(path: str | Path, limits: Limits) -> PhotoFacts:
    """Read a photo's facts, and make sure that it decodes to its last pixel.

    Raises:
        DataError: missing, truncated, over a limit, or not PNG, JPEG or BMP.
    """
    data = _read_bytes(path, limits)
    image = _decode(data, str(path), limits, FORMATS)
    width, height = image.size
    if _orientation(image) >= 5:
        width, height = height, width
    highest = int(np.asarray(image).max()) if image.mode in _SIXTEEN_BIT else None
    with _told(str(path), FORMATS):
        mode = photo_mode(image)
        if image.mode in ("P", "PA"):
            _to_rgb(image)
    return PhotoFacts(width, height, mode, hashlib.sha256(data).hexdigest(), highest)


def tell_dark(photos: Sequence[PhotoFacts], source: Path) -> None:
    """Warn where the 16-bit photos of a folder show the lowest part of their scale alone, as cameras of 10 or 12 bits leave them."""
    deep = [photo.highest for photo in photos if photo.highest is not None]
    if deep and max(deep) < _DARK:
        log.warning(
            "the %d 16-bit photos under %s are all but black: their highest value is %d, and 65535 is white. Rescale all of them "
            "alike to the full range, or save them as 8 bit.",
            len(deep),
            source,
            max(deep),
        )


def read_size(path: str | Path, limits: Limits) -> tuple[int, int]:
    """Height and width of a photo as a viewer shows it; only the header is read. Raises DataError as in `probe`."""
    with _told(str(path), FORMATS), Image.open(path, formats=FORMATS) as image:
        _refuse_large(image, str(path), limits)
        width, height = image.size
        turned = _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def photo_mode(image: Image.Image) -> str:
    """ "L" for any kind of grey photo, "RGB" for any kind of colour."""
    if image.mode in ("1", "L", "LA", "La") or image.mode in _SIXTEEN_BIT:
        return "L"
    if image.mode in ("P", "PA"):
        used = np.asarray(image.convert("RGB"))
        return "L" if _equal_channels(used, 0) else "RGB"
    return "RGB"


def read_image(path: str | Path, limits: Limits) -> NDArray[np.uint8]:
    """Read a photo as uint8 [H, W, 3].

    Grey photos get three equal channels; 16-bit grey is divided by 257 (a fixed scale: photos stay comparable);
    palettes are looked up; transparent pixels are laid over black; EXIF orientation is applied.

    Raises:
        DataError: as in `probe`.
    """
    return _decoded(_read_bytes(path, limits), str(path), limits, FORMATS)


def read_mask(path: str | Path, limits: Limits) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Read a mask's raw values [H, W]: uint8, or int32 for 16-bit masks and for masks with coloured classes.

    Palette masks give their indices (class ids as in Pascal VOC); bilevel ones 0 and 255; colour masks with equal
    channels their one channel; other colour masks 0xRRGGBB, each channel 0 or 255 where a JPEG has blurred such colours. Alpha is
    ignored, EXIF orientation is applied.

    Raises:
        DataError: as in `probe`.
    """
    image = _decode(_read_bytes(path, limits), str(path), limits, FORMATS)
    image = _upright(image)
    if image.mode in _SIXTEEN_BIT:
        return np.asarray(image).astype(np.int32)
    if image.mode in ("P", "L"):
        return np.array(image, dtype=np.uint8)
    if image.mode in ("1", "LA", "La"):
        return np.array(image.convert("L"), dtype=np.uint8)
    if image.mode == "PA":
        return np.array(image.getchannel(0), dtype=np.uint8)
    colours = np.array(image.convert("RGB"), dtype=np.uint8)
    if _equal_channels(colours, _GREY_TOLERANCE):
        return np.ascontiguousarray(colours[..., 1])
    if is_jpeg(path):
        colours = _unblurred(colours)
    return _packed(colours)


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    wide = colours.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _unblurred(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The full colours [H, W, 3] of a mask that was drawn in such and compressed; any other mask as it is.

    Between two of them lie colours that nobody drew: they are whatever is nearest.
    """
    full = np.where(colours > 127, np.uint8(255), np.uint8(0))
    far = np.abs(colours.astype(np.int16) - full).max(axis=2) > _BLUR
    shown = full.any(axis=2)
    drawn_in_full = shown.any() and (~far)[shown].mean() > _FULL
    if not drawn_in_full or ndimage.binary_erosion(far, np.ones((3, 3)), iterations=_EDGE).any():
        return colours  # all of it, or areas and not edges
    values = _packed(full)
    for value in np.unique(values[values != 0]):
        its, others = values == value, (values != 0) & (values != value)
        drawn = np.median(far[its]) == 0
        if drawn or (its & ~ndimage.binary_dilation(others, np.ones((3, 3)), iterations=2)).any():
            continue
        nearest = ndimage.distance_transform_edt(its, return_distances=False, return_indices=True)
        full, values = full[tuple(nearest)], values[tuple(nearest)]
    return full


def read_thumbnail(path: str | Path, limits: Limits, side: int) -> NDArray[np.uint8]:
    """A photo as grey uint8 [side, side], stretched to a square by area averages; errors as in `probe`.

    JPEGs are decoded at reduced scale where that suffices, so that thousands of large photos take seconds.
    """
    image = _decode(_read_bytes(path, limits), str(path), limits, FORMATS, draft=side)
    grey = Image.fromarray(_to_rgb(image)).convert("L")
    return np.array(grey.resize((side, side), Image.Resampling.BOX), dtype=np.uint8)


def is_palette(path: str | Path) -> bool:
    """Whether a mask stores palette indices; only the header is read."""
    with Image.open(path, formats=FORMATS) as image:
        return image.mode in ("P", "PA")


def is_deep(path: str | Path) -> bool:
    """Whether a file has one channel of 16 bits; only the header is read."""
    with Image.open(path, formats=FORMATS) as image:
        return image.mode in _SIXTEEN_BIT


def is_jpeg(path: str | Path) -> bool:
    """Whether a file is a JPEG, whatever it is called; only the header is read."""
    with Image.open(path, formats=FORMATS) as image:
        return image.format in ("JPEG", "MPO")


def encode_png(array: NDArray[np.uint8] | NDArray[np.bool_], mode: str) -> bytes:
    """Encode uint8 [H, W, 3], uint8 [H, W] or bool [H, W] as PNG; equal input gives equal bytes.

    Args:
        array: bool becomes 0 and 255.
        mode: "L" (three channels are averaged) or "RGB" (one channel is repeated).
    Raises:
        ValueError: another mode, type or shape.
    """
    if mode not in ("L", "RGB"):
        raise ValueError(f"PNGs are written as L or RGB, not {mode!r}")
    values = array.astype(np.uint8) * np.uint8(255) if array.dtype == np.bool_ else array
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        raise ValueError(
            f"expected uint8 [H, W, 3] or [H, W], or bool [H, W], got {array.dtype} {array.shape}"
        )
    if mode == "L" and values.ndim == 3:
        values = np.rint(values.mean(axis=2)).astype(np.uint8)
    if mode == "RGB" and values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Decode PNG bytes to uint8 [H, W, 3]; errors as in `probe`."""
    return _decoded(_capped(data, limits), "PNG bytes", limits, ("PNG",))


def decode_mask_png(data: bytes, limits: Limits) -> NDArray[np.bool_]:
    """Decode PNG bytes to bool [H, W], true above 127; errors as in `probe`."""
    image = _decode(_capped(data, limits), "PNG bytes", limits, ("PNG",))
    return np.asarray(image.convert("L")) > 127


def decode_upload(data: bytes, name: str, limits: Limits) -> tuple[NDArray[np.uint8], str]:
    """Decode a photo that came over a network: uint8 [H, W, 3], and "L" or "RGB"; PNG and JPEG alone, errors as in `probe`.

    Args:
        name: what messages call it.
    """
    image = _decode(_capped(data, limits, name), name, limits, UPLOADED)
    with _told(name, UPLOADED):
        return _to_rgb(image), photo_mode(image)


def decode_mask_upload(data: bytes, name: str, limits: Limits) -> NDArray[np.bool_]:
    """Decode a mask that came over a network: bool [H, W], true above half; as `decode_upload`."""
    return _decoded(_capped(data, limits, name), name, limits, UPLOADED).mean(axis=2) > 127


def _decoded(data: bytes, name: str, limits: Limits, formats: tuple[str, ...]) -> NDArray[np.uint8]:
    image = _decode(data, name, limits, formats)
    with _told(name, formats):  # a palette may be damaged where its pixels are not
        return _to_rgb(image)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    image = _upright(image)
    if image.mode in _SIXTEEN_BIT:
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        image.alpha_composite(layer)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _equal_channels(colours: NDArray[np.uint8], tolerance: int) -> bool:
    low, high = colours.min(axis=2), colours.max(axis=2)
    return bool(int((high - low).max(initial=0)) <= tolerance)


def _read_bytes(path: str | Path, limits: Limits) -> bytes:
    with _told(str(path), FORMATS), open(path, "rb") as file:
        data = file.read(limits.max_bytes + 1)
    return _capped(data, limits, str(path))


def _capped(data: bytes, limits: Limits, name: str = "PNG bytes") -> bytes:
    if len(data) > limits.max_bytes:
        raise DataError(f"{name}: larger than {limits.max_bytes} bytes (`data.max_bytes`).")
    return data


def _decode(data: bytes, name: str, limits: Limits, formats: tuple[str, ...], draft: int = 0) -> Image.Image:
    # each scan of a progressive JPEG is as much work as its pixels, and takes few bytes; within coded data the mark does not occur
    if data[:2] == _JPEG and data.count(_SCAN) > _SCANS:
        raise DataError(f"{name}: a JPEG of more than {_SCANS} scans. Save it anew.")
    with _told(name, formats):
        image = Image.open(io.BytesIO(data), formats=formats)
        _refuse_large(image, name, limits)
        if draft:
            image.draft(None, (draft, draft))
        image.load()
    return image


def _refuse_large(image: Image.Image, name: str, limits: Limits) -> None:
    if image.width * image.height > limits.max_pixels:
        size = f"{image.width} x {image.height}"
        raise DataError(f"{name}: {size} pixels, more than {limits.max_pixels} (`data.max_pixels`).")


@contextmanager
def _told(name: str, formats: tuple[str, ...]) -> Iterator[None]:
    """What Pillow raises while it opens or decodes, as DataError."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name}: more pixels than can be decoded safely; cut it into tiles.") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{name}: not a {', '.join(formats)} image.") from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.strerror:  # the system's word, not the decoder's
            raise DataError(
                f"{name}: cannot be read ({error.strerror}). Check the path and its permissions."
            ) from None
        raise DataError(f"{name}: damaged or truncated ({error}).") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where none is told, or what tells it is damaged: the pixels are sound without it."""
    try:
        told = image.getexif().get(_ORIENTATION, 1)
        return int(told) if told in _TURNS else 1
    except (*_DAMAGE, AttributeError, LookupError, TypeError, ArithmeticError):
        return 1


def _upright(image: Image.Image) -> Image.Image:
    # not ImageOps.exif_transpose: it writes the EXIF data anew, and fails on what it cannot write
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)
