"""Pairs without a generator: a texture blended in where Perlin noise is high, as in DRAEM. A control arm.

    image = (1 - M) b + (1 - beta) M b + beta M a,    M = Perlin noise > 0.5 on the object, beta in [0.1, 1]

The texture a is another training photo, recoloured and turned: DRAEM takes it from a texture data set, of which none
is to be had here.
Source: Zavrtanik et al., DRAEM (2108.07610); Perlin, An Image Synthesizer (1985).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from cdiff.data.backdrops import backdrops
from cdiff.data.dataset import MIN_AREA, Dataset
from cdiff.generator.placement import foreground

_TRIES = 20  # noise that misses the object is drawn again
_OCTAVES = 7  # cells per side of the noise's grid: 1, 2, 4 ... 64, drawn for each axis
_THRESHOLD = 0.5
_BETA = (0.1, 1.0)

_RECOLOURED: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, draw: ImageOps.posterize(image, 3 + int(3 * draw)),
    lambda image, draw: ImageOps.solarize(image, int(32 + 96 * draw)),
    lambda image, draw: ImageOps.equalize(image),
    lambda image, draw: ImageOps.autocontrast(image),
    lambda image, draw: ImageOps.invert(image),
    lambda image, draw: ImageEnhance.Brightness(image).enhance(0.5 + draw),
    lambda image, draw: ImageEnhance.Color(image).enhance(2 * draw),
    lambda image, draw: ImageEnhance.Sharpness(image).enhance(4 * draw),
)


def perlin_pairs(
    dataset: Dataset, sample_ids: Sequence[str], count: int, seed: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]]:
    """Images uint8 [H, W, 3] that show a blended texture, masks bool [H, W] of all that they show, and of the texture alone.

    Args:
        sample_ids: training photos. Each category is painted on in proportion to its photos with targets: on its
            `cdiff.data.backdrops`. A texture comes from another photo of the category, where there is one.
    Raises:
        ValueError: no photo.
    """
    if not sample_ids:
        raise ValueError("pairs of Perlin noise need photos to paint on")
    rng = np.random.default_rng([seed, 31])
    photos: dict[str, list[str]] = {}
    for name in sorted(sample_ids):
        photos.setdefault(dataset.sample(name).category, []).append(name)
    shown = [max(1, sum(not dataset.sample(n).is_normal for n in own)) for own in photos.values()]
    category = rng.choice(len(shown), count, p=np.array(shown) / sum(shown))
    names = list(photos)
    painted = {c: [p.sample_id for p in backdrops(map(dataset.sample, own))] for c, own in photos.items()}
    decks = {c: [str(n) for n in rng.permutation(own)] for c, own in painted.items()}
    for number, place in enumerate(category):
        own = names[place]
        yield _pair(dataset, decks[own][number % len(decks[own])], photos[own], rng)


def _pair(
    dataset: Dataset, background: str, textures: Sequence[str], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    photo, shown = dataset.image(background), dataset.mask(background)
    free = foreground(photo) & ~shown
    if free.sum() < MIN_AREA:  # the object fills nothing of the photo, or its targets fill the object
        free = ~shown
    mask = _blot(photo.shape[:2], free, rng)
    others = [name for name in textures if name != background] or list(textures)
    texture = _texture(dataset.image(others[rng.integers(len(others))]), photo.shape[:2], rng)
    if (photo == photo[..., :1]).all():  # greys, whether in one channel or in three
        texture = np.repeat(texture.mean(axis=2, keepdims=True), 3, axis=2)
    beta = rng.uniform(*_BETA)
    mixed = np.where(mask[..., None], (1 - beta) * photo + beta * texture, photo)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), mask | shown, mask


def _blot(shape: tuple[int, ...], free: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Where thresholded noise meets free places; after many misses, all that is free."""
    for _ in range(_TRIES):
        cells = 2 ** rng.integers(0, _OCTAVES, 2)
        mask = (perlin_noise(shape, (int(cells[0]), int(cells[1])), rng) > _THRESHOLD) & free
        if mask.sum() >= MIN_AREA:
            return mask
    return free


def perlin_noise(
    shape: tuple[int, ...], cells: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Gradient noise [H, W], in about [-1, 1], on a grid of rows x columns cells."""
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    y, x = (np.linspace(0, n, side, endpoint=False) for n, side in zip(cells, shape[:2], strict=True))
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    dy, dx = (y - row)[:, None], (x - column)[None, :]

    def corner(down: int, right: int) -> NDArray[np.float64]:
        angle = angles[row + down][:, column + right]
        ramp: NDArray[np.float64] = np.cos(angle) * (dx - right) + np.sin(angle) * (dy - down)
        return ramp

    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (dy, dx))
    above = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    below = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    return np.sqrt(2) * (above * (1 - fade_y) + below * fade_y)


def _texture(
    image: NDArray[np.uint8], shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float64]:
    """A photo of the background's size, recoloured in three ways and turned by a quarter, or not."""
    picture = Image.fromarray(image).resize((shape[1], shape[0]))
    for choice in rng.choice(len(_RECOLOURED), 3, replace=False):
        picture = _RECOLOURED[choice](picture, float(rng.random()))
    turned = np.rot90(np.asarray(picture), int(rng.integers(4)))
    return np.asarray(Image.fromarray(turned).resize((shape[1], shape[0])), np.float64)
