"""What can be seen of a target in the pixels of a finished photo, real or made: the measures that the gate bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy import ndimage

from cdiff.data.dataset import Dataset
from cdiff.generator.crops import to_resolution
from cdiff.types import Target

THUMBNAIL = 24  # side of a fingerprint
_QUANTILES = np.linspace(0.02, 0.98, 33)


def real_measures(
    dataset: Dataset, targets: Iterable[Target], foreground: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[str, dict[str, float]]]:
    """What can be seen of real targets, by "category/type": rows for `thresholds`.

    Args:
        foreground: uint8 [H, W, 3] -> bool [H, W], the object; called once per photo.
    """
    maps: dict[str, np.ndarray] = {}
    rows = []
    for target in sorted(targets, key=lambda target: target.target_id):
        image, mask = dataset.image(target.sample_id), dataset.target_mask(target.target_id)
        if target.sample_id not in maps:
            maps = {target.sample_id: foreground(image)}  # sorted: a photo's targets follow each other
        rows.append((f"{target.category}/{target.type}", _seen(image, mask, maps[target.sample_id])))
    return rows


def measure_pair(
    image: np.ndarray, background: np.ndarray, mask: np.ndarray, region: np.ndarray, foreground: np.ndarray
) -> dict[str, float]:
    """What the pixels of a finished photo say; the caller adds `label_iou`, `reference_distance` and `loss`.

    Args:
        image, background: uint8 [H, W, 3]; mask: bool [H, W] the new target alone.
        region: bool [H, W], where the generator might paint; foreground: bool [H, W], the object on the background.
    Returns:
        area        pixels
        visible     see `visibility`
        changed     mean absolute difference to the background inside the mask, share of full scale
        outside     largest absolute difference to the background outside the region, grey levels: must be 0
        on_object   share of the mask on the object
        sharpness   see `sharpness`
    """
    difference = np.maximum(image, background) - np.minimum(image, background)
    changed = float(difference[mask].mean() / 255) if mask.any() else 0.0
    difference[region] = 0
    return {**_seen(image, mask, foreground), "changed": changed, "outside": float(difference.max(initial=0))}


def visibility(image: np.ndarray, mask: np.ndarray) -> float:
    """How far the colours inside a mask differ from those of the ring around it, in [0, 1].

    Mean over channels of the Wasserstein-1 distance between the two sets of values, as a share of full scale: a shift of
    the mean counts, and so does a texture of equal mean.

    Args:
        image: uint8 [H, W, 3]; mask: bool [H, W]. An empty mask, or one without a ring, gives 0.
    """
    place = _surroundings(mask)
    colours, inside = image[place].astype(np.float32), mask[place]
    ring = _ring(inside)
    if not ring.any():
        return 0.0
    here, there = (np.quantile(colours[part], _QUANTILES, axis=0) for part in (inside, ring))
    return float(np.abs(here - there).mean() / 255)


def sharpness(image: np.ndarray, mask: np.ndarray) -> float:
    """High-frequency energy along a mask's outline relative to the ring around it, at the photo's own size.

    Mean |grey - Gaussian of 0.7 px| over the outline, 2 px to either side, divided by that of the ring, with a quarter of a
    grey level added to both. The outline, not the whole inside: blowholes and stains are smooth within, and only their
    border tells a sharp photo from an enlarged thumbnail. 1 where there is no ring to compare with, 0 for an empty mask.
    Arguments as for `visibility`.
    """
    place = _surroundings(mask)
    grey, inside = image[place].mean(axis=2, dtype=np.float32), mask[place]
    ring = _ring(inside)
    if not inside.any() or not ring.any():
        return float(inside.any())
    outline = ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_erosion(inside, iterations=2)
    fine = np.abs(grey - ndimage.gaussian_filter(grey, 0.7))
    return float((fine[outline].mean() + 0.25) / (fine[ring].mean() + 0.25))


def fingerprint(crop: np.ndarray) -> bytes:
    """24 x 24 grey thumbnail of a crop, uint8 [h, w, 3], row by row."""
    small = to_resolution(crop.mean(axis=2, dtype=np.float32), THUMBNAIL)[0].numpy()
    return np.clip(np.rint(small), 0, 255).astype(np.uint8).tobytes()


def _seen(image: np.ndarray, mask: np.ndarray, foreground: np.ndarray) -> dict[str, float]:
    return {
        "area": float(mask.sum()),
        "visible": visibility(image, mask),
        "on_object": float(foreground[mask].mean()) if mask.any() else 0.0,
        "sharpness": sharpness(image, mask),
    }


def _surroundings(mask: np.ndarray) -> tuple[slice, slice]:
    """The mask's box with room for the ring: everything is measured there, whatever the photo's size."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return slice(0, 1), slice(0, 1)
    reach = 7 + max(int(np.ptp(rows)), int(np.ptp(columns))) // 3
    return (
        slice(max(0, int(rows[0]) - reach), int(rows[-1]) + 1 + reach),
        slice(max(0, int(columns[0]) - reach), int(columns[-1]) + 1 + reach),
    )


def _ring(mask: np.ndarray) -> np.ndarray:
    """A band around the mask, a fifth of its longer side wide, 3 px at least, off the soft edge; empty for an empty mask."""
    if not mask.any():
        return np.zeros_like(mask)
    side = max(int(np.ptp(axis)) + 1 for axis in np.nonzero(mask))
    gap = max(1.0, 0.04 * side)
    distance = ndimage.distance_transform_edt(~mask)
    return (distance > gap) & (distance <= gap + max(3.0, side / 5))
