"""What the values of masks mean: black and white, ids, colours, and what is refused because it means nothing."""

import numpy as np
import pytest
from PIL import Image

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_source
from cdiff.errors import DataError

CONFIG = DataConfig()


@pytest.mark.parametrize("quality", [75, 90, 95, 98, 100])
@pytest.mark.parametrize("saved_again", [False, True])
def test_a_mask_that_was_compressed_is_black_and_white(tmp_path, trees, quality, saved_again):
    """However few values compression left: JPEG keeps no ids."""
    rng, rows, columns = np.random.default_rng(quality), *np.indices((96, 128))
    for name in "abcdef":
        y, x, high, wide = rng.uniform((20, 30, 8, 8), (70, 90, 20, 30))
        mask = (((rows - y) / high) ** 2 + ((columns - x) / wide) ** 2 < 1).astype(np.uint8) * 255
        path = tmp_path / "masks" / f"{name}.jpg"
        trees.save(tmp_path / "images" / f"{name}.png", rng.integers(0, 255, mask.shape).astype(np.uint8))
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(path, quality=quality)
        if saved_again:
            with Image.open(path) as compressed:
                compressed.save(path.with_suffix(".png"))
            path.unlink()
    assert {sample.types for sample in read_source(str(tmp_path), CONFIG)} == {("target",)}


@pytest.mark.parametrize("ids", [range(1, 149), [*range(100, 140), 255], range(90, 200, 3)])
def test_too_many_ids_are_refused_whatever_their_values(tmp_path, trees, ids):
    """Cut above half of full scale, some of them would be targets and the others nothing."""
    for number, part in enumerate(np.array_split(np.array(list(ids), np.uint8), 12)):
        mask = np.zeros((48, 64), np.uint8)
        for place, value in enumerate(part):
            mask[3 * place : 3 * place + 3, :20] = value
        trees.save(tmp_path / "images" / f"{number}.png", trees.photo(number))
        trees.save(tmp_path / "masks" / f"{number}.png", mask)
    with pytest.raises(DataError, match="too many for ids"):
        read_source(str(tmp_path), CONFIG)


def test_a_class_beside_a_void_of_255_stays_a_class(tmp_path, trees):
    mask = trees.blob(value=1)
    mask[0] = 255
    trees.save(tmp_path / "images" / "a.png", trees.photo(1))
    trees.save(tmp_path / "masks" / "a.png", mask)
    assert read_source(str(tmp_path), CONFIG)[0].types == ("1", "255")


def test_each_id_of_a_mask_is_a_type_and_a_photo_may_show_several(tmp_path, trees):
    both = trees.blob(value=1) + trees.blob(top=30, left=40, value=7)
    for name, mask in (("a", both), ("b", trees.blob(value=7)), ("c", trees.blob(value=0))):
        trees.save(tmp_path / "images" / f"{name}.png", trees.photo(ord(name)))
        trees.save(tmp_path / "masks" / f"{name}.png", mask)
    samples = read_source(str(tmp_path), CONFIG)
    assert [sample.types for sample in samples] == [("1", "7"), ("7",), ()]
    assert samples[2].masks == ()


def test_ids_at_full_scale_are_no_grey_edges_but_soft_edges_are(tmp_path, trees):
    ids = trees.blob(value=255) + trees.blob(top=30, left=40, value=128)
    soft = np.array(
        Image.fromarray(trees.blob(side=20)).resize((32, 24)).resize((64, 48), Image.Resampling.BILINEAR)
    )
    soft = (soft // 64 * 85).astype(np.uint8)
    for folder, mask in (("ids", ids), ("soft", soft)):
        trees.save(tmp_path / folder / "images" / "a.png", trees.photo(1))
        trees.save(tmp_path / folder / "masks" / "a.png", mask)
    assert 2 < np.unique(soft).size < 10
    assert read_source(str(tmp_path / "ids"), CONFIG)[0].types == ("128", "255")
    assert read_source(str(tmp_path / "soft"), CONFIG)[0].types == ("target",)


def test_palette_void_is_background_and_colours_are_types(tmp_path, trees):
    ids = trees.blob(value=2) + trees.blob(top=30, left=40, value=5)
    ids[0] = 255
    palette = Image.fromarray(ids, mode="P")
    palette.putpalette(list(range(256)) * 3)
    trees.save(tmp_path / "voc" / "images" / "a.png", trees.photo(1))
    (tmp_path / "voc" / "masks").mkdir()
    palette.save(tmp_path / "voc" / "masks" / "a.png")
    assert read_source(str(tmp_path / "voc"), CONFIG)[0].types == ("2", "5")
    coloured = np.zeros((48, 64, 3), np.uint8)
    coloured[:9], coloured[20:30] = (255, 0, 0), (0, 255, 0)
    trees.save(tmp_path / "colour" / "images" / "a.png", trees.photo(1))
    trees.save(tmp_path / "colour" / "masks" / "a.png", coloured)
    assert read_source(str(tmp_path / "colour"), CONFIG)[0].types == ("00ff00", "ff0000")


def test_coloured_classes_in_jpeg_masks_are_types_too(tmp_path, trees):
    coloured = np.zeros((48, 64, 3), np.uint8)
    coloured[:16], coloured[24:40, 10:50] = (255, 0, 0), (0, 255, 0)
    for name in ("a", "b"):
        trees.save(tmp_path / "images" / f"{name}.jpg", trees.photo(ord(name)))
        trees.save(tmp_path / "masks" / f"{name}.jpeg", coloured)
    assert {s.types for s in read_source(str(tmp_path), CONFIG)} == {("00ff00", "ff0000")}
    trees.save(tmp_path / "masks" / "b.jpeg", coloured // 2)
    with pytest.raises(DataError, match="too many for ids"):
        read_source(str(tmp_path), CONFIG)


@pytest.mark.parametrize("extension", ["png", "jpeg"])
def test_green_and_blue_and_white_are_colours_like_red(tmp_path, trees, extension):
    coloured, white = np.zeros((2, 48, 64, 3), np.uint8)
    coloured[:16], coloured[24:40, 10:50], white[30:46, 8:40] = (0, 0, 255), (0, 255, 0), (255, 255, 255)
    for name, mask in (("a", coloured), ("b", coloured), ("c", white)):
        trees.save(tmp_path / "images" / f"{name}.png", trees.photo(ord(name)))
        trees.save(tmp_path / "masks" / f"{name}.{extension}", mask)
    samples = read_source(str(tmp_path), CONFIG)
    assert [s.types for s in samples] == [("0000ff", "00ff00")] * 2 + [("ffffff",)]
    dataset = Dataset(samples, CONFIG)
    areas = [dataset.mask(s.sample_id).sum() for s in samples]
    assert areas == pytest.approx([16 * 64 + 16 * 40] * 2 + [16 * 32], rel=0.05)


def test_a_tinted_mask_among_black_and_white_ones_is_named(tmp_path, trees):
    white = np.repeat(trees.blob(side=30)[..., None], 3, axis=2)
    for name in "abcd":
        trees.save(tmp_path / "images" / f"{name}.jpg", trees.photo(ord(name)))
        trees.save(tmp_path / "masks" / f"{name}.jpg", white)
    trees.save(tmp_path / "masks" / "c.jpg", (white * (1, 1, 0.6)).astype(np.uint8))
    with pytest.raises(DataError, match=r"(?s)1 of 4 masks .* in many colours.*masks/c\.jpg\n") as told:
        read_source(str(tmp_path), CONFIG)
    assert "a.jpg" not in str(told.value)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("first", [(255, 0, 0), (0, 255, 0)])
def test_every_colour_of_a_defects_mask_is_the_folders_type(tmp_path, trees, first, soft):
    root = trees.mvtec(tmp_path / "nut", {"bent": 3})
    coloured = np.zeros((48, 64, 3), np.uint8)
    coloured[5:15, 5:15], coloured[25:35, 30:40] = first, (0, 0, 255)
    if soft:  # as when a program smooths, too many colours to be listed
        coloured[40, :] = np.stack([np.arange(64)] * 2 + [np.zeros(64)], 1) * 0.9
    trees.save(root / "ground_truth" / "bent" / "000_mask.png", coloured)
    dataset = Dataset(read_source(str(root), CONFIG), CONFIG)
    (defect,) = (s for s in dataset.samples if s.sample_id.endswith("bent/000"))
    assert defect.types == ("bent",) and dataset.mask(defect.sample_id).sum() == 200
