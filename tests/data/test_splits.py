import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_source, read_sources
from cdiff.data.splits import _calibration, make_splits, quotas, read_manifest, write_manifest
from cdiff.errors import DataError, LeakError

CONFIG = DataConfig()


def groups_per_split(manifest, type):
    found = defaultdict(set)
    for row in manifest.rows:
        if type in row.types or (not type and not row.types):
            found[row.split].add(row.group)
    return tuple(len(found[split]) for split in ("train", "validation", "test"))


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (1, (1, 0, 0)),
        (3, (3, 0, 0)),
        (4, (2, 1, 1)),
        (5, (2, 1, 2)),
        (10, (4, 2, 4)),
        (20, (8, 4, 8)),
        (25, (10, 5, 10)),
    ],
)
def test_a_type_gives_forty_twenty_forty_and_at_least_two_one_one(count, wanted):
    assert tuple(quotas(count, CONFIG).values()) == wanted


def test_quotas_always_add_up_and_keep_their_least():
    for count in range(4, 60):
        for train, validation in ((0.4, 0.2), (0.8, 0.1), (0.05, 0.05), (0.1, 0.85)):
            given = quotas(count, DataConfig(train_share=train, validation_share=validation))
            assert sum(given.values()) == count
            assert given["train"] >= 2
            assert min(given.values()) >= 1


def test_normals_may_train_in_a_share_of_their_own(tmp_path, trees):
    trees.mvtec(tmp_path / "nut", {"bent": 40}, good=40, test_good=0)
    samples = read_source(str(tmp_path / "nut"), CONFIG)
    scarce = DataConfig(train_share=0.1, validation_share=0.3, normal_share=0.5)
    manifest = make_splits(samples, scarce, folds=2)[1]
    assert groups_per_split(manifest, "bent") == (4, 12, 24)
    assert groups_per_split(manifest, "") == (20, 7, 13)  # the others keep their proportion, 1 to 2


@pytest.fixture(scope="module")
def lit(tmp_path_factory, trees):
    """Ten objects with a bend, five with a scratch, eight normal ones, each photographed three times."""
    root = tmp_path_factory.mktemp("lit") / "nut"
    trees.mvtec(root, {"bent": 30, "scratch": 15}, good=24, test_good=0)
    lines = [f"bent/{index:03}.png,b{index // 3}" for index in range(30)]
    lines += [f"scratch/{index:03}.png,s{index // 3}" for index in range(15)]
    # The first two normal objects are objects with a bend, seen from their good side.
    lines += [f"good/{index:03}.png,{'b' if index < 6 else 'n'}{index // 3}" for index in range(24)]
    (root / "groups.csv").write_text("\n".join(lines))
    return read_sources([str(root)], str(root / "groups.csv"), CONFIG)


def test_groups_stay_whole_and_normals_follow_their_object(lit):
    samples, manifest = make_splits(lit, CONFIG, folds=3)
    assert len(samples) == len(manifest.rows) == 69
    places = defaultdict(set)
    for row in manifest.rows:
        places[row.group].add((row.split, row.fold, row.calibration))
    assert all(len(place) == 1 for place in places.values())
    assert len(places) == 10 + 5 + 6
    assert groups_per_split(manifest, "bent") == (4, 2, 4)
    assert groups_per_split(manifest, "scratch") == (2, 1, 2)
    assert manifest.unscored == ()


def test_splits_repeat_by_seed_and_differ_between_seeds(lit):
    first, again = (make_splits(lit, CONFIG, folds=2)[1] for _ in range(2))
    other = make_splits(lit, DataConfig(split_seed=1), folds=2)[1]
    assert first == again
    assert first.hash == again.hash != other.hash
    assert first.ids("test") != other.ids("test")


def test_the_split_stays_and_the_content_changes_where_a_mask_was_corrected(tmp_path, trees):
    trees.pairs(tmp_path / "images", tmp_path / "masks", 8)
    manifests = []
    for side in (9, 12):
        trees.save(tmp_path / "masks" / "p3.png", trees.blob(side=side))
        manifest = make_splits(read_sources([str(tmp_path)], None, CONFIG), CONFIG, folds=2)[1]
        write_manifest(manifest, tmp_path / "splits.parquet")
        assert read_manifest(tmp_path / "splits.parquet") == manifest
        manifests.append(manifest)
    assert manifests[0].hash == manifests[1].hash and manifests[0].photos != manifests[1].photos


def test_only_training_photos_have_folds_and_each_fold_sees_each_type(lit):
    _, manifest = make_splits(lit, CONFIG, folds=2)
    assert all((row.fold >= 0) == (row.split == "train") for row in manifest.rows)
    for type in ("bent", "scratch"):
        assert {row.fold for row in manifest.rows if row.split == "train" and type in row.types} == {0, 1}
    sizes = Counter(row.fold for row in manifest.rows if row.split == "train")
    assert max(sizes.values()) - min(sizes.values()) <= 6
    with pytest.raises(ValueError, match="at least 2 folds"):
        make_splits(lit, CONFIG, folds=1)


def test_calibration_takes_whole_training_groups_of_types_that_can_spare_one(lit):
    _, manifest = make_splits(lit, CONFIG, folds=2)
    rows = [manifest.row(each) for each in manifest.calibration_ids()]
    assert {row.split for row in rows} == {"train"}
    assert len({row.group for row in rows}) == 1  # bent has 4 training groups, scratch only 2
    assert {type for row in rows for type in row.types} == {"bent"}


@pytest.mark.parametrize("seed", range(6))
def test_calibration_spares_groups_that_show_a_rare_type_too(tmp_path, trees, seed):
    """Two objects train that show a rare stain; each shows a crack as well, of which there are many."""
    trees.pairs(tmp_path / "images", tmp_path / "masks", 12)
    samples = [
        dataclasses.replace(sample, types=("crack", "stain") if n < 2 else ("crack",), group=f"g{n}")
        for n, sample in enumerate(read_source(str(tmp_path), CONFIG))
    ]
    chosen = _calibration(samples, DataConfig(split_seed=seed, calibration_share=0.5))
    assert len(chosen) == 6 and not chosen & {"g0", "g1"}


def test_the_manifest_survives_its_file_and_shows_tampering(lit, tmp_path):
    _, manifest = make_splits(lit, CONFIG, folds=2)
    path = tmp_path / "splits.parquet"
    write_manifest(manifest, path)
    assert read_manifest(path) == manifest
    assert [file.name for file in tmp_path.iterdir()] == ["splits.parquet"]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="no readable split manifest"):
        read_manifest(path)


def test_a_type_with_too_few_groups_trains_only_and_is_named(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 6, "rare": 3})
    _, manifest = make_splits(read_source(str(root), CONFIG), CONFIG, folds=2)
    assert groups_per_split(manifest, "rare") == (3, 0, 0)
    assert manifest.unscored == ("nut/rare",)
    assert "no validation photo shows nut/rare: no decision looks at them" in manifest.notes
    assert "no test photo shows nut/rare: not scored on test" in manifest.notes


def test_types_under_three_targets_are_pooled_and_named(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 6, "chip": 2, "dent": 2})
    samples, manifest = make_splits(read_source(str(root), CONFIG), CONFIG, folds=2)
    assert {type for sample in samples for type in sample.types} == {"bent", "other"}
    assert groups_per_split(manifest, "other") == (2, 1, 1)
    assert sum("pooled nut/chip" in note or "pooled nut/dent" in note for note in manifest.notes) == 2
    data = Dataset(samples, CONFIG)
    assert data.type_mask("nut/chip/000", "other").sum() == 81


def test_two_targets_in_each_of_two_photos_are_enough(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 6, "chip": 2})
    for index in range(2):
        trees.save(
            root / "ground_truth" / "chip" / f"{index:03}_mask.png",
            trees.blob() + trees.blob(top=30, left=45),
        )
    samples, _ = make_splits(read_source(str(root), CONFIG), CONFIG, folds=2)
    assert {type for sample in samples for type in sample.types} == {"bent", "chip"}


def split_folders(root, trees, splits=("train", "validation", "test"), count=8):
    for seed, split in enumerate(splits):
        trees.pairs(root / split / "images", root / split / "masks", count, seed=100 * seed)
    return read_source(str(root), CONFIG)


def test_given_splits_are_kept_and_train_images_are_drawn_by_seed(tmp_path, trees):
    samples = split_folders(tmp_path, trees)
    kept, manifest = make_splits(samples, DataConfig(train_images=5), folds=2)
    assert [len(manifest.ids(split)) for split in ("train", "validation", "test")] == [5, 8, 8]
    assert len(kept) == 21
    assert all(f"/{row.split}/" in row.sample_id for row in manifest.rows)
    assert any("trains on 5 of 8 photos" in note for note in manifest.notes)
    other = make_splits(samples, DataConfig(train_images=5, split_seed=1), folds=2)[1]
    assert other.ids("test") == manifest.ids("test")
    assert other.ids("train") != manifest.ids("train")


def test_photos_that_the_draw_leaves_out_may_validate_unless_part_of_their_object_trains(tmp_path, trees):
    samples = split_folders(tmp_path, trees)
    plain = make_splits(samples, DataConfig(train_images=5), folds=2)[1]
    kept, manifest = make_splits(samples, DataConfig(train_images=5, rest="validation"), folds=2)
    assert manifest.ids("train") == plain.ids("train") and manifest.ids("test") == plain.ids("test")
    assert set(manifest.ids("validation")) > set(plain.ids("validation"))
    assert len(manifest.ids("validation")) == 11 and len(kept) == 24
    assert any("3 of the photos that do not train go to validation" in note for note in manifest.notes)
    out = sorted({s.sample_id for s in samples} - {row.sample_id for row in plain.rows})
    one = {out[0]: "object", plain.ids("train")[0]: "object"}
    grouped = [dataclasses.replace(s, group=one.get(s.sample_id, s.group)) for s in samples]
    shared = make_splits(grouped, DataConfig(train_images=5, rest="validation"), folds=2)[1]
    trains = {row.group for row in shared.rows if row.split == "train"}
    assert not trains & {row.group for row in shared.rows if row.split != "train"}
    assert len(shared.ids("validation")) == 10  # two of the three: the object of the other trains


def test_a_missing_given_split_is_taken_from_the_training_photos(tmp_path, trees):
    _, manifest = make_splits(split_folders(tmp_path, trees, ("train", "test"), 9), CONFIG, folds=2)
    assert len(manifest.ids("test")) == 9
    assert len(manifest.ids("validation")) == 3
    assert all("/train/" in each for each in manifest.ids("train") + manifest.ids("validation"))


@pytest.mark.parametrize(("trains", "validates"), [(2, 0), (3, 1), (9, 3)])
def test_what_given_test_photos_show_takes_no_training_object_of_a_rare_type(
    tmp_path, trees, trains, validates
):
    """Of the type's own training objects two train at least, however many test."""
    samples = [
        dataclasses.replace(sample, types=("rare",))
        if int(sample.sample_id[-1]) < {"train": trains, "test": 8}[sample.folder_split]
        else sample
        for sample in split_folders(tmp_path, trees, ("train", "test"), 10)
    ]
    for seed in range(3):
        config = DataConfig(split_seed=seed, pool_below=1)
        _, manifest = make_splits(samples, config, folds=2)
        assert groups_per_split(manifest, "rare") == (trains - validates, validates, 8)


def test_folders_without_one_to_train_on_split_nothing_and_drop_nothing(tmp_path, trees):
    split_folders(tmp_path, trees, ("validation", "test"), 6)
    shown = Image.open(tmp_path / "validation" / "images" / "p2.png")
    shown.save(tmp_path / "test" / "images" / "q.jpg", quality=92)
    trees.save(tmp_path / "test" / "masks" / "q.png", trees.blob())
    samples, manifest = make_splits(read_source(str(tmp_path), CONFIG), DataConfig(leaks="stop"), folds=2)
    assert len(samples) == 13 and not any("left out" in note for note in manifest.notes)
    copies = [row for row in manifest.rows if row.sample_id.endswith(("validation/p2", "/q"))]
    assert len({row.group for row in copies}) == 1 == len({row.split for row in copies})
    assert any("the rest is split off all its photos" in note for note in manifest.notes)


def test_leaks_between_given_splits_are_dropped_noted_or_stopped(tmp_path, trees):
    split_folders(tmp_path, trees)
    Image.open(tmp_path / "train" / "images" / "p2.png").save(
        tmp_path / "test" / "images" / "q.jpg", quality=92
    )
    trees.save(tmp_path / "test" / "masks" / "q.png", trees.blob())
    samples = read_source(str(tmp_path), CONFIG)
    _, manifest = make_splits(samples, CONFIG, folds=2)
    assert len(manifest.ids("train")) == 7
    assert any("train/p2" in note for note in manifest.notes)
    with pytest.raises(LeakError):
        make_splits(samples, DataConfig(leaks="stop"), folds=2)


def test_copies_never_cross_an_own_split(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 12}, good=8, test_good=0)
    for index in range(8):  # each normal again, a little darker
        shown = np.asarray(Image.open(root / "train" / "good" / f"{index:03}.png"))
        trees.save(root / "test" / "good" / f"{index:03}.png", (shown * 0.95).astype(np.uint8))
    for seed in range(3):
        _, manifest = make_splits(read_source(str(root), CONFIG), DataConfig(split_seed=seed), folds=2)
        for index in range(8):
            pair = [manifest.row(f"nut/{folder}/{index:03}") for folder in ("good", "test-good")]
            assert (pair[0].split, pair[0].fold) == (pair[1].split, pair[1].fold)


def test_a_set_without_any_target_is_refused(tmp_path, trees):
    for index in range(3):
        trees.save(tmp_path / "images" / f"{index}.png", trees.photo(index))
        trees.save(tmp_path / "masks" / f"{index}.png", trees.blob(value=0))
    with pytest.raises(DataError, match="every mask is empty"):
        make_splits(read_source(str(tmp_path), CONFIG), CONFIG, folds=2)


def test_a_set_without_normals_splits_too(tmp_path, trees):
    root = trees.mvtec(tmp_path / "nut", {"bent": 10}, good=0, test_good=0)
    _, manifest = make_splits(read_source(str(root), CONFIG), CONFIG, folds=2)
    assert groups_per_split(manifest, "bent") == (4, 2, 4)
