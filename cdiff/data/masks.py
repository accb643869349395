"""What the values of masks mean, decided over all masks of one kind in a source together: one mask alone may show too little of it.

- one value beside 0: binary;
- up to 32 values, not as the soft edge of a brighter one: ids, each a type ("1", "2", ...; colours by their hex code, greys among them as well);
- more: a mask with grey edges (smoothing), which is cut above half of full scale.
JPEG keeps no ids: its masks, and what was saved again from them, are black and white, whatever few values are left, or in full colours.
Zero is always background; in palette masks 255 beside other ids is void (Pascal VOC), so background too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cdiff.data.images import Limits, is_deep, is_jpeg, is_palette, read_mask
from cdiff.errors import DataError, offenders

MOST_IDS = 32
# instead of a value: above half of full scale; of colours, some channel above a quarter
ABOVE_HALF, ANY_CHANNEL = -1, -2
_NEAR = 16  # grey levels that JPEG or smoothing may put between a pixel and its true extreme
QUARTER = 0xC0C0C0  # the bits of 0xRRGGBB by which some channel is above a quarter: JPEG's noise is not
_GREY = 0x010101

Types = tuple[tuple[int, str], ...]  # (value, type), as of cdiff.types.MaskFile


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What one mask shows."""

    width: int
    height: int
    values: tuple[int, ...]  # other than 0, the first MOST_IDS + 1 of them
    checksum: str  # sha256 of the file
    lossy: bool  # compressed as JPEG is, which blurs ids
    bright: bool  # something lies above half of full scale; of colours, none
    area: int  # pixels above half of full scale, or where there are none: other than 0; of many colours, above a quarter
    edged: bool  # values under the highest lie only between it and 0
    soft: float  # share of the non-zero pixels that are far from both extremes
    palette: bool
    coloured: bool  # values are 0xRRGGBB


@dataclass(frozen=True, slots=True)
class Meaning:
    """Of all masks of one kind."""

    types: Types
    coloured: bool = False  # values are 0xRRGGBB, also those of masks that show greys alone

    def of(self, look: MaskFacts) -> Types:
        """What one of these masks shows."""
        if self.coloured and not look.coloured:
            known = dict(self.types)
            return tuple((own, known[colour]) for own, colour in _as_colours(look).items())
        return tuple(
            pair for pair in self.types if (look.bright if pair[0] == ABOVE_HALF else pair[0] in look.values)
        )


def mask_facts(path: Path, limits: Limits) -> MaskFacts:
    """Decode one mask and note what decides its meaning; errors as in `read_mask`."""
    values = read_mask(path, limits)
    found = np.unique(values)
    found = found[found != 0]
    scale = 255 if values.dtype == np.uint8 else 65535
    few = found.size <= MOST_IDS
    coloured = bool(found.size and values.dtype == np.int32 and not is_deep(path))
    bright = bool(found.size and found[-1] > scale // 2) and not coloured
    return MaskFacts(
        width=values.shape[1],
        height=values.shape[0],
        values=tuple(int(value) for value in found[: MOST_IDS + 1]),
        checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
        lossy=is_jpeg(path) or (not coloured and _compressed_once(found, scale)),
        bright=bright,
        area=int(
            (values > scale // 2 if bright else values & QUARTER if coloured and not few else values)
            .astype(bool)
            .sum()
        ),
        edged=bright and few and found.size > 1 and int(found[-1]) == scale and _edged(values, scale),
        soft=0.0 if few else _soft(values),
        palette=is_palette(path),
        coloured=coloured,
    )


def _edged(values: NDArray[Any], full: int) -> bool:
    between = (values > 0) & (values < full)
    near_full = ndimage.binary_dilation(values == full, iterations=2)
    near_zero = ndimage.binary_dilation(values == 0, iterations=2)
    return float((near_full & near_zero)[between].mean()) > 0.9


def _compressed_once(found: NDArray[Any], scale: int) -> bool:
    """Whether the values other than 0 are those of black and white after JPEG: all near the extremes, and some that no id would be."""
    low, high = found <= _NEAR, found >= scale - _NEAR
    return bool(
        (low | high).all() and low.any() and (high & (found < scale)).any() and (found == scale).any()
    )


def _soft(values: NDArray[Any]) -> float:
    highest = int(values.max())
    shown = values > _NEAR
    return float(((values > _NEAR) & (values < highest - _NEAR)).sum() / max(1, shown.sum()))


def meaning_of(kind: str, looks: Mapping[Path, MaskFacts], source: Path) -> Meaning:
    """What the values of all masks of one kind mean.

    Args:
        kind: the type as the layout lists it; "": the values tell.
    Raises:
        DataError: they mean nothing, with what to do about it.
    """
    shown = {path: look for path, look in looks.items() if look.values}
    facts = list(shown.values())
    if any(look.coloured for look in facts):
        return _colours(kind, shown, source)
    values = sorted({value for look in facts for value in look.values})
    several = [look for look in facts if len(look.values) > 1]
    edged = sum(look.edged for look in several) * 2 > len(several) > 0
    if len(values) == 1:
        return Meaning(((values[0], kind or "target"),))
    lossy = sum(look.lossy for look in facts) * 2 > len(facts)
    if lossy and all(look.bright for look in facts if look.lossy):
        return Meaning(((ABOVE_HALF, kind or "target"),))
    if len(values) <= MOST_IDS and not edged:
        if 255 in values and any(look.palette for look in facts):
            values.remove(255)
        return Meaning(tuple((value, f"{kind}-{value}" if kind else str(value)) for value in values))
    vague = float(np.median([look.soft for look in facts])) > 0.6
    vague = vague or sum(_shows_ids(look) for look in facts) * 2 > len(facts)
    if vague or not any(look.bright for look in facts):
        raise _too_many(source, len(values), str(values[-1]))
    return Meaning(((ABOVE_HALF, kind or "target"),))


def _colours(kind: str, shown: Mapping[Path, MaskFacts], source: Path) -> Meaning:
    """Each colour a type; greys beside them are colours as well."""
    values = sorted({colour for look in shown.values() for colour in _as_colours(look).values()})
    odd = [str(path) for path, look in shown.items() if look.coloured]
    if len(values) > MOST_IDS and len(odd) * 2 < len(shown):
        remedy = "Save them in black and white, or all masks with one full colour per type."
        raise DataError(
            offenders(odd, len(shown), f"masks under {source} are in many colours, unlike the others", remedy)
        )
    if len(values) > MOST_IDS:
        raise _too_many(source, len(values), f"{values[-1]:06x}")
    if len(values) == 1:
        return Meaning(((values[0], kind or "target"),), coloured=True)
    return Meaning(tuple((v, f"{kind}-{v:06x}" if kind else f"{v:06x}") for v in values), coloured=True)


def _as_colours(look: MaskFacts) -> dict[int, int]:
    """A mask's own values, or ABOVE_HALF, with the colours that they are."""
    if look.coloured:
        return {value: value for value in look.values}
    if look.lossy and look.bright:
        return {ABOVE_HALF: 255 * _GREY}
    return {value: value * _GREY for value in look.values}


def _too_many(source: Path, count: int, highest: str) -> DataError:
    return DataError(
        f"the masks under {source} have {count} or more different values, up to {highest}: too many for "
        f"ids (at most {MOST_IDS}), and not black and white with grey edges.\n"
        "Save them as 0 and 255, or one small id per type (instances of one type share its id)."
    )


def defect_meaning(type: str, look: MaskFacts) -> Types:
    """In an MVTec tree the folder names the type: bright pixels, or where nothing is bright any few ids or colours."""
    if look.bright:
        return ((ABOVE_HALF, type),)
    if len(look.values) <= MOST_IDS:
        return tuple((value, type) for value in look.values)
    return ((ANY_CHANNEL, type),) if look.coloured and look.area else ()


def _shows_ids(look: MaskFacts) -> bool:
    """Few values, some of them far from both extremes, and not as an edge: one mask of many ids."""
    return (
        len(look.values) <= MOST_IDS
        and not look.edged
        and any(_NEAR < value < 255 - _NEAR for value in look.values)
    )
