"""Noise fields, curves and blobs that the demo's surfaces and tissue are drawn from.

Everything is a distance or a height in pixels on a [side, side] grid, so that outlines come out smooth without
drawing at a higher resolution. Lengths are given in units of `side / 128`: a photo looks alike at every size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial import cKDTree

Field = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """The pixel grid of one photo."""

    side: int

    @property
    def unit(self) -> float:
        return self.side / 128

    @property
    def x(self) -> Field:
        return np.broadcast_to(np.arange(self.side, dtype=np.float64), (self.side, self.side))

    @property
    def y(self) -> Field:
        return self.x.T


@dataclass(frozen=True)
class Stroke:
    """A curve seen from every pixel: how far away it is, and at which share of its length the nearest point lies."""

    distance: Field  # pixels, capped at the reach that was asked for
    along: Field  # in [0, 1]


def noise(
    rng: np.random.Generator, grid: Grid, along: float, across: float | None = None, angle: float = 0.0
) -> Field:
    """Smooth Gaussian noise [side, side] with mean 0 and standard deviation 1.

    Args:
        along: correlation length in pixels along `angle`.
        across: the same at right angles to it; None: isotropic.
        angle: radians, counter-clockwise on screen.
    """
    # Drawn larger and cut: noise made by a Fourier filter repeats at its borders.
    size = grid.side + grid.side // 4
    across = along if across is None else across
    frequency_x = fft.rfftfreq(size).astype(np.float32)[None, :] * (2 * np.pi)
    frequency_y = fft.fftfreq(size).astype(np.float32)[:, None] * (2 * np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = cosine * frequency_x - sine * frequency_y
    v = sine * frequency_x + cosine * frequency_y
    spectrum = fft.rfft2(rng.standard_normal((size, size), np.float32))
    spectrum *= np.exp(-0.5 * ((u * np.float32(along)) ** 2 + (v * np.float32(across)) ** 2))
    spectrum[0, 0] = 0
    field = fft.irfft2(spectrum, s=(size, size))
    return np.asarray(field[: grid.side, : grid.side] / field.std(), np.float64)


def walk(
    rng: np.random.Generator,
    start: tuple[float, float],
    angle: float,
    length: float,
    *,
    bend: float,
    jag: float,
) -> NDArray[np.float64]:
    """A curve as points [n, 2] (x, y) about half a pixel apart.

    Args:
        angle: first direction, radians.
        length: in pixels.
        bend: how much the direction drifts over the whole length, radians.
        jag: standard deviation of sudden turns about every four pixels, radians.
    """
    count = max(4, int(length * 2))
    drift = np.cumsum(rng.normal(0, bend / np.sqrt(count), count))
    kinks = np.repeat(rng.normal(0, jag, count // 8 + 1), 8)[:count] if jag else np.zeros(count)
    direction = angle + drift + kinks
    steps = 0.5 * np.stack([np.cos(direction), -np.sin(direction)], axis=1)
    return np.asarray(start) + np.cumsum(steps, axis=0)


def stroke(points: NDArray[np.float64], grid: Grid, reach: float) -> Stroke:
    """Distance of every pixel to the curve, up to `reach` pixels, and the place on it."""
    distance = np.full((grid.side, grid.side), reach)
    along = np.zeros((grid.side, grid.side))
    low = np.clip(np.floor(points.min(axis=0) - reach), 0, grid.side).astype(int)
    high = np.clip(np.ceil(points.max(axis=0) + reach) + 1, 0, grid.side).astype(int)
    if (high <= low).any():
        return Stroke(distance, along)
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
    near, index = cKDTree(points).query(np.stack([x, y], axis=-1), distance_upper_bound=reach)
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    distance[window] = np.minimum(near, reach)
    along[window] = np.minimum(index, len(points) - 1) / (len(points) - 1)
    return Stroke(distance, along)


def blob(
    rng: np.random.Generator,
    grid: Grid,
    centre: tuple[float, float],
    radius: float,
    *,
    wobble: float,
    stretch: float,
) -> Field:
    """Signed distance-like field of an irregular round shape: pixels to its outline, positive inside.

    Args:
        radius: of the circle with about the same area, pixels.
        wobble: unevenness of the outline, share of the radius.
        stretch: longer by shorter axis, >= 1; turned at random.
    """
    turn = rng.uniform(0, np.pi)
    dx, dy = grid.x - centre[0], grid.y - centre[1]
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / np.sqrt(stretch)
    v = (-np.sin(turn) * dx + np.cos(turn) * dy) * np.sqrt(stretch)
    theta = np.arctan2(v, u)
    uneven = np.zeros_like(theta)
    for order in range(2, 7):
        uneven += (
            wobble * rng.normal() * (2 / order) ** 1.4 * np.cos(order * theta + rng.uniform(0, 2 * np.pi))
        )
    rho = np.hypot(u, v)
    # Fading towards the centre, where all angles meet: the slopes of a dome would show a crease.
    return radius * (1 + uneven * np.minimum(rho / radius, 1) ** 2) - rho


def step(field: Field, softness: float) -> Field:
    """0 to 1 across the outline of a signed field; `softness` in pixels."""
    return 1 / (1 + np.exp(np.clip(-field / softness, -40, 40)))


def slopes(height: Field) -> tuple[Field, Field]:
    """Derivatives of a height field along x and y."""
    dy, dx = np.gradient(height)
    return np.asarray(dx), np.asarray(dy)


def place(rng: np.random.Generator, grid: Grid, border: float) -> tuple[float, float]:
    """A point at least `border` (share of the side) away from the photo's edges."""
    x, y = rng.uniform(border, 1 - border, 2) * grid.side
    return float(x), float(y)
