"""Photos, and score maps made up for them."""

import numpy as np
import pytest
from PIL import Image

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.evaluation.tally import tally
from cdiff.types import MaskFile, Sample

SHAPE = (32, 40)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """24 photos, each its own object: eight with a dent, eight with a pit, eight normals."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    samples = []
    for index in range(24):
        type, stem = ("dent", "pit", "")[index % 3], f"p{index:02d}"
        mask = np.zeros(SHAPE, np.uint8)
        if type:
            top, left = rng.integers(2, 16, 2)
            mask[top : top + 9, left : left + 12] = 1
        for name, pixels in ((stem, np.full(SHAPE, 128, np.uint8)), (f"{stem}_mask", mask)):
            Image.fromarray(pixels).save(folder / f"{name}.png")
        files = (MaskFile(str(folder / f"{stem}_mask.png"), ((1, type),)),) if type else ()
        photo = str(folder / f"{stem}.png")
        samples.append(
            Sample(
                f"metal/{stem}",
                "metal",
                (type,) if type else (),
                stem,
                photo,
                files,
                SHAPE[1],
                SHAPE[0],
                "L",
                stem,
            )
        )
    return Dataset(samples, DataConfig())


@pytest.fixture(scope="session")
def ids(dataset):
    return [sample.sample_id for sample in dataset.samples]


@pytest.fixture(scope="session")
def maps_of(dataset):
    def make(skill, seed, only=None):
        """Logits of noise plus `skill` inside targets (of the `only` type, if given)."""
        rng, out = np.random.default_rng(seed), {}
        for sample in dataset.samples:
            helped = skill * dataset.mask(sample.sample_id) * (only is None or only in sample.types)
            noise = rng.normal(0, 1.5, SHAPE)
            out[sample.sample_id] = (1 / (1 + np.exp(3 - helped - noise))).astype(np.float32)
        return out

    return make


@pytest.fixture(scope="session")
def tally_of(dataset, ids, maps_of):
    def make(skill, seed=0, only_ids=None, **options):
        maps = maps_of(skill, seed, **options)
        return tally(((name, maps[name]) for name in only_ids or ids), dataset)

    return make
