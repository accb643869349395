"""jobs/export.py in its formats: readers take them back, hard negatives and targets that were there before among them."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

from cdiff.config import Config
from cdiff.config_file import dump_config
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_source, read_sources
from cdiff.data.images import encode_png
from cdiff.data.ledger import Ledger
from cdiff.data.store import Run, ShardRow, create_run
from cdiff.data.trees import CocoTree, MvtecTree
from cdiff.errors import RunError
from cdiff.types import Decision, Pair, RoundResult
from jobs.export import export, main
from tests.bare_run import Splits
from tests.jobs.test_export import files, made


@pytest.fixture
def mixed(tmp_path):
    """Makes a run of one accepted round: a pair of each type of a category, and hard negatives for ""."""

    def make(
        kinds: list[str], category: str = "metal", before: tuple[str, ...] = ()
    ) -> tuple[Run, list[ShardRow]]:
        run = create_run(tmp_path / "home", "mixed", dump_config(Config()), Splits())
        ledger, rows = Ledger(run), made(run, 1, kinds, "L", category=category, before=before)
        decision = Decision(True, "", 0.0, 0.0, 0.0, 0.5)
        result = RoundResult(1, (), (), 1, (), "rev", (), decision, ())
        ledger.commit_round(result, [Pair(row.attempt, "") for row in rows])
        ledger.close()
        return run, rows

    return make


def records_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "provenance.parquet").to_pylist()


def read_back(out: Path, rows: list[ShardRow], *sources: Path) -> dict[str, tuple[str, ...]]:
    """Types of each pair as the reader has them, by task_id; masks are compared."""
    data = Dataset(read_sources([str(source) for source in sources], None, Config().data), Config().data)
    task_of = {str(out / record["image"]): record["task_id"] for record in records_of(out)}
    masks = {row.attempt.task_id: np.asarray(Image.open(io.BytesIO(row.mask_png))) > 0 for row in rows}
    for sample in data.samples:
        np.testing.assert_array_equal(data.mask(sample.sample_id), masks[task_of[sample.image]])
    return {task_of[sample.image]: sample.types for sample in data.samples}


def test_hard_negatives_are_photos_without_a_target_in_an_mvtec_tree(mixed, tmp_path):
    run, rows = mixed(["pit", "", "good", ""])
    out = tmp_path / "out"
    assert main([str(run.path), str(out)]) == 0
    assert [name for name in files(out) if "/good/" in name] == [
        "metal/test/good/000.png",
        "metal/test/good/001.png",
    ]
    assert [record["mask"] for record in records_of(out)][1::2] == [None, None]
    with (out / "provenance.csv").open() as file:
        assert [line["mask"] for line in csv.DictReader(file)][1::2] == ["", ""]
    types = read_back(out, rows, out / "metal")
    pit, first, good, second = (types[row.attempt.task_id] for row in rows)
    assert (pit, first, second) == (("pit",), (), ()) and good and good[0].startswith("good-")


def test_hard_negatives_are_photos_without_annotations_in_coco(mixed, tmp_path):
    run, rows = mixed(["pit", "", "good"])
    out = tmp_path / "out"
    assert main([str(run.path), str(out), "--format", "coco"]) == 0
    coco = COCO(out / "annotations.json")
    assert len(coco.imgs) == 3 and len(coco.anns) == 2
    assert [kind["name"] for kind in coco.cats.values()] == ["pit", "good"]
    types = read_back(out, rows, out)
    assert [types[row.attempt.task_id] for row in rows] == [("pit",), (), ("good",)]


def test_a_negative_whose_photo_shows_a_target_keeps_its_mask(mixed, tmp_path):
    _, (row,) = mixed(["pit"])
    attempt = dataclasses.replace(row.attempt, type="")
    assert MvtecTree(tmp_path / "mvtec").add(attempt, row.image_png, row.mask_png) == {
        "image": "metal/test/target/000.png",
        "mask": "metal/ground_truth/target/000_mask.png",
    }
    tree = CocoTree(tmp_path / "coco", {})
    tree.add(attempt, row.image_png, row.mask_png)
    tree.close()
    assert [sample.types for sample in read_source(str(tmp_path / "coco"), Config().data)] == [("target",)]


def kinds_of(out: Path) -> list[list[str]]:
    """Names of each photo's annotations, from top to bottom."""
    coco = COCO(out / "annotations.json")
    shown = [sorted(coco.imgToAnns[image], key=lambda a: a["bbox"][1]) for image in sorted(coco.imgs)]
    return [[coco.cats[target["category_id"]]["name"] for target in targets] for targets in shown]


def test_targets_that_the_background_showed_before_keep_their_type_in_coco(mixed, tmp_path, capsys):
    run, rows = mixed(["pit", "scratch"], before=("scratch",))
    out = tmp_path / "out"
    assert main([str(run.path), str(out), "--format", "coco"]) == 0
    assert "note:" not in capsys.readouterr().out
    assert kinds_of(out) == [["pit", "scratch"], ["scratch", "scratch"]]
    types = read_back(out, rows, out)
    assert [types[row.attempt.task_id] for row in rows] == [("pit", "scratch"), ("scratch",)]


def test_types_that_the_run_cannot_tell_are_said(mixed, tmp_path, capsys):
    run, _ = mixed(["pit", "scratch"], before=("hole", "scratch"))
    out = tmp_path / "out"
    assert main([str(run.path), str(out), "--format", "coco"]) == 0
    assert "note: 2 of 2 photos may have targets under a wrong type" in capsys.readouterr().out
    assert kinds_of(out) == [["pit", "pit"], ["scratch", "scratch"]]
    told = json.loads((out / "annotations.json").read_text())["info"]["description"]
    assert "2 of 2 photos" in told


def test_a_target_that_grew_together_with_one_of_another_type_is_cut_at_its_box_and_said(mixed, tmp_path):
    _, (row,) = mixed(["pit"])
    mask = np.zeros((30, 40), bool)
    mask[5:12, 8:33] = True  # the new one fills columns 8 to 19
    tree = CocoTree(tmp_path / "coco", {"b": ("scratch",)})
    tree.add(row.attempt, row.image_png, encode_png(mask, "L"))
    assert "1 of 1 photos may" in tree.close()
    (sample,) = read_source(str(tmp_path / "coco"), Config().data)
    data = Dataset([sample], Config().data)
    np.testing.assert_array_equal(data.mask(sample.sample_id), mask)
    assert data.type_mask(sample.sample_id, "pit").sum() == 7 * 12


def test_folders_are_read_back_as_images_and_masks(mixed, tmp_path):
    run, rows = mixed(["pit", "", "good", "pit"], category="Kvasir-SEG")
    out = tmp_path / "out"
    assert main([str(run.path), str(out), "--format", "folders"]) == 0
    root = out / "Kvasir-SEG"
    assert files(root / "images") == files(root / "masks")
    assert [name for name in files(root / "masks") if "good" not in name] == ["pit-000.png", "pit-001.png"]
    assert (root / "masks" / "good-000.png").read_bytes() == rows[1].mask_png
    types = read_back(out, rows, root)
    assert [types[row.attempt.task_id] for row in rows] == [("target",), (), ("target",), ("target",)]
    mask = np.asarray(Image.open(root / "masks" / "pit-000.png"))
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}


def test_a_parquet_file_holds_pairs_and_provenance_in_bounded_row_groups(mixed, tmp_path, monkeypatch):
    run, rows = mixed(["pit", "", "../scratch", "pit"])
    out = tmp_path / "out"
    monkeypatch.setattr(
        "cdiff.data.trees.ROW_GROUP_BYTES", 2 * len(rows[0].image_png + rows[0].mask_png) + 64
    )
    assert main([str(run.path), str(out), "--format", "parquet"]) == 0
    assert files(out) == ["pairs.parquet", "provenance.csv"]
    assert pq.ParquetFile(out / "pairs.parquet").num_row_groups == 2
    table = pd.read_parquet(out / "pairs.parquet")
    assert list(table["image"]) == [row.image_png for row in rows]
    assert list(table["mask"]) == [row.mask_png for row in rows]
    assert list(table["type"]) == ["pit", "", "../scratch", "pit"] and set(table["round"]) == {1}
    assert list(table["purpose"]) == ["weak", "negative", "weak", "weak"]
    with (out / "provenance.csv").open() as file:
        told = list(csv.DictReader(file))
    assert [line["task_id"] for line in told] == list(table["task_id"])
    assert set(told[0]) == set(table.columns) - {"image", "mask"}
    main([str(run.path), str(tmp_path / "mvtec")])
    assert pq.read_schema(tmp_path / "mvtec" / "provenance.parquet").names == list(table.columns)


@pytest.mark.parametrize("format", ["mvtec", "coco", "folders", "parquet"])
def test_an_export_that_breaks_off_has_no_provenance(mixed, tmp_path, format):
    run, rows = mixed(["pit", "scratch"])

    def broken(attempts):
        yield rows[0].image_png, rows[0].mask_png
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left on device"):
        export(run, tmp_path / "out", pixels=broken, format=format)
    assert not {"provenance.csv", "pairs.parquet"} & set(files(tmp_path / "out"))


@pytest.mark.parametrize("format", ["mvtec", "coco", "folders", "parquet"])
def test_a_run_whose_settings_this_version_does_not_know_is_exported(mixed, tmp_path, format):
    run, rows = mixed(["pit"])
    (run.path / "config.yaml").write_text("later: 1\n")
    assert export(run, tmp_path / "out", format=format) == len(rows)


def test_a_category_whose_name_says_masks_or_test_is_read_back_from_coco(mixed, tmp_path):
    run, rows = mixed(["polyp"], category="Kvasir-SEG test")
    out = tmp_path / "out"
    assert main([str(run.path), str(out), "--format", "coco"]) == 0
    assert read_back(out, rows, out) == {rows[0].attempt.task_id: ("polyp",)}
    assert [sample.folder_split for sample in read_source(str(out), Config().data)] == [""]


def test_products_with_types_of_one_name_and_specks_survive_in_coco(tmp_path):
    out = tmp_path / "out"
    tree = CocoTree(out, {})
    mask = np.zeros((40, 50), dtype=np.uint8)
    mask[3:9, 4:12] = mask[30:36, 30:44] = mask[20, 40] = 255  # two targets, and a speck that is none
    shown = encode_png(mask, "L")
    row = made(create_run(tmp_path / "home", "one", dump_config(Config()), Splits()), 1, ["pit"], "L")[0]
    for category, kind in (("metal", "nut-scratch"), ("metal-nut", "scratch"), ("bolt", "scratch")):
        tree.add(dataclasses.replace(row.attempt, category=category, type=kind), shown, shown)
    tree.close()
    assert len(list(out.rglob("*.png"))) == 3
    data = Dataset(read_source(str(out), Config().data), Config().data)
    assert len({sample.types for sample in data.samples}) == 3
    assert all((data.mask(sample.sample_id) == (mask > 0)).all() for sample in data.samples)
    assert len(json.loads((out / "annotations.json").read_text())["annotations"]) == 6
