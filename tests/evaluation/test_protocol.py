"""What is pooled, what is undefined, and when a candidate is accepted."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from cdiff.config import DataConfig
from cdiff.data.dataset import Dataset
from cdiff.evaluation import metrics
from cdiff.evaluation.protocol import best_iou_threshold, evaluate, photo_dice, scoring_bytes
from cdiff.types import MaskFile, Sample


def write_sample(folder, name, category, boxes, shape=(40, 50)):
    """A grey photo whose mask gives each type its own value; boxes: type -> (left, top, right, bottom)."""
    stem = name.replace("/", "_")
    image, mask = folder / f"{stem}.png", folder / f"{stem}_mask.png"
    Image.fromarray(np.full(shape, 128, dtype=np.uint8)).save(image)
    values = np.zeros(shape, dtype=np.uint8)
    types = sorted(boxes)
    for value, type in enumerate(types, start=1):
        left, top, right, bottom = boxes[type]
        values[top:bottom, left:right] = value
    Image.fromarray(values).save(mask)
    files = (MaskFile(str(mask), tuple((value, type) for value, type in enumerate(types, start=1))),)
    return Sample(
        f"{category}/{name}",
        category,
        tuple(types),
        stem,
        str(image),
        files if types else (),
        shape[1],
        shape[0],
        "L",
        stem,
    )


@pytest.fixture
def dataset(tmp_path):
    samples = [
        write_sample(tmp_path, "a", "metal", {"dent": (5, 5, 15, 12)}),
        write_sample(tmp_path, "b", "metal", {"dent": (20, 8, 30, 30)}),
        write_sample(tmp_path, "c", "metal", {"scratch": (2, 30, 40, 33), "dent": (30, 3, 36, 9)}),
        write_sample(tmp_path, "n1", "metal", {}),
        write_sample(tmp_path, "n2", "metal", {}, shape=(30, 70)),
    ]
    return Dataset(samples, DataConfig())


def ids_of(dataset):
    return [sample.sample_id for sample in dataset.samples]


def noisy_maps(dataset, seed=0):
    rng = np.random.default_rng(seed)
    return {
        sample_id: np.clip(
            rng.normal(0.4, 0.15, dataset.mask(sample_id).shape) + 0.2 * dataset.mask(sample_id), 0, 1
        ).astype(np.float32)
        for sample_id in ids_of(dataset)
    }


def test_a_type_is_pooled_with_all_normals_and_without_the_pixels_of_other_types(dataset):
    maps = noisy_maps(dataset)
    result = evaluate(maps, dataset, ids_of(dataset), 0.5)
    scores, labels = [], []
    for name, kind in (("a", "dent"), ("b", "dent"), ("c", "dent"), ("n1", ""), ("n2", "")):
        sample_id = f"metal/{name}"
        wanted = dataset.type_mask(sample_id, kind)
        counted = wanted | ~dataset.mask(sample_id)
        scores.append(maps[sample_id][counted])
        labels.append(wanted[counted])
    flat, truth = np.concatenate(scores), np.concatenate(labels)
    row = result["per_type"]["metal/dent"]
    assert row["pixel_ap"] == pytest.approx(average_precision_score(truth, flat))
    assert row["auroc"] == pytest.approx(roc_auc_score(truth, flat))
    assert row["iou"] == pytest.approx(metrics.iou(flat >= 0.5, truth))
    assert row["photos"] == 3


def test_totals_are_means_over_types_and_photos(dataset):
    maps = noisy_maps(dataset)
    result = evaluate(maps, dataset, ids_of(dataset), 0.4)
    rows = result["per_type"].values()
    for name in ("pixel_ap", "f1_max", "auroc", "aupro", "iou"):
        assert result[name] == pytest.approx(np.mean([row[name] for row in rows]))
    photos = [f"metal/{name}" for name in "abc"]
    dices = [metrics.dice(maps[sample_id] >= 0.5, dataset.mask(sample_id)) or 0.0 for sample_id in photos]
    assert result["mdice"] == pytest.approx(np.mean(dices))
    assert result["iou_threshold"] == 0.4
    assert result["undefined"] == {}


def test_a_perfect_model_has_one_everywhere(dataset):
    maps = {sample_id: dataset.mask(sample_id).astype(np.float32) for sample_id in ids_of(dataset)}
    result = evaluate(maps, dataset, ids_of(dataset), 0.5)
    for name in ("pixel_ap", "f1_max", "auroc", "aupro", "iou", "mdice", "miou", "image_auroc"):
        assert result[name] == pytest.approx(1), name


def test_without_normals_types_use_their_own_photos_and_image_auroc_is_undefined_with_a_reason(dataset):
    ids = ["metal/a", "metal/b"]
    result = evaluate(noisy_maps(dataset), dataset, ids, 0.5)
    assert result["pixel_ap"] is not None
    assert result["image_auroc"] is None
    assert "normal" in result["undefined"]["image_auroc"]


def test_normals_alone_leave_every_metric_undefined_with_a_reason(dataset):
    result = evaluate(noisy_maps(dataset), dataset, ["metal/n1", "metal/n2"], 0.5)
    for name in ("pixel_ap", "f1_max", "auroc", "aupro", "iou", "mdice", "miou", "image_auroc"):
        assert result[name] is None
        assert result["undefined"][name]


def test_masks_without_any_ground_are_named_as_the_reason(tmp_path):
    samples = [write_sample(tmp_path, name, "wall", {"mould": (0, 0, 50, 40)}) for name in "ab"]
    dataset = Dataset(samples, DataConfig())
    result = evaluate(noisy_maps(dataset), dataset, ids_of(dataset), 0.5)
    assert result["auroc"] is None and result["aupro"] is None and result["mdice"] is not None
    assert result["undefined"]["auroc"] == result["undefined"]["aupro"] == "no pixel without a target"


def test_categories_do_not_lend_each_other_their_normals(tmp_path):
    samples = [
        write_sample(tmp_path, "a", "metal", {"dent": (5, 5, 15, 12)}),
        write_sample(tmp_path, "p", "tissue", {"polyp": (5, 5, 30, 30)}),
        write_sample(tmp_path, "q", "tissue", {}),
    ]
    dataset = Dataset(samples, DataConfig())
    maps = noisy_maps(dataset)
    before = evaluate(maps, dataset, ids_of(dataset), 0.5)["per_type"]
    maps["tissue/q"] = np.ones_like(maps["tissue/q"])
    after = evaluate(maps, dataset, ids_of(dataset), 0.5)["per_type"]
    assert before["metal/dent"] == after["metal/dent"]
    assert after["tissue/polyp"]["pixel_ap"] < before["tissue/polyp"]["pixel_ap"]


def test_maps_that_are_missing_or_not_at_native_size_are_refused(dataset):
    maps = noisy_maps(dataset)
    small = {**maps, "metal/a": maps["metal/a"][::2, ::2]}
    with pytest.raises(ValueError, match="native size"):
        evaluate(small, dataset, ids_of(dataset), 0.5)
    del maps["metal/b"]
    with pytest.raises(ValueError, match="metal/b"):
        evaluate(maps, dataset, ids_of(dataset), 0.5)


def test_the_iou_threshold_is_the_best_of_the_grid(dataset):
    maps = noisy_maps(dataset, seed=4)
    chosen = best_iou_threshold(maps, dataset, ids_of(dataset))
    values = {
        threshold: evaluate(maps, dataset, ids_of(dataset), threshold)["iou"]
        for threshold in (0.3, 0.4, 0.5, 0.55, 0.6, 0.7, chosen)
    }
    assert max(values.values()) == values[chosen]


def test_photo_dice_is_high_for_found_targets_and_leaves_normals_out(dataset):
    ids = ids_of(dataset)
    assert set(photo_dice(noisy_maps(dataset), dataset, ids)) == {"metal/a", "metal/b", "metal/c"}
    perfect = {sample_id: dataset.mask(sample_id).astype(np.float32) for sample_id in ids}
    inverse = {sample_id: 1 - scores for sample_id, scores in perfect.items()}
    assert all(value == pytest.approx(1) for value in photo_dice(perfect, dataset, ids).values())
    assert all(value < 0.01 for value in photo_dice(inverse, dataset, ids).values())


def test_the_memory_of_scoring_is_what_is_told_beforehand(tmp_path):
    boxes = {"dent": (100, 100, 300, 250)}
    samples = [write_sample(tmp_path, str(n), "metal", boxes, (500, 600)) for n in range(8)]
    dataset = Dataset(samples, DataConfig())
    rng = np.random.default_rng(0)
    maps = {sample.sample_id: rng.random((500, 600), dtype=np.float32) for sample in samples}
    evaluate(maps, dataset, list(maps), 0.5)  # reading the masks is none of it
    tracemalloc.start()
    best_iou_threshold(maps, dataset, list(maps))
    evaluate(maps, dataset, list(maps), 0.5)
    peak = tracemalloc.get_traced_memory()[1] + sum(scores.nbytes for scores in maps.values())
    tracemalloc.stop()
    assert 0.7 < peak / scoring_bytes(samples) < 1.3
