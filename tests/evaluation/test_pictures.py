"""Pictures: outlines lie outside the mask, tiles keep proportions, grids label what they show."""

import numpy as np
import pytest

from cdiff.evaluation.pictures import (
    FOUND,
    PAIR_HEADER,
    REGION,
    TRUTH,
    folded,
    grid,
    heat,
    outline,
    overlay,
    pair_tiles,
    prediction_tiles,
    strip,
    tile,
)


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 120, (height, width, 3)).astype(np.uint8)


def shows(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((pixels == colour).all(axis=-1).any())


def test_an_outline_covers_no_pixel_of_its_mask():
    mask = np.zeros((20, 20), bool)
    mask[10, 3:15] = True  # a crack one pixel thin
    around = outline(mask, 1)
    assert not (around & mask).any()
    assert around[9, 5]
    assert around[11, 5]
    image = photo(20, 20)
    drawn = overlay(image, mask, TRUTH, 1)
    assert (drawn[mask] == image[mask]).all()
    assert (drawn[around] == TRUTH).all()


def test_heat_rises_in_brightness_with_the_score():
    colours = heat(np.linspace(0, 1, 50)[None]).astype(float)
    brightness = colours[0] @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > 0).all()
    assert heat(np.array([[np.nan, -1.0, 2.0]])).dtype == np.uint8


@pytest.mark.parametrize("size", [(16, 16), (300, 200), (7, 400), (1, 1)])
def test_a_tile_is_square_and_keeps_proportions(size):
    image = np.zeros((*size, 3), np.uint8)
    made = tile(image, 100)
    assert made.shape == (100, 100, 3)
    height, width = (int((made == 0).all(-1).any(axis).sum()) for axis in (1, 0))
    assert (height, width) == tuple(max(1, round(side * 100 / max(size))) for side in size)


def test_a_crack_thinner_than_a_pixel_of_the_tile_still_has_an_outline():
    mask = np.zeros((400, 400), bool)
    mask[200, 50:350] = True
    assert shows(tile(np.zeros((400, 400, 3), np.uint8), 200, (mask, TRUTH)), TRUTH)


def test_pairs_and_predictions_become_rows_of_equal_tiles():
    image, mask = photo(40, 40), np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    row = pair_tiles(image, image, mask, image, mask, side=64)
    assert len(row) == len(PAIR_HEADER)
    assert shows(row[1], REGION)
    assert not shows(row[2], TRUTH)
    assert shows(row[3], TRUTH)
    found = prediction_tiles(image, mask, np.roll(mask, 8, 1).astype(np.float32), 0.5, side=64)
    assert shows(found[1], TRUTH)
    assert shows(found[1], FOUND)
    assert strip(row).shape == (64, 4 * 64 + 3 * 6, 3)


def test_a_grid_holds_every_tile_and_its_words():
    tiles = [[np.full((50, 60, 3), 10 * row + column, np.uint8) for column in range(3)] for row in range(2)]
    plain = grid(tiles)
    assert [(plain == 10 * row + column).all(-1).sum() for row in range(2) for column in range(3)] == [
        3000
    ] * 6
    told = grid(
        tiles,
        ["first", "a caption that is far too long for a grid as narrow as this one is"],
        ["a", "b", "c"],
    )
    assert told.shape[0] > plain.shape[0]
    assert told.shape[1] == plain.shape[1]
    assert (told[:17] < 100).any()  # letters over the columns
    assert ((told == 1).all(-1)).sum() == 3000


def test_a_folded_grid_goes_on_at_the_top_beside_the_first_half():
    rows = [
        [np.full((8, 9, 3), shade, np.uint8), np.full((8, 9, 3), shade, np.uint8)] for shade in (10, 20, 30)
    ]
    captions, header = ["a", "b", "c"], ["x", "y"]
    sheet, left = folded(rows, captions, header), grid(rows[:2], captions[:2], header)
    assert (sheet[: left.shape[0], : left.shape[1]] == left).all()
    right = sheet[:, left.shape[1] :]
    assert shows(right, (30, 30, 30)) and not shows(right, (10, 10, 10)) and not shows(right, (20, 20, 20))
    assert (folded(rows[:1], captions[:1], header) == grid(rows[:1], captions[:1], header)).all()


def test_tiles_of_different_sizes_make_no_grid():
    with pytest.raises(ValueError, match="one size"):
        grid([[photo(5, 5), photo(6, 6)]])
    with pytest.raises(ValueError, match="caption per row"):
        grid([[photo(5, 5)]], ["a", "b"])
