"""A small data set on disk: one photo with a dent, one with a dent and a scratch, one normal."""

import numpy as np
import pytest
from PIL import Image

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.types import MaskFile, Sample


def _write(folder, stem, boxes, shape):
    grey = np.full(shape, 120, dtype=np.uint8) + np.random.default_rng(0).integers(
        0, 9, shape, dtype=np.uint8
    )
    values = np.zeros(shape, dtype=np.uint8)
    types = sorted(boxes)
    for value, type in enumerate(types, start=1):
        left, top, right, bottom = boxes[type]
        values[top:bottom, left:right] = value
        grey[top:bottom, left:right] += 60
    Image.fromarray(grey).save(folder / f"{stem}.png")
    Image.fromarray(values).save(folder / f"{stem}_mask.png")
    meaning = tuple((value, type) for value, type in enumerate(types, start=1))
    files = (MaskFile(str(folder / f"{stem}_mask.png"), meaning),) if types else ()
    return Sample(
        f"metal/{stem}",
        "metal",
        tuple(types),
        f"tile-{stem}",
        str(folder / f"{stem}.png"),
        files,
        shape[1],
        shape[0],
        "L",
        stem,
    )


@pytest.fixture
def small_dataset(tmp_path):
    return Dataset(
        [
            _write(tmp_path, "a", {"dent": (10, 12, 20, 24)}, (60, 80)),
            _write(tmp_path, "b", {"dent": (30, 5, 50, 20), "scratch": (2, 40, 70, 44)}, (50, 90)),
            _write(tmp_path, "n", {}, (40, 40)),
        ],
        DataConfig(),
    )
