"""Small data sets of every layout, written into a test's folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


def photo(seed: int, height: int = 48, width: int = 64, colour: bool = False) -> np.ndarray:
    """A textured photo, unlike that of any other seed."""
    rng = np.random.default_rng(seed)

    def layer(side: int, low: int, high: int) -> np.ndarray:
        cells = rng.integers(low, high, (height // side + 1, width // side + 1, 3), dtype=np.uint8)
        return np.asarray(
            Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16
        )

    values = (layer(max(height, width) // 8, 40, 175) + layer(4, 0, 60)).clip(0, 255).astype(np.uint8)
    return values if colour else np.ascontiguousarray(values[..., 0])


def blob(top: int = 10, left: int = 12, side: int = 9, value: int = 255, shape=(48, 64)) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def mvtec(root: Path, types: dict[str, int], good: int = 4, test_good: int = 2, seed: int = 0) -> Path:
    """An MVTec category: type -> number of photos."""
    for index in range(good):
        save(root / "train" / "good" / f"{index:03}.png", photo(seed + index))
    for index in range(test_good):
        save(root / "test" / "good" / f"{index:03}.png", photo(seed + 1000 + index))
    for number, (type, count) in enumerate(types.items()):
        for index in range(count):
            shown = photo(seed + 2000 + 100 * number + index)
            save(root / "test" / type / f"{index:03}.png", shown)
            save(root / "ground_truth" / type / f"{index:03}_mask.png", blob(top=5 + index % 20))
    return root


def pairs(
    images: Path,
    masks: Path,
    count: int,
    seed: int = 0,
    suffix: str = "",
    extension: str = "png",
    mask: str = "png",
) -> None:
    """Image + mask folders."""
    for index in range(count):
        save(images / f"p{index}.{extension}", photo(seed + index, colour=True))
        save(masks / f"p{index}{suffix}.{mask}", blob(top=5 + index % 20))


@pytest.fixture(scope="session")
def trees() -> SimpleNamespace:
    """The functions above: tests cannot import their neighbours in pytest's importlib mode."""
    return SimpleNamespace(photo=photo, blob=blob, save=save, mvtec=mvtec, pairs=pairs)
