"""The demo's tissue: endoscope-like photos of pink mucosa with folds, vessels and wet highlights, and soft raised polyps.

The wall is a height field under a lamp beside the camera. Polyps are domes on it, from plain to nearly flat and of the
wall's own colour; there are no photos without one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cdiff.data.demo_shapes import Field, Grid, blob, noise, place, slopes, step, stroke, walk

# Mean colours of mucosa: pink, orange, pale, inflamed.
_MUCOSA = ((0.80, 0.44, 0.38), (0.84, 0.52, 0.38), (0.82, 0.58, 0.51), (0.76, 0.36, 0.31))


@dataclass
class Wall:
    """The scene without its polyps, changed in place as they are added."""

    height: Field  # pixels
    colour: NDArray[np.float64]  # reflectance [side, side, 3]
    light: Field  # share of the lamp's light that arrives
    wetness: Field  # how easily a highlight appears
    lumen: tuple[float, float]  # pixels; may lie outside the photo


def draw_tissue(rng: np.random.Generator, side: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Photograph one piece of mucosa with one polyp, or two.

    Args:
        side: of the photo, pixels.
    Returns:
        Photo uint8 [side, side, 3] and mask bool [side, side].
    """
    grid = Grid(side)
    wall = _wall(rng, grid)
    _vessels(rng, grid, wall)
    mask, taken = np.zeros((side, side), bool), [wall.lumen]
    for _ in range(rng.choice([1, 2], p=[0.85, 0.15])):
        # The freest of a few places: beside the lumen, where it is too dark to see much, and beside other polyps.
        places = [place(rng, grid, 0.22) for _ in range(3)]
        centre = max(places, key=lambda spot: min(np.hypot(spot[0] - x, spot[1] - y) for x, y in taken))
        mask |= _polyp(rng, grid, wall, centre)
        taken.append(centre)
    lamp = rng.normal(0, 0.28, 2)
    colour = _shine(rng, grid, wall, lamp)
    frame = _frame(rng, grid)
    return _expose(rng, colour * frame[..., None]), mask & (frame > 0.5)


def _wall(rng: np.random.Generator, grid: Grid) -> Wall:
    """Folds run around the lumen, which is dark where it is in sight."""
    unit, side = grid.unit, grid.side
    inside = rng.random() < 0.4
    turn, away = (
        rng.uniform(0, 2 * np.pi),
        side * (rng.uniform(0.12, 0.38) if inside else rng.uniform(0.65, 1.1)),
    )
    lumen = (side / 2 + away * np.cos(turn), side / 2 + away * np.sin(turn))
    far = np.hypot(grid.x - lumen[0], grid.y - lumen[1]) + 7 * unit * noise(rng, grid, 16 * unit)
    far = np.maximum(far, 0)
    height = 3.0 * unit * noise(rng, grid, 20 * unit) + 0.5 * unit * noise(rng, grid, 6 * unit)
    fold = rng.uniform(0.15, 0.3) * side
    while fold < 1.6 * side:
        ahead = (far - fold) / unit
        # Slow towards the camera, steep towards the lumen: the far side of a fold lies in shadow.
        ridge = np.where(ahead > 0, np.exp(-ahead / rng.uniform(10, 22)), np.exp(-0.5 * (ahead / 3.2) ** 2))
        height += rng.uniform(2.0, 7.0) * unit * ndimage.gaussian_filter(ridge, rng.uniform(1.2, 2.6) * unit)
        fold += rng.uniform(0.25, 0.5) * side
    light = 1 - rng.uniform(0.75, 0.93) * np.exp(-((far / (rng.uniform(0.16, 0.3) * side)) ** 1.6))
    light *= rng.uniform(0.85, 1.05) * (1 + rng.uniform(0.05, 0.25) * np.clip(far / side - 0.5, -0.6, 0.6))
    base = np.asarray(_MUCOSA[rng.integers(len(_MUCOSA))]) * rng.normal(1, 0.035, 3)
    blush = noise(rng, grid, 11 * unit) + 0.5 * noise(rng, grid, 3 * unit)
    colour = base * (1 + np.array([0.01, 0.045, 0.04]) * blush[..., None])
    colour *= 1 + 0.012 * noise(rng, grid, 0.8 * unit)[..., None]
    wetness = 0.5 * noise(rng, grid, 14 * unit) + rng.normal(0, 0.35)
    return Wall(height, colour, light, wetness, lumen)


def _vessels(rng: np.random.Generator, grid: Grid, wall: Wall) -> None:
    unit, strength = grid.unit, rng.uniform(0.05, 0.32)
    red = np.zeros((grid.side, grid.side))
    for _ in range(rng.integers(2, 6)):
        x, y = rng.uniform(0, grid.side, 2)
        angle = rng.uniform(0, 2 * np.pi)
        trunk = walk(rng, (float(x), float(y)), angle, rng.uniform(40, 110) * unit, bend=1.4, jag=0.22)
        branches = [(trunk, rng.uniform(0.7, 1.3))]
        for at in rng.integers(len(trunk) // 6, len(trunk), rng.integers(1, 5)):
            turn = angle + rng.choice([-1, 1]) * rng.uniform(0.4, 1.2)
            start = (float(trunk[at][0]), float(trunk[at][1]))
            branches.append((walk(rng, start, turn, rng.uniform(12, 40) * unit, bend=1.2, jag=0.3), 0.6))
        for points, width in branches:
            line = stroke(points, grid, 4 * unit)
            thickness = max(width * unit, 0.5) * (1 - 0.6 * line.along)
            red = np.maximum(red, np.exp(-0.5 * (line.distance / thickness) ** 2) * (1 - 0.5 * line.along))
    wall.colour *= 1 - strength * red[..., None] * np.array([0.35, 1.0, 0.9])


def _polyp(
    rng: np.random.Generator, grid: Grid, wall: Wall, centre: tuple[float, float]
) -> NDArray[np.bool_]:
    """A dome: shaded, a little redder or paler than the wall, with a dark line at its foot. Vessels end at it."""
    unit, side = grid.unit, grid.side
    plainness = rng.beta(1.1, 1.3)  # 0: nearly flat and of the wall's colour
    radius = side * rng.uniform(0.06, 0.22) * (1.15 - 0.25 * plainness)
    body = blob(rng, grid, centre, radius, wobble=0.09, stretch=rng.uniform(1.0, 1.7))
    body += 0.04 * radius * noise(rng, grid, 5 * unit)
    rise = np.clip(body / radius, 0, 1)
    dome = np.sqrt(1 - (1 - rise) ** 2) * plainness + rise**2 * (3 - 2 * rise) * (1 - plainness)
    lobes = noise(rng, grid, rng.uniform(2.5, 6) * unit) * rng.uniform(0.1, 0.5) + 0.25 * noise(
        rng, grid, 1.2 * unit
    )
    cover = step(body, (0.6 + 1.6 * (1 - plainness)) * unit)
    wall.height = wall.height * (1 - 0.75 * cover)
    wall.height += ndimage.gaussian_filter(dome, 0.9 * unit) * radius * (0.16 + 0.62 * plainness)
    wall.height += 0.75 * unit * cover * lobes * (0.35 + 0.65 * plainness)
    hue = np.array([(1.02, 0.86, 0.88), (1.10, 1.16, 1.14), (0.96, 0.80, 0.86)][rng.integers(3)])
    change = (0.25 + 0.75 * plainness) * cover[..., None]
    # The wall's vessels and blotches fade on it: the mean colour shows through instead.
    smooth = ndimage.gaussian_filter(wall.colour, (4 * unit, 4 * unit, 0))
    own = smooth * (1 + (hue - 1) * change) * (1 + np.array([0.01, 0.05, 0.05]) * (0.8 * lobes)[..., None])
    wall.colour += (own - wall.colour) * (cover * (0.35 + 0.65 * plainness))[..., None]
    foot = np.exp(-0.5 * ((body + 1.2 * unit) / ((1.6 + 0.06 * radius / unit) * unit)) ** 2) * (1 - cover)
    wall.light *= 1 - (0.06 + 0.42 * plainness) * foot
    wall.light += (0.10 + 0.15 * plainness) * rise  # nearer to the lamp
    wall.wetness += 0.5 * rise * plainness
    return body > 0


def _shine(
    rng: np.random.Generator, grid: Grid, wall: Wall, lamp: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Diffuse light, its warm return in the shadows, and wet highlights."""
    unit = grid.unit
    dx, dy = slopes(wall.height)
    steep = np.sqrt(dx**2 + dy**2 + 1)
    diffuse = np.clip((1 - dx * lamp[0] - dy * lamp[1]) / steep / np.sqrt(1 + lamp @ lamp), 0.05, None)
    level = np.clip(wall.light * (0.25 + 0.80 * diffuse), 0.01, None)
    warm = np.stack([level**0.92, level**1.16, level**1.2], axis=-1)
    ripple_x, ripple_y = slopes(0.30 * unit * noise(rng, grid, 1.5 * unit))
    dx, dy = dx + ripple_x, dy + ripple_y
    facing = (
        (1 - 0.5 * dx * lamp[0] - 0.5 * dy * lamp[1])
        / np.sqrt(dx**2 + dy**2 + 1)
        / np.sqrt(1 + lamp @ lamp / 4)
    )
    gloss = np.clip(facing, 0, 1) ** 400 * step(wall.wetness - 0.35, 0.12)
    sparks = np.clip(noise(rng, grid, 0.9 * unit) - 2.3, 0, 0.8) * step(wall.wetness - 0.5, 0.15)
    white = np.clip(0.75 * gloss + 1.3 * sparks, 0, 1.2) * np.clip(wall.light, 0, 1)
    white = white + 0.35 * ndimage.gaussian_filter(white, 1.4 * unit)
    return 1.12 * wall.colour * warm + white[..., None] * np.array([1.0, 0.97, 0.95])


def _frame(rng: np.random.Generator, grid: Grid) -> Field:
    """The endoscope's window: cut corners, or round, and a vignette."""
    x, y = np.abs(grid.x / grid.side - 0.5), np.abs(grid.y / grid.side - 0.5)
    vignette = 1 - rng.uniform(0.25, 0.6) * (x**2 + y**2)
    kind = rng.choice(["octagon", "round", "none"], p=[0.6, 0.2, 0.2])
    if kind == "none":
        return vignette
    edge = (
        rng.uniform(0.77, 0.90) - (x + y) if kind == "octagon" else rng.uniform(0.56, 0.62) - np.hypot(x, y)
    )
    return vignette * step(edge * grid.side, 0.45 * grid.unit)


def _expose(rng: np.random.Generator, colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The camera: a soft shoulder, a little blur, noise that is stronger in colour than a good camera's."""
    colour = np.where(colour > 0.8, 0.8 + 0.2 * np.tanh((colour - 0.8) / 0.2), colour)
    colour = ndimage.gaussian_filter(colour, (0.5, 0.5, 0))
    shot = rng.normal(0, 0.006, colour.shape[:2])[..., None] + rng.normal(0, 0.005, colour.shape)
    return np.clip(255 * (colour + shot) + 0.5, 0, 255).astype(np.uint8)
