"""A run's photos are read as its loop split them: types, groups and target ids are the run's."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cdiff.config import Config, DataConfig
from cdiff.config_file import dump_config
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_sources
from cdiff.data.manifest import write_manifest
from cdiff.data.photos import as_split, photos_of
from cdiff.data.run import create_run
from cdiff.data.splits import make_splits
from cdiff.errors import DataError

CONFIG = DataConfig()


@pytest.fixture
def nut(tmp_path, trees):
    """Ten photos with a pit, the first two with a scratch as well, the last one a darker copy of the one before."""
    root = tmp_path / "nut"
    trees.pairs(root / "images", root / "masks" / "pit", 10)
    for number in range(2):
        trees.save(root / "masks" / "scratch" / f"p{number}.png", trees.blob(top=30, left=45))
    shown = np.asarray(Image.open(root / "images" / "p8.png"))
    trees.save(root / "images" / "p9.png", (shown * 0.95).astype(np.uint8))
    return root


def test_photos_read_anew_are_those_that_the_loop_split(nut, tmp_path, trees):
    trees.mvtec(tmp_path / "bolt", {"bent": 3}, seed=500)
    split, manifest = make_splits(read_sources([str(nut)], None, CONFIG), CONFIG, folds=2)
    read = read_sources([str(tmp_path / "bolt"), str(nut)], None, CONFIG)
    again = as_split(read, manifest)
    assert again == split
    assert manifest.group("nut/images/p8") == manifest.group("nut/images/p9")
    first = "nut/images/p0#0"
    assert (Dataset(read, CONFIG).target(first).type, Dataset(again, CONFIG).target(first).type) == (
        "pit",
        "other",
    )


def test_photos_that_are_not_the_runs_are_named_with_the_remedy(nut):
    read = read_sources([str(nut)], None, CONFIG)
    _, manifest = make_splits(read, CONFIG, folds=2)
    with pytest.raises(DataError, match=r"1 of the run's 10 photos .*first: nut/images/p0\. Give --data as"):
        as_split(read[1:], manifest)
    (nut / "masks" / "scratch" / "p1.png").unlink()
    changed = read_sources([str(nut)], None, CONFIG)
    with pytest.raises(DataError, match="nut/images/p1 shows pit, and other, pit in the run"):
        as_split(changed, manifest)


@pytest.mark.parametrize("folder", ["images", "masks/pit"])
def test_other_photos_or_masks_under_the_names_of_the_runs_are_refused(nut, tmp_path, trees, folder):
    read = read_sources([str(nut)], None, CONFIG)
    sheet = tmp_path / "groups.json"
    sheet.write_text('{"images/p2.png": 1, "images/p3.png": 1}')
    split, manifest = make_splits(read_sources([str(nut)], str(sheet), CONFIG), CONFIG, folds=2)
    assert as_split(read, manifest) == split  # what the run joined, pooled or grouped is no other photo
    for name in ("p4.png", "p1.png"):  # p1 shows a pooled type
        place = nut / folder / name
        trees.save(place, np.roll(np.asarray(Image.open(place)), 1, axis=1))
    changed = read_sources([str(nut)], None, CONFIG)
    with pytest.raises(
        DataError, match=r"2 of the run's 10 photos, or their masks, .*first: nut/images/p1\. Give --data"
    ):
        as_split(changed, manifest)
    earlier = [dataclasses.replace(row, content="") for row in manifest.rows]
    assert len(as_split(changed, dataclasses.replace(manifest, rows=tuple(earlier)))) == 10


def test_each_run_has_its_own_photos_of_the_common_folders(nut, tmp_path, trees):
    bolt = trees.mvtec(tmp_path / "bolt", {"bent": 10}, seed=500)
    runs, splits = [], []
    for folder in (nut, bolt):
        split, manifest = make_splits(read_sources([str(folder)], None, CONFIG), CONFIG, folds=2)
        run = create_run(tmp_path / "home", folder.name, dump_config(Config()), manifest)
        write_manifest(manifest, run.splits_path)
        runs.append(run)
        splits.append(split)
    found = photos_of(runs, [str(bolt), str(nut)], None)
    assert [list(photos.samples) for photos in found] == splits
