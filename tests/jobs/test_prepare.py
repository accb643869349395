"""What a user sees of the photos before anything is trained."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from jobs.prepare import main


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Twelve photos with a pit each, of 20 x 6 pixels on 100 x 80, and three without any."""
    monkeypatch.setenv("CDIFF_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    for index in range(15):
        pixels, mask = rng.integers(90, 160, (80, 100, 3)).astype(np.uint8), np.zeros((80, 100), np.uint8)
        if index < 12:
            mask[30:36, 40 + index : 60 + index] = 255
        name = f"{index} <b>.png"
        for kind, shown in (("images", pixels), ("masks", mask)):
            (tmp_path / "plate" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown).save(tmp_path / "plate" / kind / name)
    return tmp_path / "plate"


def _page(path: Path) -> tuple[str, list[np.ndarray]]:
    html = path.read_text()
    pictures = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", html)]
    return html, [np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",))) for data in pictures]


def test_types_targets_and_outlines_are_shown_and_nothing_is_begun(folder, tmp_path, capsys) -> None:
    assert main(["--data", str(folder), "--out", str(tmp_path / "data.html")]) == 0
    told = capsys.readouterr().out
    row = next(line.split() for line in told.splitlines() if line.startswith("plate/"))
    assert sum(map(int, row[1].split("/"))) == 12 and row[1] == row[2] == row[3]
    assert row[4:] == ["20", "px", "(20%)", "20", "px"] and "3 objects" in told
    html, pictures = _page(tmp_path / "data.html")
    assert "15 photos, 3 without a target; 12 targets of 1 type." in html
    assert "<b>.png" not in html and "&lt;b&gt;" in html, "names of files are no markup"
    assert len(pictures) == 8 + 3, "some of the type, and the normal ones"
    green = [(picture.astype(int) @ (-1, 2, -1) > 200).mean() for picture in pictures]
    assert all(share > 0.002 for share in green[:8]) and not any(green[8:])
    assert not ray.is_initialized() and not (tmp_path / "home").exists()


def test_photos_that_the_loop_would_refuse_are_shown_all_the_same(folder, tmp_path, capsys) -> None:
    for index in range(2, 12):
        (folder / "masks" / f"{index} <b>.png").unlink()
        (folder / "images" / f"{index} <b>.png").unlink()
    assert main(["--data", str(folder), "--out", str(tmp_path / "data.html")]) == 2
    assert "no photo with a target in the" in capsys.readouterr().err
    assert len(_page(tmp_path / "data.html")[1]) == 5


def test_what_the_loop_takes_is_taken_and_a_wrong_setting_named(folder, tmp_path, capsys) -> None:
    wanted = [
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "data.html"),
        "--run",
        "x",
        "data.train_shar=0.5",
    ]
    assert main(wanted) == 2
    assert "data.train_share" in capsys.readouterr().err
    assert main([*wanted[:-1], "data.train_share=0.5", "--retune-every", "2"]) == 0
