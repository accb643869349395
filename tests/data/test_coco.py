"""Photos with COCO annotation files, as labelling tools export them."""

import json
import pickle

import numpy as np
import pytest

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_source, read_sources
from cdiff.data.outlines import packed
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


def test_split_folders_split_though_photos_share_their_names_and_ids(tmp_path, trees):
    for number, split in enumerate(("train", "valid", "test")):
        for index in range(3):
            trees.save(tmp_path / split / f"p{index}.png", trees.photo(10 * number + index))
        annotated(tmp_path / split / "_annotations.coco.json", [f"p{index}.png" for index in range(3)])
    samples = read_source(str(tmp_path), CONFIG)
    splits = {sample.sample_id.split("/")[1]: sample.folder_split for sample in samples}
    assert splits == {"train": "train", "valid": "validation", "test": "test"}
    assert len(samples) == 9


def test_cocos_own_layout_is_read_with_its_splits(tmp_path, trees):
    for number, split in enumerate(("train2017", "val2017")):
        for index in range(3):
            trees.save(tmp_path / split / f"{index:012}.jpg", trees.photo(10 * number + index))
        names = [f"{index:012}.jpg" for index in range(3)]
        annotated(tmp_path / "annotations" / f"instances_{split}.json", names)
    samples = read_source(str(tmp_path), CONFIG)
    assert sorted(sample.folder_split for sample in samples) == ["train"] * 3 + ["validation"] * 3
    assert all(sample.image.split("/")[-2].startswith(sample.folder_split[:3]) for sample in samples)


def test_categories_may_overlap_and_share_a_photo(tmp_path, trees):
    trees.save(tmp_path / "a.png", trees.photo(0))
    path = annotated(tmp_path / "a.coco.json", ["a.png"])
    mask = trees.blob(top=15, left=15, side=20) > 0

    def also(content):
        content["annotations"].append(
            {"id": 9, "image_id": 0, "category_id": 2, "segmentation": packed(mask)}
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


def _other_category(content):
    content["annotations"][0]["category_id"] = 7


def _sliver(content):
    content["annotations"][0]["segmentation"] = [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]


def _two_points(content):
    content["annotations"][0]["segmentation"] = [[5, 5, 9, 9]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop_photo, "gone.png of .* not there|not there"),
        (_drop_outline, "have no outline"),
        (_other_category, "category 7"),
        (_sliver, "hold no pixel"),
        (_two_points, "fewer than three points"),
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
    with pytest.raises(DataError, match=r"a.png \(64 x 48, outlines for 48 x 64\)"):
        read_source(str(tmp_path), CONFIG)


def test_a_photo_that_two_files_list_is_refused(tmp_path, trees):
    trees.save(tmp_path / "images" / "a.png", trees.photo(0))
    for name in ("instances.json", "keypoints.json"):
        annotated(tmp_path / "annotations" / name, ["a.png"])
    with pytest.raises(DataError, match=r"listed twice, by .*instances.json and .*keypoints.json"):
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


def test_images_without_a_size_are_refused_with_what_is_wanted(tmp_path, trees):
    trees.save(tmp_path / "a.png", trees.photo(0))
    path = annotated(tmp_path / "annotations.json", ["a.png"])
    edited(path, lambda content: content["images"][0].pop("width"))
    with pytest.raises(DataError, match="file_name, width and height"):
        read_source(str(tmp_path), CONFIG)


def test_what_changes_in_the_middle_of_a_run_is_told(tmp_path, trees):
    trees.save(tmp_path / "a.png", trees.photo(0))
    path = annotated(tmp_path / "annotations.json", ["a.png"])
    data = Dataset(read_source(str(tmp_path), CONFIG), CONFIG)
    edited(path, lambda content: content["annotations"].clear())
    with pytest.raises(DataError, match="cannot be read any more"):
        data.mask(data.samples[0].sample_id)
