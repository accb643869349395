"""From tasks to a stored shard: where memory was short, rows say so, and are made again as they were made."""

import dataclasses

import numpy as np
import pytest

from cdiff.data.images import Limits, decode_png
from cdiff.data.run import Run
from cdiff.data.store import read_pair
from cdiff.generator.placement import draw_pose, frame_of
from cdiff.types import Assignment, GenerationTask, Recipe, Revisions, Strengths
from cdiff.wasm import production
from cdiff.wasm.again import made_again
from cdiff.wasm.mining import Miners
from cdiff.wasm.production import portions, produce_shard, with_half_batches


@pytest.fixture
def plan(photos, tiny_config, tiny_generator, tmp_path) -> tuple[Run, list[Assignment]]:
    """Two tasks of three images at once, and a run that holds what they name."""
    run = Run(tmp_path / "runs" / "one")
    for folder in (run.pairs, run.checkpoints):
        folder.mkdir(parents=True)
    targets = photos.all_targets(s.sample_id for s in photos.samples)
    normals = [s.sample_id for s in photos.samples if s.is_normal]
    bank = tiny_generator.bank(photos, targets)
    bank.save(run.checkpoints / f"{bank.revision}.safetensors")
    revisions = Revisions(tiny_generator.save(run.checkpoints), bank.revision)
    recipe = Recipe("given_mask", "B0", 1, 0.25, 4, "euler", "float32", 3, 1)
    rng, out = np.random.default_rng(0), []
    for number, target in enumerate(targets[:2]):
        frames = frame_of(photos.image(target.sample_id)), frame_of(photos.image(normals[number]))
        pose = draw_pose(target, *frames, (), tiny_config.sampling, (1.3, 2.2), rng)
        task = GenerationTask(
            recipe, target.target_id, normals[number], pose, Strengths(2.0, 1.0), number, revisions
        )
        out.append(Assignment(task, "pit", "uniform", number))
    return run, out


def test_large_photos_are_laid_out_few_at_a_time_and_the_pairs_are_the_same(
    plan, photos, tiny_config, tiny_generator, monkeypatch
) -> None:
    assert [list(p) for p in portions([5, 5, 9, 30, 1], 10)] == [[0, 1], [2], [3], [4]]
    run, assignments = plan
    bank = tiny_generator.bank(photos, photos.all_targets(s.sample_id for s in photos.samples))
    together = produce_shard(assignments, run, tiny_generator, bank, Miners(), photos, tiny_config)
    other = dataclasses.replace(run, place=run.path.with_name("apart"))
    (other.path / "pairs").mkdir(parents=True)
    monkeypatch.setattr(production, "AT_ONCE", 1)
    apart = produce_shard(assignments, other, tiny_generator, bank, Miners(), photos, tiny_config)
    assert [read_pair(run, a) for a in together] == [read_pair(other, a) for a in apart]
    assert [a.assignment for a in together] == [a.assignment for a in apart]


def test_a_shard_made_in_half_batches_says_so_and_is_made_again_alike(
    plan, photos, tiny_config, tiny_generator
) -> None:
    run, assignments = plan
    bank = tiny_generator.bank(photos, photos.all_targets(s.sample_id for s in photos.samples))
    halved = with_half_batches(tiny_config)
    assert halved.sampling.micro_batch == 1
    attempts = produce_shard(assignments, run, tiny_generator, bank, Miners(), photos, halved)
    assert [attempt.task_id for attempt in attempts] == [a.task_id for a in assignments]
    assert [attempt.measure("micro_batch") for attempt in attempts] == [1.0, 1.0]
    stored = [read_pair(run, attempt) for attempt in attempts]
    assert list(made_again(run, attempts, photos, tiny_config)) == stored
    whole = dataclasses.replace(run, place=run.path.with_name("two"))
    (whole.path / "pairs").mkdir(parents=True)
    in_full = produce_shard(assignments, whole, tiny_generator, bank, Miners(), photos, tiny_config)
    assert all("micro_batch" not in dict(attempt.measures) for attempt in in_full)
    limits = Limits.of(tiny_config.data)
    for one, two in zip(attempts, in_full, strict=True):
        images = [
            decode_png(read_pair(*where)[0], limits).astype(int) for where in ((run, one), (whole, two))
        ]
        assert np.abs(images[0] - images[1]).max() <= 1
