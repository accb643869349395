"""Pairs of Perlin noise, the control arm without a generator."""

import numpy as np
import pytest

from cdiff.generator.perlin import perlin_noise, perlin_pairs


def _normals(photos):
    return [sample.sample_id for sample in photos.samples if sample.is_normal]


def test_a_pair_changes_its_background_inside_its_mask_alone(photos):
    names = _normals(photos)
    pairs = list(perlin_pairs(photos, names[:1], 8, seed=0))
    background = photos.image(names[0])
    assert len(pairs) == 8
    for image, mask, new in pairs:
        assert 4 <= mask.sum() < mask.size and np.array_equal(mask, new)
        assert np.array_equal(image[~mask], background[~mask])
        assert (image[mask] != background[mask]).any()


def test_targets_of_the_background_stay_as_they_are_and_stay_marked(photos):
    shown = next(s.sample_id for s in photos.samples if not s.is_normal)
    own = photos.mask(shown)
    for image, mask, new in perlin_pairs(photos, [shown], 4, seed=1):
        assert np.array_equal(image[own], photos.image(shown)[own])
        assert mask[own].all() and mask.sum() > own.sum()
        assert np.array_equal(new, mask & ~own)  # what crops are centred on


def test_a_seed_repeats_and_another_gives_other_pairs(photos):
    names = _normals(photos)
    one, again, other = (list(perlin_pairs(photos, names, 3, seed=s)) for s in (0, 0, 1))
    assert all(
        np.array_equal(a, b) and np.array_equal(m, n) for (a, m, _), (b, n, _) in zip(one, again, strict=True)
    )
    assert any(not np.array_equal(a, b) for (a, *_), (b, *_) in zip(one, other, strict=True))


def test_noise_is_smooth_zero_at_its_grid_points_and_bounded():
    noise = perlin_noise((64, 96), (4, 8), np.random.default_rng(0))
    assert np.abs(noise[::16, ::12]).max() < 1e-9
    assert 0.3 < np.abs(noise).max() <= 1.001
    assert np.abs(np.diff(noise, axis=0)).max() < 0.25


def test_without_photos_it_says_so(photos):
    with pytest.raises(ValueError, match="photos to paint on"):
        list(perlin_pairs(photos, [], 1, seed=0))
