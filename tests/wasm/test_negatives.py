"""Hard negatives: false alarms, shown again elsewhere with an empty mask."""

import dataclasses

import numpy as np
import pytest
import torch

from cdiff.config_file import load_config
from cdiff.downstream.scoring import outcomes_of
from cdiff.generator.crops import cut, to_resolution
from cdiff.generator.paste import lay_out
from cdiff.types import GenerationTask, Pose, Recipe, Revisions, Strengths, Target
from cdiff.wasm.budget import plan
from cdiff.wasm.dealing import Stock
from cdiff.wasm.layout import Layout, composite
from cdiff.wasm.mining import make_pairs
from cdiff.wasm.negatives import alarms_of, negative_quotas, slices_of, stocked
from cdiff.wasm.pool import types_of
from cdiff.wasm.quality import Thresholds, validity_reason


@pytest.fixture(scope="module")
def alarms(photos):
    """Score maps that are sure of one place on two normals, and of little elsewhere."""
    maps = {s.sample_id: np.full((s.height, s.width), 0.1, np.float32) for s in photos.samples}
    normals = {s.sample_id: s for s in photos.samples if s.is_normal}
    for name, score in zip(sorted(normals)[:2], (0.6, 0.9), strict=True):
        maps[name][30, 50] = score
    rows = outcomes_of(maps, photos, sorted(maps), 0)
    return alarms_of(rows, normals, photos.all_targets(sorted(maps)))


def test_alarms_are_the_sure_places_on_normals_the_surest_first(alarms, photos):
    assert [alarm.score for alarm in alarms] == pytest.approx([0.9, 0.6])
    place = alarms[0].place
    left, top, right, bottom = place.box
    assert left <= 50 < right and top <= 30 < bottom
    assert place.type == "" and photos.sample(place.sample_id).is_normal
    assert photos.target(place.target_id) == place
    mask = photos.target_mask(place.target_id)
    assert (
        0.6 < mask[top:bottom, left:right].mean() < 0.95 and mask[top:bottom, left:right].sum() == mask.sum()
    )


def test_the_budget_gives_negatives_beside_the_pairs(alarms, photos):
    config = load_config(None, ["wasm.negatives=0.25", "wasm.pairs=40"])
    assert negative_quotas(alarms, config) == {("metal (no target)", "negative"): 10}
    assert negative_quotas((), config) == {}
    targets = {t.target_id: t for t in photos.all_targets(s.sample_id for s in photos.samples)}
    normals = [s.sample_id for s in photos.samples if s.is_normal]

    def pose(reference, background, rng):
        return Pose(40.0, 30.0, 0.0, 1.0, False, 0.0, 1.5)

    stock = Stock(targets, {"metal": normals}, {n: photos.sample(n).group for n in normals}, pose)
    slices = [dataclasses.replace(w, score=0.5) for w in types_of(targets.values())]
    planned = plan(
        slices,
        stocked(stock, alarms),
        config,
        round=1,
        revisions=Revisions("g", "b"),
        negatives=slices_of(alarms),
        further=negative_quotas(alarms, config),
    )
    negative = [a for a in planned if a.purpose == "negative"]
    assert len(negative) == 15 and len(planned) == 75  # oversampled as the pairs are
    assert all(a.task.recipe.mode == "negative" and a.task.recipe.arm == "B0" for a in negative)
    assert all(a.task.background != photos.target(a.task.reference).sample_id for a in negative)


def test_a_negative_shows_the_place_elsewhere_and_no_target(alarms, photos, tiny_config, tiny_generator):
    bank = tiny_generator.bank(photos, [])
    place = alarms[0].place
    background = sorted(
        s.sample_id for s in photos.samples if s.is_normal and s.sample_id != place.sample_id
    )[0]
    recipe = Recipe("negative", "B0", 1, 1.0, 4, "euler", "float32", 3, 1)
    pose = Pose(40.0, 30.0, 0.0, 1.0, False, 0.0, 1.5)
    task = GenerationTask(
        recipe, place.target_id, background, pose, Strengths(2.0, 0.0), 0, Revisions("g", "b")
    )
    pair = make_pairs(tiny_generator, bank, [task], photos, tiny_config)[0]
    assert not pair.target.any() and not pair.mask.any()
    changed = (pair.image != photos.image(background)).any(axis=2)
    left, top, right, bottom = pair.layout.box
    assert changed.any() and changed[top:bottom, left:right].sum() == changed.sum()


def test_a_negative_keeps_the_grain_of_what_looks_like_a_target():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)
    y, x = np.mgrid[:400, :400]
    disc = (y - 200) ** 2 + (x - 200) ** 2 < 60**2
    place = Target("a@1-1-1", "a", "metal", "", "g", (140, 140, 261, 261), int(disc.sum()))
    pose = Pose(200.0, 200.0, 0.0, 1.0, False, 0.0, 1.5)
    photo = np.full((400, 400, 3), 120, np.uint8)
    canvas = lay_out(photo, reference, disc, place, pose, min_side=24, dilation=0.12, repaint=False, rng=rng)
    recipe = Recipe("negative", "B0", 1, 1.0, 4, "euler", "float32", 3, 1)
    task = GenerationTask(recipe, place.target_id, "b", pose, Strengths(2.0, 0.0), 0, Revisions("g", "b"))
    layout = Layout(task, photo, np.zeros((400, 400), bool), False, canvas)
    crop = to_resolution(canvas.pasted, 64) / 127.5 - 1
    image, mask = composite(layout, crop, torch.full((1, 64, 64), -1.0))
    inside = canvas.mask > 0.9
    assert not mask.any()
    assert np.abs(cut(image, canvas.box) - canvas.pasted)[inside].max() <= 1


def test_the_gate_asks_a_negative_for_no_target(tiny_config):
    limits = Thresholds((("visible", "", 0.5), ("label_iou", "", 0.9)))
    faint = {
        "area": 0.0,
        "visible": 0.0,
        "on_object": 0.0,
        "sharpness": 0.0,
        "label_iou": 0.0,
        "changed": 0.0,
    }
    assert validity_reason(faint, "metal/pit", limits, tiny_config) == "not visible"
    assert validity_reason(faint, "metal/", limits, tiny_config) == ""
    assert validity_reason({**faint, "outside": 3.0}, "metal/", limits, tiny_config) == "changed outside"
