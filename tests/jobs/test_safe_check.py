"""SAFE on a category that the generator never saw, with a tiny generator."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cdiff.data.s3 import READ, clients
from cdiff.errors import DataError
from jobs.safe_check import run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two MVTec categories: dark pits and bright bars on grey."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for category in ("metal", "wood"):
        for kind, count in (("pit", 4), ("bar", 4), ("good", 3)):
            for number in range(count):
                image, mask = (
                    rng.integers(90, 150, (72, 72, 3)).astype(np.uint8),
                    np.zeros((72, 72), np.uint8),
                )
                y, x = rng.integers(15, 45, 2)
                if kind == "pit":
                    mask[y : y + 14, x : x + 14] = 255
                    image[mask > 0] = 20
                elif kind == "bar":
                    mask[y : y + 5, x : x + 24] = 255
                    image[mask > 0] = 235
                folder = root / category / ("train/good" if kind == "good" else f"test/{kind}")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{number:03d}.png")
                if kind != "good":
                    masks = root / category / "ground_truth" / kind
                    masks.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(masks / f"{number:03d}_mask.png")
    return root


@pytest.fixture
def arguments(data, tmp_path, tiny_overrides):
    folders = [word for name in ("metal", "wood") for word in ("--data", str(data / name))]
    return [*folders, "--home", str(tmp_path), *tiny_overrides, "wasm.shard=4"]


def test_pairs_and_scenes_of_an_unseen_category_are_measured(arguments):
    result, line = run(arguments, ["wood"], pairs=4)
    # two photos of each type are held out: the nearest of another object may be of the type
    assert result["trained_on"] == {"categories": ["metal"], "targets": 4}
    assert result["held_out_targets"] == 4
    assert 0 <= result["seen"]["safe"]["retrieval_at_1"] <= 1
    unseen = result["unseen"]["wood"]
    assert unseen["targets"] == 8 and unseen["pairs"]["made"] == 8
    assert 0 <= unseen["pairs"]["valid_share"] <= 1 and 0 <= unseen["pairs"]["label_iou"] <= 1
    assert sum(unseen["pairs"]["reasons"].values()) == 8
    for found in (result["seen"], unseen):
        assert set(found) >= {"safe", "plain"}
        assert -1 <= found["safe"]["likeness"] <= 2
    assert "wood, never seen" in line
    again, _ = run(arguments, ["wood"], pairs=4)  # nothing is trained or made anew
    assert again == result


def test_other_code_does_not_take_what_this_one_made(arguments, monkeypatch):
    here, _ = run(arguments, ["wood"], pairs=1)
    monkeypatch.setattr("jobs.safe_check.code_hash", lambda *folders: "changed")
    there, _ = run(arguments, ["wood"], pairs=1)
    assert there["run"] != here["run"]


def test_an_unknown_category_is_named_with_those_that_are_there(arguments):
    with pytest.raises(DataError, match="no category glass in the data; there are metal, wood"):
        run(arguments, ["glass"], pairs=1)
    with pytest.raises(DataError, match="nothing is left to train"):
        run(arguments, ["metal", "wood"], pairs=1)


def test_a_near_copy_of_a_held_out_object_does_not_train(data, tmp_path, tiny_overrides):
    root = shutil.copytree(data, tmp_path / "data")
    pits, masks = root / "metal" / "test" / "pit", root / "metal" / "ground_truth" / "pit"
    darker = (np.asarray(Image.open(pits / "003.png")) * 0.95).astype(np.uint8)
    Image.fromarray(darker).save(pits / "004.png")
    shutil.copy(masks / "003_mask.png", masks / "004_mask.png")
    # the last bar once more, as a photo of the other category: of an object that nobody is to have seen
    bar = root / "metal" / "test" / "bar" / "003.png"
    shutil.copy(bar, root / "wood" / "test" / "bar" / "004.png")
    mask = root / "metal" / "ground_truth" / "bar" / "003_mask.png"
    shutil.copy(mask, root / "wood" / "ground_truth" / "bar" / "004_mask.png")
    folders = [word for name in ("metal", "wood") for word in ("--data", str(root / name))]
    told = [*folders, "--home", str(tmp_path), *tiny_overrides, "wasm.shard=4"]
    result, _ = run(told, ["wood"], pairs=1)
    # the last two pits, one with its copy, and of three bars (the last is away) the last
    assert result["held_out_targets"] == 4
    assert result["trained_on"]["targets"] == 4


def test_types_of_which_one_object_can_be_held_out_have_no_retrieval(data, tmp_path, tiny_overrides):
    root = shutil.copytree(data, tmp_path / "data")
    for kind in ("pit", "bar"):
        (root / "metal" / "test" / kind / "003.png").unlink()
        (root / "metal" / "ground_truth" / kind / "003_mask.png").unlink()
    folders = [word for name in ("metal", "wood") for word in ("--data", str(root / name))]
    told = [*folders, "--home", str(tmp_path), *tiny_overrides, "wasm.shard=4"]
    result, _ = run(told, ["wood"], pairs=1)
    assert result["held_out_targets"] == 2 and result["trained_on"]["targets"] == 4
    assert result["seen"]["safe"]["retrieval_at_1"] is None
    assert result["unseen"]["wood"]["safe"]["retrieval_at_1"] is not None


def test_photos_may_lie_in_a_bucket(data, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    for path in (data / "metal").rglob("*.png"):
        clients(READ)[0].upload_file(str(path), "cdiff", f"safe/{path.relative_to(data).as_posix()}")
    with pytest.raises(DataError, match="no category glass in the data; there are metal"):
        run(["--data", f"{bucket}/safe/metal", "--home", str(tmp_path)], ["glass"], pairs=1)
