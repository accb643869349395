import pickle

import numpy as np
import pytest

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset, components, select
from cdiff.data.formats import read_source
from cdiff.errors import DataError

CONFIG = DataConfig()


def test_parts_nearer_than_two_percent_of_the_longer_side_are_one_target():
    mask = np.zeros((100, 400), dtype=bool)
    mask[50, 10:30] = mask[50, 36:60] = True  # 6 px apart: under 2 % of 400
    mask[50, 100:120] = True  # 40 px away
    found = components(mask)
    assert [box for box, _ in found] == [(10, 50, 60, 51), (100, 50, 120, 51)]
    assert [int(shape.sum()) for _, shape in found] == [44, 20]


def test_specks_are_ignored_unless_nothing_else_is_there():
    mask = np.zeros((200, 200), dtype=bool)
    mask[10:12, 10:11] = mask[100:110, 100:110] = True
    assert len(components(mask)) == 1
    mask[100:110, 100:110] = False
    assert [int(shape.sum()) for _, shape in components(mask)] == [2]
    assert components(np.zeros((5, 5), dtype=bool)) == []


def test_targets_at_the_border_stay_inside_the_photo():
    mask = np.ones((20, 30), dtype=bool)
    assert components(mask)[0][0] == (0, 0, 30, 20)


def test_minus_one_means_above_half_of_full_scale():
    assert select(np.array([[127, 128]], np.uint8), -1).tolist() == [[False, True]]
    assert select(np.array([[32767, 32768]], np.int32), -1).tolist() == [[False, True]]
    assert select(np.array([[2, 3]], np.uint8), 3).tolist() == [[False, True]]


def two_types(tmp_path, trees):
    ids = trees.blob(value=1) + trees.blob(top=30, left=40, value=2) + trees.blob(top=30, left=5, value=2)
    trees.save(tmp_path / "cell" / "images" / "a.png", trees.photo(1))
    trees.save(tmp_path / "cell" / "masks" / "a.png", ids)
    trees.save(tmp_path / "cell" / "images" / "b.png", trees.photo(2))
    trees.save(tmp_path / "cell" / "masks" / "b.png", trees.blob(value=0))
    return Dataset(read_source(str(tmp_path / "cell"), CONFIG), CONFIG), ids


def test_masks_and_targets_per_type(tmp_path, trees):
    data, ids = two_types(tmp_path, trees)
    one, normal = (sample.sample_id for sample in data.samples)
    assert (data.mask(one) == (ids > 0)).all()
    assert (data.type_mask(one, "2") == (ids == 2)).all()
    assert not data.type_mask(one, "nothing").any()
    assert not data.mask(normal).any()
    targets = data.targets(one)
    assert [(target.type, target.area) for target in targets] == [("1", 81), ("2", 81), ("2", 81)]
    assert [target.target_id for target in targets] == [f"{one}#{index}" for index in range(3)]
    assert data.targets(normal) == ()
    assert data.all_targets([one, normal]) == list(targets)
    union = np.any([data.target_mask(target.target_id) for target in targets], axis=0)
    assert (union == data.mask(one)).all()
    assert data.target(targets[1].target_id) == targets[1]


def test_unknown_ids_are_refused(tmp_path, trees):
    data, _ = two_types(tmp_path, trees)
    with pytest.raises(DataError, match="no sample"):
        data.image("nowhere")
    with pytest.raises(DataError, match="no target"):
        data.target(f"{data.samples[0].sample_id}#9")
    with pytest.raises(DataError, match="same id"):
        Dataset([data.samples[0], data.samples[0]], CONFIG)


def test_a_copy_in_another_process_gives_the_same_and_travels_without_its_cache(tmp_path, trees):
    data = Dataset(read_source(str(trees.mvtec(tmp_path / "nut", {"bent": 3})), CONFIG), CONFIG)
    bare = len(pickle.dumps(data))
    ids = [sample.sample_id for sample in data.samples]
    pictures = [data.image(each) for each in ids]
    assert len(pickle.dumps(data)) == bare
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301 - our own bytes, as Ray sends them
    assert copy.all_targets(ids) == data.all_targets(ids)
    assert all((copy.image(each) == picture).all() for each, picture in zip(ids, pictures, strict=True))


def test_the_cache_keeps_to_its_bound_and_its_arrays_cannot_be_changed(tmp_path, trees):
    samples = read_source(str(trees.mvtec(tmp_path / "nut", {"bent": 3})), CONFIG)
    small = Dataset(samples, DataConfig(cache_megabytes=0))
    first = small.image(samples[0].sample_id)
    assert small.image(samples[0].sample_id) is not first
    assert small._cache.size == 0
    large = Dataset(samples, CONFIG)
    kept = large.image(samples[0].sample_id)
    assert large.image(samples[0].sample_id) is kept
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1
    large._cache.limit = kept.nbytes * 2
    for sample in samples:
        large.image(sample.sample_id)
    assert large._cache.size <= kept.nbytes * 2
