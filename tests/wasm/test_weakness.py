"""Slices: every target in one, none too thin, the weakest first."""

import random
from collections import Counter

import numpy as np
import pytest

from cdiff.types import UPLOAD, GenerationTask, Outcome, Pose, Recipe, Revisions, Slice, Strengths
from cdiff.wasm.weakness import apart, false_positives, rank


def outcome(
    number: int, type: str, size: float, contrast: float, dice: float, category: str = "tile"
) -> Outcome:
    name = f"{category}/{type or 'good'}/{number:03d}"
    return Outcome(
        target_id=f"{name}#0" if type else name,
        sample_id=name,
        category=category,
        type=type,
        group=str(number),
        fold=number % 2,
        loss=2 * (1 - dice),
        soft_dice=dice,
        missed=1 - dice,
        false_area=0.0,
        confidence=dice,
        boundary_error=0.1,
        size=size,
        contrast=contrast,
    )


def many(count: int = 150, seed: int = 0) -> list[Outcome]:
    rng = np.random.default_rng(seed)
    types = rng.choice(["crack", "stain", "chip", "rare"], count, p=[0.5, 0.3, 0.17, 0.03])
    rows = []
    for i in range(count):
        size, contrast, dice = (float(value) for value in rng.random(3))
        rows.append(outcome(i, str(types[i]), size, contrast, dice, category=("tile", "screw")[i % 3 == 0]))
    return rows


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_targets", [1, 8, 20])
def test_every_target_is_in_exactly_one_slice_and_no_slice_is_thin(seed: int, min_targets: int) -> None:
    rows = many(seed=seed)
    ranked = rank(rows, min_targets)
    members = Counter(target for weakness in ranked for target in weakness.targets)
    assert members == Counter(row.target_id for row in rows)
    assert all(len(weakness.targets) >= min_targets for weakness in ranked)
    assert len({weakness.slice.name for weakness in ranked}) == len(ranked)
    by_id = {row.target_id: row for row in rows}
    for weakness in ranked:
        for row in map(by_id.get, weakness.targets):
            assert row is not None
            assert row.category == weakness.slice.category
            assert weakness.slice.type in ("", row.type)


def test_the_ranking_does_not_depend_on_the_order_of_the_outcomes() -> None:
    rows = many()
    shuffled = rows.copy()
    random.Random(1).shuffle(shuffled)
    assert rank(shuffled, 8) == rank(rows, 8)


def test_slices_sort_by_dice_error_even_when_hopeless() -> None:
    rows = [outcome(i, "lost", 0.5, 0.5, 0.01) for i in range(10)]
    rows += [outcome(10 + i, "half", 0.5, 0.5, 0.5) for i in range(10)]
    rows += [outcome(20 + i, "solved", 0.5, 0.5, 0.95) for i in range(10)]
    ranked = rank(rows, 8)
    assert [weakness.slice.type for weakness in ranked] == ["lost", "half", "solved"]
    assert [weakness.score for weakness in ranked] == pytest.approx([0.99, 0.5, 0.05])


def test_contrast_merges_before_size_and_size_before_type() -> None:
    # Three sizes of crack, the small ones half faint and half clear: enough for a slice of either contrast only there.
    rows = [outcome(i, "crack", 0.1, 0.1 if i < 8 else 0.9, 0.5) for i in range(16)]
    rows += [outcome(16 + i, "crack", 0.5, 0.1 if i < 5 else 0.9, 0.5) for i in range(10)]
    rows += [outcome(26 + i, "stain", 0.9, 0.1 if i < 6 else 0.9, 0.5) for i in range(12)]
    names = {weakness.slice.name: len(weakness.targets) for weakness in rank(rows, 8)}
    assert names["tile/crack/small/faint"] == 8
    assert names["tile/crack/small/clear"] == 8
    assert names["tile/crack/medium"] == 10
    assert names["tile/stain/large"] == 12


def test_a_rare_type_merges_into_its_category_and_the_others_stay() -> None:
    rows = [outcome(i, "crack", 0.5, 0.5, 0.5) for i in range(20)]
    rows += [outcome(20 + i, "a", 0.5, 0.5, 0.5) for i in range(4)]
    rows += [outcome(24 + i, "b", 0.5, 0.5, 0.5) for i in range(5)]
    ranked = {weakness.slice: len(weakness.targets) for weakness in rank(rows, 8)}
    assert ranked[Slice("tile")] == 9
    assert sum(count for piece, count in ranked.items() if piece.type == "crack") == 20


def test_a_category_with_few_targets_is_one_slice() -> None:
    (only,) = rank([outcome(i, "ab"[i % 2], i / 3, 0.5, 0.5) for i in range(3)], 8)
    assert only.slice == Slice("tile")
    assert len(only.targets) == 3


def test_normal_photos_are_reported_apart() -> None:
    rows = [outcome(i, "crack", 0.5, 0.5, 0.5) for i in range(9)]
    normals = [outcome(50 + i, "", 0.0, 0.0, 0.8) for i in range(3)]
    normals += [outcome(60, "", 0.0, 0.0, 0.1, category="screw")]
    assert rank(rows + normals, 8) == rank(rows, 8)
    screw, tile = false_positives(rows + normals)
    assert (screw.slice, tile.slice) == (Slice("screw"), Slice("tile"))
    assert screw.score == pytest.approx(0.9)
    assert tile.targets == tuple(sorted(row.sample_id for row in normals if row.category == "tile"))


def test_two_outcomes_of_one_target_are_refused() -> None:
    with pytest.raises(ValueError, match="two outcomes"):
        rank([outcome(1, "crack", 0.5, 0.5, 0.5)] * 2, 8)


def test_a_folds_model_sees_no_pair_of_its_photos_nor_one_of_unknown_objects(photos) -> None:
    recipe = Recipe("joint", "B0", 1, 0.25, 16, "euler", "float32", 8, 2)
    pose = Pose(1.5, 2.5, 0.0, 1.0, False, 0.05, 1.7)

    def task(reference: str, background: str) -> GenerationTask:
        return GenerationTask(
            recipe, reference, background, pose, Strengths(2.0, 0.4), 1, Revisions("g", "b")
        )

    target, normal = photos.targets("metal/pit/000")[0], photos.sample("metal/good/009")
    made = task(target.target_id, normal.sample_id)
    assert apart(made, {"elsewhere"}, photos)
    assert not apart(made, {target.group}, photos) and not apart(made, {normal.group}, photos)
    assert not apart(task(f"{UPLOAD}0123#0", normal.sample_id), {"elsewhere"}, photos)
    assert not apart(task(target.target_id, f"{UPLOAD}0123"), {"elsewhere"}, photos)
