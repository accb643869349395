"""What equal runs of one home take from each other, and what counts as equal."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.downstream import Fit, FitRequest
from actors.shelf import (
    data_key,
    fit_key,
    generator_key,
    shelve_fit,
    shelve_generator,
    shelve_shard,
    take_shard,
    taken_fit,
    taken_generator,
)
from cdiff.config import Config
from cdiff.config_file import dump_config
from cdiff.data.dataset import Dataset
from cdiff.data.store import (
    IMAGES,
    Run,
    ShardRow,
    create_run,
    read_attempts,
    shard_committed,
    shard_name,
    write_shard,
)
from cdiff.types import Assignment, Attempt, GenerationTask, Pose, Recipe, Revisions, Strengths

SPLITS: Any = SimpleNamespace(hash="abc", photos="def")
CONFIG = Config()


def changed(**values: Any) -> Config:
    return CONFIG.model_copy(update={"downstream": CONFIG.downstream.model_copy(update=values)})


@pytest.fixture
def runs(tmp_path) -> tuple[Run, Run]:
    one, other = (
        create_run(tmp_path / "home", name, dump_config(Config()), SPLITS) for name in ("one", "other")
    )
    return one, other


def assignment(
    number: int, arm: Any = "B0", segmenter: str = "", reference: str = "", background: str = ""
) -> Assignment:
    recipe = Recipe("mask_first", arm, 1, 1.0, 16, "euler", "float32", 8, 1)
    pose = Pose(10.0, 20.0, 0.0, 1.0, False, 0.0, 1.5)
    revisions = Revisions("g", "b", segmenter)
    painted = reference or f"metal/pit/{number}#0", background or "metal/good/1"
    task = GenerationTask(recipe, *painted, pose, Strengths(2.0, 0.3), number, revisions)
    return Assignment(task, "metal/pit", "uniform", number)


def written(run: Run, shard: list[Assignment]) -> str:
    name = shard_name(shard)
    rows = [
        ShardRow(Attempt(a, name, n, "metal", "pit", (1, 2, 3, 4), (), b"x"), *(b"pixels" for _ in IMAGES))
        for n, a in enumerate(shard)
    ]
    return write_shard(run, name, rows)


def test_a_fit_is_taken_with_its_weights_and_its_cost(runs):
    one, other = runs
    fit = Fit("segmenter-1", (0.5, 0.25), 33.0)
    assert taken_fit(other, "key") is None
    one.checkpoint(fit.revision).mkdir()
    (one.checkpoint(fit.revision) / "model.safetensors").write_bytes(b"weights")
    shelve_fit(one, "key", fit)
    shelve_fit(one, "key", fit)  # twice is once
    found = taken_fit(other, "key")
    assert found is not None and (found["revision"], found["seconds"]) == ("segmenter-1", 33.0)
    assert (other.checkpoint("segmenter-1") / "model.safetensors").read_bytes() == b"weights"


def test_a_shelf_that_cannot_be_written_costs_no_work(runs, caplog):
    one, _ = runs
    (one.home / "shelf").write_text("a file where a folder should be")
    (one.checkpoint("segmenter-1")).mkdir(parents=True)
    shelve_fit(one, "key", Fit("segmenter-1", (0.5,), 33.0))
    assert "segmenter-1 is not kept for other runs" in caplog.text


def test_fits_are_equal_only_with_equal_photos_pairs_steps_and_settings(photos):
    ids = [sample.sample_id for sample in photos.samples]
    request = FitRequest(tuple(ids), 10, 0)
    key = fit_key(request, photos, CONFIG)
    assert key == fit_key(dataclasses.replace(request), photos, CONFIG)
    others = [
        fit_key(dataclasses.replace(request, **change), photos, CONFIG)
        for change in (
            {"steps": 11},
            {"seed": 1},
            {"again": 1},
            {"perlin": 3},
            {"sample_ids": tuple(ids[1:])},
            {"start": "x"},
            {"base": True},
            {"cycle": 1},
            {"mix": 0.3},
        )
    ]
    pair: Any = SimpleNamespace(task_id="made")
    others.append(fit_key(dataclasses.replace(request, pairs=(pair,)), photos, CONFIG))
    wider = CONFIG.generator.model_copy(update={"dilation": 0.3})  # what is painted, with the same tasks
    wider_config = CONFIG.model_copy(update={"generator": wider})
    others.append(fit_key(dataclasses.replace(request, pairs=(pair,)), photos, wider_config))
    assert fit_key(request, photos, wider_config) == key  # without pairs there is nothing painted
    others.append(fit_key(request, photos, changed(lr=0.5)))
    threads = CONFIG.resources.model_copy(update={"threads": 3})
    others.append(fit_key(request, photos, CONFIG.model_copy(update={"resources": threads})))
    assert len({key, *others}) == 1 + len(others)
    longer_base = changed(base_steps=7)  # the request says how many steps it takes
    assert fit_key(request, photos, longer_base) == key


def test_a_users_own_network_is_never_shelved(runs, photos):
    own = changed(factory="mine:network")
    assert fit_key(FitRequest((), 1, 0), photos, own) == ""
    shelve_fit(runs[0], "", Fit("none", (), 0.0))
    assert taken_fit(runs[0], "") is None


def test_candidates_that_nobody_judged_are_taken_and_others_are_not(runs, photos):
    one, other = runs
    target = photos.all_targets(s.sample_id for s in photos.samples)[0].target_id
    normal = next(s.sample_id for s in photos.samples if s.is_normal)
    free, judged = (
        [assignment(n, *by, reference=target, background=normal) for n in range(3)]
        for by in (("B0", ""), ("B1", "s"))
    )
    for shard in (free, judged):
        name = written(one, shard)
        shelve_shard(one, name, shard, photos, CONFIG)
        take_shard(other, name, shard, photos, CONFIG)
    assert shard_committed(other, shard_name(free)) and not shard_committed(other, shard_name(judged))
    assert read_attempts(other, shard_name(free)) == read_attempts(one, shard_name(free))


def test_a_corrected_mask_makes_other_data(photos, tmp_path):
    sample = next(s for s in photos.samples if not s.is_normal)
    file = tmp_path / "mask.png"
    keys = set()
    for side in (3, 4):
        mask = np.zeros((sample.height, sample.width), np.uint8)
        mask[:side, :side] = 255
        path = file.with_stem(f"mask{side}")
        Image.fromarray(mask).save(path)
        masks = tuple(dataclasses.replace(m, path=str(path)) for m in sample.masks)
        keys.add(
            data_key(Dataset([dataclasses.replace(sample, masks=masks)], CONFIG.data), [sample.sample_id])
        )
    assert len(keys) == 2


def test_generators_are_equal_only_with_equal_photos_targets_and_settings(photos):
    ids = [sample.sample_id for sample in photos.samples]
    targets = [target.target_id for target in photos.all_targets(ids)]
    normals = [sample.sample_id for sample in photos.samples if sample.is_normal]

    def other(section: str, **values: Any) -> Config:
        return CONFIG.model_copy(update={section: getattr(CONFIG, section).model_copy(update=values)})

    key = generator_key(photos, ids, targets, normals, CONFIG)
    others = [
        generator_key(photos, ids[1:], targets, normals, CONFIG),
        generator_key(photos, ids, targets[1:], normals, CONFIG),
        generator_key(photos, ids, targets, normals[1:], CONFIG),
        generator_key(photos, ids, targets, normals, other("generator", steps=7)),
        generator_key(photos, ids, targets, normals, other("safe", dim=64)),
        generator_key(photos, ids, targets, normals, other("train", workers=2)),
        generator_key(photos, ids, targets, normals, other("resources", threads=3)),
    ]
    assert len({key, *others}) == 1 + len(others)
    assert generator_key(photos, list(ids), targets, normals, changed(lr=0.5)) == key


def test_a_generator_of_one_run_serves_another_of_its_home(runs):
    one, other = runs
    assert taken_generator(one, "key") is None
    folder = one.checkpoint("generator-1")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    shelve_generator(one, "key", "generator-1", 12.5)
    shelve_generator(one, "key", "generator-1", 13.0)  # another process was first: its own stays
    assert taken_generator(other, "key") == ("generator-1", 12.5)
    assert (other.checkpoint("generator-1") / "model.safetensors").read_bytes() == b"weights"
