"""Where a target goes on a photo: foreground map, object frame, pose.

A photo of one object in any orientation (a screw) gets a frame from the moments of its foreground; a photo that is
all surface or tissue gets its own borders as the frame. Positions are carried from the reference's frame to the
background's, so that a thread defect lies on the thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.transform import resize

from cdiff.config import SamplingConfig
from cdiff.types import Box, Pose, Target

GRID = 64  # side of the coarse foreground map that travels with a frame
_BLACK = 16  # of 255: darker than this in every channel is no tissue and no surface
_FRAME_SHARE = 0.005  # share of the photo from which such an area is a frame around the picture
_CONTEXT = 1.5  # the surroundings that are compared reach so far, in halves of the target's longer side
_STEPS = np.linspace(-1, 1, 9)
# Share of the way from ground to object where the object begins; soft shadows reach 0.5 to 0.6.
_SHADOW = 0.65
_SOFT = 0.12  # slope of a border, share of its height per pixel of the working size: edges have 0.2 and more
_SHADOW_ROUNDS = 4  # the middle of the object moves as its shadow leaves; it stands still by then
_OUTLINE = (
    0.02  # how far around a target the frame is looked for, share of the photo's longer side, at least 8 px
)
_CUT_SHARE = 0.05  # share of that band on the frame from which the target counts as cut off
_WORKING_SIDE = 192  # foreground is found on a photo shrunk to this longer side
_LARGE = 8 * _WORKING_SIDE  # photos from this longer side on are averaged down to half of it or more first


@dataclass(frozen=True, slots=True)
class Frame:
    """The object's own coordinates on one photo: centre, axis and extent, in photo pixels and degrees."""

    width: int  # of the photo
    height: int
    cx: float
    cy: float
    angle: float  # of the long axis against the photo's x axis, in (-180, 180]
    length: float  # extent along the axis
    breadth: float  # extent across it
    oriented: bool  # False: the axis carries no meaning, turns stay small
    grid: bytes  # GRID x GRID coarse foreground, row by row, 0..255 share of foreground; without an object, of what is lit

    @property
    def stands_out(self) -> bool:
        """Whether it is an object's; else it is the photo itself."""
        return self.oriented or (self.length, self.breadth) != (self.width, self.height)

    def to_object(self, x: float, y: float) -> tuple[float, float]:
        """Photo pixels to object coordinates; the object spans about -0.5..0.5 on both axes."""
        u, v = _turn(x - self.cx, y - self.cy, -self.angle)
        return u / self.length, v / self.breadth

    def to_photo(self, u: float, v: float) -> tuple[float, float]:
        """The inverse of `to_object`."""
        x, y = _turn(u * self.length, v * self.breadth, self.angle)
        return x + self.cx, y + self.cy

    def covered(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The coarse map, in [0, 1], at places of the photo; 0 off the photo. Arrays of one shape."""
        cells = np.frombuffer(self.grid, np.uint8).reshape(GRID, GRID)
        columns = np.floor(x / self.width * GRID).astype(int)
        rows = np.floor(y / self.height * GRID).astype(int)
        inside = (rows >= 0) & (rows < GRID) & (columns >= 0) & (columns < GRID)
        return cells[rows.clip(0, GRID - 1), columns.clip(0, GRID - 1)] / 255.0 * inside


def foreground(image: np.ndarray) -> np.ndarray:
    """Where a target may lie: the object on a plain ground, found by Otsu's threshold, or else all that is lit.

    Args:
        image: uint8 [H, W, 3].
    Returns:
        bool [H, W].
    """
    small = _reduced(image)
    found = _object(small)
    return _enlarged(_lit(small) if found is None else found, image)


def _factor(image: np.ndarray) -> int:
    """By how much a large photo is averaged down before anything is looked for: at full size that took most of a start's time."""
    longer = max(image.shape[:2])
    return longer // (_LARGE // 2) if longer >= _LARGE else 1


def _reduced(image: np.ndarray) -> np.ndarray:
    factor = _factor(image)
    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))


def _enlarged(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A map of the reduced photo, at the photo's own size."""
    factor, (height, width) = _factor(image), image.shape[:2]
    return mask if factor == 1 else mask.repeat(factor, 0).repeat(factor, 1)[:height, :width]


def _lit(image: np.ndarray) -> np.ndarray:
    """All but the black that reaches in from a photo's border: an endoscope's corners, boxes drawn over the frame."""
    dark = ndimage.uniform_filter(image.max(axis=2).astype(np.float32), 5) < _BLACK
    labels, _ = ndimage.label(dark)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    sizes = np.bincount(labels.ravel())
    frame = [i for i in border if i and sizes[i] >= _FRAME_SHARE * dark.size]
    lit = ~np.isin(labels, frame)
    return lit if lit.mean() > 0.5 else np.ones_like(lit)  # a dark photo is no frame


def cut_off(image: np.ndarray, masks: Sequence[np.ndarray]) -> list[bool]:
    """Whether each target of a photo, bool [H, W], ends at the photo's black frame; the photo is uint8 [H, W, 3].

    On another photo it would lack the part that the frame hides.
    """
    small = _reduced(image)
    if _object(small) is not None:
        return [False] * len(masks)
    hidden = _enlarged(~_lit(small), image)
    return [_ends_at(hidden, mask) for mask in masks]


def _ends_at(hidden: np.ndarray, mask: np.ndarray) -> bool:
    reach = max(8, round(_OUTLINE * max(mask.shape)))
    rows, columns = np.nonzero(mask)
    if not rows.size:
        return False
    near = (
        slice(max(0, rows.min() - reach), rows.max() + reach + 1),
        slice(max(0, columns.min() - reach), columns.max() + reach + 1),
    )
    away = ndimage.distance_transform_edt(~mask[near])
    band = (away > 0) & (away <= reach)
    return bool(band.any() and hidden[near][band].mean() > _CUT_SHARE)


def _light(image: np.ndarray) -> np.ndarray:
    """How well each place is lit, in [0, 1]: 1 from half of the photo's median on. Nothing can be seen in a dark lumen."""
    level = ndimage.uniform_filter(image.max(axis=2).astype(np.float32), 9)
    return np.clip(level / max(1.0, 0.5 * float(np.median(level))), 0, 1)


def _object(image: np.ndarray) -> np.ndarray | None:
    height, width = image.shape[:2]
    scale = min(1.0, _WORKING_SIDE / max(height, width))
    size = (max(8, round(height * scale)), max(8, round(width * scale)))
    grey = resize(image.mean(axis=2), size, order=1, anti_aliasing=scale < 1, preserve_range=True)
    grey = ndimage.gaussian_filter(grey, 1.0)
    if grey.max() - grey.min() < 10:
        return None
    threshold = threshold_otsu(grey)
    bright = grey > threshold
    share = bright.mean()
    between = share * (1 - share) * (grey[bright].mean() - grey[~bright].mean()) ** 2
    # The share of variance that two classes explain: textures and tissue reach 0.55 to 0.75, a lone object more.
    if between / grey.var() < 0.75:
        return None
    border = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    if 0.1 < border.mean() < 0.9:
        return None
    mask = _without_shadow(grey, ~bright) if border.mean() >= 0.9 else bright
    labels, count = ndimage.label(ndimage.binary_closing(mask, iterations=2))
    if count == 0:
        return None
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    mask = ndimage.binary_fill_holes(ndimage.binary_dilation(largest, iterations=1))
    if not 0.02 < mask.mean() < 0.9:
        return None
    return resize(mask.astype(float), (height, width), order=1) > 0.5


def _without_shadow(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A dark object without the soft shadow that Otsu's threshold counts to it.

    A shadow is the part whose grey lies between ground and object and whose border fades. A light half of an object lies
    between too, but has an edge.
    """
    ground, beyond = float(np.median(grey[~mask])), mask
    for _ in range(_SHADOW_ROUNDS):
        height = (grey - ground) / (float(np.median(grey[beyond])) - ground)
        beyond = height > _SHADOW
    slope = np.hypot(*np.gradient(height)) / ndimage.maximum_filter(height, 9).clip(0.05)
    border = mask & ~ndimage.binary_erosion(mask, border_value=1)
    along = ndimage.uniform_filter(border * slope, 7) / ndimage.uniform_filter(border * 1.0, 7).clip(1e-9)
    rows, columns = ndimage.distance_transform_edt(~border, return_distances=False, return_indices=True)
    return mask & (beyond | (along[rows, columns] > _SOFT))


def frame_of(image: np.ndarray) -> Frame:
    """The object's frame on a photo, uint8 [H, W, 3]; the photo's own borders where no object stands out."""
    factor, (height, width) = _factor(image), image.shape[:2]
    found = _frame_of(_reduced(image))
    if factor == 1:
        return found
    whole = replace(
        found,
        width=width,
        height=height,
        cx=width / 2,
        cy=height / 2,
        length=float(width),
        breadth=float(height),
    )
    if not found.stands_out:
        return whole
    cx, cy = (place * factor + (factor - 1) / 2 for place in (found.cx, found.cy))
    return replace(whole, cx=cx, cy=cy, length=found.length * factor, breadth=found.breadth * factor)


def _frame_of(image: np.ndarray) -> Frame:
    lone = _object(image)
    mask = _lit(image) if lone is None else lone
    height, width = mask.shape
    share = mask * _light(image) if lone is None else mask.astype(float)
    grid = (resize(share, (GRID, GRID), order=1, anti_aliasing=True) * 255).round().astype(np.uint8)
    whole = Frame(
        width, height, width / 2, height / 2, 0.0, float(width), float(height), False, grid.tobytes()
    )
    if lone is None:
        return whole
    rows, columns = np.nonzero(mask)
    cx, cy = float(columns.mean()), float(rows.mean())
    values, vectors = np.linalg.eigh(np.cov(np.stack([columns - cx, rows - cy])))
    if values[1] < 4 * max(values[0], 1e-6):  # less than twice as long as broad: no trustworthy axis
        left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        centre = ((left + right) / 2, (top + bottom) / 2)
        return Frame(
            width, height, *centre, 0.0, float(right - left), float(bottom - top), False, grid.tobytes()
        )
    axis = vectors[:, 1]
    along = (columns - cx) * axis[0] + (rows - cy) * axis[1]
    across = (rows - cy) * axis[0] - (columns - cx) * axis[1]
    # The axis has two directions; the longer tail (third moment) tells them apart, as a screw's tip from its head.
    if (along**3).mean() < 0:
        axis, along, across = -axis, -along, -across
    middle = (along.max() + along.min()) / 2
    cx, cy = cx + axis[0] * middle, cy + axis[1] * middle
    angle = math.degrees(math.atan2(axis[1], axis[0]))
    extent = (float(np.ptp(along)) + 1, float(np.ptp(across)) + 1)
    return Frame(width, height, cx, cy, angle, *extent, True, grid.tobytes())


def draw_pose(
    target: Target,
    reference: Frame,
    background: Frame,
    occupied: Sequence[Box],
    config: SamplingConfig,
    margin: tuple[float, float],
    rng: np.random.Generator,
    tries: int = 24,
) -> Pose:
    """Draw how a target is laid onto another photo, near its own place on the object.

    Args:
        reference: frame of the photo that shows the target.
        occupied: boxes of the background photo's own targets, kept free as far as possible (`room`).
        margin: range of crop side / longer side of the target.
        tries: drawn poses, of which the one whose surroundings are object and ground, or light and dark, as the target's
            own are, and with the most `room` beside `occupied`, wins: a target at the edge comes to lie at the edge. With
            `occupied`, the second half may be smaller than `sampling.scale` says, by `sampling.crowded`.
    """
    shrink = [config.crowded if occupied and number >= tries // 2 else 1.0 for number in range(tries)]
    drawn = [_one_pose(target, reference, background, config, margin, least, rng) for least in shrink]
    half = target.longer_side / 2
    dx, dy = (_CONTEXT * half * grid for grid in np.meshgrid(_STEPS, _STEPS))
    x, y = _centre(target.box)
    own = reference.covered(x + dx, y + dy)

    # All poses at once, [tries, steps, steps]: one by one they took most of the time of a plan (docs/scaling.md).
    there = background.covered(*_laid(drawn, dx, dy))
    unlike = np.abs(there - own).reshape(len(drawn), -1).mean(axis=1)
    hidden = 1 - _rooms(drawn, target, background, occupied) if occupied else np.zeros(len(drawn))
    scores = [-float(value) for value in unlike + hidden]
    best = max(scores)
    # The first that is as good as the best: the draw stays close to the real positions' distribution.
    return next(pose for pose, score in zip(drawn, scores, strict=True) if score >= best - 0.02)


def room(target: Target, pose: Pose, background: Frame, occupied: Sequence[Box]) -> float:
    """Share of a laid target that could be seen: on the photo's object, or lit, and beside the photo's own targets, in [0, 1].

    Targets are taken as the ellipses in their boxes: a polyp leaves the corners of its box free.
    """
    return float(_rooms([pose], target, background, occupied)[0])


def _rooms(poses: Sequence[Pose], target: Target, background: Frame, occupied: Sequence[Box]) -> np.ndarray:
    left, top, right, bottom = target.box
    dx, dy = np.meshgrid(_STEPS, _STEPS)
    disc = dx**2 + dy**2 <= 1
    x, y = _laid(poses, dx[disc] * (right - left) / 2, dy[disc] * (bottom - top) / 2)
    free = background.covered(x, y)
    for left, top, right, bottom in occupied:
        u, v = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
        free = free * (u**2 + v**2 > 1)
    return np.asarray(free.mean(axis=1))


def _laid(poses: Sequence[Pose], dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places around a target, offsets in its own photo's pixels, on the photo on which each pose lays it: [poses, *shape of dx]."""
    numbers = [(p.x, p.y, p.scale, -1.0 if p.flip else 1.0, *_direction(p.angle)) for p in poses]
    x, y, scale, sign, cos, sin = (
        np.array(values).reshape(-1, *(1 for _ in dx.shape)) for values in zip(*numbers, strict=True)
    )
    flipped = sign * dy
    return x + scale * (dx * cos - flipped * sin), y + scale * (dx * sin + flipped * cos)


def repaint_pose(target: Target, margin: tuple[float, float], rng: np.random.Generator) -> Pose:
    """The pose that leaves a photo's own target where it is, to be repainted in place."""
    x, y = _centre(target.box)
    return Pose(x=x, y=y, angle=0.0, scale=1.0, flip=False, elastic=0.0, margin=float(rng.uniform(*margin)))


def _one_pose(
    target: Target,
    reference: Frame,
    background: Frame,
    config: SamplingConfig,
    margin: tuple[float, float],
    shrink: float,
    rng: np.random.Generator,
) -> Pose:
    u, v = reference.to_object(*_centre(target.box))
    aligned = reference.oriented and background.oriented
    flip = bool(config.flip and rng.random() < 0.5)
    wobble = float(rng.uniform(-config.angle, config.angle))
    if aligned:  # mirrored across the axis, turned with the object
        v = -v if flip else v
        angle = (reference.angle if flip else -reference.angle) + background.angle + wobble
    else:  # mirrored left to right, which is up to down and half a turn
        u = -u if flip else u
        angle = (180.0 if flip else 0.0) + wobble
    u, v = u + float(rng.normal(0, config.jitter / 2)), v + float(rng.normal(0, config.jitter / 2))
    x, y = background.to_photo(u, v)
    low, high = (math.log(bound) for bound in config.scale)
    return Pose(
        x=float(min(max(x, 0.0), background.width - 1)),
        y=float(min(max(y, 0.0), background.height - 1)),
        angle=angle,
        scale=_kept_size(reference, background, config) * math.exp(rng.uniform(low + math.log(shrink), high)),
        flip=flip,
        elastic=config.elastic,
        margin=float(rng.uniform(*margin)),
    )


def _kept_size(reference: Frame, background: Frame, config: SamplingConfig) -> float:
    """The scale at which a target is as large on its new photo as on its own, by `sampling.size`."""
    if config.size == "pixels":
        return 1.0
    if reference.stands_out and background.stands_out:
        return max(background.length, background.breadth) / max(reference.length, reference.breadth)
    return max(background.width, background.height) / max(reference.width, reference.height)


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _turn(x: float, y: float, degrees: float) -> tuple[float, float]:
    cos, sin = _direction(degrees)
    return x * cos - y * sin, x * sin + y * cos


def _direction(degrees: float) -> tuple[float, float]:
    radians = math.radians(degrees)
    return math.cos(radians), math.sin(radians)
