"""COCO's outlines against its own API, and what is no outline."""

import numpy as np
import pytest
from pycocotools import mask as reference
from skimage.draw import polygon

from cdiff.data import outlines
from cdiff.data.outlines import outline_mask, pack, unpack


def masks(count: int):
    rng = np.random.default_rng(0)
    for _ in range(count):
        height, width = rng.integers(1, 60, 2)
        yield rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 0.98, 1])


def test_packed_run_lengths_equal_cocos_own_and_come_back():
    for mask in masks(200):
        counts = pack(mask)
        theirs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert counts == theirs["counts"].decode()
        np.testing.assert_array_equal(unpack(counts, mask.shape), mask)


def test_long_runs_of_large_photos_come_back():
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[17:2900, 40:1999] = True
    np.testing.assert_array_equal(unpack(pack(mask), mask.shape), mask)


def test_plain_run_lengths_go_down_the_columns():
    mask = outline_mask({"size": [4, 3], "counts": [3, 5, 4]}, (4, 3))
    assert np.argwhere(mask).tolist() == [[0, 1], [1, 1], [2, 1], [3, 0], [3, 1]]


def test_a_polygon_covers_the_pixels_whose_centres_it_holds():
    mask = outline_mask([[1, 1, 4, 1, 4, 3, 1, 3]], (5, 6))
    assert mask.sum() == 6 and mask[1:3, 1:4].all()
    assert outline_mask([[-1, -1, 9, -1, 9, 9, -1, 9]], (5, 6)).all(), "what sticks out is cut off"


def test_polygons_agree_with_cocos_own_but_for_their_rims():
    rng = np.random.default_rng(1)
    for _ in range(50):
        angles, radii = np.sort(rng.random(9)) * 2 * np.pi, rng.uniform(8, 40, 9)
        points = np.stack([60 + radii * np.cos(angles), 50 + radii * np.sin(angles)], axis=1).ravel().tolist()
        theirs = reference.decode(reference.frPyObjects([points], 100, 120))[..., 0].astype(bool)
        ours = outline_mask([points], (100, 120))
        assert (ours & theirs).sum() > 0.95 * (ours | theirs).sum()


def test_any_polygon_is_filled_as_scikit_image_does():
    rng = np.random.default_rng(2)
    for _ in range(100):
        x, y = rng.uniform(-20, 90, (2, rng.integers(3, 15)))  # crossing themselves, sticking out
        expected = np.zeros((70, 60), dtype=bool)
        expected[polygon(y - 0.5, x - 0.5, expected.shape)] = True
        ours = outline_mask([np.stack([x, y], axis=1).ravel().tolist()], expected.shape)
        np.testing.assert_array_equal(ours, expected)


def test_a_polygon_need_not_stand_in_a_list_and_one_without_area_holds_nothing():
    square = [1, 1, 4, 1, 4, 3, 1, 3]
    np.testing.assert_array_equal(outline_mask(square, (5, 6)), outline_mask([square], (5, 6)))
    np.testing.assert_array_equal(outline_mask([square, [1, 1, 5, 5]], (5, 6)), outline_mask(square, (5, 6)))
    assert not outline_mask([[1, 1, 4, 1]], (5, 6)).any()


def test_several_polygons_are_one_target():
    mask = outline_mask([[0, 0, 2, 0, 2, 2, 0, 2], [3, 3, 5, 3, 5, 5, 3, 5]], (6, 6))
    assert mask.sum() == 8


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([[1, 1, 4, 1, 4]], "pairs of numbers"),
        ([[0.2, 0.2, 0.8, 0.2, 0.8, 0.8]], "between 0 and 1"),
        ([[1, 1, 4, 1, 4, "x"]], "no list of numbers"),
        ([[1, 1, 4, 1, 4, float("nan")]], "no list of pairs"),
        ([[1, 1, 4, 1, 4, 1e9]], "far off"),
        ("1 1 4 1", "neither"),
        ([], "neither"),
        ({"size": [5, 4], "counts": [20]}, "for size"),
        ({"size": [4, 5], "counts": [3, 5]}, "for 8 pixels"),
        ({"size": [4, 5], "counts": [3, 10**12]}, "pixels"),
        ({"size": [4, 5], "counts": [30, -10]}, "no counts"),
        ({"size": [4, 5], "counts": ""}, "for 0 pixels"),
        ({"size": [4, 5], "counts": "\x7f"}, "character"),
        ({"size": [4, 5], "counts": "o"}, "break off"),
        ({"size": [4, 5], "counts": "o" * 100_000}, "no photo has"),
    ],
)
def test_what_is_no_outline_is_refused(segmentation, said):
    with pytest.raises(ValueError, match=said):
        outline_mask(segmentation, (4, 5))


def test_an_outline_that_would_fill_the_memory_is_refused_and_a_long_one_is_filled_in_parts(monkeypatch):
    zigzag = [
        value for number in range(2_000) for value in (number % 90 + 0.3, 0.2 if number % 2 else 3_999.7)
    ]
    whole = outline_mask([zigzag], (4_000, 100))
    monkeypatch.setattr(outlines, "_AT_ONCE", 50_000)
    assert whole.any() and np.array_equal(outline_mask([zigzag], (4_000, 100)), whole)
    with pytest.raises(ValueError, match="more than a target can have"):
        outline_mask([zigzag * 3], (4_000, 100))
