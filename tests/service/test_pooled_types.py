"""A run that pooled a rare type is served, measured and made again with its own types and target ids."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from actors.endpoint import TOKEN, application
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_sources
from cdiff.data.photos import photos_of
from cdiff.data.run import Run
from cdiff.data.splits import make_splits
from cdiff.errors import DataError
from cdiff.service.studio import Studio
from jobs import serve_load
from jobs.export import main
from tests.conftest import write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ten photos with a dark pit; the first two have a bright scratch, too."""
    root, rng = tmp_path_factory.mktemp("pooled") / "metal", np.random.default_rng(0)
    for number in range(10):
        image = rng.integers(90, 150, (80, 96, 3)).astype(np.uint8)
        places = {"pit": np.s_[10:24, 10 + number : 24 + number]}
        if number < 2:
            places["scratch"] = np.s_[50:54, 40:66]
        for kind, place in places.items():
            mask = np.zeros((80, 96), np.uint8)
            mask[place] = 255
            image[place] = 20 if kind == "pit" else 235
            (root / "masks" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / kind / f"{number}.png")
        (root / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(root / "images" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory, tiny_generator, tiny_config) -> Run:
    samples, manifest = make_splits(
        read_sources([str(data)], None, tiny_config.data), tiny_config.data, folds=2
    )
    photos = Dataset(samples, tiny_config.data)
    return write_run(tmp_path_factory.mktemp("home"), photos, manifest, tiny_generator, tiny_config, "other")


def test_the_types_of_the_service_are_those_of_the_run(run, data) -> None:
    (photos,) = photos_of([run], [str(data)], None)
    studio = Studio(run, photos)
    shown = [row for row in studio.manifest.rows if row.split == "train"]
    pits = sum("pit" in row.types for row in shown)
    assert studio.types == {("metal", "other"): 2, ("metal", "pit"): pits}


def test_pairs_of_a_pooled_type_are_made_again_byte_for_byte(run, data, tmp_path, capsys) -> None:
    told = [str(run.path), str(tmp_path / "out"), "--regenerate", "--data", str(data)]
    assert main(told) == 0, capsys.readouterr().err
    assert "made again, 3 of 3 are equal" in capsys.readouterr().out


def test_pairs_that_come_out_otherwise_are_counted_and_fail_the_command(run, data, tmp_path, capsys) -> None:
    other = shutil.copytree(run.path, tmp_path / "home" / "runs" / "one")
    told = yaml.safe_load((other / "config.yaml").read_text())
    told["generator"]["dilation"] = 0.4  # of what was trained with another
    (other / "config.yaml").write_text(yaml.safe_dump(told))
    assert main([str(other), str(tmp_path / "out"), "--regenerate", "--data", str(data)]) == 2
    shown = capsys.readouterr()
    assert "made again, 0 of 3 are equal" in shown.out and "3 pairs in" in shown.err


def test_other_photos_than_the_runs_are_refused_before_anything_is_served(
    run, data, tmp_path, monkeypatch, capsys
) -> None:
    few = shutil.copytree(data, tmp_path / "metal")
    monkeypatch.setenv(TOKEN, "a-token-of-some-length")
    assert application({"run": str(run.path), "data": str(few)})
    (few / "images" / "9.png").unlink()
    remedy = r"1 of the run's 10 photos .*first: metal/images/9\. Give --data as the loop was given it"
    with pytest.raises(DataError, match=remedy):
        application({"run": str(run.path), "data": str(few)})
    with pytest.raises(DataError, match=remedy):
        serve_load.run(["--data", str(few)], str(run.path), 1)
    assert main([str(run.path), str(tmp_path / "out"), "--regenerate", "--data", str(few)]) == 2
    assert re.search(remedy, capsys.readouterr().err)
