"""Near-duplicates are found among those alone that could be alike, and none is missed."""

from __future__ import annotations

import numpy as np
import pytest

from cdiff.config_file import load_config
from cdiff.types import Assignment, Attempt, GenerationTask, Pose, Recipe, Revisions, Strengths
from cdiff.wasm.duplicates import Earlier
from cdiff.wasm.quality import Thresholds, difficulty_ranks, validity_reasons

CONFIG = load_config(None, [])
DUPLICATE = CONFIG.gate.duplicate
MEASURES = (("area", 50.0), ("on_object", 1.0), ("sharpness", 1.0), ("visible", 0.3))


def attempt(index: int, thumbnail: np.ndarray, reference: int, background: int, left: int = 0) -> Attempt:
    recipe, pose = Recipe("joint", "B0", 1, 1.0, 4, "euler", "float32", 4, 1), Pose(5, 5, 0, 1, False, 0, 1.5)
    task = GenerationTask(
        recipe,
        f"c/t/{reference}#0",
        f"c/good/{background}",
        pose,
        Strengths(2.0, 0.4),
        index,
        Revisions("", ""),
    )
    box = (left, 0, left + 10, 10)
    pixels = np.clip(np.rint(thumbnail), 0, 255).astype(np.uint8).tobytes()
    return Attempt(Assignment(task, "c/t", "weak", index), "shard", index, "c", "t", box, MEASURES, pixels)


def surfaces(count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 24, 24]: smooth shades, as thumbnails of photos are."""
    rows, columns = np.mgrid[-1:1:24j, -1:1:24j]
    waves = np.stack([np.ones_like(rows), rows, columns, rows * columns, rows**2, columns**2])
    heights = rng.normal(0, 1, (count, 6)) * [25, 20, 20, 15, 15, 15]
    return 128 + np.tensordot(heights, waves, 1)


def repetitions(attempts: list[Attempt]) -> list[bool]:
    """Compared with every earlier one that is none itself, as the rule says."""
    out: list[bool] = []
    for number, one in enumerate(attempts):
        told = False
        for other in (a for a, repeats in zip(attempts[:number], out, strict=True) if not repeats):
            mine, its = one.assignment.task, other.assignment.task
            touching = abs(one.box[0] - other.box[0]) <= 5  # boxes of one size in one row
            if mine.reference == its.reference or (mine.background == its.background and touching):
                here, there = (np.frombuffer(a.fingerprint, np.uint8).astype(float) for a in (one, other))
                told |= float(np.abs(here - there).mean() / 255) < DUPLICATE
        out.append(told)
    return out


@pytest.mark.parametrize("seed", range(3))
def test_the_same_repetitions_are_found_as_by_comparing_with_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shades = surfaces(60, rng)
    # mean distances from 0 to twice the bound, of a shift, which all sums see, and of noise, which they hardly see
    attempts = [
        attempt(
            index,
            shades[rng.integers(60)]
            + rng.uniform(-2, 2) * 255 * DUPLICATE
            + rng.normal(0, 2, (24, 24)) * rng.random(),
            reference=int(rng.integers(6)),
            background=int(rng.integers(6)),
            left=int(rng.integers(12)),
        )
        for index in range(400)
    ]
    wanted = repetitions(attempts)
    found = validity_reasons(attempts, Thresholds(()), CONFIG)
    assert [reason == "near-duplicate" for reason in found] == wanted
    assert 20 < sum(wanted) < 380


def test_comparisons_do_not_grow_with_the_square_of_the_attempts() -> None:
    count = 4000
    shades = surfaces(count, np.random.default_rng(5))
    attempts = [attempt(i, shade, i % 3, i % 3) for i, shade in enumerate(shades)]
    earlier = Earlier(attempts, DUPLICATE)
    for number in range(count):
        earlier.repeated(number)
        earlier.add(number)
    each_with_all = 2 * 3 * (count // 3) ** 2 / 2  # by reference and by background, of three each
    assert earlier.looked < 0.02 * each_with_all
    assert 0 < earlier.compared < count


def test_ranks_are_those_of_counting_the_easier_and_half_of_the_equals() -> None:
    rng = np.random.default_rng(1)
    losses = rng.integers(0, 40, 300) / 16
    shade = np.zeros((24, 24))
    attempts = []
    for index, loss in enumerate(losses):
        plain = attempt(index, shade, index, index)
        attempts.append(
            Attempt(plain.assignment, "shard", index, "c", "t", plain.box, (("loss", float(loss)),), b"")
        )
    ranks = difficulty_ranks(attempts, CONFIG)
    capped = np.minimum(losses, CONFIG.wasm.kappa)
    for index, loss in enumerate(capped):
        assert ranks[index] == ((capped < loss).sum() + 0.5 * (capped == loss).sum()) / 300
