"""Pictures for people: outlines of masks, heat maps of scores, labelled grids of tiles. Numpy and Pillow only.

Images are uint8 [H, W, 3], masks bool [H, W], scores float [H, W] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

TRUTH: Colour = (0, 200, 110)  # green: the mask that is true
FOUND: Colour = (255, 60, 190)  # magenta: what the segmenter found
REGION: Colour = (60, 140, 255)  # blue: where the generator may paint
PAPER: Colour = (255, 255, 255)
INK: Colour = (35, 42, 48)
_GAP, _TEXT = 6, 13  # pixels between tiles, height of letters
# Dark blue over red to pale yellow, evenly rising in brightness: readable in grey print, too.
_HEAT = np.array([(8, 10, 32), (72, 22, 92), (165, 44, 84), (231, 104, 52), (250, 187, 60), (252, 252, 190)])


def outline(mask: NDArray[np.bool_], width: int = 2) -> NDArray[np.bool_]:
    """The pixels just outside a mask: a thin crack stays visible inside its outline."""
    return binary_dilation(mask, np.ones((3, 3), bool), iterations=width) & ~mask


def overlay(image: Pixels, mask: NDArray[np.bool_], colour: Colour = TRUTH, width: int = 2) -> Pixels:
    """The image with the mask's outline drawn on a copy."""
    drawn = image.copy()
    drawn[outline(mask, width)] = colour
    return drawn


def heat(scores: NDArray[np.floating]) -> Pixels:
    """Scores in [0, 1] as colours."""
    at = np.clip(np.nan_to_num(scores.astype(np.float64)), 0, 1) * (len(_HEAT) - 1)
    channels = [np.interp(at, np.arange(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def tile(image: Pixels, side: int, *outlines: tuple[NDArray[np.bool_], Colour]) -> Pixels:
    """Fit an image into a white square of `side` pixels, then draw outlines, equally thin at every scale.

    Small images are enlarged without smoothing (their pixels are what there is to see).
    """
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    method = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    fitted = np.asarray(Image.fromarray(image).resize(size, method))
    for mask, colour in outlines:
        part = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize(size, method)
        # A quarter of full: a crack thinner than a pixel of the tile still has an outline.
        fitted = overlay(fitted, np.asarray(part) > 63, colour, 1 if side < 160 else 2)
    square = np.full((side, side, 3), PAPER, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = fitted
    return square


def pair_tiles(
    reference: Pixels,
    background: Pixels,
    region: NDArray[np.bool_],
    result: Pixels,
    mask: NDArray[np.bool_],
    side: int = 128,
) -> list[Pixels]:
    """A pair as four tiles: reference, background with the region, result, result with its mask; `PAIR_HEADER` names them.

    All are crops of one size.
    """
    return [
        tile(reference, side),
        tile(background, side, (region, REGION)),
        tile(result, side),
        tile(result, side, (mask, TRUTH)),
    ]


PAIR_HEADER = ("reference", "background, region", "result", "mask")


def prediction_tiles(
    image: Pixels, truth: NDArray[np.bool_], scores: NDArray[np.floating], threshold: float, side: int = 192
) -> list[Pixels]:
    """A prediction as three tiles: photo, true and found outlines, scores; `PREDICTION_HEADER` names them."""
    return [
        tile(image, side),
        tile(image, side, (scores >= threshold, FOUND), (truth, TRUTH)),
        tile(heat(scores), side),
    ]


PREDICTION_HEADER = ("photo", "true green, found magenta", "scores")


def strip(tiles: Sequence[Pixels]) -> Pixels:
    """Equal tiles beside each other, a white gap between them."""
    return grid([tiles])


def grid(
    rows: Sequence[Sequence[Pixels]], captions: Sequence[str] = (), header: Sequence[str] = ()
) -> Pixels:
    """Rows of equal tiles on white.

    Args:
        captions: text under each row, shortened to the grid's width.
        header: text over each column.
    Raises:
        ValueError: no tile, tiles of different sizes, or not one caption per row.
    """
    sizes = {cell.shape for row in rows for cell in row}
    if len(sizes) != 1 or (captions and len(captions) != len(rows)):
        raise ValueError(
            f"a grid needs tiles of one size and a caption per row, got {sorted(sizes)}, {len(captions)}"
        )
    height, width = next(iter(sizes))[:2]
    columns, line = max(len(row) for row in rows), _TEXT + _GAP
    top, step = (line if header else 0), height + _GAP + (line if captions else 0)
    canvas = np.full((top + len(rows) * step - _GAP, columns * (width + _GAP) - _GAP, 3), PAPER, np.uint8)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            y, x = top + number * step, column * (width + _GAP)
            canvas[y : y + height, x : x + width] = cell
    texts = [(column * (width + _GAP), 0, width, text) for column, text in enumerate(header)]
    texts += [
        (0, top + number * step + height + 2, canvas.shape[1], text) for number, text in enumerate(captions)
    ]
    return _write(canvas, texts)


def folded(
    rows: Sequence[Sequence[Pixels]], captions: Sequence[str], header: Sequence[str], folds: int = 2
) -> Pixels:
    """A grid of many rows, cut into `folds` grids that stand beside each other: read down, then on at the next top."""
    size = -(-len(rows) // folds)
    parts = [grid(rows[i : i + size], captions[i : i + size], header) for i in range(0, len(rows), size)]
    height = max(part.shape[0] for part in parts)
    margin = ((0, 0), (0, 4 * _GAP), (0, 0))
    level = [
        np.pad(part, ((0, height - part.shape[0]), (0, 0), (0, 0)), constant_values=PAPER[0])
        for part in parts
    ]
    return np.concatenate(
        [*(np.pad(part, margin, constant_values=PAPER[0]) for part in level[:-1]), level[-1]], 1
    )


def _write(canvas: Pixels, texts: Sequence[tuple[int, int, int, str]]) -> Pixels:
    """Draw (x, y, room, text) on a copy."""
    if not texts:
        return canvas
    image, font = Image.fromarray(canvas), ImageFont.load_default(_TEXT)
    draw = ImageDraw.Draw(image)
    for x, y, room, text in texts:
        shown = text
        while shown and draw.textlength(shown, font) > room:
            shown = shown[:-2].rstrip("…") + "…" if len(shown) > 2 else ""
        draw.text((x, y), shown, INK, font)
    return np.asarray(image).copy()
