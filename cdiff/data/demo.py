"""The procedural demo data set: metal plates with defects, and tissue with polyps. Nothing is downloaded.

    metal/   an MVTec AD tree (train/good, test/good, test/<type>, ground_truth/<type>) and a groups.json: two photos
             per plate, taken at different places of it in slightly different light
    tissue/  image + mask folders; every photo shows at least one polyp, as in the public polyp sets

The same routines draw any number of further photos from the same distribution (`fresh_samples`): the control arm that
shows what real data would have brought.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdiff.config import DataConfig
from cdiff.data import demo_shapes, demo_surfaces, demo_tissue
from cdiff.data.demo_surfaces import DEFECTS, draw_plate, draw_surface
from cdiff.data.demo_tissue import draw_tissue
from cdiff.data.images import encode_png
from cdiff.errors import StorageError
from cdiff.types import content_hash

KINDS: tuple[tuple[str, str], ...] = (*(("metal", name) for name in DEFECTS), ("tissue", "target"))
PHOTOS_PER_PLATE = 2

_MARKER = "COMPLETE"
# First words of every seed: the photos of the set and fresh ones never share a stream.
_SET, _FRESH = 0, 1
_CODES = {name: code for code, name in enumerate(("good", *DEFECTS, "target", "plate"))}


class DemoSample(NamedTuple):
    """One photo in memory."""

    image: NDArray[np.uint8]  # [side, side, 3]
    mask: NDArray[np.bool_]  # [side, side]
    category: str
    type: str  # "good" for a normal


def make_demo(folder: str | Path, config: DataConfig, seed: int) -> list[str]:
    """Write the demo set below a folder, or find it there.

    It lies in a subfolder named by the hash of the drawing code, the settings and the seed, so that an older version
    is never mistaken for it; that subfolder appears at once when everything is written.

    Args:
        config: `demo_images` photos with targets per domain (and as many metal normals) of `demo_side` pixels.
        seed: equal seeds give equal bytes.
    Returns:
        The paths of the two sources, metal and tissue.
    Raises:
        StorageError: nothing can be written there.
    """
    folder = Path(folder)
    identity = content_hash([_code_hash(), config.demo_images, config.demo_side, seed])
    final = folder / f"demo-{identity}"
    sources = [str(final / "metal"), str(final / "tissue")]
    if _complete(final):
        return sources
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".demo-", dir=folder))
    except OSError as error:
        raise StorageError(
            f"cannot write {folder}: {error.strerror}. Choose another --home (or CDIFF_HOME)."
        ) from None
    try:
        _write_metal(scratch / "metal", config, seed)
        _write_tissue(scratch / "tissue", config, seed)
        (scratch / _MARKER).write_text(str(_count(scratch)), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)  # an incomplete one: somebody deleted files in it
        try:
            scratch.rename(final)
        except OSError:
            if not _complete(final):  # else another process was faster, with the same bytes
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sources


def fresh_samples(
    n: int, seed: int, side: int = 128, kinds: tuple[tuple[str, str], ...] | None = None
) -> list[DemoSample]:
    """Draw n new photos from the distribution of the demo set, none of them in any set that `make_demo` writes.

    Args:
        side: of a photo, pixels.
        kinds: (category, type) of each photo in turn, repeated up to n; None: half metal, its types in turn, and
            half tissue, as in the set.
    Raises:
        ValueError: an unknown kind.
    """
    if kinds is None:
        kinds = tuple(kind for metal in KINDS[:-1] for kind in (metal, KINDS[-1]))
    for kind in kinds:
        if kind not in (*KINDS, ("metal", "good")):
            raise ValueError(
                f"the demo has no {'/'.join(kind)}; it has {', '.join('/'.join(k) for k in KINDS)}"
            )
    return [_draw(*kinds[i % len(kinds)], side, (_FRESH, seed), i, plate=i) for i in range(n)]


def _draw(
    category: str, type_name: str, side: int, stream: tuple[int, int], index: int, plate: int
) -> DemoSample:
    rng = np.random.default_rng((*stream, _CODES[type_name], index))
    if category == "tissue":
        image, mask = draw_tissue(rng, side)
    else:
        material = draw_plate(np.random.default_rng((*stream, _CODES["plate"], _CODES[type_name], plate)))
        image, mask = draw_surface(rng, material, type_name, side)
    return DemoSample(image, mask, category, type_name)


def _write_metal(folder: Path, config: DataConfig, seed: int) -> None:
    groups: dict[str, int] = {}
    plates = 0
    shares = [len(part) for part in np.array_split(np.arange(config.demo_images), len(DEFECTS))]
    for type_name, count in (("good", config.demo_images), *zip(DEFECTS, shares, strict=True)):
        for index in range(count):
            plate = index // PHOTOS_PER_PLATE
            sample = _draw("metal", type_name, config.demo_side, (_SET, seed), index, plate)
            stem = f"{index:03d}"
            # Plates stay whole: an odd photo in the middle goes with its pair.
            training = type_name == "good" and plate < -(-count // PHOTOS_PER_PLATE) // 2
            _save(folder / ("train" if training else "test") / type_name / f"{stem}.png", sample.image)
            if type_name != "good":
                _save(folder / "ground_truth" / type_name / f"{stem}_mask.png", sample.mask)
            groups[f"{type_name}/{stem}.png"] = plates + plate
        plates += -(-count // PHOTOS_PER_PLATE)
    (folder / "groups.json").write_text(json.dumps(groups, indent=1), encoding="utf-8")


def _write_tissue(folder: Path, config: DataConfig, seed: int) -> None:
    for index in range(config.demo_images):
        sample = _draw("tissue", "target", config.demo_side, (_SET, seed), index, plate=0)
        _save(folder / "images" / f"{index:03d}.png", sample.image)
        _save(folder / "masks" / f"{index:03d}.png", sample.mask)


def _save(path: Path, array: NDArray[np.uint8] | NDArray[np.bool_]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(array, "L" if array.dtype == np.bool_ else "RGB"))


def _complete(folder: Path) -> bool:
    marker = folder / _MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8") == str(_count(folder))


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.png")) + sum(1 for _ in folder.rglob("groups.json"))


def _code_hash() -> str:
    """Of the sources that decide the pixels: whoever changes them gets a new set without bumping a version."""
    files = (demo_shapes.__file__, demo_surfaces.__file__, demo_tissue.__file__, __file__)
    return hashlib.sha256(b"".join(Path(name).read_bytes() for name in files)).hexdigest()
