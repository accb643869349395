"""Crop a square, lay a real target into it, and paste the generated crop back without a seam.

With D the resize of a crop to the generator's resolution, U the way back, b the background crop, p the same with the
real target pasted in, and g the generated crop, the photo receives inside the feathered region

    b + feather * ( (1 - detail) * U(g - D(b))  +  detail * ( L(g - D(b)) + (p - b) - L(D(p - b)) ) )

where L shrinks once more by BAND before it goes back: a small generator is trusted with the coarse bands, the real
target gives the fine ones. Before that, g takes on the tint of D(p), as far as detail says: a small generator that is
guided by a reference drifts towards the tint of the reference's surface. What g has faded of the target is given back
as well, band by band. So the background keeps its own texture, the target its fine detail, and start_strength 0 (g = D(p), detail 1)
is exactly copy-paste. Outside the region the photo is untouched, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from cdiff.generator.blend import blended
from cdiff.generator.crops import cut, resized, shift_inside, square_around, to_resolution, to_side
from cdiff.types import Box, Pose, Target

BAND = 2  # how much coarser than the generator's resolution is the band that it decides while the real detail is kept
_FADING = 3  # bands, each half as fine as the one before, that may fade apart from each other
_SETTLE = 0.35  # how far a pose may settle, in longer sides of the target
_GRID = 20  # side, pixels, of the coarse views that are compared when it does


@dataclass(frozen=True, slots=True)
class Canvas:
    """One task's square crop at the photo's own resolution, before generation. Colours are float32 in [0, 255]."""

    box: Box  # on the background photo; may reach beyond it
    background: np.ndarray  # [S, S, 3]
    pasted: np.ndarray  # [S, S, 3] background with the transformed real target
    mask: np.ndarray  # [S, S] float32 in [0, 1], coverage of the transformed target
    region: np.ndarray  # [S, S] bool, where the generator may paint
    reach: float  # pixels by which the region exceeds the mask
    ends: tuple[
        bool, bool, bool, bool
    ]  # left, top, right, bottom: whether the photo ends where the crop does
    reference: np.ndarray  # [S', S', 3] the reference's own crop

    def feather(self) -> np.ndarray:
        """Weights float32 [S, S] of the crop's change, as `feathered`."""
        return feathered(self.region, self.reach, self.ends)


def lay_out(
    background: np.ndarray,
    reference: np.ndarray,
    reference_mask: np.ndarray,
    target: Target,
    pose: Pose,
    *,
    min_side: int,
    dilation: float,
    repaint: bool,
    rng: np.random.Generator,
) -> Canvas:
    """Lay the reference target onto the background as the pose says, and choose crop and region.

    Args:
        background, reference: uint8 [H, W, 3], each with its own size.
        reference_mask: bool [H, W] of this target alone.
        dilation: reach of the region beyond the mask, in longer sides of the target.
        repaint: background and reference are the same photo and the target stays: nothing is pasted.
    """
    longer = target.longer_side * pose.scale
    if not repaint:
        pose = settle(background, reference, reference_mask, target, pose, rng)
    height, width = background.shape[:2]
    x, y, extent = _laid_extent(reference_mask, target, pose)
    box = square_around(x, y, extent, pose.margin, min_side, max(height, width))
    box = shift_inside(box, width, height)
    base = cut(background, box).astype(np.float32)
    if repaint:
        pasted, mask = base.copy(), cut(reference_mask, box).astype(np.float32)
    else:
        patch, mask = warp(reference, reference_mask, target, pose, box, rng)
        mask = mask * cut(np.ones((height, width), bool), box)  # a mask ends at the photo's border
        pasted = blended(base, patch, mask, longer)
    reach = max(2.0, dilation * longer)
    region = ndimage.distance_transform_edt(mask <= 0.25) <= reach if (mask > 0.25).any() else mask > 0.25
    own = shift_inside(
        square_around(
            *_centre(target.box), target.longer_side, pose.margin, min_side, max(reference.shape[:2])
        ),
        reference.shape[1],
        reference.shape[0],
    )
    ends = box[0] <= 0, box[1] <= 0, box[2] >= width, box[3] >= height
    return Canvas(box, base, pasted, mask, region, reach, ends, cut(reference, own).astype(np.float32))


def _laid_extent(mask: np.ndarray, target: Target, pose: Pose) -> tuple[float, float, float]:
    """Centre and longer side of the box that a target has once it is laid as the pose says, pixels of the background."""
    left, top, right, bottom = target.box
    rows, columns = np.nonzero(mask[top:bottom, left:right])
    if not rows.size:
        return pose.x, pose.y, target.longer_side * pose.scale
    dx, dy = columns + 0.5 - (right - left) / 2, rows + 0.5 - (bottom - top) / 2
    dy = -dy if pose.flip else dy
    cos, sin = math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle))
    half = (abs(cos) + abs(sin)) / 2  # of a turned pixel
    ends = [(v.min() - half, v.max() + half) for v in (dx * cos - dy * sin, dx * sin + dy * cos)]
    x, y = (pose.scale * float(low + high) / 2 for low, high in ends)
    return pose.x + x, pose.y + y, pose.scale * max(float(high - low) for low, high in ends)


def settle(
    background: np.ndarray,
    reference: np.ndarray,
    reference_mask: np.ndarray,
    target: Target,
    pose: Pose,
    rng: np.random.Generator,
) -> Pose:
    """Move a drawn pose a little to where the surroundings look most like the reference's own.

    So an edge defect meets the edge and a thread defect the thread. Compared on a coarse grid, without the target
    itself and without the difference of light, which the paste corrects.
    """
    longer = target.longer_side * pose.scale
    reach = max(_SETTLE * longer, 0.04 * max(background.shape[:2]))
    step = max(1.0, reach / 4)
    context = 1.8 * longer + 8
    shifts = [
        (dx, dy) for dx in np.arange(-reach, reach + 0.1, step) for dy in np.arange(-reach, reach + 0.1, step)
    ]
    rigid = replace(pose, elastic=0.0)
    patch, mask = warp(
        reference, reference_mask, target, rigid, square_around(pose.x, pose.y, context, 1, 8, 1), rng
    )
    around = (to_resolution(mask, _GRID) < 0.1).float()
    want = to_resolution(patch, _GRID)
    inside = [
        (dx, dy)
        for dx, dy in sorted(shifts, key=lambda shift: shift[0] ** 2 + shift[1] ** 2)
        if 0 <= pose.x + dx < background.shape[1] and 0 <= pose.y + dy < background.shape[0]
    ]
    if not inside:
        return pose
    best, best_cost = pose, math.inf
    for (dx, dy), have in zip(inside, _surroundings(background, pose, context, inside), strict=True):
        difference = (have - want) * around
        mean = difference.sum((1, 2), keepdim=True) / around.sum().clamp_min(1)
        spread = ((difference - mean).abs() * around).mean() + 0.25 * mean.abs().mean()
        cost = float(spread) * (1 + 0.2 * math.hypot(dx, dy) / max(reach, 1.0))
        if cost < best_cost:
            best, best_cost = replace(pose, x=pose.x + dx, y=pose.y + dy), cost
    return best


def _surroundings(
    background: np.ndarray, pose: Pose, context: float, shifts: list[tuple[float, float]]
) -> torch.Tensor:
    """[N, 3, _GRID, _GRID] views of the photo around the shifted poses.

    All are cut from one copy that is shrunk until a view has twice the grid's pixels: cutting and shrinking each by itself took a
    fifth of all the time of a pasted pair.
    """
    boxes = [square_around(pose.x + dx, pose.y + dy, context, 1, 8, 1) for dx, dy in shifts]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    wide = max(max(box[2] for box in boxes) - left, max(box[3] for box in boxes) - top)
    side = boxes[0][2] - boxes[0][0]
    shrunk = max(1, side // (2 * _GRID))
    whole = cut(background, (left, top, left + wide, top + wide)).astype(np.float32)
    small = to_resolution(whole, -(-wide // shrunk))
    size = min(round(side / shrunk), small.shape[-1])
    last = small.shape[-1] - size
    at = [(round((box[0] - left) / shrunk), round((box[1] - top) / shrunk)) for box in boxes]
    places = [(min(x, last), min(y, last)) for x, y in at]
    return resized(torch.stack([small[:, y : y + size, x : x + size] for x, y in places]), _GRID)


def warp(
    image: np.ndarray, mask: np.ndarray, target: Target, pose: Pose, box: Box, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a photo and a mask so that the target lies in `box` of another photo as the pose says.

    Returns:
        float32 [S, S, 3] in [0, 255] and coverage float32 [S, S] in [0, 1].
    """
    side = box[2] - box[0]
    ys, xs = np.meshgrid(np.arange(side) + box[1] + 0.5, np.arange(side) + box[0] + 0.5, indexing="ij")
    if pose.elastic > 0:
        amplitude = pose.elastic * target.longer_side * pose.scale
        dx, dy = _elastic(side, amplitude, rng)
        xs, ys = xs + dx, ys + dy
    x, y = (xs - pose.x) / pose.scale, (ys - pose.y) / pose.scale
    radians = math.radians(-pose.angle)
    u = x * math.cos(radians) - y * math.sin(radians)
    v = x * math.sin(radians) + y * math.cos(radians)
    cx, cy = _centre(target.box)
    height, width = mask.shape
    grid = np.stack([2 * (u + cx) / width - 1, 2 * ((-v if pose.flip else v) + cy) / height - 1], -1)
    grid_1SS2 = torch.from_numpy(grid[None].astype(np.float32))
    tensor = torch.from_numpy(_reached(image, mask, grid)).permute(2, 0, 1)[None]
    colours = F.grid_sample(tensor[:, :3], grid_1SS2, padding_mode="reflection", align_corners=False)
    coverage = F.grid_sample(tensor[:, 3:], grid_1SS2, padding_mode="zeros", align_corners=False)
    return colours[0].permute(1, 2, 0).numpy(), coverage[0, 0].numpy()


def _reached(image: np.ndarray, mask: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Photo and mask as float32 [H, W, 4]. What the grid cannot reach is left zero: on a large photo most of it, and most of the time."""
    spans = []
    for axis, side in ((0, mask.shape[1]), (1, mask.shape[0])):
        places = (grid[..., axis] + 1) * side / 2
        low, high = math.floor(float(places.min())) - 2, math.ceil(float(places.max())) + 2
        spans.append(
            slice(low, high) if low >= 0 and high <= side else slice(0, side)
        )  # beyond the border it is mirrored
    columns, rows = spans
    out = np.zeros((*mask.shape, 4), np.float32)
    out[rows, columns, :3], out[rows, columns, 3] = image[rows, columns], mask[rows, columns]
    return out


def paste_back(
    photo: np.ndarray,
    canvas: Canvas,
    generated: torch.Tensor,
    mask: torch.Tensor,
    *,
    resolution: int,
    detail: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Put a generated crop into its photo by the formula at the top of this file.

    Args:
        photo: uint8 [H, W, 3].
        generated: [3, R, R] in [-1, 1]; mask: [1, R, R] in [-1, 1].
        detail: share of the real target's fine detail that is kept, in [0, 1].
    Returns:
        uint8 [H, W, 3] photo and bool [H, W] mask of the new target alone.
    """
    side = canvas.background.shape[0]
    colours = (generated.clamp(-1, 1) + 1) * 127.5
    colours = colours - detail * _tint(colours - to_resolution(canvas.pasted, resolution))
    residual = colours - to_resolution(canvas.background, resolution)
    paste = to_resolution(canvas.pasted, resolution) - to_resolution(canvas.background, resolution)
    residual = residual + detail * given_back(residual, paste, to_resolution(canvas.mask, resolution))
    coverage = to_side((mask + 1) / 2, side)
    lost = canvas.pasted - canvas.background
    lost = lost - _coarse(to_resolution(lost, resolution), side)
    lost_mask = canvas.mask - to_side(to_resolution(canvas.mask, resolution), side)
    # Detail belongs to where the new mask still agrees with the real one; elsewhere it would show a ghost. A quarter of a pixel's
    # coverage is no disagreement: generated outlines are that soft, and real ones would lose their edge for it.
    agreement = np.clip(1.5 - np.abs(coverage - (canvas.mask - lost_mask)) * 2, 0, 1)
    new_mask = (coverage + detail * agreement * lost_mask > 0.5) & canvas.region
    feather = canvas.feather()[..., None]
    free = to_side(residual, side)
    tied = _coarse(residual, side) + agreement[..., None] * lost
    change = feather * ((1 - detail) * free + detail * tied)
    crop = np.clip(np.rint(canvas.background + change), 0, 255).astype(np.uint8)
    image, full = photo.copy(), np.zeros(photo.shape[:2], bool)
    left, top, right, bottom = canvas.box
    x0, y0, x1, y1 = max(0, left), max(0, top), min(photo.shape[1], right), min(photo.shape[0], bottom)
    inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    image[y0:y1, x0:x1] = np.where(canvas.region[inner][..., None], crop[inner], image[y0:y1, x0:x1])
    full[y0:y1, x0:x1] = new_mask[inner]
    return image, full


def _tint(difference: torch.Tensor) -> torch.Tensor:
    """The part of a [3, R, R] difference that is colour and not light, smoothed over a sixteenth of the crop."""
    colour = (difference - difference.mean(dim=0, keepdim=True)).numpy()
    sigma = difference.shape[-1] / 16
    return torch.from_numpy(np.stack([ndimage.gaussian_filter(channel, sigma) for channel in colour]))


def given_back(residual: torch.Tensor, paste: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a change of the background has lost of the paste's: small generators take faint targets, and the grain of bold ones, for noise.

    Band by band the change is projected on the paste's, each pixel by its coverage: of what is thinner than a pixel, none is
    covered whole. What that share lacks of one is given back; nothing, where there is nothing to project on.

    Args:
        residual, paste: [..., 3, R, R], differences to the background; mask: [..., 1, R, R] coverage.
    """
    out = torch.zeros_like(residual)
    for change, real in zip(_bands(residual), _bands(paste), strict=True):
        inside = real * mask
        overlap, all_of_it = ((part * inside).sum(dim=(-3, -2, -1), keepdim=True) for part in (change, real))
        kept = overlap / all_of_it.clamp(min=1e-6)
        out = out + torch.where(all_of_it > 1e-6, 1 - kept.clamp(0, 1), 0.0) * real
    return out


def _bands(tensor: torch.Tensor) -> list[torch.Tensor]:
    """[..., C, R, R] as a sum of bands, from fine to coarse."""
    size, rest = tensor.shape[-1], tensor.reshape(-1, *tensor.shape[-3:])
    out = []
    for halvings in range(1, _FADING + 1):
        coarse = resized(resized(rest, max(1, size >> halvings)), size)
        out.append(rest - coarse)
        rest = coarse
    return [band.reshape(tensor.shape) for band in (*out, rest)]


def _coarse(tensor: torch.Tensor, side: int) -> np.ndarray:
    """L: the coarse bands of a [C, R, R] tensor, at the crop's own size."""
    return to_side(resized(tensor[None], max(1, tensor.shape[-1] // BAND))[0], side)


def feathered(region: np.ndarray, reach: float, ends: tuple[bool, bool, bool, bool]) -> np.ndarray:
    """Weights float32 [S, S] that rise smoothly from 0 at the region's border to 1 before the mask begins.

    Args:
        ends: left, top, right, bottom: no rise is needed there, since the photo ends. Elsewhere a region that is cut by the crop would
            show a seam.
    """
    left, top, right, bottom = ends
    padded = np.pad(region, 1, constant_values=True)
    padded[:, 0] &= left
    padded[0, :] &= top
    padded[:, -1] &= right
    padded[-1, :] &= bottom
    if padded.all():  # nowhere to rise from, and distances would be to a place of SciPy's choice
        return np.ones(region.shape, np.float32)
    depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
    ramp = np.clip(depth / max(1.5, 0.8 * reach), 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def _elastic(side: int, amplitude: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random displacement field of a few waves, largest shift `amplitude` pixels."""
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 2, 5, 5)).astype(np.float32))
    field = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)[0].numpy()
    return amplitude * field[0], amplitude * field[1]


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
