"""The strict protocol: which pixels are pooled for which metric.

Per type, the positives are the pixels of that type in its photos; the negatives are the pixels of these photos that show
no target, and all pixels of the category's normals. Pixels of other types are left out: the segmenter is right to mark them.
Masks are never shrunk; score maps come at native size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from cdiff.data.dataset import Dataset
from cdiff.downstream.scoring import image_score
from cdiff.evaluation import metrics
from cdiff.evaluation.metrics import Ranks
from cdiff.types import Sample

Maps = Mapping[str, NDArray[np.floating]]
POOLED = ("pixel_ap", "f1_max", "auroc", "aupro", "iou")
THRESHOLDS = np.linspace(0.01, 0.99, 99)  # candidates for the IoU threshold
MASK_THRESHOLD = 0.5  # of mdice and miou
_BYTES = 16  # per pixel: scores, their sorted copies and ranks, as measured
NO_TARGETS = "no photo with targets"
NO_GROUND = "no pixel without a target"
NO_NORMALS = "no normal photo to tell from the others"


def evaluate(score_maps: Maps, dataset: Dataset, ids: Iterable[str], iou_threshold: float) -> dict[str, Any]:
    """All metrics of a split.

    Args:
        score_maps: [H, W] in [0, 1] by sample_id, at native size.
        iou_threshold: from `best_iou_threshold` on the validation split.
    Returns:
        {pixel_ap, f1_max, auroc, aupro, iou: means over types; mdice, miou: means over photos with targets, at 0.5;
        image_auroc: mean over categories; iou_threshold; per_type: {"category/type": {the five, mdice, photos}};
        undefined: {metric: reason}}. What is undefined is None.
    Raises:
        ValueError: a map is missing or its size is not its photo's.
    """
    wanted = sorted(set(ids))
    _check(score_maps, dataset, wanted)
    pools = _pools(score_maps, dataset, wanted)
    per_photo = {sample_id: _overlap(score_maps[sample_id], dataset.mask(sample_id)) for sample_id in wanted}
    per_type: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    for key, (ranks, photos) in pools.items():
        per_type[key] = _type_metrics(ranks, iou_threshold)
        per_type[key] |= {
            "mdice": _mean([per_photo[sample_id][0] for sample_id in photos]),
            "photos": len(photos),
        }
        for name in POOLED:
            if per_type[key][name] is None:
                undefined[f"{key}:{name}"] = NO_GROUND if ranks.positives.size else "the masks are empty"
    result: dict[str, Any] = {name: _mean([row[name] for row in per_type.values()]) for name in POOLED}
    result["mdice"] = _mean([values[0] for values in per_photo.values()])
    result["miou"] = _mean([values[1] for values in per_photo.values()])
    result["image_auroc"] = _image_auroc(score_maps, dataset, wanted)
    any_targets = any(values[0] is not None for values in per_photo.values())
    for name, value in result.items():
        if value is None:
            known = {"image_auroc": NO_NORMALS, "auroc": NO_GROUND, "aupro": NO_GROUND}
            undefined[name] = known.get(name, NO_TARGETS) if any_targets else NO_TARGETS
    return {**result, "iou_threshold": iou_threshold, "per_type": per_type, "undefined": undefined}


def scoring_bytes(samples: Iterable[Sample]) -> int:
    """Memory that `evaluate` and `best_iou_threshold` take for photos of a split, at most: they sort all of its pixels at once."""
    return _BYTES * sum(sample.width * sample.height for sample in samples)


def best_iou_threshold(score_maps: Maps, dataset: Dataset, ids: Iterable[str]) -> float:
    """The threshold with the highest mean over types of the pooled IoU, from 0.01 to 0.99; 0.5 where there is no target."""
    wanted = sorted(set(ids))
    _check(score_maps, dataset, wanted)
    pools = [ranks for ranks, _ in _pools(score_maps, dataset, wanted).values() if ranks.positives.size]
    if not pools:
        return 0.5
    means = np.mean([metrics.iou_of(ranks, THRESHOLDS) for ranks in pools], axis=0)
    return round(float(THRESHOLDS[int(means.argmax())]), 2)


def photo_dice(score_maps: Maps, dataset: Dataset, ids: Iterable[str]) -> dict[str, float]:
    """Soft Dice of each photo with targets, in [0, 1]."""
    shown = [sample_id for sample_id in sorted(set(ids)) if dataset.mask(sample_id).any()]
    return {i: metrics.soft_dice(score_maps[i], dataset.mask(i)) for i in shown}


def _pools(score_maps: Maps, dataset: Dataset, ids: list[str]) -> dict[str, tuple[Ranks, list[str]]]:
    """Sorted pixels and photos per "category/type"."""
    samples = [dataset.sample(sample_id) for sample_id in ids]
    pools: dict[str, tuple[Ranks, list[str]]] = {}
    for category in sorted({sample.category for sample in samples}):
        members = [sample for sample in samples if sample.category == category]
        normals = [score_maps[sample.sample_id].ravel() for sample in members if sample.is_normal]
        shared = (np.sort(np.concatenate(normals)),) if normals else ()
        for type in sorted({type for sample in members for type in sample.types}):
            photos = [sample.sample_id for sample in members if type in sample.types]
            pools[f"{category}/{type}"] = (_type_ranks(score_maps, dataset, photos, type, shared), photos)
    return pools


def _type_ranks(
    score_maps: Maps, dataset: Dataset, photos: list[str], type: str, shared: tuple[NDArray[np.floating], ...]
) -> Ranks:
    positives, negatives, regions = [], [], []
    for sample_id in photos:
        scores, mask = score_maps[sample_id], dataset.type_mask(sample_id, type)
        positives.append(scores[mask])
        negatives.append(scores[~dataset.mask(sample_id)])
        regions.append(label(mask, connectivity=2)[mask])  # whole label maps would be most of the memory
    joined = np.concatenate(positives)
    order = np.argsort(joined, kind="stable")
    weights = metrics.region_weights(regions)[order]
    background = np.concatenate(negatives)
    background.sort()  # in place
    return Ranks(joined[order], (background, *shared), weights)


def _type_metrics(ranks: Ranks, iou_threshold: float) -> dict[str, float | None]:
    some, both = bool(ranks.positives.size), bool(ranks.positives.size and ranks.negative_count)
    return {
        "pixel_ap": metrics.ap_of(ranks) if some else None,
        "f1_max": metrics.f1_max_of(ranks)[0] if some else None,
        "auroc": metrics.auroc_of(ranks) if both else None,
        "aupro": metrics.aupro_of(ranks) if both else None,
        "iou": float(metrics.iou_of(ranks, np.array([iou_threshold]))[0]) if some else None,
    }


def _overlap(scores: NDArray[np.floating], mask: NDArray[np.bool_]) -> tuple[float | None, float | None]:
    """Dice and IoU of a photo with targets; (None, None) for a normal: its foreground is empty."""
    if not mask.any():
        return None, None
    predicted = scores >= MASK_THRESHOLD
    return metrics.dice(predicted, mask), metrics.iou(predicted, mask)


def _image_auroc(score_maps: Maps, dataset: Dataset, ids: list[str]) -> float | None:
    values = []
    samples = [dataset.sample(sample_id) for sample_id in ids]
    for category in sorted({sample.category for sample in samples}):
        members = [sample for sample in samples if sample.category == category]
        scores = np.array([image_score(score_maps[sample.sample_id]) for sample in members])
        values.append(metrics.auroc(scores, np.array([not sample.is_normal for sample in members])))
    return _mean(values)


def _check(score_maps: Maps, dataset: Dataset, ids: list[str]) -> None:
    for sample_id in ids:
        sample = dataset.sample(sample_id)
        if sample_id not in score_maps:
            raise ValueError(f"no score map of {sample_id}")
        if score_maps[sample_id].shape != (sample.height, sample.width):
            raise ValueError(
                f"the score map of {sample_id} is {score_maps[sample_id].shape}, "
                f"its photo {(sample.height, sample.width)}: scores must be at native size"
            )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
