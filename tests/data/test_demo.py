"""The procedural demo set: repeatable, readable by the ordinary readers, graded, and never shared with the oracle."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from cdiff.config import DataConfig
from cdiff.data.demo import KINDS, fresh_samples, make_demo
from cdiff.data.demo_surfaces import DEFECTS
from cdiff.data.formats import read_sources
from cdiff.data.images import Limits, read_image, read_mask
from cdiff.data.splits import make_splits
from cdiff.errors import StorageError

CONFIG = DataConfig(demo_images=20, demo_side=96)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_demo(tmp_path_factory.mktemp("demo"), CONFIG, seed=3)


def hashes(folder: str) -> dict[str, str]:
    """Relative path -> hash of every file."""
    root = Path(folder)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_photos(
    sources: list[str], tmp_path: Path
) -> None:
    again = make_demo(tmp_path, CONFIG, seed=3)
    other = make_demo(tmp_path, CONFIG, seed=4)
    for first, second, third in zip(sources, again, other, strict=True):
        assert hashes(first) == hashes(second)
        photos = {
            value for name, value in hashes(first).items() if name.endswith(".png") and "mask" not in name
        }
        assert photos.isdisjoint(hashes(third).values())


def test_a_complete_set_is_reused_and_a_damaged_one_made_again(tmp_path: Path) -> None:
    small = DataConfig(demo_images=12, demo_side=64)
    metal, tissue = make_demo(tmp_path, small, seed=0)
    photo = Path(tissue) / "images" / "000.png"
    before, made = photo.read_bytes(), photo.stat().st_mtime_ns
    assert make_demo(tmp_path, small, seed=0) == [metal, tissue]
    assert photo.stat().st_mtime_ns == made
    photo.unlink()
    make_demo(tmp_path, small, seed=0)
    assert photo.read_bytes() == before
    # no scratch folder is left
    assert [path.name for path in tmp_path.iterdir()] == [Path(metal).parent.name]


def test_where_nothing_can_be_written_the_home_is_named_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StorageError, match=r"(?s)cannot write .*home/data: Not a directory.*--home"):
        make_demo(tmp_path / "home" / "data", CONFIG, 0)


def test_other_settings_make_another_set_beside_the_first(tmp_path: Path) -> None:
    first = make_demo(tmp_path, DataConfig(demo_images=12, demo_side=64), seed=0)
    second = make_demo(tmp_path, DataConfig(demo_images=12, demo_side=80), seed=0)
    assert set(first).isdisjoint(second)
    assert all(Path(source).is_dir() for source in (*first, *second))


def test_the_ordinary_readers_read_both_domains(sources: list[str]) -> None:
    samples = read_sources(sources, None, CONFIG)
    kinds = {(sample.category, sample.types) for sample in samples}
    assert kinds == {("metal", ()), *((category, (name,)) for category, name in KINDS)}
    assert sum(sample.is_normal for sample in samples) == CONFIG.demo_images
    for category in ("metal", "tissue"):
        shown = [sample for sample in samples if sample.category == category and not sample.is_normal]
        assert len(shown) == CONFIG.demo_images
    assert {(sample.width, sample.height) for sample in samples} == {(CONFIG.demo_side, CONFIG.demo_side)}


def test_every_photo_with_a_target_has_a_mask_of_sensible_size(sources: list[str]) -> None:
    limits = Limits.of(CONFIG)
    masks = [*Path(sources[0]).glob("ground_truth/*/*.png"), *Path(sources[1]).glob("masks/*.png")]
    assert len(masks) == 2 * CONFIG.demo_images
    for path in masks:
        mask = read_mask(path, limits)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.0005 < (mask > 0).mean() < 0.35, path


def test_photos_of_one_plate_share_a_group_and_a_side_of_the_folders(sources: list[str]) -> None:
    metal = Path(sources[0])
    groups = json.loads((metal / "groups.json").read_text())
    photos = [path for part in ("train", "test") for path in metal.glob(f"{part}/*/*.png")]
    assert sorted(groups) == sorted(f"{path.parent.name}/{path.name}" for path in photos)
    sides: dict[int, set[str]] = {}
    for path in photos:
        sides.setdefault(groups[f"{path.parent.name}/{path.name}"], set()).add(
            f"{path.parents[1].name}/{path.parent.name}"
        )
    assert all(len(side) == 1 for side in sides.values())
    assert len(sides) == CONFIG.demo_images  # two photos each


def test_no_photo_is_taken_for_a_copy_of_another_one(sources: list[str]) -> None:
    samples = read_sources(sources, None, CONFIG)
    _, manifest = make_splits(samples, CONFIG, 2)
    assert len(manifest.rows) == len(samples)
    assert len({row.group for row in manifest.rows}) == len({sample.group for sample in samples})
    limits = Limits.of(CONFIG)
    photos = [read_image(sample.image, limits).astype(np.float32) / 255 for sample in samples]
    nearest = min(float(np.abs(a - b).mean()) for a, b in itertools.combinations(photos, 2))
    assert nearest > CONFIG.duplicate_distance / 2


def test_fresh_samples_repeat_neither_each_other_nor_the_set(sources: list[str]) -> None:
    limits = Limits.of(CONFIG)
    known = {read_image(sample.image, limits).tobytes() for sample in read_sources(sources, None, CONFIG)}
    fresh = [sample.image.tobytes() for sample in fresh_samples(40, seed=3, side=CONFIG.demo_side)]
    assert len(set(fresh)) == len(fresh)
    assert known.isdisjoint(fresh)


def test_fresh_samples_are_repeatable_and_balanced_like_the_set() -> None:
    first, second = fresh_samples(20, seed=1, side=64), fresh_samples(20, seed=1, side=64)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.mask, two.mask)
        assert one.image.shape == (64, 64, 3) and one.image.dtype == np.uint8
        assert one.mask.shape == (64, 64) and one.mask.dtype == np.bool_ and one.mask.any()
    kinds = [(sample.category, sample.type) for sample in first]
    assert {kind: kinds.count(kind) for kind in KINDS} == {
        kind: 2 if kind[0] == "metal" else 10 for kind in KINDS
    }


def test_fresh_samples_of_an_unknown_kind_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match="metal/scratch"):
        fresh_samples(1, seed=0, kinds=(("metal", "rust"),))
    assert not fresh_samples(1, seed=0, side=64, kinds=(("metal", "good"),))[0].mask.any()


def test_defects_are_graded_from_plain_to_nearly_invisible() -> None:
    """Against the plate's own variation: the median stain is far below the median scratch or pit."""
    visibility = {}
    for name in DEFECTS:
        values = []
        for image, mask, *_ in fresh_samples(24, seed=5, side=96, kinds=(("metal", name),)):
            grey = image.mean(axis=2)
            values.append(abs(grey[mask].mean() - grey[~mask].mean()) / grey[~mask].std())
        visibility[name] = float(np.median(values))
    assert visibility["stain"] < 0.6 * min(visibility["scratch"], visibility["pit"], visibility["crack"])
    assert visibility["dent"] < min(visibility["scratch"], visibility["pit"])
