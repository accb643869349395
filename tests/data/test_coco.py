"""Photos with COCO annotation files, as labelling tools export them."""

import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from actors.shelf import data_key
from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_source, read_sources
from cdiff.data.origin import brought
from cdiff.data.outlines import pack
from cdiff.data.s3 import S3Storage
from cdiff.errors import DataError

CONFIG = DataConfig()
SQUARE = [[12, 10, 21, 10, 21, 19, 12, 19]]


def annotated(path, names, *, segmentation=SQUARE, categories=("crack", "hole"), size=(48, 64), first=0):
    """An annotation file: photos in turn show one category each, every third one nothing."""
    images, annotations = [], []
    for index, name in enumerate(names):
        identity = first + index
        images.append({"id": identity, "file_name": name, "height": size[0], "width": size[1]})
        if index % 3 < 2:
            annotations.append(
                {
                    "id": identity,
                    "image_id": identity,
                    "category_id": index % 3 + 1,
                    "segmentation": segmentation,
                }
            )
    kinds = [{"id": number + 1, "name": name} for number, name in enumerate(categories)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": kinds}))
    return path


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "photos", "told"),
    [
        ("annotations.json", ".", "{}"),
        ("_annotations.coco.json", ".", "{}"),
        ("annotations/instances_default.json", "images", "{}"),
        ("annotations/instances_default.json", "images/default", "{}"),
        ("result.json", "images", "images/{}"),
        ("result.json", "images", "images\\{}"),
        ("labels/all.json", "frames", "/home/somebody/frames/{}"),
    ],
)
def test_photos_are_found_wherever_tools_put_the_annotations(tmp_path, trees, file, photos, told):
    root = tmp_path / "gut"
    for index in range(6):
        trees.save(root / photos / f"p{index}.png", trees.photo(index))
    annotated(root / file, [told.format(f"p{index}.png") for index in range(6)])
    samples = read_source(str(root), CONFIG)
    assert [sample.types for sample in samples] == [("crack",), ("hole",), ()] * 2
    data = Dataset(samples, CONFIG)
    first = samples[0].sample_id
    np.testing.assert_array_equal(data.mask(first), trees.blob() > 0)
    assert [target.type for target in data.targets(first)] == ["crack"]
    assert samples[2].is_normal and not data.mask(samples[2].sample_id).any()
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301  our own bytes, as an actor gets them
    np.testing.assert_array_equal(copy.mask(first), data.mask(first))


def square(number):
    """An outline of its own for each file, and its mask."""
    left = 5 + 10 * number
    mask = np.zeros((48, 64), dtype=bool)
    mask[8:16, left : left + 6] = True
    return [[left, 8, left + 6, 8, left + 6, 16, left, 16]], mask


@pytest.mark.parametrize(
    ("file", "photos"),
    [
        ("{}/_annotations.coco.json", "{}"),
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}.json", "images/{}"),
        ("{}.json", "{}"),
    ],
)
def test_split_folders_split_though_photos_share_their_names_and_ids(tmp_path, trees, file, photos):
    words = {"train": "train", "val": "validation", "test": "test"}
    for number, split in enumerate(words):
        for index in range(3):
            trees.save(tmp_path / photos.format(split) / f"p{index}.png", trees.photo(10 * number + index))
        names = [f"p{index}.png" for index in range(3)]
        annotated(tmp_path / file.format(split), names, segmentation=square(number)[0])
    data = Dataset(read_source(str(tmp_path), CONFIG), CONFIG)
    assert len(data) == 9
    for number, split in enumerate(words):
        own = [sample for sample in data.samples if f"/{photos.format(split)}/" in f"/{sample.sample_id}"]
        assert [sample.folder_split for sample in own] == [words[split]] * 3
        np.testing.assert_array_equal(data.mask(own[0].sample_id), square(number)[1])


def test_split_folders_of_photos_split_what_one_file_covers(tmp_path, trees):
    names = [f"{split}/{index}.png" for split in ("train", "valid", "test") for index in range(2)]
    for number, name in enumerate(names):
        trees.save(tmp_path / "images" / name, trees.photo(number))
    annotated(tmp_path / "annotations.json", names)
    splits = [sample.folder_split for sample in read_source(str(tmp_path), CONFIG)]
    assert sorted(splits) == sorted(["train", "validation", "test"] * 2)


def test_a_word_in_a_photos_own_name_splits_nothing(tmp_path, trees):
    """A camera's "weld_test_2.png" is a photo of a test weld, in whatever folder it lies."""
    for number, split in enumerate(("train", "valid")):
        for index, name in enumerate(("weld_test_2.png", "a.png", "b.png")):
            trees.save(tmp_path / "both" / split / name, trees.photo(10 * number + index))
        annotated(tmp_path / "both" / split / "_annotations.coco.json", ["weld_test_2.png", "a.png", "b.png"])
    found = {s.sample_id: s.folder_split for s in read_source(str(tmp_path / "both"), CONFIG)}
    assert found["both/train/weld_test_2"] == "train" and found["both/valid/weld_test_2"] == "validation"
    names = ["test_01.png", "train_02.png", "val_03.png"]
    for index, name in enumerate(names):
        trees.save(tmp_path / "flat" / name, trees.photo(index))
    annotated(tmp_path / "flat" / "annotations.json", names)
    assert [s.folder_split for s in read_source(str(tmp_path / "flat"), CONFIG)] == ["", "", ""]


def test_a_photo_in_another_splits_folder_than_its_file_is_refused(tmp_path, trees):
    trees.save(tmp_path / "test" / "a.png", trees.photo(0))
    annotated(tmp_path / "annotations" / "train.json", ["test/a.png"])
    with pytest.raises(DataError, match="test or train"):
        read_source(str(tmp_path), CONFIG)


def test_exports_side_by_side_keep_their_own_photos(tmp_path, trees):
    for number, task in enumerate(("task1", "task2")):
        trees.save(tmp_path / task / "images" / "default" / "frame.png", trees.photo(number))
        path = tmp_path / task / "annotations" / "instances_default.json"
        annotated(path, ["frame.png"], segmentation=square(number)[0])
    data = Dataset(read_source(str(tmp_path), CONFIG), CONFIG)
    for number, sample in enumerate(data.samples):
        np.testing.assert_array_equal(data.mask(sample.sample_id), square(number)[1])


def test_names_of_another_machine_are_found_by_their_last_folder(tmp_path, trees):
    for number, side in enumerate(("left", "right")):
        trees.save(tmp_path / side / "a.png", trees.photo(number))
    annotated(tmp_path / "all.json", ["/data/left/a.png", "/data/right/a.png"])
    types = {sample.sample_id.split("/")[1]: sample.types for sample in read_source(str(tmp_path), CONFIG)}
    assert types == {"left": ("crack",), "right": ("hole",)}


@pytest.mark.parametrize(("file", "name"), [("left/x.json", "a.png"), ("x.json", "left/a.png")])
def test_another_folders_photo_of_that_name_takes_no_ones_place(tmp_path, trees, file, name):
    trees.save(tmp_path / "left" / "b.png", trees.photo(0))
    trees.save(tmp_path / "right" / "a.png", trees.photo(1))
    annotated(tmp_path / file, [name])
    with pytest.raises(DataError, match="not there"):
        read_source(str(tmp_path), CONFIG)


def test_categories_may_overlap_and_share_a_photo(tmp_path, trees):
    trees.save(tmp_path / "a.png", trees.photo(0))
    path = annotated(tmp_path / "a.coco.json", ["a.png"])
    mask = trees.blob(top=15, left=15, side=20) > 0

    def also(content):
        content["annotations"].append(
            {
                "id": 9,
                "image_id": 0,
                "category_id": 2,
                "segmentation": {"size": [48, 64], "counts": pack(mask)},
            }
        )

    edited(path, also)
    data = Dataset(read_source(str(tmp_path), CONFIG), CONFIG)
    (sample,) = data.samples
    assert sample.types == ("crack", "hole")
    np.testing.assert_array_equal(data.type_mask(sample.sample_id, "hole"), mask)
    np.testing.assert_array_equal(data.type_mask(sample.sample_id, "crack"), trees.blob() > 0)


def test_annotations_belong_to_their_photo_alone(tmp_path, trees):
    """Whoever corrects one photo's outlines changes what is known of it, and of no other."""
    for index in range(2):
        trees.save(tmp_path / f"p{index}.png", trees.photo(index))
    path = annotated(tmp_path / "annotations.json", ["p0.png", "p1.png"])
    before = [sample.masks[0].checksum for sample in read_source(str(tmp_path), CONFIG)]
    edited(path, lambda content: content["annotations"][1].update(segmentation=[[1, 1, 9, 1, 9, 9]]))
    after = [sample.masks[0].checksum for sample in read_source(str(tmp_path), CONFIG)]
    assert before[0] == after[0] and before[1] != after[1]


def test_a_groups_file_and_the_photos_own_sidecars_are_no_annotation_files(tmp_path, trees):
    for index in range(3):
        trees.save(tmp_path / f"p{index}.png", trees.photo(index))
        (tmp_path / f"p{index}.json").write_text('{"images": [], "annotations": [], "categories": []}')
    annotated(tmp_path / "annotations.json", [f"p{index}.png" for index in range(3)])
    (tmp_path / "groups.json").write_text(json.dumps({f"p{index}.png": index // 2 for index in range(3)}))
    assert len({sample.group for sample in read_sources([str(tmp_path)], None, CONFIG)}) == 2


def _drop_photo(content):
    content["images"][0]["file_name"] = "gone.png"


def _drop_outline(content):
    content["annotations"][0]["segmentation"] = []


def _stray(content):
    content["annotations"][1]["image_id"] = 99


def _sliver(content):
    content["annotations"][0]["segmentation"] = [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]


def _two_points(content):
    content["annotations"][0]["segmentation"] = [[5, 5, 9, 9]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop_photo, "not there.*\n.*gone.png of "),
        (_drop_outline, "have no outline"),
        (_sliver, "hold no pixel"),
        (_two_points, "hold no pixel"),
    ],
)
def test_a_photo_that_cannot_be_used_is_named_and_may_be_left_out(tmp_path, trees, change, said):
    for index in range(4):
        trees.save(tmp_path / f"p{index}.png", trees.photo(index))
    edited(annotated(tmp_path / "annotations.json", [f"p{index}.png" for index in range(4)]), change)
    with pytest.raises(DataError, match=said) as refused:
        read_source(str(tmp_path), CONFIG)
    assert "annotations.json" in str(refused.value) and "skip_unpaired" in str(refused.value)
    assert len(read_source(str(tmp_path), DataConfig(skip_unpaired=True))) == 3


def test_outlines_for_another_size_are_refused_by_name(tmp_path, trees):
    trees.save(tmp_path / "a.png", trees.photo(0))
    annotated(tmp_path / "annotations.json", ["a.png"], size=(64, 48))
    with pytest.raises(DataError, match=r"a.png of .*: outlines for 48 x 64, and the photo has 64 x 48"):
        read_source(str(tmp_path), CONFIG)


def test_a_name_that_may_be_two_photos_is_refused(tmp_path, trees):
    for index, folder in enumerate(("left", "right")):
        trees.save(tmp_path / folder / "a.png", trees.photo(index))
    annotated(tmp_path / "annotations.json", ["a.png"])
    with pytest.raises(DataError, match=r"may be .*left.* or .*right"):
        read_source(str(tmp_path), CONFIG)


def test_a_file_that_breaks_off_is_refused_and_not_passed_over(tmp_path, trees):
    trees.save(tmp_path / "a.png", trees.photo(0))
    path = annotated(tmp_path / "annotations.json", ["a.png"])
    path.write_text(path.read_text()[:-3])
    with pytest.raises(DataError, match="damaged or truncated"):
        read_source(str(tmp_path), CONFIG)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content["images"][1].update(id=0), "two images have the id 0"),
        (lambda content: content["categories"][1].update(id=1), "two categories have the id 1"),
        (lambda content: content["annotations"][0].update(category_id=7), "'7'"),
        (lambda content: content["annotations"][0].update(category_id=[1]), "is no id"),
        (lambda content: content["images"][0].pop("file_name"), "file_name"),
        (lambda content: content["categories"][0].update(name=" "), "has no name"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, trees, change, said):
    for index in range(2):
        trees.save(tmp_path / f"p{index}.png", trees.photo(index))
    edited(annotated(tmp_path / "annotations.json", ["p0.png", "p1.png"]), change)
    with pytest.raises(DataError, match=said):
        read_source(str(tmp_path), DataConfig(skip_unpaired=True))


def test_annotations_of_photos_that_are_not_listed_are_told_and_no_photo_becomes_a_normal_by_them(
    tmp_path, trees
):
    trees.save(tmp_path / "p0.png", trees.photo(0))
    trees.save(tmp_path / "p1.png", trees.photo(1))
    edited(annotated(tmp_path / "annotations.json", ["p0.png", "p1.png"]), _stray)
    with pytest.raises(DataError, match="image 99, which"):
        read_source(str(tmp_path), CONFIG)


def test_ids_may_have_a_point_or_be_text_and_sizes_may_be_left_out(tmp_path, trees):
    trees.save(tmp_path / "a.png", trees.photo(0))
    path = annotated(tmp_path / "annotations.json", ["a.png"], categories=(3, "hole"))

    def loosely(content):
        content["annotations"][0].update(image_id=0.0, category_id="1")
        content["images"][0].pop("width")

    edited(path, loosely)
    data = Dataset(read_source(str(tmp_path), CONFIG), CONFIG)
    assert data.samples[0].types == ("3",)
    np.testing.assert_array_equal(data.mask(data.samples[0].sample_id), trees.blob() > 0)


def test_masks_are_read_as_before_where_a_stray_json_lies_beside_them(tmp_path, trees, caplog):
    trees.pairs(tmp_path / "gut" / "images", tmp_path / "gut" / "masks", 2)
    before = read_source(str(tmp_path / "gut"), CONFIG)
    annotated(tmp_path / "gut" / "old.json", ["p0.png", "p1.png"])
    (tmp_path / "gut" / "lines.json").write_text('{"images": 1}\n{"annotations": 1, "categories": 2}\n')
    (tmp_path / "gut" / "folder.json").mkdir()
    assert read_source(str(tmp_path / "gut"), CONFIG) == before
    assert "has masks, which are read" in caplog.text and "old.json" in caplog.text


def test_boxes_alone_are_no_masks_and_a_blind_test_file_makes_no_normals(tmp_path, trees, caplog):
    for split in ("train", "test"):
        for index in range(2):
            trees.save(tmp_path / split / f"p{index}.png", trees.photo(index + 10 * (split == "test")))
        annotated(tmp_path / split / "coco.json", ["p0.png", "p1.png"])
    edited(tmp_path / "test" / "coco.json", lambda content: content["annotations"].clear())
    assert {sample.folder_split for sample in read_source(str(tmp_path), CONFIG)} == {"train"}
    assert "outlines no target" in caplog.text and "left out" in caplog.text


def test_cocos_lists_of_key_points_are_passed_over_beside_others(tmp_path, trees):
    trees.save(tmp_path / "images" / "a.png", trees.photo(0))
    for name in ("instances.json", "person_keypoints.json"):
        annotated(tmp_path / "annotations" / name, ["a.png"])
    with pytest.raises(DataError, match="listed twice"):
        read_source(str(tmp_path), CONFIG)
    trees.save(tmp_path / "images" / "b.png", trees.photo(1))
    annotated(tmp_path / "annotations" / "more.json", ["b.png"], first=9)
    without = read_source(str(tmp_path), DataConfig(skip_unpaired=True))
    assert [s.image for s in without] == [str(tmp_path / "images" / "b.png")], (
        "a half of its targets would be background"
    )
    (tmp_path / "images" / "b.png").unlink()
    (tmp_path / "annotations" / "more.json").unlink()
    people = tmp_path / "annotations" / "person_keypoints.json"
    edited(people, lambda content: content["categories"][0].update(keypoints=["nose"]))
    assert len(read_source(str(tmp_path), CONFIG)) == 1


def test_a_turned_photo_with_outlines_for_its_stored_size_is_refused_by_name(tmp_path, trees):
    exif = Image.Exif()
    exif[0x0112] = 6
    trees.save(tmp_path / "a.jpg", trees.photo(0), exif=exif)
    annotated(tmp_path / "annotations.json", ["a.jpg"])
    with pytest.raises(DataError, match=r"outlines for 64 x 48, and the photo has 48 x 64.*EXIF"):
        read_source(str(tmp_path), CONFIG)


def test_outlines_travel_with_their_samples(tmp_path, trees):
    """Whatever becomes of the file, a run goes on with the outlines that it began with."""
    trees.save(tmp_path / "a.png", trees.photo(0))
    path = annotated(tmp_path / "annotations.json", ["a.png"])
    data = Dataset(read_source(str(tmp_path), CONFIG), CONFIG)
    key = data_key(data, [data.samples[0].sample_id])
    edited(path, lambda content: content["annotations"][0].update(segmentation=square(2)[0]))
    np.testing.assert_array_equal(data.mask(data.samples[0].sample_id), trees.blob() > 0)
    corrected = Dataset(read_source(str(tmp_path), CONFIG), CONFIG)
    assert data_key(corrected, [data.samples[0].sample_id]) != key


def test_photos_and_annotations_may_lie_in_a_bucket(tmp_path, trees, bucket, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    trees.save(tmp_path / "photos" / "a.png", trees.photo(0))
    annotated(tmp_path / "photos" / "annotations.json", ["a.png"])
    storage = S3Storage("cdiff", "coco", names=re.compile(r"[^/].*"))
    for name in ("a.png", "annotations.json"):
        storage.write(name, (tmp_path / "photos" / name).read_bytes())
    folders, origins = brought([f"{bucket}/coco"])
    data = Dataset(read_sources(folders, None, CONFIG), CONFIG, origins)
    assert data.samples[0].types == ("crack",)


def test_files_above_the_cap_are_passed_over_and_said(tmp_path, trees, caplog):
    trees.save(tmp_path / "a.png", trees.photo(0))
    edited(annotated(tmp_path / "big.json", ["a.png"]), lambda content: content.update(info="x" * 50_000))
    with pytest.raises(DataError, match="COCO file"):
        read_source(str(tmp_path), DataConfig(max_bytes=40_000))
    assert "big.json is passed over" in caplog.text and "data.max_bytes" in caplog.text
