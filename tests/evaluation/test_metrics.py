"""Every metric against an independent implementation: scikit-learn, torchmetrics or brute force."""

import numpy as np
import pytest
import torch
from skimage.measure import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from torchmetrics.classification import BinaryJaccardIndex
from torchmetrics.segmentation import DiceScore

from cdiff.evaluation import metrics


def random_maps(seed, decimals=None, share=0.1, shape=(3, 40, 50)):
    rng = np.random.default_rng(seed)
    labels = rng.random(shape) < share
    scores = np.clip(rng.normal(0.4, 0.2, shape) + 0.15 * labels, 0, 1)
    return (scores if decimals is None else scores.round(decimals)).astype(np.float32), labels


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ap_f1_and_auroc_agree_with_sklearn_with_and_without_ties(seed, decimals):
    scores, labels = random_maps(seed, decimals)
    flat, truth = scores.ravel(), labels.ravel()
    precision, recall, _ = precision_recall_curve(truth, flat)
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert metrics.pixel_ap(scores, labels) == pytest.approx(average_precision_score(truth, flat), abs=1e-9)
    assert metrics.f1_max(scores, labels) == pytest.approx(f1, abs=1e-9)
    assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(truth, flat), abs=1e-9)


def test_perfect_and_constant_maps_have_the_values_known_by_hand():
    labels = np.zeros((8, 8), dtype=bool)
    labels[2:4, 2:6] = True
    assert metrics.pixel_ap(labels.astype(np.float32), labels) == 1
    assert metrics.f1_max(labels.astype(np.float32), labels) == 1
    assert metrics.auroc(labels.astype(np.float32), labels) == 1
    constant = np.full((8, 8), 0.3, dtype=np.float32)
    assert metrics.pixel_ap(constant, labels) == pytest.approx(8 / 64)
    assert metrics.auroc(constant, labels) == pytest.approx(0.5)


def test_metrics_without_the_pixels_they_need_are_none():
    scores = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    nothing, everything = np.zeros((3, 4), dtype=bool), np.ones((3, 4), dtype=bool)
    assert metrics.pixel_ap(scores, nothing) is None
    assert metrics.f1_max(scores, nothing) is None
    assert metrics.auroc(scores, nothing) is None
    assert metrics.auroc(scores, everything) is None
    assert metrics.aupro([scores], [nothing.astype(int)]) is None
    assert metrics.aupro([], []) is None
    assert metrics.iou(nothing, nothing) is None
    assert metrics.dice(nothing, nothing) is None


def test_scores_that_are_not_finite_or_do_not_fit_are_refused():
    labels = np.eye(3, dtype=bool)
    with pytest.raises(ValueError, match="finite"):
        metrics.pixel_ap(np.full((3, 3), np.nan), labels)
    with pytest.raises(ValueError, match="shape"):
        metrics.pixel_ap(np.zeros((2, 3)), labels)


def brute_aupro(scores, regions, limit):
    """Every distinct threshold in turn, then the trapezoid rule with the curve cut at the limit."""
    normal = np.concatenate([score[area == 0] for score, area in zip(scores, regions, strict=True)])
    curve = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([score.ravel() for score in scores]))[::-1]:
        overlaps = [
            (score[area == index] >= threshold).mean()
            for score, area in zip(scores, regions, strict=True)
            for index in range(1, area.max() + 1)
        ]
        curve.append(((normal >= threshold).mean(), np.mean(overlaps)))
    x, y = np.array(curve).T
    inside = x <= limit
    if not inside.all():
        first = int(np.flatnonzero(~inside)[0])
        step = (limit - x[first - 1]) / (x[first] - x[first - 1])
        x = np.append(x[inside], limit)
        y = np.append(y[inside], y[first - 1] + step * (y[first] - y[first - 1]))
    return np.trapezoid(y, x) / limit


@pytest.mark.parametrize("decimals", [None, 2, 1])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_agrees_with_brute_force_over_all_thresholds(limit, decimals):
    rng = np.random.default_rng(5)
    regions = []
    for _ in range(3):
        mask = np.zeros((24, 30), dtype=bool)
        for _ in range(3):
            top, left = rng.integers(0, 18, 2)
            mask[top : top + rng.integers(1, 7), left : left + rng.integers(1, 9)] = True
        regions.append(label(mask, connectivity=2))
    scores = [np.clip(rng.normal(0.4, 0.2, (24, 30)) + 0.2 * (area > 0), 0, 1) for area in regions]
    scores = [(score if decimals is None else score.round(decimals)).astype(np.float32) for score in scores]
    assert metrics.aupro(scores, regions, limit) == pytest.approx(
        brute_aupro(scores, regions, limit), abs=1e-9
    )


def test_aupro_up_to_one_with_one_region_is_the_roc_area():
    scores, labels = random_maps(3, 2, shape=(30, 40))
    assert metrics.aupro([scores], [labels.astype(int)], limit=1.0) == pytest.approx(
        roc_auc_score(labels.ravel(), scores.ravel()), abs=1e-9
    )


def test_aupro_weighs_a_small_region_as_much_as_a_large_one():
    regions = np.zeros((20, 20), dtype=int)
    regions[0:10, 0:10], regions[15, 15] = 1, 2
    only_large, only_small = (np.where(regions == index, 0.9, 0.1).astype(np.float32) for index in (1, 2))
    assert metrics.aupro([only_large], [regions]) == pytest.approx(metrics.aupro([only_small], [regions]))


def test_negatives_in_parts_count_as_one_pool():
    scores, labels = random_maps(7, 2)
    whole = metrics.rank(scores, labels)
    (negatives,) = whole.negatives
    parts = metrics.Ranks(
        whole.positives, (np.sort(negatives[::3]), np.sort(np.delete(negatives, np.s_[::3])))
    )
    assert metrics.ap_of(parts) == metrics.ap_of(whole)
    assert metrics.auroc_of(parts) == metrics.auroc_of(whole)
    assert metrics.f1_max_of(parts) == metrics.f1_max_of(whole)


def test_f1_max_comes_with_the_threshold_that_reaches_it():
    scores, labels = random_maps(8)
    best, threshold = metrics.f1_max_of(metrics.rank(scores, labels))
    assert metrics.dice(scores >= threshold, labels) == pytest.approx(best)


def test_pooled_iou_agrees_with_counting_at_each_threshold():
    scores, labels = random_maps(9, 2)
    thresholds = np.linspace(0.01, 0.99, 25)
    expected = [metrics.iou(scores >= np.float32(threshold), labels) or 0.0 for threshold in thresholds]
    np.testing.assert_allclose(metrics.iou_of(metrics.rank(scores, labels), thresholds), expected)


def test_iou_and_dice_agree_with_torchmetrics():
    scores, labels = random_maps(10)
    for photo, mask in zip(scores, labels, strict=True):
        predicted = photo >= 0.5
        jaccard = BinaryJaccardIndex()(torch.tensor(predicted), torch.tensor(mask))
        score = DiceScore(num_classes=1, include_background=True)
        expected = score(torch.tensor(predicted)[None, None].long(), torch.tensor(mask)[None, None].long())
        assert metrics.iou(predicted, mask) == pytest.approx(float(jaccard), abs=1e-6)
        assert metrics.dice(predicted, mask) == pytest.approx(float(expected), abs=1e-6)


def test_soft_dice_of_a_binary_map_is_dice():
    scores, labels = random_maps(11)
    predicted = scores[0] >= 0.5
    assert metrics.soft_dice(predicted.astype(np.float32), labels[0]) == pytest.approx(
        metrics.dice(predicted, labels[0])
    )


def test_the_roc_area_at_a_few_million_pixels_is_exact():
    scores, labels = random_maps(12, share=0.002, shape=(20, 300, 400))
    rates, found, _ = roc_curve(labels.ravel(), scores.ravel(), drop_intermediate=False)
    assert metrics.auroc(scores, labels) == pytest.approx(np.trapezoid(found, rates), abs=1e-9)
