import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from cdiff.data.images import (
    Limits,
    decode_mask_png,
    decode_png,
    decode_upload,
    encode_png,
    probe,
    read_image,
    read_mask,
    read_size,
    read_thumbnail,
)
from cdiff.errors import DataError

LIMITS = Limits(max_pixels=100_000, max_bytes=1_000_000)


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
def test_lossless_formats_give_back_their_pixels_in_three_channels(tmp_path, name, trees):
    shown = trees.photo(1)
    read = read_image(trees.save(tmp_path / name, shown), LIMITS)
    assert read.shape == (48, 64, 3)
    assert read.dtype == np.uint8
    assert (read == shown[..., None]).all()


def test_jpeg_is_read(tmp_path, trees):
    shown = trees.photo(1, colour=True)
    read = read_image(trees.save(tmp_path / "a.jpg", shown, quality=95), LIMITS)
    assert np.abs(read.astype(int) - shown).mean() < 8


def test_probe_tells_size_mode_and_checksum(tmp_path, trees):
    grey = trees.save(tmp_path / "g.png", trees.photo(1))
    colour = trees.save(tmp_path / "c.png", trees.photo(1, colour=True))
    assert probe(grey, LIMITS)[:3] == (64, 48, "L")
    assert probe(colour, LIMITS)[:3] == (64, 48, "RGB")
    assert probe(grey, LIMITS)[3] != probe(colour, LIMITS)[3]
    assert len(probe(grey, LIMITS)[3]) == 64


def test_truncated_files_are_refused_and_named(tmp_path, trees):
    for name in ("a.png", "a.jpg", "a.bmp"):
        path = trees.save(tmp_path / name, trees.photo(1, 200, 200))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=name):
            probe(path, LIMITS)


def test_files_over_a_limit_are_refused_before_they_are_decoded(tmp_path, trees):
    path = trees.save(tmp_path / "wide.png", np.zeros((400, 400), np.uint8))
    with pytest.raises(DataError, match="max_pixels"):
        probe(path, LIMITS)
    with pytest.raises(DataError, match="max_bytes"):
        probe(path, Limits(10**9, 100))


def test_a_jpeg_of_more_scans_than_any_needs_is_refused(tmp_path, trees):
    """Each is as much work as all pixels: a file of kilobytes would take hours."""
    buffer = io.BytesIO()
    Image.fromarray(trees.photo(1, 200, 200)).save(buffer, "JPEG", progressive=True)
    data, path = buffer.getvalue(), tmp_path / "slow.jpg"
    path.write_bytes(data)
    assert probe(path, LIMITS)[:2] == (200, 200)
    last = data[data.rindex(b"\xff\xda") : -2]
    path.write_bytes(data[:-2] + last * 200 + data[-2:])
    with pytest.raises(DataError, match=r"slow\.jpg: a JPEG of more than 100 scans"):
        probe(path, LIMITS)
    with pytest.raises(DataError, match="100 scans"):
        decode_upload(path.read_bytes(), "image", LIMITS)


def test_a_palette_that_is_damaged_is_told_as_damage(tmp_path):
    image = Image.fromarray(np.zeros((20, 20), np.uint8), mode="P")
    image.putpalette([0, 0, 0] * 2)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(2))
    data = buffer.getvalue()
    start = data.index(b"tRNS") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    chunk = b"tRNS" + bytes(300)
    longer = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "odd.png").write_bytes(data[:start] + longer + data[start + 12 + length :])
    for read in (lambda path: probe(path, LIMITS), lambda path: read_image(path, LIMITS)):
        with pytest.raises(DataError, match=r"odd\.png: damaged"):
            read(tmp_path / "odd.png")
    with pytest.raises(DataError, match="image: damaged"):
        decode_upload((tmp_path / "odd.png").read_bytes(), "image", LIMITS)


def test_other_formats_are_refused_whatever_their_extension(tmp_path, trees):
    buffer = io.BytesIO()
    Image.fromarray(trees.photo(1)).save(buffer, format="GIF")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="not a PNG, JPEG, BMP"):
        probe(path, LIMITS)
    with pytest.raises(DataError, match="cannot be read"):
        probe(tmp_path / "missing.png", LIMITS)


def test_sixteen_bit_grey_is_scaled_to_eight_on_a_fixed_scale(tmp_path, trees):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    path = trees.save(tmp_path / "deep.png", values)
    assert read_image(path, LIMITS)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert probe(path, LIMITS)[2] == "L"


def test_palette_and_alpha_become_plain_colours(tmp_path, trees):
    flat = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    flat.putpalette([255, 0, 0, 0, 0, 255])
    flat.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png", LIMITS)[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    clear = np.array([[[200, 100, 50, 255], [200, 100, 50, 0]]], np.uint8)
    assert read_image(trees.save(tmp_path / "rgba.png", clear), LIMITS)[0].tolist() == [
        [200, 100, 50],
        [0, 0, 0],
    ]


def test_exif_orientation_turns_photo_and_size_alike(tmp_path, trees):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    path = trees.save(tmp_path / "turned.jpg", trees.photo(1), exif=exif)
    assert probe(path, LIMITS)[:2] == (48, 64)
    assert read_image(path, LIMITS).shape == (64, 48, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_shown_as_viewers_do(tmp_path, trees, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = trees.save(tmp_path / "turned.png", trees.photo(1), exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert (read_image(path, LIMITS)[..., 0] == shown).all() and (read_mask(path, LIMITS) == shown).all()
    assert read_size(path, LIMITS) == shown.shape == probe(path, LIMITS)[1::-1]


def with_exif(png, body, last):
    """A PNG with an eXIf chunk, before its pixels or after them."""
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    place = len(png) - 12 if last else 33
    return png[:place] + chunk + png[place:]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"no TIFF at all", id="header"),
        pytest.param(b"MM\0*\0\0", id="short"),
        pytest.param(
            b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02A\0\0\0\0\0\0\0", id="an orientation called A"
        ),
    ],
)
def test_damaged_exif_data_turn_nothing_and_stop_nothing(tmp_path, trees, body, last):
    shown = trees.photo(1)
    data = with_exif(encode_png(shown, "L"), body, last)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert probe(path, LIMITS)[:2] == (64, 48) and read_size(path, LIMITS) == (48, 64)
    assert (read_image(path, LIMITS)[..., 0] == shown).all() and (read_mask(path, LIMITS) == shown).all()
    assert (decode_upload(data, "image", LIMITS)[0][..., 0] == shown).all()


def test_the_size_of_a_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path, trees, monkeypatch):
    path = trees.save(tmp_path / "wide.png", np.zeros((400, 400), np.uint8))
    with pytest.raises(DataError, match=r"wide\.png: 400 x 400 pixels.*max_pixels"):
        read_size(path, LIMITS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"wide\.png: more pixels than can be decoded safely"):
        read_size(path, LIMITS)
    with pytest.raises(DataError, match=r"gone\.png: cannot be read \(No such file.*Check the path"):
        read_size(tmp_path / "gone.png", LIMITS)


def test_masks_keep_their_raw_values(tmp_path, trees):
    ids = trees.blob(value=3)
    assert (read_mask(trees.save(tmp_path / "ids.png", ids), LIMITS) == ids).all()
    assert (read_mask(trees.save(tmp_path / "rgb.png", np.repeat(ids[..., None], 3, 2)), LIMITS) == ids).all()
    palette = Image.fromarray(ids, mode="P")
    palette.putpalette([0, 0, 0] + [9, 99, 199] * 255)
    palette.save(tmp_path / "p.png")
    assert (read_mask(tmp_path / "p.png", LIMITS) == ids).all()
    Image.fromarray(trees.blob()).convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_mask(tmp_path / "bits.png", LIMITS))) == {0, 255}
    deep = read_mask(trees.save(tmp_path / "deep.png", ids.astype(np.uint16) * 300), LIMITS)
    assert deep.dtype == np.int32
    assert deep.max() == 900


def test_coloured_classes_keep_their_colours_apart(tmp_path, trees):
    coloured = np.zeros((4, 4, 3), np.uint8)
    coloured[0, 0], coloured[1, 1] = (255, 0, 0), (0, 0, 128)
    values = read_mask(trees.save(tmp_path / "c.png", coloured), LIMITS)
    assert sorted(np.unique(values)) == [0, 0x000080, 0xFF0000]


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_full_colours_come_back_from_a_jpeg_without_what_lies_between(tmp_path, quality):
    y, x = np.mgrid[:160, :200]
    drawn = np.zeros((160, 200, 3), np.uint8)
    drawn[(y - 50) ** 2 + (x - 60) ** 2 < 900] = (255, 0, 0)
    drawn[(y - 80) ** 2 + (x - 130) ** 2 < 1600] = (0, 255, 0)  # the two touch
    drawn[140:143, 20:90] = (0, 0, 255)  # thin, and by itself
    Image.fromarray(drawn).save(tmp_path / "m.jpg", quality=quality)
    values = read_mask(tmp_path / "m.jpg", LIMITS)
    assert np.unique(values).tolist() == [0, 0x0000FF, 0x00FF00, 0xFF0000]
    for value, colour in ((0xFF0000, (255, 0, 0)), (0x00FF00, (0, 255, 0))):
        wanted, found = (drawn == colour).all(axis=2), values == value
        assert (wanted & found).sum() / (wanted | found).sum() > 0.95


@pytest.mark.parametrize("other", [(128, 0, 0), (0, 100, 0), (255, 128, 0), (128, 128, 128)])
def test_a_jpeg_with_an_area_of_another_colour_keeps_its_raw_values(tmp_path, other):
    """It may be a class of its own: what is full colour elsewhere does not swallow it."""
    drawn, thin = np.zeros((2, 160, 200, 3), np.uint8)
    drawn[20:140, 20:150], drawn[40:70, 160:190] = (255, 0, 0), other
    thin[60:64, 20:150] = other
    Image.fromarray(drawn).save(tmp_path / "m.jpg", quality=90)
    assert np.unique(read_mask(tmp_path / "m.jpg", LIMITS)).size > 8
    if other[0] != other[2]:  # a grey is no colour
        Image.fromarray(thin).save(tmp_path / "thin.jpg", quality=90)
        assert np.unique(read_mask(tmp_path / "thin.jpg", LIMITS)).size > 8, "not an empty mask"


def test_a_thin_class_within_another_stays_where_it_was_drawn(tmp_path):
    drawn = np.zeros((160, 200, 3), np.uint8)
    drawn[20:140, 20:150] = (255, 0, 0)
    drawn[60:64, 20:150] = (0, 255, 0)
    Image.fromarray(drawn).save(tmp_path / "m.jpg", quality=95, subsampling=0)
    values = read_mask(tmp_path / "m.jpg", LIMITS)
    assert np.unique(values).tolist() == [0, 0x00FF00, 0xFF0000] and (values == 0x00FF00).sum() > 4 * 120


def test_png_round_trips_in_the_photos_own_mode(trees):
    colour, grey, mask = trees.photo(1, colour=True), trees.photo(2), trees.blob().astype(bool)
    assert (decode_png(encode_png(colour, "RGB"), LIMITS) == colour).all()
    assert (decode_png(encode_png(np.repeat(grey[..., None], 3, 2), "L"), LIMITS) == grey[..., None]).all()
    assert Image.open(io.BytesIO(encode_png(np.repeat(grey[..., None], 3, 2), "L"))).mode == "L"
    assert (decode_mask_png(encode_png(mask, "L"), LIMITS) == mask).all()
    assert encode_png(colour, "RGB") == encode_png(colour.copy(), "RGB")
    with pytest.raises(ValueError, match="L or RGB"):
        encode_png(colour, "CMYK")
    with pytest.raises(ValueError, match="expected uint8"):
        encode_png(colour.astype(np.float32), "RGB")


def test_bytes_over_http_limits_are_refused():
    data = encode_png(np.zeros((400, 400), np.uint8), "L")
    with pytest.raises(DataError, match="max_pixels"):
        decode_png(data, LIMITS)
    with pytest.raises(DataError, match="not a PNG"):
        decode_png(b"no image at all", LIMITS)


def test_thumbnails_are_grey_squares(tmp_path, trees):
    path = trees.save(tmp_path / "a.jpg", trees.photo(1, 200, 300, colour=True))
    small = read_thumbnail(path, LIMITS, 32)
    assert small.shape == (32, 32)
    assert small.dtype == np.uint8
    assert abs(float(small.mean()) - read_image(path, LIMITS).mean()) < 12
