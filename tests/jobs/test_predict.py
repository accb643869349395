"""Which segmenter of a run predicts, and where each photo's masks lie."""

import contextlib
import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from actors.crew import Assessed
from cdiff.config import Config
from cdiff.config_file import dump_config
from cdiff.data.ledger import Ledger
from cdiff.data.store import create_run
from cdiff.downstream.scoring import score_photo
from cdiff.downstream.segmenter import build_segmenter, load_segmenter, save_segmenter, segmenter_config
from cdiff.errors import DataError, RunError
from cdiff.types import Decision, RoundResult
from jobs.export import main as export
from jobs.predict import main, predict
from tests.bare_run import Splits
from tests.jobs.test_export import files


def test_the_best_model_predicts_and_not_the_last_accepted_one(tmp_path):
    run = create_run(tmp_path / "home", "one", dump_config(Config()), Splits())
    with pytest.raises(RunError, match="no segmenter yet"):
        Ledger(run).best_segmenter()
    ledger = Ledger(run)
    real_only = Assessed("rev-0", {"pixel_ap": 0.5}, 0.3, (), 1.0, ())
    ledger.record("real_only", assessed=real_only)
    assert Ledger(run).best_segmenter() == ("rev-0", 0.3)
    for number, gain, chance in ((1, 0.02, 0.7), (2, -0.01, 0.2)):
        ledger.record(f"round-{number}", assessed=dataclasses.replace(real_only, revision=f"rev-{number}"))
        decision = Decision(True, "", gain, -0.1, 0.1, chance)
        ledger.commit_round(RoundResult(number, (), (), 0, (), f"rev-{number}", (), decision, ()), [])
    ledger.close()
    assert Ledger(run).best_segmenter() == ("rev-1", 0.3)


@pytest.fixture
def fitted(tmp_path):
    """A run whose segmenter knows nothing yet."""
    run = create_run(tmp_path / "home", "one", dump_config(Config()), Splits())
    config = Config().downstream
    ledger, revision = Ledger(run), save_segmenter(build_segmenter(config, 0), run.checkpoints, config)
    ledger.record("real_only", assessed=Assessed(revision, {}, 0.3, (), 1.0, ()))
    ledger.close()
    return run


def photo(path, side=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, side), 90, np.uint8)).save(path)


def test_hidden_files_and_folders_are_no_photos(fitted, tmp_path):
    for name in ("7.png", ".thumbs/7.png", "in/.cache/8.png"):
        photo(tmp_path / "new" / name)
    (tmp_path / "new" / "__MACOSX").mkdir()
    (tmp_path / "new" / "__MACOSX" / "._7.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "new" / "folder.png").mkdir()
    assert predict(fitted, tmp_path / "new", tmp_path / "out", None) == 1
    assert files(tmp_path / "out" / "masks") == ["7.png"]


def test_all_photos_that_cannot_be_read_are_named_before_anything_is_written(fitted, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        photo(tmp_path / "new" / name)
    whole = (tmp_path / "new" / "b.png").read_bytes()
    (tmp_path / "new" / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "new" / "c.png").write_bytes(b"no photo")
    with pytest.raises(
        DataError, match=r"(?s)2 of 3 photos under .*b\.png: damaged.*c\.png: not a PNG.*remove"
    ):
        predict(fitted, tmp_path / "new", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_an_exported_model_scores_as_the_run_does(fitted, tmp_path, capsys):
    """What a user does with the folder: load it, and score a photo of any size."""
    photo(tmp_path / "new" / "7.png", 52)
    predict(fitted, tmp_path / "new", tmp_path / "out", None)
    assert export([str(fitted.path), str(tmp_path / "model"), "--format", "model"]) == 0
    assert "with its threshold" in capsys.readouterr().out
    shutil.rmtree(fitted.path)
    model, config = load_segmenter(tmp_path / "model"), segmenter_config(tmp_path / "model")
    scores = score_photo(model, np.full((40, 52, 3), 90, np.uint8), config)
    wanted = np.asarray(Image.open(tmp_path / "out" / "scores" / "7.png"))
    assert np.array_equal((scores * 255).round().astype(np.uint8), wanted)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["threshold"] == 0.3


def test_a_model_is_not_exported_over_other_files_or_with_options_of_pairs(fitted, tmp_path, capsys):
    photo(tmp_path / "there" / "7.png")
    assert export([str(fitted.path), str(tmp_path / "there"), "--format", "model"]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export([str(fitted.path), str(tmp_path / "model"), "--format", "model", "--all-kept"])
    (next(fitted.checkpoints.iterdir()) / "model.safetensors").write_bytes(b"cut off")
    assert export([str(fitted.path), str(tmp_path / "model"), "--format", "model"]) == 2
    assert "cannot read the segmenter" in capsys.readouterr().err and not (tmp_path / "model").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_the_remedy(fitted, tmp_path, capsys):
    photo(tmp_path / "new" / "7.png")
    command = [str(fitted.path), str(tmp_path / "new"), "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cuda"]) == 2
    assert "say --device cpu" in capsys.readouterr().err
    assert main(command) == 0 and files(tmp_path / "out" / "masks") == ["7.png"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_segments_where_there_is_one_as_the_cpu_does(fitted, tmp_path):
    photo(tmp_path / "new" / "7.png")
    torch.cuda.reset_peak_memory_stats()
    predict(fitted, tmp_path / "new", tmp_path / "auto", None)
    assert torch.cuda.max_memory_allocated() > 0
    predict(fitted, tmp_path / "new", tmp_path / "cpu", None, "cpu")
    shown = [np.asarray(Image.open(tmp_path / side / "scores" / "7.png"), int) for side in ("auto", "cpu")]
    assert np.abs(shown[0] - shown[1]).max() <= 2


@pytest.mark.parametrize("given", [True, False])
def test_masks_are_white_where_scores_reach_the_threshold_that_is_given_or_the_models_own(
    fitted, tmp_path, given
):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    (tmp_path / "new").mkdir()
    Image.fromarray(image).save(tmp_path / "new" / "a.png")
    folder = next(fitted.checkpoints.iterdir())
    scores = score_photo(load_segmenter(folder), image, segmenter_config(folder))
    level = float(np.quantile(scores, 0.5, method="higher"))  # a score that is there
    with contextlib.closing(Ledger(fitted)) as ledger:
        own = 0.3 if given else level
        ledger.record("real_only", assessed=Assessed(folder.name, {}, own, (), 1.0, ()))
    predict(fitted, tmp_path / "new", tmp_path / "out", level if given else None)
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))
    assert np.array_equal(mask, np.where(scores >= level, 255, 0)) and 0 < (mask > 0).mean() < 1
    with (tmp_path / "out" / "scores.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert float(line["target_share"]) == pytest.approx((mask > 0).mean(), abs=1e-6)


def test_photos_that_differ_in_their_extension_have_masks_of_their_own(fitted, tmp_path):
    photos, out = ["7.jpg", "7.png", "8.jpg", "9.jpg", "9.jpg.png", "9.png", "in/7.bmp"], tmp_path / "out"
    for side, name in enumerate(photos, 40):
        photo(tmp_path / "new" / name, side)
    assert predict(fitted, tmp_path / "new", out, None) == len(photos)
    masks = ["7.jpg.png", "7.png.png", "8.png", "9.jpg.png", "9.jpg.png.png", "9.png.png", "in/7.png"]
    assert files(out / "masks") == files(out / "scores") == masks
    assert [Image.open(out / "masks" / name).width for name in masks] == list(range(40, 47))
    with (out / "scores.csv").open() as file:
        assert [line["photo"] for line in csv.DictReader(file)] == photos


def test_masks_of_a_run_in_a_bucket_go_where_the_user_says(bucket, tmp_path, monkeypatch, capsys):
    """The default is the run's own folder: of a run in a bucket that is a cache, which may be deleted at any time."""
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    run = create_run(f"{bucket}/{tmp_path.name}", "one", dump_config(Config()), Splits())
    assert main([run.url, str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err
