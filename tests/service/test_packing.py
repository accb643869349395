"""One answer in three forms: each can be read by who knows the form, and holds the same pixels."""

import base64
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from cdiff.config import DataConfig
from cdiff.data.formats import read_source
from cdiff.data.images import OWN, decode_mask_png, encode_png
from cdiff.service.packing import as_json, as_parquet, as_zip
from cdiff.service.requests import PairRequest


@pytest.fixture(scope="module")
def made(studio):
    rows = studio.make(studio.tickets(PairRequest.model_validate({"type": "pit", "n": 2})))
    return rows, [studio.reason(row) for row in rows]


def test_json_has_pixels_verdict_and_all_that_decided_them(made) -> None:
    rows, reasons = made
    answer = json.loads(as_json(rows, reasons, "one").model_dump_json())
    assert answer["model"] == "one"
    for row, reason, pair in zip(rows, reasons, answer["pairs"], strict=True):
        assert (
            base64.b64decode(pair["image"]) == row.image_png
            and base64.b64decode(pair["mask"]) == row.mask_png
        )
        assert pair["valid"] == (not reason) and pair["reason"] == reason
        assert pair["task_id"] == row.attempt.task_id and pair["revisions"]["generator"].startswith(
            "generator-"
        )
        assert {"safe_strength", "start_strength"} <= pair["strengths"].keys() and "label_iou" in pair[
            "measures"
        ]


def test_a_zip_is_an_mvtec_tree_that_the_reader_takes(made, tmp_path) -> None:
    rows, reasons = made
    data = as_zip(rows, reasons, "one")
    assert data == as_zip(rows, reasons, "one"), "equal pairs, equal bytes"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(tmp_path)
        told = json.loads(archive.read("provenance.json"))
    samples = read_source(str(tmp_path / "metal"), DataConfig())
    assert [sample.types for sample in samples] == [("pit",), ("pit",)]
    assert [pair["image"] for pair in told["pairs"]] == ["metal/test/pit/000.png", "metal/test/pit/001.png"]


def test_what_shows_no_target_is_no_defect_and_no_normal(made, tmp_path) -> None:
    rows, _ = made
    bare = replace(rows[0], mask_png=encode_png(np.zeros_like(decode_mask_png(rows[0].mask_png, OWN)), "L"))
    with zipfile.ZipFile(io.BytesIO(as_zip([bare, rows[1]], ["not visible", ""], "one"))) as archive:
        archive.extractall(tmp_path)
        told = json.loads(archive.read("provenance.json"))["pairs"]
    assert [(pair["image"], pair["mask"]) for pair in told] == [
        ("invalid/000.png", None),
        ("metal/test/pit/000.png", "metal/ground_truth/pit/000_mask.png"),
    ]
    assert [sample.types for sample in read_source(str(tmp_path / "metal"), DataConfig())] == [("pit",)]


def test_parquet_has_the_columns_of_a_shard(made) -> None:
    rows, _ = made
    table = pq.read_table(io.BytesIO(as_parquet(rows)))
    assert table["image_png"].to_pylist() == [row.image_png for row in rows]
    assert table["task_id"].to_pylist() == [row.attempt.task_id for row in rows]
