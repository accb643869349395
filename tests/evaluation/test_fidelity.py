"""Distances between sets of features, against independent ones and against cases with known answers."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_mmd

from cdiff.evaluation.fidelity import (
    by_kind,
    coverage,
    kid,
    retrieval_at_1,
    same_target_likeness,
    standardised,
)


def _normal(count, seed, shift=0.0, dim=8):
    return np.random.default_rng(seed).normal(shift, 1, (count, dim))


def test_kid_agrees_with_torchmetrics():
    x, y = _normal(40, 0), _normal(40, 1, shift=0.5)
    kernels = [(torch.tensor(a) @ torch.tensor(b).T / 8 + 1) ** 3 for a, b in ((x, x), (x, y), (y, y))]
    assert kid(x, y) == pytest.approx(float(maximum_mean_discrepancy(*kernels)))
    assert kid(x, y) == pytest.approx(float(poly_mmd(torch.tensor(x), torch.tensor(y))))


def test_kid_is_near_zero_for_one_process_and_grows_with_the_distance():
    near, far, farther = (kid(_normal(200, 0), _normal(200, 1, shift)) or 0.0 for shift in (0, 0.5, 1.0))
    assert abs(near) < 0.05 < far < farther
    assert kid(_normal(1, 0), _normal(5, 1)) is None


def test_coverage_counts_the_real_rows_that_are_met():
    real = np.concatenate([_normal(30, 0), _normal(30, 1, shift=20)])
    assert coverage(real, _normal(60, 2)) == pytest.approx(0.5, abs=0.1)
    assert coverage(real, real) == 1
    assert coverage(real, real + 100) == 0
    assert coverage(real[:4], real) is None


def test_retrieval_asks_for_another_target_of_the_kind_and_counts_kinds_evenly():
    kinds, groups = ["a"] * 6 + ["b"] * 2, list("stuvwxyz")
    here = np.array([[1.0, 0.1 * n] for n in range(6)] + [[0.1, 1.0], [0.0, 1.0]])
    assert retrieval_at_1(here, here, kinds, groups) == 1
    scene = np.tile([[5.0, 0.0]], (8, 1))  # all look alike there
    assert retrieval_at_1(here, scene, kinds, groups) == pytest.approx(0.5)
    assert retrieval_at_1(here[:2], here[:2], ["a", "b"], ["s", "t"]) is None


def test_retrieval_looks_for_a_target_of_another_object():
    """Targets of one photo are alike whatever their type is: they say nothing of types."""
    kinds, one_each = ["a", "a", "b", "b"], ["s", "s", "t", "t"]
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.1, 1.0], [0.1, 1.0]])
    assert retrieval_at_1(rows, rows, kinds, one_each) is None
    # a second object of a, which looks like the b, and no second one of b: a alone is counted, and missed
    rows, kinds = np.concatenate([rows, [[0.0, 1.0]]]), [*kinds, "a"]
    assert retrieval_at_1(rows, rows, kinds, [*one_each, "u"]) == 0
    assert retrieval_at_1(rows, rows, ["a"] * 5, [*one_each, "u"]) == 1


def test_features_of_one_target_in_two_scenes_are_alike_beyond_those_of_others():
    targets, noise = np.eye(5), np.random.default_rng(0).normal(0, 0.01, (5, 5))
    assert same_target_likeness(targets, targets + noise) == pytest.approx(1, abs=0.05)
    assert same_target_likeness(np.ones((5, 5)), np.ones((5, 5))) == pytest.approx(0)


def test_sets_are_measured_in_the_real_ones_units():
    real = _normal(50, 0) * 7 + 3
    own, other = standardised(real, real + 7)
    assert own.mean() == pytest.approx(0, abs=1e-9) and own.std(axis=0) == pytest.approx(1, abs=1e-3)
    assert other.mean() == pytest.approx(1, abs=0.2)


def test_a_set_with_more_of_one_kind_is_not_farther_for_that():
    near, far = _normal(60, 0), _normal(60, 1, shift=5)
    real, kinds = np.concatenate([near, far]), ["a"] * 60 + ["b"] * 60
    made = np.concatenate([_normal(20, 2), _normal(100, 3, shift=5)])
    own = ["a"] * 20 + ["b"] * 100
    assert abs(by_kind(kid, real, made, (kinds, own)) or 0) < 0.3 * abs(kid(real, made) or 0)
    assert by_kind(kid, real, made, (kinds, ["c"] * 120)) is None
