import json
import unicodedata

import numpy as np
import pytest

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_source, read_sources
from cdiff.errors import DataError

CONFIG = DataConfig()


def types_of(samples):
    return {sample.sample_id: sample.types for sample in samples}


def test_an_mvtec_category_is_read(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 3, "scratch": 2}, good=4, test_good=2)
    samples = read_source(str(root), CONFIG)
    assert len(samples) == 11
    assert sum(sample.is_normal for sample in samples) == 6
    bent = next(sample for sample in samples if sample.sample_id == "nut/bent/000")
    assert (bent.category, bent.types, bent.mode, bent.width, bent.height) == ("nut", ("bent",), "L", 64, 48)
    assert {"nut/good/000", "nut/test-good/000"} <= {sample.sample_id for sample in samples}
    assert all(sample.group == sample.sample_id for sample in samples)
    assert not any(sample.folder_split for sample in samples)


def test_an_mvtec_root_gives_a_category_per_folder(tmp_path, trees):
    trees.mvtec(tmp_path / "nut", {"bent": 2})
    trees.mvtec(tmp_path / "pill", {"crack": 2}, good=0, test_good=0, seed=50)
    (tmp_path / "notes").mkdir()
    assert {sample.category for sample in read_source(str(tmp_path), CONFIG)} == {"nut", "pill"}


def test_mvtec_masks_without_the_suffix_and_of_low_ids_are_read(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 1})
    mask = root / "ground_truth" / "bent" / "000_mask.png"
    mask.rename(mask.with_name("000.png"))
    trees.save(mask.with_name("000.png"), trees.blob(value=1))
    data = Dataset(read_source(str(root), CONFIG), CONFIG)
    assert data.mask("nut/bent/000").sum() == 81


@pytest.mark.parametrize(
    ("images", "masks", "suffix"),
    [
        ("images", "masks", ""),
        ("imgs", "ground_truth", "_mask"),
        ("photos", "photos", "_mask"),
        ("alpha", "beta", ""),
        (".", ".", "_mask"),
        ("data/frames", "data/annotations", ""),
    ],
)
def test_image_and_mask_folders_of_any_names_are_read(tmp_path, trees, images, masks, suffix):
    trees.pairs(tmp_path / "gut" / images, tmp_path / "gut" / masks, 4, suffix=suffix)
    samples = read_source(str(tmp_path / "gut"), CONFIG)
    assert [sample.types for sample in samples] == [("target",)] * 4
    assert {sample.category for sample in samples} == {"gut"}
    assert all(sample.sample_id.split("/")[-1] == f"p{index}" for index, sample in enumerate(samples))
    assert all(sample.mode == "RGB" for sample in samples)


@pytest.mark.parametrize(
    ("extension", "mask"), [("jpg", "png"), ("jpg", "jpg"), ("bmp", "bmp"), ("png", "jpg")]
)
def test_formats_may_differ_between_photo_and_mask(tmp_path, trees, extension, mask):
    trees.pairs(tmp_path / "images", tmp_path / "masks", 2, extension=extension, mask=mask)
    data = Dataset(read_source(str(tmp_path), CONFIG), CONFIG)
    assert [target.area for target in data.all_targets([s.sample_id for s in data.samples])] == [81, 81]


@pytest.mark.parametrize(
    "layout", ["{split}/images {split}/masks", "images/{split} masks/{split}", "{split} {split}_masks"]
)
def test_split_folders_are_told(tmp_path, trees, layout):
    for seed, split in enumerate(("train", "val", "test")):
        images, masks = layout.format(split=split).split()
        trees.pairs(tmp_path / images, tmp_path / masks, 2, seed=10 * seed)
    samples = read_source(str(tmp_path), CONFIG)
    splits = sorted(sample.folder_split for sample in samples)
    assert splits == ["test"] * 2 + ["train"] * 2 + ["validation"] * 2
    assert len({sample.sample_id for sample in samples}) == 6


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ("TrainDataset/image TrainDataset/mask", "train"),
        ("TestDataset/Kvasir/images TestDataset/Kvasir/masks", "test"),
        ("images/val2017 masks/val2017", "validation"),
        ("Testament/images Testament/masks", ""),
        ("TRAINING/images TRAINING/masks", "train"),
        ("test1/images test1/masks", ""),
    ],
)
def test_a_splits_word_may_be_grown_together_with_another(tmp_path, trees, folders, splits):
    images, masks = folders.split()
    trees.pairs(tmp_path / images, tmp_path / masks, 2)
    assert {sample.folder_split for sample in read_source(str(tmp_path), CONFIG)} == {splits}


def test_a_mask_folder_per_type_gives_types(tmp_path, trees):
    trees.pairs(tmp_path / "images", tmp_path / "masks" / "crack", 3)
    trees.save(tmp_path / "masks" / "hole" / "p0.png", trees.blob(top=30))
    assert list(types_of(read_source(str(tmp_path), CONFIG)).values()) == [
        ("crack", "hole"),
        ("crack",),
        ("crack",),
    ]


def test_subfolders_pair_by_their_names_and_normals_need_no_mask(tmp_path, trees):
    for seed, name in enumerate(("seq1", "seq2")):
        trees.pairs(tmp_path / "images" / name, tmp_path / "masks" / name, 2, seed=10 * seed)
    trees.save(tmp_path / "good" / "n.png", trees.photo(77))
    samples = read_source(str(tmp_path), CONFIG)
    ids = [sample.sample_id.removeprefix(f"{tmp_path.name}/") for sample in samples]
    assert ids == ["good/n", "seq1/p0", "seq1/p1", "seq2/p0", "seq2/p1"]
    assert samples[0].is_normal


def test_no_category_has_the_name_by_which_photos_that_people_bring_are_known(tmp_path, trees):
    trees.pairs(tmp_path / "upload" / "images", tmp_path / "upload" / "masks", 2)
    assert {s.category for s in read_source(str(tmp_path / "upload"), CONFIG)} == {"upload-2"}


@pytest.mark.parametrize("names", [("患者一", "患者二"), ("Больной1", "Больной2"), ("patientÄ", "patientÖ")])
def test_folders_in_any_script_pair_by_their_names(tmp_path, trees, names):
    for number, name in enumerate(names):
        trees.pairs(tmp_path / "images" / name, tmp_path / "masks" / name, 2, seed=10 * number)
    samples = read_source(str(tmp_path), CONFIG)
    assert len(samples) == 4
    for sample in samples:
        (mask,) = sample.masks
        assert any(f"/{name}/" in sample.image and f"/{name}/" in mask.path for name in names)


def test_types_in_any_script_keep_their_names(tmp_path, trees):
    trees.pairs(tmp_path / "images", tmp_path / "masks" / "划痕", 2)
    for top, name in ((30, "凹坑"), (20, "दाग"), (4, "दाँग"), (35, unicodedata.normalize("NFD", "grün"))):
        trees.save(tmp_path / "masks" / name / "p0.png", trees.blob(top=top))
    first, second = (s.types for s in read_source(str(tmp_path), CONFIG))
    assert set(first) == {"凹坑", "划痕", "दाग", "दाँग", "grün"} and second == ("划痕",)


def test_words_that_are_known_count_where_they_grew_together_with_another_script(tmp_path, trees):
    for number, split in enumerate(("train", "val", "test")):
        trees.pairs(tmp_path / f"{split}图像", tmp_path / f"{split}标注mask", 2, seed=10 * number)
    samples = read_source(str(tmp_path), CONFIG)
    assert [s.folder_split for s in samples] == ["test"] * 2 + ["train"] * 2 + ["validation"] * 2
    assert all(len(s.masks) == 1 for s in samples)


def test_photos_without_mask_stop_in_one_message_or_are_left_out(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 8})
    for index in range(7):
        (root / "ground_truth" / "bent" / f"{index:03}_mask.png").unlink()
    with pytest.raises(
        DataError, match=r"(?s)7 of 14 photos have no mask.*bent/000.*2 more.*skip_unpaired"
    ) as error:
        read_source(str(root), CONFIG)
    assert "bent/006" not in str(error.value)
    assert len(read_source(str(root), DataConfig(skip_unpaired=True))) == 7
    trees.pairs(tmp_path / "gut" / "images", tmp_path / "gut" / "masks", 3)
    (tmp_path / "gut" / "masks" / "p1.png").unlink()
    with pytest.raises(DataError, match=r"(?s)1 of 3 photos have no mask.*p1\.png"):
        read_source(str(tmp_path / "gut"), CONFIG)
    assert len(read_source(str(tmp_path / "gut"), DataConfig(skip_unpaired=True))) == 2


def test_size_mismatch_truncated_file_and_empty_defect_mask_are_named_with_a_remedy(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 3})
    truth = root / "ground_truth" / "bent"
    trees.save(truth / "000_mask.png", trees.blob(shape=(64, 48)))
    trees.save(truth / "001_mask.png", trees.blob(value=0))
    with pytest.raises(DataError, match=r"(?s)64 x 48, mask 48 x 64.*EXIF.*empty mask.*001_mask.*good"):
        read_source(str(root), CONFIG)
    broken = root / "test" / "bent" / "002.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"(?s)1 of 12 files.*002\.png: damaged or truncated"):
        read_source(str(root), CONFIG)


@pytest.mark.parametrize(("highest", "told"), [(4095, True), (8191, True), (8192, False)])
def test_sixteen_bit_photos_that_fill_the_lowest_part_of_their_scale_are_told_once(
    tmp_path, trees, caplog, highest, told
):
    trees.pairs(tmp_path / "images", tmp_path / "masks", 4)
    for number, peak in enumerate((1000, highest, 200)):  # the last photo has 8 bits
        shown = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 200
        shown[number, 0] = peak
        trees.save(tmp_path / "images" / f"p{number}.png", shown)
    read_source(str(tmp_path), CONFIG)
    said = [record.getMessage() for record in caplog.records if "16-bit" in record.getMessage()]
    assert len(said) == told
    assert all(f"the 3 16-bit photos under {tmp_path} " in line and f"is {highest}," in line for line in said)


def test_instance_ids_are_refused_rather_than_cut(tmp_path, trees):
    many = np.repeat(np.arange(64, dtype=np.uint8) * 3, 48).reshape(64, 48).T
    trees.save(tmp_path / "images" / "a.png", trees.photo(1))
    trees.save(tmp_path / "masks" / "a.png", np.ascontiguousarray(many))
    with pytest.raises(DataError, match="too many for ids"):
        read_source(str(tmp_path), CONFIG)


def test_what_is_no_data_set_is_refused(tmp_path, trees):
    with pytest.raises(DataError, match="does not exist"):
        read_source(str(tmp_path / "nowhere"), CONFIG)
    with pytest.raises(DataError, match="is a file"):
        read_source(str(trees.save(tmp_path / "one" / "a.png", trees.photo(1))), CONFIG)
    with pytest.raises(DataError, match="no masks"):
        read_source(str(tmp_path / "one"), CONFIG)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image at all"):
        read_source(str(tmp_path / "empty"), CONFIG)
    with pytest.raises(DataError, match="no data given"):
        read_sources([], None, CONFIG)


def test_two_photos_or_two_masks_of_one_name_are_refused(tmp_path, trees):
    trees.pairs(tmp_path / "a" / "images", tmp_path / "a" / "masks", 2)
    trees.save(tmp_path / "a" / "images" / "p0.jpg", trees.photo(5, colour=True))
    with pytest.raises(DataError, match="share their name"):
        read_source(str(tmp_path / "a"), CONFIG)
    trees.pairs(tmp_path / "b" / "images", tmp_path / "b" / "masks", 2)
    trees.save(tmp_path / "b" / "masks" / "p0_mask.png", trees.blob())
    with pytest.raises(DataError, match="masks of one photo"):
        read_source(str(tmp_path / "b"), CONFIG)


def test_several_sources_become_categories_of_unique_names(tmp_path, trees):
    trees.mvtec(tmp_path / "one" / "nut", {"bent": 2})
    trees.mvtec(tmp_path / "two" / "nut", {"bent": 2}, seed=50)
    paths = [str(tmp_path / "one" / "nut"), str(tmp_path / "two" / "nut")]
    samples = read_sources(paths, None, CONFIG)
    assert {sample.category for sample in samples} == {"nut", "nut-2"}
    assert [sample.sample_id for sample in samples] == sorted(sample.sample_id for sample in samples)
    with pytest.raises(DataError, match="given twice"):
        read_sources([paths[0], paths[0]], None, CONFIG)


def test_a_groups_file_names_photos_by_the_end_of_their_path(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 3})
    csv = tmp_path / "groups.csv"
    csv.write_text("photo,group\nbent/000.png,7\nbent/001.png,7\ntrain/good/000.png,7\n")
    by_id = {sample.sample_id: sample.group for sample in read_sources([str(root)], str(csv), CONFIG)}
    assert by_id["nut/bent/000"] == by_id["nut/bent/001"] == by_id["nut/good/000"] != by_id["nut/bent/002"]
    assert by_id["nut/bent/002"] == "nut/bent/002"


def test_photos_without_a_group_in_the_sheet_stay_their_own_group(tmp_path, trees):
    trees.pairs(tmp_path / "images", tmp_path / "masks", 5)
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("photo,group\np0.png,A\np1.png,A\np2.png,\np3.png, \n")
    samples = read_sources([str(tmp_path)], str(sheet), CONFIG)
    assert [samples[0].group == samples[1].group, len({sample.group for sample in samples})] == [True, 4]


def test_a_photo_that_two_names_put_into_two_groups_is_refused(tmp_path, trees):
    trees.pairs(tmp_path / "images", tmp_path / "masks", 2)
    sheet = tmp_path / "groups.json"
    sheet.write_text(json.dumps({"p0.png": "A", "images/p0.png": "B"}))
    with pytest.raises(DataError, match=r"p0\.png: A and B"):
        read_sources([str(tmp_path)], str(sheet), CONFIG)


def test_a_groups_file_inside_a_source_is_used_and_stays_within_it(tmp_path, trees):
    for seed, name in enumerate(("nut", "pill")):
        root = trees.mvtec(tmp_path / name, {"bent": 2}, seed=50 * seed)
        (root / "groups.json").write_text(json.dumps({"bent/000.png": 1, "bent/001.png": 1}))
    samples = read_sources([str(tmp_path / "nut"), str(tmp_path / "pill")], None, CONFIG)
    groups = {sample.sample_id: sample.group for sample in samples}
    assert groups["nut/bent/000"] == groups["nut/bent/001"] != groups["pill/bent/000"]


def test_a_groups_file_at_a_root_counts_for_all_its_categories(tmp_path, trees):
    for seed, name in enumerate(("one/nut", "one/pill", "two/nut")):
        trees.mvtec(tmp_path / name, {"bent": 2}, seed=50 * seed)
    root = tmp_path / "one"
    text = json.dumps({"nut/test/bent/000.png": 1, "nut/train/good/001.png": 1, "pill/test/bent/001.png": 1})
    (root / "groups.json").write_text(text)
    (tmp_path / "two" / "nut" / "groups.json").write_text('{"bent/000.png": 1}')
    paths = [str(root), str(tmp_path / "two" / "nut")]
    groups = {sample.sample_id: sample.group for sample in read_sources(paths, None, CONFIG)}
    assert groups["nut/bent/000"] == groups["nut/good/001"] == groups["pill/bent/001"]
    assert groups["nut-2/bent/000"] != groups["nut/bent/000"] != groups["nut/bent/001"] == "nut/bent/001"


def test_a_groups_file_at_a_root_and_one_in_a_category_are_refused_by_name(tmp_path, trees):
    for seed, name in enumerate(("nut", "pill")):
        trees.mvtec(tmp_path / name, {"bent": 2}, seed=50 * seed)
    (tmp_path / "groups.json").write_text('{"nut/test/bent/000.png": 1, "pill/test/bent/000.png": 1}')
    (tmp_path / "pill" / "groups.json").write_text('{"bent/000.png": 1}')
    with pytest.raises(DataError, match=r"(?s)1 of 2 categories have .*pill/groups\.json\nLeave one"):
        read_sources([str(tmp_path)], None, CONFIG)
    chosen = read_sources([str(tmp_path)], str(tmp_path / "groups.json"), CONFIG)
    assert sum(sample.group == "groups:1" for sample in chosen) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"000.png": 1}', "fit several photos"),
        ('{"bent/999.png": 1}', "names none"),
        ('{"bent/000.png": 1, "bent/000.png": 2}', "have two groups"),
        ('{"bent/000.png": [1]}', "one mapping"),
        ("{", "not valid JSON"),
    ],
)
def test_a_groups_file_that_does_not_fit_is_refused(tmp_path, trees, text, message):
    root = trees.mvtec(tmp_path / "nut", {"bent": 2})
    path = tmp_path / "g.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_sources([str(root)], str(path), CONFIG)
