"""Paste a real target by its mask so that it belongs to its new surface: light matched along the outline, texture exchanged."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from cdiff.generator.crops import to_resolution, to_side

# standard deviations, pixels, of the bands in which a pasted target keeps its own texture
_BANDS = (1.0, 2.0, 4.0, 8.0)
_LIGHT, _COLOUR = 0.9, 0.35  # bounds of the light's shift, and of a colour's against the light's, in logits
_ROOM = 8.0  # grey levels beyond black and beyond white
_FINE = 4.0  # pixels that a wide smoothing's standard deviation has on the shrunk copy


def blended(base: np.ndarray, patch: np.ndarray, mask: np.ndarray, longer: float) -> np.ndarray:
    """Paste by mask with the light matched along the outline: the shift is carried inwards from the ring around it.

    The shift is one of logits: in the dark it multiplies, as light does with what a surface reflects, and towards white it
    fades out, as a camera's response does, so that no bright target burns out. Single colours follow within bounds, so
    that a target takes on the tint of its new surface but not the black of a corner.
    """
    spread = max(1.0, 0.04 * longer)
    near = ndimage.distance_transform_edt(mask <= 0.5) if (mask > 0.5).any() else np.full(mask.shape, np.inf)
    ring = ((near > spread) & (near <= 3 * spread + 2)).astype(np.float32)
    sigma = max(3.0, 0.3 * longer)
    seen = np.concatenate([np.ones_like(base[..., :1]), base, patch], -1) * ring[..., None]
    weight, here, there = np.split(smoothed(seen, sigma), (1, 4), -1)
    here, there = here / (weight + 1e-6), there / (weight + 1e-6)
    light = np.clip(
        _logit(here.mean(-1, keepdims=True)) - _logit(there.mean(-1, keepdims=True)), -_LIGHT, _LIGHT
    )
    shift = np.clip(_logit(here) - _logit(there), light - _COLOUR, light + _COLOUR)
    lit = np.clip((255 + 2 * _ROOM) / (1 + np.exp(-_logit(patch) - shift)) - _ROOM, 0, 255)
    alpha = np.clip(1 - (near - 0.5) / (2 * spread), 0, 1)[..., None].astype(np.float32)
    alpha = np.maximum(alpha * alpha * (3 - 2 * alpha), mask[..., None])
    around = (near > spread + 1) & (near <= max(8.0, 0.5 * longer))
    return base + alpha * (_own_texture(base, lit, mask, around, longer) - base)


def smoothed(array: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing of [S, S, C]. A wide one is taken on a shrunk copy: at full size it was half of a pasted pair's time."""
    side = array.shape[0]
    small = max(1, round(side / max(1.0, sigma / _FINE)))
    narrow = sigma * small / side
    coarse = ndimage.gaussian_filter(to_resolution(array, small).numpy(), (0, narrow, narrow))
    return to_side(torch.from_numpy(coarse), side)


def _logit(colours: np.ndarray) -> np.ndarray:
    """Log odds of colours in [0, 255], with room added at both ends: black and white have no ratio."""
    share = (colours + _ROOM) / (255 + 2 * _ROOM)
    return np.log(share / (1 - share))


def _own_texture(
    base: np.ndarray, patch: np.ndarray, mask: np.ndarray, around: np.ndarray, longer: float
) -> np.ndarray:
    """The patch, with the texture that is its old surface's and not the target's exchanged for that of the new surface.

    Band by band: what is no stronger inside the target than around it is the surface (a stain lets the grain through),
    what is at least twice as strong is the target (a crack, the gleam of a polyp). Without it, a segmenter learns that
    foreign grain is a defect.
    """
    inside = mask > 0.5
    if inside.sum() < 4 or around.sum() < 16:
        return patch
    out = np.zeros_like(base)
    for sigma in _BANDS:
        if sigma > max(1.0, 0.25 * longer):
            break
        smooth_patch, smooth_base = (ndimage.gaussian_filter(a, (sigma, sigma, 0)) for a in (patch, base))
        own, new = patch - smooth_patch, base - smooth_base
        strength = float((own[inside] ** 2).mean() / ((own[around] ** 2).mean() + 1e-6))
        share = min(1.0, max(0.0, strength - 1))
        out += share * own + (1 - share) * new
        patch, base = smooth_patch, smooth_base
    return np.clip(out + patch, 0, 255)
