"""The demo's metal plates: brushed, rolled or cast surfaces with five types of defects, from plain to nearly invisible.

A plate is a relief and a reflectance under a lamp. Defects change the relief (they are shaded like the plate itself),
the reflectance, or both, so that they belong to the surface instead of lying on top of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cdiff.data.demo_shapes import Field, Grid, blob, noise, place, slopes, step, stroke, walk

_TINTS = ((0.96, 1.0, 1.05), (1.0, 1.0, 1.0), (1.05, 1.0, 0.93), (1.02, 1.0, 0.97))


@dataclass(frozen=True)
class Plate:
    """What the photos of one plate share."""

    style: str  # "brushed", "rolled" or "cast"
    angle: float  # of the grain, radians
    base: float  # mean reflectance in [0, 1]
    tint: tuple[float, float, float]
    grain: float  # strength of the texture, 1 is usual
    lamp: float  # direction of the light, radians


@dataclass
class Defect:
    """What a defect adds to a plate."""

    height: Field  # pixels
    albedo: NDArray[np.float64]  # factor on the reflectance, [side, side, 3]
    mask: NDArray[np.bool_]


def draw_plate(rng: np.random.Generator) -> Plate:
    """One plate: its finish, tint and the side that its lamp stands on."""
    style = str(rng.choice(["brushed", "rolled", "cast"]))
    low, high = {"brushed": (0.46, 0.64), "rolled": (0.50, 0.70), "cast": (0.36, 0.56)}[style]
    tint = np.asarray(_TINTS[rng.integers(len(_TINTS))]) + rng.normal(0, 0.012, 3)
    return Plate(
        style=style,
        angle=float(
            rng.normal(0, 0.12) + rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)], p=[0.5, 0.3, 0.2])
        ),
        base=float(rng.uniform(low, high)),
        tint=(float(tint[0]), float(tint[1]), float(tint[2])),
        grain=float(rng.uniform(0.4, 0.9)),
        lamp=float(rng.uniform(0, 2 * np.pi)),
    )


def draw_surface(
    rng: np.random.Generator, plate: Plate, type_name: str, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Photograph one place of a plate.

    Args:
        type_name: one of DEFECTS, or "good".
        side: of the photo, pixels.
    Returns:
        Photo uint8 [side, side, 3] and mask bool [side, side].
    """
    grid = Grid(side)
    texture, relief = _FINISHES[plate.style](rng, grid, plate)
    mask = np.zeros((side, side), bool)
    albedo = np.ones((side, side, 3))
    if type_name != "good":
        drawn = DEFECTS[type_name](rng, grid, plate)
        relief, albedo, mask = relief + drawn.height, drawn.albedo, drawn.mask
    lamp = plate.lamp + rng.normal(0, 0.25)  # the photos of a plate are lit slightly differently
    dx, dy = slopes(relief)
    shade = np.clip(1 + 0.55 * (dx * np.cos(lamp) - dy * np.sin(lamp)), 0.35, 1.9)
    grey = plate.base * _light(rng, grid, lamp) * (1 + plate.grain * texture) * shade
    colour = grey[..., None] * albedo * np.asarray(plate.tint)
    return _expose(rng, colour), mask


def _brushed(rng: np.random.Generator, grid: Grid, plate: Plate) -> tuple[Field, Field]:
    unit = grid.unit
    fine = noise(rng, grid, 14 * unit, 0.35, plate.angle)
    medium = noise(rng, grid, 40 * unit, 1.2 * unit, plate.angle)
    bands = noise(rng, grid, 90 * unit, 9 * unit, plate.angle)
    hairs = np.maximum(noise(rng, grid, 9 * unit, 0.4, plate.angle) - 2.2, 0)
    return 0.06 * fine + 0.04 * medium + 0.025 * bands + 0.10 * hairs, np.zeros_like(fine)


def _rolled(rng: np.random.Generator, grid: Grid, plate: Plate) -> tuple[Field, Field]:
    unit = grid.unit
    grain = noise(rng, grid, 1.6 * unit, 0.7 * unit, plate.angle)
    lines = noise(rng, grid, 70 * unit, 0.9 * unit, plate.angle)
    bands = noise(rng, grid, 120 * unit, 7 * unit, plate.angle)
    clouds = noise(rng, grid, 16 * unit, 11 * unit, plate.angle)
    return 0.028 * grain + 0.022 * lines + 0.03 * bands + 0.028 * clouds, np.zeros_like(grain)


def _cast(rng: np.random.Generator, grid: Grid, plate: Plate) -> tuple[Field, Field]:
    unit = grid.unit
    bumps = 0.22 * noise(rng, grid, 1.1 * unit) + 0.60 * noise(rng, grid, 2.6 * unit)
    pores = np.maximum(noise(rng, grid, 1.0 * unit) - 2.6, 0)
    clouds = noise(rng, grid, 18 * unit)
    return 0.035 * clouds - 0.25 * pores + 0.025 * noise(rng, grid, 0.5), 0.42 * plate.grain * unit * bumps


def _light(rng: np.random.Generator, grid: Grid, lamp: float) -> Field:
    """A gradient away from the lamp, a broad gleam and a faint vignette; about 1 in the mean."""
    x, y = grid.x / grid.side - 0.5, grid.y / grid.side - 0.5
    gradient = rng.uniform(0.05, 0.4) * (x * np.cos(lamp) - y * np.sin(lamp))
    gx, gy = rng.uniform(-0.6, 0.6, 2)
    gleam = rng.uniform(0, 0.22) * np.exp(-((x - gx) ** 2 + (y - gy) ** 2) / rng.uniform(0.05, 0.3))
    vignette = -0.22 * (x**2 + y**2)
    return rng.uniform(0.92, 1.08) * (1 + gradient + gleam + vignette)


def _expose(rng: np.random.Generator, colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The camera: a soft shoulder in the highlights, a trace of blur, sensor noise."""
    colour = np.where(colour > 0.75, 0.75 + 0.25 * np.tanh((colour - 0.75) / 0.25), colour)
    colour = ndimage.gaussian_filter(colour, (0.4, 0.4, 0))
    shot = rng.normal(0, 0.008, colour.shape[:2])[..., None] + rng.normal(0, 0.003, colour.shape)
    return np.clip(255 * (colour + shot) + 0.5, 0, 255).astype(np.uint8)


def _scratch(rng: np.random.Generator, grid: Grid, plate: Plate) -> Defect:
    """One to three bright lines with a burr, fading at their ends: fresh metal, mostly plain to see."""
    unit, defect = grid.unit, _nothing(grid)
    angle = plate.angle + rng.uniform(0.25, np.pi - 0.25)  # never along the grain, where nobody could tell it
    start, strength = place(rng, grid, 0.22), rng.uniform(0.25, 0.6)
    for number in range(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])):
        offset = rng.normal(0, 6 * unit, 2) * (number > 0)
        length, width = rng.uniform(22, 70) * unit, max(rng.uniform(0.5, 0.95) * unit, 0.45)
        origin = np.asarray(start) + offset - 0.5 * length * np.array([np.cos(angle), -np.sin(angle)])
        points = walk(rng, (origin[0], origin[1]), angle + rng.normal(0, 0.08), length, bend=0.5, jag=0.03)
        line = stroke(points, grid, 6 * unit)
        uneven = 0.75 + 0.25 * np.interp(line.along, np.linspace(0, 1, 12), rng.uniform(-1, 1, 12))
        profile = np.clip(np.sin(np.pi * line.along), 0, 1) ** 0.6 * uneven * (1.0 if number == 0 else 0.7)
        core = profile * np.exp(-0.5 * (line.distance / width) ** 2)
        burr = profile * np.exp(-0.5 * ((line.distance - 2 * width) / width) ** 2)
        defect.albedo += (1.6 * strength * core - 0.25 * strength * burr)[..., None]
        defect.height += strength * unit * (0.6 * burr - 1.2 * core)
        defect.mask |= (line.distance < 1.5 * width + 0.4) & (profile > 0.25)
    return defect


def _pit(rng: np.random.Generator, grid: Grid, plate: Plate) -> Defect:
    """A few dark corrosion holes with a lit far rim."""
    unit, defect = grid.unit, _nothing(grid)
    centre, strength = place(rng, grid, 0.15), rng.uniform(0.3, 0.65)
    for number in range(rng.integers(1, 5)):
        offset = rng.normal(0, 9 * unit, 2) * (number > 0)
        radius = rng.uniform(1.8, 5.5 if number == 0 else 3.2) * unit
        hole = blob(
            rng, grid, (centre[0] + offset[0], centre[1] + offset[1]), radius, wobble=0.16, stretch=1.35
        )
        hole += 0.18 * radius * noise(rng, grid, 1.5 * unit)
        inside = step(hole, 0.5 * unit)
        rust = np.array([0.9, 1.0, 1.08]) * strength
        defect.albedo *= (
            1 - inside[..., None] * rust - 0.12 * strength * step(hole + 2 * unit, unit)[..., None]
        )
        defect.height -= 2.2 * strength * unit * step(hole, 0.8 * unit)
        defect.mask |= hole > -0.6 * unit
    return defect


def _dent(rng: np.random.Generator, grid: Grid, plate: Plate) -> Defect:
    """A knock: no colour of its own, only shading where the surface tilts."""
    unit, defect = grid.unit, _nothing(grid)
    radius = rng.uniform(8, 17) * unit
    hollow = blob(rng, grid, place(rng, grid, 0.2), radius, wobble=0.0, stretch=rng.uniform(1.0, 1.9))
    # Uneven by noise, not by a wavy outline: that would crease the middle.
    hollow += 0.09 * radius * noise(rng, grid, 0.5 * radius)
    depth = rng.uniform(0.18, 0.4) * radius
    inside = np.clip((hollow + 0.12 * radius) / radius, 0, 1)
    bowl = inside**2 * (3 - 2 * inside)
    lip = np.exp(-0.5 * ((hollow + 0.22 * radius) / (0.14 * radius)) ** 2)
    defect.height += depth * (0.16 * lip - bowl)
    defect.albedo *= (1 - 0.05 * bowl)[..., None]
    defect.mask |= hollow > -0.10 * radius
    return defect


def _stain(rng: np.random.Generator, grid: Grid, plate: Plate) -> Defect:
    """A dried drop: a few per cent darker, a little tinted, with a slightly darker rim. Hard to see."""
    unit, defect = grid.unit, _nothing(grid)
    radius = rng.uniform(9, 20) * unit
    patch = blob(rng, grid, place(rng, grid, 0.22), radius, wobble=0.26, stretch=rng.uniform(1.0, 1.6))
    patch += 0.10 * radius * noise(rng, grid, 5 * unit)
    strength = rng.uniform(0.05, 0.18)
    inside = step(patch, 0.9 * unit) * (1 + 0.25 * noise(rng, grid, 6 * unit))
    rim = np.exp(-0.5 * ((patch - 1.2 * unit) / (1.1 * unit)) ** 2)
    hue = np.array([(0.7, 1.0, 1.5), (1.2, 1.0, 0.7), (1.0, 1.0, 1.0)][rng.integers(3)])
    defect.albedo *= 1 - strength * (0.85 * inside + 0.6 * rim)[..., None] * hue
    defect.mask |= patch > -0.4 * unit
    return defect


def _crack(rng: np.random.Generator, grid: Grid, plate: Plate) -> Defect:
    """A thin dark jagged line, sometimes with branches."""
    unit, defect = grid.unit, _nothing(grid)
    strength, angle = rng.uniform(0.35, 0.7), rng.uniform(0, 2 * np.pi)
    length = rng.uniform(28, 65) * unit
    start = np.asarray(place(rng, grid, 0.3)) - 0.5 * length * np.array([np.cos(angle), -np.sin(angle)])
    trunk = walk(rng, (start[0], start[1]), angle, length, bend=0.6, jag=0.55)
    paths = [trunk]
    for _ in range(rng.choice([0, 1, 2], p=[0.4, 0.4, 0.2])):
        x, y = trunk[rng.integers(len(trunk) // 4, 3 * len(trunk) // 4)]
        turn = rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        paths.append(walk(rng, (x, y), angle + turn, length * rng.uniform(0.2, 0.45), bend=0.5, jag=0.55))
    for number, points in enumerate(paths):
        line = stroke(points, grid, 5 * unit)
        width = max(rng.uniform(0.5, 0.85) * unit, 0.42) * (1.0 if number == 0 else 0.8)
        thickness = width * (0.55 + 0.45 * np.clip(np.sin(np.pi * line.along), 0, 1))
        core = np.exp(-0.5 * (line.distance / thickness) ** 2)
        defect.albedo *= 1 - strength * core[..., None]
        defect.height -= 0.7 * strength * unit * np.exp(-0.5 * (line.distance / (1.6 * thickness)) ** 2)
        defect.mask |= line.distance < 1.3 * thickness + 0.4
    return defect


def _nothing(grid: Grid) -> Defect:
    shape = (grid.side, grid.side)
    return Defect(np.zeros(shape), np.ones((*shape, 3)), np.zeros(shape, bool))


_FINISHES: dict[str, Callable[[np.random.Generator, Grid, Plate], tuple[Field, Field]]] = {
    "brushed": _brushed,
    "rolled": _rolled,
    "cast": _cast,
}
# From plain to nearly invisible, on the whole; every type has plain and faint examples.
DEFECTS: dict[str, Callable[[np.random.Generator, Grid, Plate], Defect]] = {
    "scratch": _scratch,
    "pit": _pit,
    "crack": _crack,
    "dent": _dent,
    "stain": _stain,
}
