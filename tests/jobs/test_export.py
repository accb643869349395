"""jobs/export.py: kept pairs become a tree or a file that readers take, byte for byte, and nothing else does."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

from cdiff.config import Config
from cdiff.config_file import dump_config
from cdiff.data.formats import read_source
from cdiff.data.images import encode_png
from cdiff.data.ledger import Ledger
from cdiff.data.manifest import Row, make_manifest, write_manifest
from cdiff.data.store import Run, ShardRow, create_run, shard_name, write_shard
from cdiff.data.verdicts import Verdict, write_verdict
from cdiff.types import (
    Assignment,
    Attempt,
    Decision,
    GenerationTask,
    Pair,
    Pose,
    Purpose,
    Recipe,
    Revisions,
    RoundResult,
    Strengths,
)
from jobs.export import main
from tests.bare_run import Splits


def made(
    run: Run,
    number: int,
    kinds: list[str],
    mode: str,
    purpose: Purpose = "weak",
    category: str = "metal",
    before: tuple[str, ...] = (),
) -> list[ShardRow]:
    """A shard of pairs; those of the type "" are hard negatives. Backgrounds that showed targets before keep one below the new one."""
    row = Row("b", "train", "b", category, before, 0, False)
    write_manifest(make_manifest([row], (), ()), run.splits_path)
    recipe = Recipe("joint", "B0", 1, 0.25, 16, "euler", "float32", 8, 2)
    pose = Pose(1.5, 2.5, 0.0, 1.0, False, 0.05, 1.7)
    plan = [
        Assignment(
            GenerationTask(
                recipe, f"r{index}", "b", pose, Strengths(2.0, 0.4), 100 * number + index, Revisions("g", "t")
            ),
            f"metal/{kind}",
            purpose if kind else "negative",
            index,
        )
        for index, kind in enumerate(kinds)
    ]
    name = shard_name(plan)
    rng = np.random.default_rng(number)
    rows = []
    for index, (item, kind) in enumerate(zip(plan, kinds, strict=True)):
        mask = np.zeros((30, 40), bool)
        mask[5:12, 8 + index : 20] = bool(kind)
        mask[20:26, 25:33] = bool(before)
        photo = encode_png(rng.integers(0, 255, (30, 40, 3)).astype(np.uint8), mode)
        attempt = Attempt(item, name, index, category, kind, (8, 5, 20, 12), (("loss", 0.5),), bytes(576))
        rows.append(ShardRow(attempt, photo, encode_png(mask, "L"), photo, photo, photo))
    write_shard(run, name, rows)
    return rows


@pytest.fixture
def finished(tmp_path) -> tuple[Run, list[ShardRow]]:
    """A run with an accepted and a rejected round: three pairs are kept, one of them in the rejected round."""
    run = create_run(tmp_path / "home", "one", dump_config(Config()), Splits())
    ledger = Ledger(run)
    rows = []
    for number, accepted in ((1, True), (2, False)):
        part = made(run, number, ["pit", "../scratch", "pit"], "L" if number == 1 else "RGB")
        reasons = ["", "", "blurred"] if accepted else ["blurred", "blurred", ""]
        pairs = [Pair(row.attempt, reason) for row, reason in zip(part, reasons, strict=True)]
        decision = Decision(accepted, "", 0.0, 0.0, 0.0, 0.5)
        ledger.commit_round(RoundResult(number, (), (), 1, (), "rev", (), decision, ()), pairs)
        rows += part
    ledger.close()
    return run, rows


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_kept_pairs_of_accepted_rounds_become_a_tree_byte_for_byte(finished, tmp_path, capsys):
    run, rows = finished
    out = tmp_path / "out"
    assert main([str(run.path), str(out)]) == 0
    assert "2 pairs" in capsys.readouterr().out
    pits = [name for name in files(out) if "/pit/" in name]
    assert pits == ["metal/ground_truth/pit/000_mask.png", "metal/test/pit/000.png"]
    assert len(files(out)) == 6
    assert (out / pits[1]).read_bytes() == rows[0].image_png
    assert (out / pits[0]).read_bytes() == rows[0].mask_png
    assert Image.open(io.BytesIO((out / pits[1]).read_bytes())).mode == "L"
    assert not (tmp_path / "scratch").exists()  # a type's name is no path


def test_all_kept_takes_rejected_rounds_too_in_their_own_mode(finished, tmp_path):
    run, rows = finished
    out = tmp_path / "out"
    assert main([str(run.path), str(out), "--all-kept"]) == 0
    second = out / "metal/test/pit/001.png"
    assert second.read_bytes() == rows[5].image_png
    assert Image.open(second).mode == "RGB"


def test_peoples_pairs_are_exported_with_the_rounds_that_trained_on_them(tmp_path):
    run = create_run(tmp_path / "home", "one", dump_config(Config()), Splits())
    ledger, theirs = Ledger(run), []
    for number, accepted in ((1, True), (2, False), (3, None)):  # no model trained on the third yet
        (row,) = made(run, 10 + number, ["pit"], "L", "human")
        theirs.append(row.attempt.task_id)
        write_verdict(run, Verdict(row.attempt.task_id, True, "Ada", number, row.attempt.shard))
        ledger.fold_verdicts()
        if accepted is not None:
            decision = Decision(accepted, "", 0.0, 0.0, 0.0, 0.5)
            ledger.commit_round(RoundResult(number, (), (), 0, (), "rev", (), decision, ()), [])
    ledger.close()
    for options, expected in (([], theirs[:1]), (["--all-kept"], theirs[:2])):
        out = tmp_path / f"out{len(options)}"
        assert main([str(run.path), str(out), *options]) == 0
        records = pq.read_table(out / "provenance.parquet").to_pylist()
        assert [record["task_id"] for record in records] == expected
        assert len(files(out)) == 2 + 2 * len(expected)


def test_the_export_is_read_back_as_an_mvtec_category(finished, tmp_path):
    run, _ = finished
    out = tmp_path / "out"
    main([str(run.path), str(out), "--all-kept"])
    samples = read_source(str(out / "metal"), Config().data)
    assert sum("pit" in sample.types for sample in samples) == 2
    assert all(len(sample.masks) == 1 for sample in samples)


def test_coco_readers_take_the_export_with_every_target(finished, tmp_path):
    run, rows = finished
    out = tmp_path / "out"
    assert main([str(run.path), str(out), "--all-kept", "--format", "coco"]) == 0
    coco = COCO(out / "annotations.json")
    assert sorted(kind["name"] for kind in coco.cats.values()) == ["../scratch", "pit"]
    by_place = {record["image"]: record for record in pq.read_table(out / "provenance.parquet").to_pylist()}
    by_task = {row.attempt.task_id: row for row in rows}
    assert len(coco.imgs) == len(by_place) == 3
    for identity, image in coco.imgs.items():
        row = by_task[by_place[image["file_name"]]["task_id"]]
        assert (out / image["file_name"]).read_bytes() == row.image_png
        (target,) = coco.imgToAnns[identity]
        mask = np.asarray(Image.open(io.BytesIO(row.mask_png))) > 0
        np.testing.assert_array_equal(coco.annToMask(target).astype(bool), mask)
        left, top, right, bottom = Image.fromarray(mask).getbbox() or (0, 0, 0, 0)
        assert (target["area"], target["bbox"]) == (mask.sum(), [left, top, right - left, bottom - top])
    samples = read_source(str(out), Config().data)
    assert sorted(sample.types for sample in samples) == [(".._scratch",), ("pit",), ("pit",)]


def test_provenance_names_every_file_and_how_it_was_made(finished, tmp_path):
    run, rows = finished
    out = tmp_path / "out"
    main([str(run.path), str(out), "--all-kept"])
    records = pq.read_table(out / "provenance.parquet").to_pylist()
    assert sorted(record[column] for record in records for column in ("image", "mask")) == [
        name for name in files(out) if name.endswith(".png")
    ]
    by_task = {row.attempt.task_id: row.attempt.assignment.task for row in rows}
    for record in records:
        task = by_task[record["task_id"]]
        assert (record["seed"], record["reference"], record["start_strength"]) == (
            task.seed,
            task.reference,
            0.4,
        )
    assert [record["round"] for record in records] == [1, 1, 2]
    with (out / "provenance.csv").open() as file:
        assert [line["task_id"] for line in csv.DictReader(file)] == [record["task_id"] for record in records]


def test_a_folder_with_files_is_left_as_it_is(finished, tmp_path, capsys):
    run, _ = finished
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    assert main([str(run.path), str(out)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert files(out) == ["mine.txt"]


def test_an_export_needs_no_more_than_reading_the_run(finished, tmp_path):
    run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    main(["one", str(tmp_path / "out"), "--home", str(run.home)])
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_a_run_without_accepted_pairs_or_no_run_at_all_is_said(tmp_path, capsys):
    run = create_run(tmp_path, "empty", dump_config(Config()), Splits())
    assert main([str(run.path), str(tmp_path / "out")]) == 2
    assert "no pairs of accepted rounds" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert "is no run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
