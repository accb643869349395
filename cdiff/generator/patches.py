"""Training crops: every target once as a generous patch, then any number of augmented crops from it, a batch at a time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cdiff.config import GeneratorConfig
from cdiff.data.dataset import Dataset
from cdiff.generator.crops import cut, shift_inside, square_around, to_resolution
from cdiff.types import Target
from cdiff.workers import WHOLE, Part

_PATCH = 2  # patch side in generator resolutions
_COVER = 1.5  # patch side in largest crop sides: room for shifts and turns
_EMPTY_CROPS = 256


@dataclass
class Patches:
    """All training targets and some target-free crops, as uint8 patches of one size P."""

    images: torch.Tensor  # [N, 3, P, P]
    masks: torch.Tensor  # [N, 1, P, P]
    centres: np.ndarray  # [N, 2] of the targets, (x, y) on the patch, in [-1, 1]
    longer: np.ndarray  # [N] longer side of the target in patch pixels
    margins: np.ndarray  # [N, 2] allowed crop side / longer side: min_side and the photo's size count
    kinds: list[str]  # category/type
    empty: torch.Tensor  # [M, 3, R, R]


def cut_patches(
    dataset: Dataset,
    targets: list[Target],
    photos: list[str],
    config: GeneratorConfig,
    rng: np.random.Generator,
) -> Patches:
    """Cut every target, and target-free squares of like sizes from the given photos.

    A patch lies on the photo as far as it fits, and beyond the border mask and photo are mirrored alike: no target stands there without its
    mask.
    """
    size = config.resolution * _PATCH
    images, masks, centres, longer, margins, kinds = [], [], [], [], [], []
    for target in targets:
        photo = dataset.image(target.sample_id)
        left, top, right, bottom = target.box
        x, y = (left + right) / 2, (top + bottom) / 2
        limit = max(photo.shape[:2])
        sides = [square_around(x, y, target.longer_side, m, config.min_side, limit) for m in config.margin]
        low, high = (box[2] - box[0] for box in sides)
        wide = int(round(high * _COVER))
        corner = int(x - wide / 2), int(y - wide / 2)
        box = shift_inside((*corner, corner[0] + wide, corner[1] + wide), photo.shape[1], photo.shape[0])
        mask = dataset.target_mask(target.target_id).astype(np.float32) * 255
        images.append(_bytes(to_resolution(cut(photo, box).astype(np.float32), size)))
        masks.append(_bytes(to_resolution(cut(mask, box), size)))
        centres.append((2 * (x - box[0]) / wide - 1, 2 * (y - box[1]) / wide - 1))
        longer.append(target.longer_side * size / wide)
        margins.append((low / target.longer_side, high / target.longer_side))
        kinds.append(f"{target.category}/{target.type}")
    empty = _empty_crops(dataset, targets, photos, config, rng)
    places = np.array(centres), np.array(longer), np.array(margins)
    return Patches(torch.stack(images), torch.stack(masks), *places, kinds, empty)


def balanced(kinds: list[str]) -> np.ndarray:
    """Draw probabilities that favour rare types: by the square root of the type's count."""
    counts = Counter(kinds)
    weights = np.array([1 / math.sqrt(counts[kind]) for kind in kinds])
    return weights / weights.sum()


def augmented(
    patches: Patches, index: np.ndarray, resolution: int, rng: np.random.Generator, part: Part = WHOLE
) -> tuple[torch.Tensor, torch.Tensor]:
    """One augmented crop of each indexed patch: turned, mirrored, shifted, and a little brighter or darker.

    Args:
        part: that is made of the indexed ones; what is drawn for the others is drawn all the same.
    Returns:
        Images [B, 3, R, R] in [-1, 1] and masks [B, 1, R, R] in [0, 1].
    """
    count, size = len(index), patches.images.shape[-1]
    low, high = patches.margins[index].T
    side = patches.longer[index] * rng.uniform(low, high) * rng.uniform(0.9, 1.1, count)
    half = np.minimum(side, size) / size  # crop's half side in grid units of [-1, 1]
    angle = rng.uniform(-0.25, 0.25, count) + rng.integers(0, 2, count) * np.pi
    flip = rng.choice([-1.0, 1.0], count)
    room = np.maximum(0, half - patches.longer[index] / size) * 0.8
    shift = rng.uniform(-1, 1, (2, count)) * room
    # as far as a crop's centre may lie from the patch's without that the crop reaches beyond it
    free = 1 - half
    shift = np.clip(patches.centres[index].T + shift, -free, free)
    cos, sin = np.cos(angle) * half, np.sin(angle) * half
    theta = np.stack(
        [np.stack([cos * flip, -sin, shift[0]], -1), np.stack([sin * flip, cos, shift[1]], -1)], 1
    )
    gain = torch.from_numpy(part.cut(rng.uniform(0.9, 1.1, (count, 1, 1, 1))).astype(np.float32))
    bias = torch.from_numpy(part.cut(rng.uniform(-0.08, 0.08, (count, 1, 1, 1))).astype(np.float32))
    index, theta = part.cut(index), part.cut(theta)
    grid = F.affine_grid(
        torch.from_numpy(theta.astype(np.float32)),
        [len(index), 3, resolution, resolution],
        align_corners=False,
    )
    stack = torch.cat([patches.images[index], patches.masks[index]], dim=1).float()
    crops = F.grid_sample(stack, grid, padding_mode="reflection", align_corners=False)
    images = ((crops[:, :3] / 127.5 - 1) * gain + bias).clamp(-1, 1)
    return images, crops[:, 3:] / 255


def regions(masks_B1RR: torch.Tensor, rng: np.random.Generator, part: Part = WHOLE) -> torch.Tensor:
    """Where the generator may paint: the mask dilated by a random reach, sometimes its box; {0, 1} floats.

    Args:
        part: of a batch, that the masks are.
    """
    out = []
    resolution = masks_B1RR.shape[-1]
    low, high = max(2, resolution // 24), max(4, resolution // 6)
    drawn = [(int(rng.integers(low, high)), rng.random()) for _ in range(len(masks_B1RR) * part.of_parts)]
    # a hairline fades where it is shrunk: it is looked for at half of what is left of it
    levels = (masks_B1RR.amax(dim=(1, 2, 3), keepdim=True) / 2).clamp(1e-6, 0.25)
    for mask, (reach, chance) in zip((masks_B1RR > levels).float(), part.cut(drawn), strict=True):
        side = 2 * reach + 1  # along one axis, then the other: of a square as of its rows and columns
        region = F.max_pool2d(mask[None], (1, side), stride=1, padding=(0, reach))
        region = F.max_pool2d(region, (side, 1), stride=1, padding=(reach, 0))[0]
        if chance < 0.2 and bool(mask.any()):
            rows, columns = region[0].any(dim=1).nonzero(), region[0].any(dim=0).nonzero()
            region = torch.zeros_like(region)
            region[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = 1
        out.append(region)
    return torch.stack(out)


def _empty_crops(
    dataset: Dataset,
    targets: list[Target],
    photos: list[str],
    config: GeneratorConfig,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Squares without any target, of the targets' sizes; a photo that is all target gives its least covered square."""
    crops = []
    for _ in range(_EMPTY_CROPS if photos else 0):
        target = targets[int(rng.integers(len(targets)))]
        own = [
            p for p in photos[:: max(1, len(photos) // 64)] if dataset.sample(p).category == target.category
        ]
        name = (own or photos)[int(rng.integers(len(own or photos)))]
        photo, mask = dataset.image(name), dataset.mask(name)
        height, width = mask.shape
        side = min(max(config.min_side, int(target.longer_side * rng.uniform(*config.margin))), height, width)
        corners = [
            (int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))) for _ in range(8)
        ]
        x, y = min(corners, key=lambda c: mask[c[1] : c[1] + side, c[0] : c[0] + side].mean())
        crops.append(
            to_resolution(cut(photo, (x, y, x + side, y + side)).astype(np.float32), config.resolution)
        )
    if not crops:
        return torch.zeros(0, 3, config.resolution, config.resolution)
    return torch.stack(crops) / 127.5 - 1


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.round().clamp(0, 255).to(torch.uint8)
