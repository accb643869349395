import dataclasses

import numpy as np
import pytest
from PIL import Image

from cdiff.config import DataConfig
from cdiff.data.formats import read_source, read_sources
from cdiff.data.leaks import check_overlap, drop_copies, join_groups, near_duplicates
from cdiff.errors import LeakError

CONFIG = DataConfig()


def pairs_of(samples):
    return [
        (pair.first.split("/")[-1], pair.second.split("/")[-1]) for pair in near_duplicates(samples, CONFIG)
    ]


def copies(original):
    """What happens to a photo on its way into a second data set."""
    shown = Image.fromarray(original)
    width, height = shown.size
    return {
        "brighter": shown.point(lambda value: min(255, int(value * 1.1))),
        "shrunk": shown.resize((width * 3 // 4, height * 3 // 4)),
        "shifted": shown.crop((2, 1, width, height)),
    }


def test_altered_copies_are_found_and_other_photos_are_not(tmp_path, trees):
    original = trees.photo(1, 300, 400)
    photos = {"original": Image.fromarray(original), **copies(original)}
    photos |= {f"other{seed}": Image.fromarray(trees.photo(seed, 300, 400)) for seed in range(2, 12)}
    (tmp_path / "images").mkdir()
    for name, shown in photos.items():
        shown.save(tmp_path / "images" / f"{name}.png")
        trees.save(tmp_path / "masks" / f"{name}.png", trees.blob(shape=(shown.height, shown.width)))
    shown = photos["original"]
    shown.save(tmp_path / "images" / "compressed.jpg", quality=60)
    trees.save(tmp_path / "masks" / "compressed.png", trees.blob(shape=(shown.height, shown.width)))
    found = {name for pair in pairs_of(read_source(str(tmp_path), CONFIG)) for name in pair}
    assert found == {"original", "brighter", "shrunk", "shifted", "compressed"}


def test_objects_of_one_kind_in_the_same_place_are_no_copies(tmp_path, trees):
    across, down = np.meshgrid(np.linspace(-1, 1, 240), np.linspace(-1, 1, 240))
    disc = np.where(np.hypot(across, down) < 0.7, 160, 40) + 20 * np.sin(9 * across)
    for index in range(6):  # the same part in the same light, each with a surface of its own
        surface = (trees.photo(index, 240, 240).astype(float) - 128) / 8
        trees.save(tmp_path / "images" / f"p{index}.png", (disc + surface).clip(0, 255).astype(np.uint8))
        trees.save(tmp_path / "masks" / f"p{index}.png", trees.blob(shape=disc.shape))
    assert pairs_of(read_source(str(tmp_path), CONFIG)) == []


def test_flat_photos_are_no_copies_of_each_other(tmp_path, trees):
    for index, grey in enumerate((100, 101, 180)):
        trees.save(tmp_path / "images" / f"p{index}.png", np.full((64, 64), grey, np.uint8))
        trees.save(tmp_path / "masks" / f"p{index}.png", trees.blob(shape=(64, 64)))
    assert pairs_of(read_source(str(tmp_path), CONFIG)) == []


def split_folders(tmp_path, trees):
    for seed, split in enumerate(("train", "validation", "test")):
        trees.pairs(tmp_path / split / "images", tmp_path / split / "masks", 3, seed=10 * seed)
    return tmp_path


def leaking(tmp_path, trees):
    """p2 of the training folder, compressed, as q of the test folder."""
    root = split_folders(tmp_path, trees)
    Image.open(root / "train" / "images" / "p2.png").save(root / "test" / "images" / "q.jpg", quality=90)
    trees.save(root / "test" / "masks" / "q.png", trees.blob())
    return read_source(str(root), CONFIG)


def test_the_train_copy_of_a_leaking_photo_is_dropped_and_named(tmp_path, trees):
    samples = leaking(tmp_path, trees)
    kept, notes = drop_copies(samples, near_duplicates(samples, CONFIG), CONFIG)
    gone = {sample.sample_id for sample in samples} - {sample.sample_id for sample in kept}
    assert gone == {f"{tmp_path.name}/train/p2"}
    assert len(notes) == 1
    assert "train/p2" in notes[0]
    assert "test/q" in notes[0]


def test_leaks_stop_where_wanted(tmp_path, trees):
    samples = leaking(tmp_path, trees)
    with pytest.raises(LeakError, match=r"(?s)train/p2.*data\.leaks=drop"):
        drop_copies(samples, near_duplicates(samples, CONFIG), DataConfig(leaks="stop"))


def test_exact_overlap_of_files_or_groups_always_stops(tmp_path, trees):
    root = split_folders(tmp_path, trees)
    samples = read_source(str(root), CONFIG)
    check_overlap(samples)
    one_object = [dataclasses.replace(sample, group="object") for sample in samples]
    with pytest.raises(LeakError, match="groups stand in several split folders"):
        check_overlap(one_object)
    for part in ("images", "masks"):
        data = (root / "train" / part / "p0.png").read_bytes()
        (root / "test" / part / "copy.png").write_bytes(data)
    with pytest.raises(LeakError, match=r"(?s)files stand in several.*p0\.png"):
        check_overlap(read_source(str(root), CONFIG))


def with_copy(tmp_path, trees, groups):
    root = trees.mvtec(tmp_path / "nut", {"bent": 3}, good=2, test_good=0)
    shown = Image.open(root / "test" / "bent" / "000.png")
    shown.point(lambda value: int(value * 0.9)).save(root / "train" / "good" / "copy.png")
    path = tmp_path / "groups.csv"
    path.write_text("\n".join(f"{name},{group}" for name, group in groups.items()))
    return read_sources([str(root)], str(path), CONFIG)


def test_copies_join_the_group_that_the_groups_file_gives(tmp_path, trees):
    samples = with_copy(tmp_path, trees, {"bent/000.png": "a", "bent/001.png": "a"})
    joined, notes = join_groups(samples, near_duplicates(samples, CONFIG))
    groups = {sample.sample_id: sample.group for sample in joined}
    assert groups["nut/good/copy"] == groups["nut/bent/000"] == groups["nut/bent/001"] == "groups:a"
    assert groups["nut/bent/002"] == "nut/bent/002"
    assert notes == ["joined 1 group of near-identical photos"]


def test_likeness_does_not_glue_two_groups_of_a_groups_file(tmp_path, trees):
    samples = with_copy(tmp_path, trees, {"bent/000.png": "a", "good/copy.png": "b"})
    pairs = [dataclasses.replace(pair, agreement=0.9) for pair in near_duplicates(samples, CONFIG)]
    joined, notes = join_groups(samples, pairs)
    assert [sample.group for sample in joined] == [sample.group for sample in samples]
    assert "nut/bent/000 and nut/good/copy" in notes[0]
    certain = [dataclasses.replace(pair, agreement=1.0) for pair in pairs]
    assert (
        len({sample.group for sample in join_groups(samples, certain)[0]})
        == len({s.group for s in samples}) - 1
    )
